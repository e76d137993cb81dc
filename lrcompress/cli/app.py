"""The `lrcompress` command: its verbs, and how errors are told."""

import typer

from lrcompress.cli.attack import attack
from lrcompress.cli.compare import compare
from lrcompress.cli.compress import compress
from lrcompress.cli.demo import demo
from lrcompress.cli.evaluate import evaluate
from lrcompress.cli.help import VerbWithPanels
from lrcompress.cli.inspect import inspect
from lrcompress.cli.plan import plan
from lrcompress.cli.report import report
from lrcompress.cli.verify import verify

app = typer.Typer(
    name="lrcompress",
    help="Make pretrained vision networks smaller by low-rank factorisation, and show how accurate, fast and robust "
    "they then are.\n\n"
    "Exit codes: 0 ok, 1 an error that is explained, 2 wrong usage, 3 a check or gate failed, "
    "4 a gate could not be decided.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would more than double the time that --help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (compress, plan, attack, evaluate, report, compare, inspect, verify, demo):
    app.command(cls=VerbWithPanels)(verb)


@app.callback(invoke_without_command=True)
def top(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Make pretrained vision networks smaller, and show how accurate, fast and robust they then are."""
    if version:
        from lrcompress import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Runs the command line."""
    app()
