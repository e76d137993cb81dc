"""What all verbs share: where text goes, how errors are told, how progress is shown.

stdout carries only data; everything for people goes to stderr.
"""

import functools
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer

from lrcompress.errors import LRCompressError

if TYPE_CHECKING:
    from rich.console import Console

    from lrcompress.dlrt import TrainingProgress
    from lrcompress.pipeline import Observer

SILENCE = 60  # seconds between two lines on how far an evaluation is, where no bar can be drawn
P = ParamSpec("P")
R = TypeVar("R")


def stderr() -> "Console":
    """Returns the console for people; it honours NO_COLOR and terminals that are none."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints a value as JSON to stdout."""
    typer.echo(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


def explain_errors(verb: Callable[P, R]) -> Callable[P, R]:
    """Turns errors that a user can mend into one line `error:` and one line `hint:`, exit code 1."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        # Of several processes that torchrun has started on a machine, which make the same mistake, the first one tells.
        with explained_errors(silently=os.environ.get("LOCAL_RANK", "0") != "0"), warnings.catch_warnings():
            # Libraries warn about their own business; what a user should know is said by this program.
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            return verb(*args, **kwargs)

    return wrapped


@contextmanager
def explained_errors(*, silently: bool = False) -> Iterator[None]:
    """Turns errors that a user can mend into an error and a hint, exit code 1; silently, into the exit code alone."""
    try:
        yield
    except LRCompressError as error:
        message, hint = error.message, error.hint
    except KeyboardInterrupt:
        message, hint = "interrupted; no file is half-written", "start the same command again"
    except (MemoryError, RuntimeError) as error:
        # torch tells of the lack of memory in a RuntimeError, whose text alone is different.
        if isinstance(error, RuntimeError) and not re.search("can't allocate memory|out of memory", str(error)):
            raise
        message, hint = "not enough memory", "lower --batch-size, or use a machine with more"
    else:
        return
    if silently:
        raise typer.Exit(1)
    fail(message, hint)


def fail(message: str, hint: str, code: int = 1) -> NoReturn:
    """Prints an error and its hint, and ends with the exit code."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)
    raise typer.Exit(code)


def typed_command() -> str:
    """Returns what the user typed, for the report."""
    import shlex

    return shlex.join(["lrcompress", *sys.argv[1:]])


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Collection[int] = (0,)
) -> None:
    """Prints a table to stderr; columns of texts wrap where the terminal is narrow, the others, figures, do not."""
    from rich.table import Table
    from rich.text import Text

    # Texts, so that brackets in names are not taken for markup.
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        widest = max((len(row[index]) for row in rows), default=0)
        header = column if len(column) <= widest else column.replace(" ", "\n")
        is_text = index in texts
        table.add_column(Text(header), justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        table.add_row(*map(Text, row))
    stderr().print(table)


def print_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table as data to stdout: one line per row however wide, columns aligned and two spaces apart.

    A row whose first cell alone is filled is a heading, which widens no column.
    """
    widths = [max(map(len, column)) for column in zip(columns, *(row for row in rows if any(row[1:])), strict=True)]
    for row in (columns, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextmanager
def follow_progress() -> "Iterator[Observer]":
    """Yields an observer that shows stages as lines, and layers, training and attacks as bars with the time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from lrcompress.pipeline import Observer

    if os.environ.get("RANK", "0") != "0":  # of several processes that torchrun has started, the first one tells
        yield Observer()
        return
    console = stderr()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        layers = progress.add_task("layers", visible=False)
        training = progress.add_task("fine-tuning", visible=False)
        attacking = progress.add_task("attack", visible=False)

        def on_layer(done: int, total: int) -> None:
            progress.update(layers, total=total, completed=done, visible=done < total)

        def on_training(state: "TrainingProgress") -> None:
            text = describe_training(state)
            progress.update(training, description=text, total=state.steps, completed=state.step, visible=True)
            if state.epoch_ended:
                console.print(text, markup=False)
                progress.update(training, visible=state.epoch < state.epochs)

        told = time.monotonic()

        def on_attack(what: str, done: int, total: int) -> None:
            nonlocal told
            if not console.is_terminal and time.monotonic() - told > SILENCE:
                told = time.monotonic()
                console.print(f"• {100 * done / max(1, total):.0f} % done, {what}", markup=False)
            progress.update(attacking, description=what, total=total, completed=done, visible=done < total)

        yield Observer(
            on_stage=lambda message: console.print(f"• {message}", markup=False),
            on_layer=on_layer,
            on_training=on_training,
            on_attack=on_attack,
        )


def describe_training(state: "TrainingProgress") -> str:
    """Returns the line of the training bar."""
    robust = state.held_out_robust_accuracy
    perturbed = "" if robust is None else f"perturbed by the training's own adversary {100 * robust:.2f} %  "
    begin = "before training" if state.loss is None else f"epoch {state.epoch}/{state.epochs}  loss {state.loss:.3f}"
    return (
        f"{begin}  held-out {100 * state.held_out_accuracy:.2f} %  "
        f"{perturbed}mean rank {state.mean_rank:.0f}  {state.parameters / 1e6:.3f} M parameters"
    )
