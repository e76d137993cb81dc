"""`lrcompress verify`."""

from dataclasses import asdict

import typer

from lrcompress.cli.console import explain_errors, print_json, print_table
from lrcompress.cli.options import ArtifactArgument, BaselineOption, FactoryOption, JsonOption

CHECK_FAILED = 3


@explain_errors
def verify(
    file: ArtifactArgument,
    baseline: BaselineOption = None,
    arch: FactoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a compressed file.

    That it is whole, unchanged, and as close to the original weights as it says.

    Ends with exit code 3 if a check fails. The per-layer errors are measured again where the original is at hand.

    \b
    Examples:
      lrcompress verify out.safetensors
      lrcompress verify out.safetensors --baseline resnet50.pt --json
    """
    from lrcompress.artifact import read_manifest, verify_artifact
    from lrcompress.pipeline import find_baseline

    original, missing = find_baseline(file, read_manifest(file), explicit=baseline, arch=arch)
    checks = verify_artifact(file, arch=arch, original=original.model if original else None)
    marks = {True: "ok", False: "FAILED", None: "not made"}
    why = {check.name: check.detail for check in checks}
    if original is None and all(check.passed for check in checks if check.name == "network"):
        why["errors"] = missing
    rows = [[check.name, marks[check.passed], why[check.name]] for check in checks]
    print_table(str(file), ["check", "result", "found"], rows, texts=(0, 2))
    failed = any(check.passed is False for check in checks)
    left_out = ", ".join(check.name for check in checks if check.passed is None)
    if as_json:
        print_json({"file": str(file), "ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        typer.echo("FAILED" if failed else f"ok, not checked: {left_out}" if left_out else "ok")
    if failed:
        raise typer.Exit(CHECK_FAILED)
