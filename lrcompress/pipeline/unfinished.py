"""The state of a fine-tuning that has not ended: written beside the output, read again by `--resume`."""

import io
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrcompress.artifact import write_atomically
from lrcompress.dlrt import world
from lrcompress.errors import OptionError, OutputError

VERSION = 1
LONGEST_VALUES = 160  # characters of two values that a message tells


@dataclass(frozen=True)
class UnfinishedRun:
    """A file that holds the state of a run.

    Attributes:
        path: where it is.
        settings: all that the result depends on, as JSON types; a run goes on only with the same.
    """

    path: Path
    settings: Mapping[str, Any]

    @classmethod
    def beside(cls, output: Path, settings: Mapping[str, Any]) -> "UnfinishedRun":
        """Returns the run whose result will be `output`."""
        return cls(unfinished_path(output), settings)

    def read(self) -> dict[str, Any] | None:
        """Returns the state to go on from, None if there is none.

        Raises:
            OutputError: if the file cannot be read.
            OptionError: if it is the state of a run with other settings.
        """
        # Of a process that was killed while it wrote.
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            left.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            version, settings, state = (content[key] for key in ("version", "settings", "state"))
        except Exception as error:  # what is no such file may make torch raise anything
            raise OutputError(
                f"`{self.path}` is no state of a run, or damaged",
                hint="--overwrite instead of --resume starts the run anew",
            ) from error
        if version != VERSION:
            raise OptionError(
                f"`{self.path}` was written by another version of this program",
                hint="--overwrite instead of --resume starts the run anew",
            )
        wanted = dict(self.settings)
        different = [key for key in sorted({*settings, *wanted}) if settings.get(key) != wanted.get(key)]
        if different:
            key = different[0]
            then, now = repr(settings.get(key)), repr(wanted.get(key))
            values = f": {then}, not {now}" if len(then + now) <= LONGEST_VALUES else ""
            raise OptionError(
                f"`{self.path}` is of a run with another {key}{values}",
                hint="resume with the same command, or start anew with --overwrite instead of --resume",
            )
        return state

    def write(self, state: Mapping[str, Any]) -> None:
        """Replaces the file by a new state, whole or not at all.

        Raises:
            OutputError: if the file system refuses; the old state is still there then.
        """
        if world()[0] != 0:
            return
        content = io.BytesIO()
        torch.save({"version": VERSION, "settings": dict(self.settings), "state": dict(state)}, content)
        write_atomically(self.path, content.getvalue())


def unfinished_path(output: Path) -> Path:
    """Returns where the state of a run is kept while its result is not there."""
    return output.with_name(f"{output.stem}.unfinished.pt")


def refuse_to_lose(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises `OptionError` if there is the state of a run that starting anew would replace."""
    path = unfinished_path(output)
    if path.exists() and not resume and not overwrite:
        raise OptionError(
            f"`{path}` is the state of a run that has not ended",
            hint="--resume goes on with it, --overwrite starts anew",
        )


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether the process was asked to end, by Ctrl-C or SIGTERM.

    The first request is left to whoever asks, a second one ends the process as usual, and so does a first one that
    nobody has asked about. Outside of the main thread, where signals do not arrive, nobody is ever asked to end.
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
        if asked and not told:
            signal.raise_signal(asked[0])
