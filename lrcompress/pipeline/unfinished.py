"""The state of a run that has not ended: written beside the output, read again by `--resume`."""

import io
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lrcompress.artifact import write_atomically
from lrcompress.dlrt import world
from lrcompress.errors import OptionError, OutputError, TrainingError
from lrcompress.pipeline.run_settings import explain_differences

VERSION = 3
SUFFIX = ".unfinished.pt"
KEYS = {"version", "command", "settings", "processes", "plan", "kappas", "state"}
MOST_DIFFERENCES = 4  # that a message tells
ANEW = "--overwrite instead of --resume starts the run anew"
GO_ON = "--resume goes on from the last state that was saved"
MEASURE = "the training is over and kept: --resume goes on with measuring and writing"


@dataclass(frozen=True)
class UnfinishedRun:
    """A file that holds the state of a run.

    Attributes:
        path: where it is.
        settings: what the result depends on, as far as it is known (see `run_settings`); a run goes on with the same
            only.
        command: what the user typed.
    """

    path: Path
    settings: Mapping[str, Any]
    command: str

    @classmethod
    def beside(cls, output: Path, settings: Mapping[str, Any], *, command: str) -> "UnfinishedRun":
        """Returns the run whose result will be `output`."""
        return cls(unfinished_path(output), settings, command)

    def knowing(self, settings: Mapping[str, Any]) -> "UnfinishedRun":
        """Returns the run with more settings."""
        return replace(self, settings={**self.settings, **settings})

    def read(self) -> dict[str, Any] | None:
        """Returns what was written, None if there is nothing.

        Raises:
            OutputError: if the file cannot be read.
            OptionError: if it is of a run with other settings.
        """
        # Of a process that was killed while it wrote.
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            left.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        content = read_unfinished(self.path)
        self.check(content)
        return content

    def check(self, content: Mapping[str, Any]) -> None:
        """Raises `OptionError` if what was read is of a run with other settings, as far as they are known."""
        differences = explain_differences(content["settings"], self.settings)
        if differences:
            more = len(differences) - MOST_DIFFERENCES
            told = [*differences[:MOST_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])]
            raise OptionError(
                f"`{self.path}` is the state of another run: {'; '.join(told)}",
                hint=f"resume as it was started (lrcompress inspect {self.path} says how), or start anew with "
                "--overwrite instead of --resume",
            )

    def write(self, **content: Any) -> None:
        """Replaces the file, whole or not at all: by a plan, the condition numbers at the start, and a state.

        Raises:
            OutputError: if the file system refuses; the old state is still there then.
        """
        if world()[0] != 0:
            return
        run = {"version": VERSION, "command": self.command, "settings": dict(self.settings), "processes": world()[1]}
        buffer = io.BytesIO()
        torch.save({**run, **content}, buffer)
        write_atomically(self.path, buffer.getvalue())


def unfinished_path(output: Path) -> Path:
    """Returns where the state of a run is kept while its result is not there."""
    return output.with_name(f"{output.stem}{SUFFIX}")


def read_unfinished(path: Path) -> dict[str, Any]:
    """Returns what `UnfinishedRun.write` has written.

    Raises:
        OutputError: if the file cannot be read, or is something else.
        OptionError: if another version of this program has written it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["version"]
        known = version != VERSION or content.keys() >= KEYS
    except Exception as error:  # what is no such file may make torch raise anything
        raise OutputError(f"`{path}` is no state of a run, or damaged", hint=ANEW) from error
    if version != VERSION:
        raise OptionError(f"`{path}` was written by another version of this program", hint=ANEW)
    if not known:
        raise OutputError(f"`{path}` is no state of a run, or damaged", hint=ANEW)
    return content


def is_unfinished(path: Path) -> bool:
    """Whether a file is named as states of runs are."""
    return path.name.endswith(SUFFIX) and path.is_file()


def describe_unfinished(path: Path) -> dict[str, Any]:
    """Returns how far a run is, what it has reached, and how it goes on, as JSON types; errors as `read_unfinished`."""
    content = read_unfinished(path)
    state, plan = content["state"], content["plan"]
    log = state["selection"]["log"]
    return {
        "kind": "unfinished run",
        "step": state["step"],
        "steps": state["steps"],
        "training_is_over": state["over"],
        "epoch": log[-1]["epoch"] if state["over"] else state["epoch"],
        "seconds": state["elapsed"],
        "parameters": state["parameters"],
        "log": log,
        "warnings": state["warnings"],
        "settings": content["settings"],
        "source_sha256": plan["source_sha256"],
        "processes": content["processes"],
        "command": content["command"],
        "resume": _resuming(content["command"], content["processes"]),
    }


def _resuming(command: str, processes: int) -> str:
    """Returns the command that goes on with a run.

    >>> _resuming("lrcompress compress 'a b.pt' --overwrite", 2)
    "torchrun --nproc-per-node 2 -m lrcompress compress 'a b.pt' --resume"
    """
    if not command.startswith("lrcompress compress "):
        return "the same call with resume=True"
    words = [word for word in shlex.split(command) if word not in ("--resume", "--overwrite")]
    launcher = ["torchrun", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    return shlex.join([*launcher, *words, "--resume"])


def refuse_to_lose(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises `OptionError` if there is the state of a run that starting anew would replace."""
    path = unfinished_path(output)
    if path.exists() and not resume and not overwrite:
        raise OptionError(
            f"`{path}` is the state of a run that has not ended",
            hint="--resume goes on with it, --overwrite starts anew",
        )


@contextmanager
def telling_how_to_go_on(path: Path, hint: str) -> Iterator[None]:
    """Lets whoever interrupts the work, and whose disk is full, know that there is a state to go on from."""
    try:
        with ended_as_by_ctrl_c():
            yield
    except KeyboardInterrupt:
        if not path.exists():
            raise
        raise TrainingError("interrupted; no file is half-written", hint=hint) from None
    except OutputError as error:
        if not path.exists():
            raise
        raise OutputError(error.message, hint=f"make room; {hint}") from error


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does; outside of the main thread nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether the process was asked to end, by Ctrl-C or SIGTERM.

    The first request is left to whoever asks, a second one ends the process as usual, and so does a first one that
    nobody has asked about. Of several processes none is ended by a second one: the terminal and `torchrun` both pass on
    a Ctrl-C, and `torchrun` itself ends what does not end in time. Outside of the main thread, where signals do not
    arrive, nobody is ever asked to end.
    """
    asked: list[int] = []
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        if world()[1] == 1:
            for each in signals:
                signal.signal(each, before[each])

    def is_asked() -> bool:
        told[:] = asked
        return bool(asked)

    for number in signals:
        signal.signal(number, note)
    try:
        yield is_asked
    finally:
        for number in signals:
            signal.signal(number, before[number])
    # Not after an error, which ends the process too and has something to say.
    if asked and not told:
        signal.raise_signal(asked[0])
