"""`lrcompress compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lrcompress.cli.console import explain_errors, print_json, print_lines
from lrcompress.cli.gates import GivenGates, end_with_gates, gate_options, tell_outcomes
from lrcompress.cli.options import JsonOption, with_options


@explain_errors
@with_options(gates=gate_options)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A compressed file, or a report (NAME.report.json).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one that is compared with it.")],
    gates: GivenGates,
    as_json: JsonOption = False,
) -> None:
    """Compare two compressed models.

    Sizes, speed and accuracies stand side by side. Where both were evaluated on the same images, and attacked with the
    same strength, images lost and gained are counted, and McNemar's test compares them.
    Gates read B in comparison with A: 'clean.drop' is what B loses against A, 'size.bytes' B's size in % of A's.

    \b
    Examples:
      lrcompress compare old.safetensors new.safetensors
      lrcompress compare old.report.json new.report.json --fail-if 'clean.drop > 0.5' --json
    """
    from lrcompress.report import compare_reports, comparison_rows, judge

    reports = [_report_of(path) for path in (first, second)]
    names = {name for one in reports[1]["evaluations"] for name in one["models"]["compressed"]["attacks"]}
    policy = gates.policy(attacks=sorted(names))
    comparison = compare_reports(*reports)
    comparison["gates"] = judge(comparison, policy)
    if as_json:
        print_json(comparison)
    else:
        print_lines(("figure", str(first), str(second), "difference"), comparison_rows(comparison))
    tell_outcomes(comparison["gates"])
    end_with_gates(comparison["gates"])


def _report_of(path: Path) -> dict[str, Any]:
    """Returns a report, or that of an artifact: the one beside it, or one without evaluations."""
    from lrcompress.artifact import read_manifest
    from lrcompress.checkpoint import file_sha256
    from lrcompress.report import build_report, load_report, read_report, report_paths

    if path.suffix == ".json":
        return load_report(path)
    manifest = read_manifest(path)
    sha256 = file_sha256(path)
    found = read_report(report_paths(path)[0], artifact_sha256=sha256)
    size = path.stat().st_size
    return found or build_report(manifest, artifact=path, artifact_bytes=size, artifact_sha256=sha256)
