"""`lrcompress report`."""

from pathlib import Path
from typing import Annotated

import typer

from lrcompress.cli.console import explain_errors, print_json, stderr
from lrcompress.cli.gates import GivenGates, end_with_gates, gate_options, tell_outcomes
from lrcompress.cli.options import JsonOption, with_options
from lrcompress.errors import OptionError

STDOUT = Path("-")


@explain_errors
@with_options(gates=gate_options)
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A report, NAME.report.json.")],
    to: Annotated[str, typer.Option(metavar="KIND", help="html, md (Markdown), junit (XML) or card (model card).")] = (
        "html"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; - for stdout, else beside the report.")
    ] = None,
    *,
    gates: GivenGates,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file named by -o.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a report as HTML, Markdown, JUnit XML or model card.

    Reports of older versions can be read. Gates are judged by all evaluations in the report, and stand in the document;
    the report itself stays as it is. With --json the report is printed, in its present form and with the gates.

    \b
    Examples:
      lrcompress report out.report.json --to md -o -
      lrcompress report out.report.json --to junit -o junit.xml --fail-if 'clean.drop > 1.0'
      lrcompress report out.report.json --to card -o README.md
    """
    from lrcompress.artifact import check_outputs, write_atomically
    from lrcompress.report import FORMATS, document_path, judge, load_report, render_report, with_gates

    if to not in FORMATS:
        raise OptionError(f"--to must be one of {', '.join(FORMATS)}, got {to}", hint="--to md")
    if as_json and output == STDOUT:
        raise OptionError("--json and -o - exclude each other: both print to stdout", hint="name a file with -o")
    values = load_report(file)
    path = output or document_path(file, to)
    if path != STDOUT:
        # What lies beside the report is made from it and may be made again.
        check_outputs([path], overwrite=overwrite or output is None, inputs=[file, gates.file])
    names = {name for one in values["evaluations"] for name in one["models"]["compressed"]["attacks"]}
    policy = gates.policy(attacks=sorted(names))
    if policy.gates:
        values = with_gates(values, judge(values, policy))
        tell_outcomes(values["gates"])
    content = render_report(values, to)
    if path == STDOUT:
        typer.echo(content, nl=False)
    else:
        write_atomically(path, content)
        stderr().print(f"{to}: {path}", markup=False) if as_json else typer.echo(str(path))
    if as_json:
        print_json(values)
    if policy.gates:
        end_with_gates(values["gates"])
