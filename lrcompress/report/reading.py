"""Reports from disk, of this and of older versions."""

import json
from pathlib import Path
from typing import Any

from lrcompress.errors import ArtifactError, ReportError
from lrcompress.report.consistency import find_contradiction
from lrcompress.report.schema import find_fault
from lrcompress.report.upgrade import REPORT_SCHEMA, upgrade_report
from lrcompress.strict_json import parse_json


def load_report(path: Path) -> dict[str, Any]:
    """Returns a report that lies on disk, in the present schema.

    Raises:
        ReportError: if there is none, it is of a newer schema, or its figures do not follow the schema or contradict
            each other.
    """
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise ReportError(
            f"no report at `{path}`: {error.strerror}", hint="reports lie beside the compressed file: out.report.json"
        ) from error
    except ValueError as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error
        raise ReportError(f"`{path}` is no JSON: {reason}", hint="name a report, out.report.json") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(schema, int) or "evaluations" not in values:
        raise ReportError(f"`{path}` is no report of this program", hint="name a report, out.report.json")
    if schema > REPORT_SCHEMA:
        raise ReportError(
            f"`{path}` has schema {schema}, this program reads {REPORT_SCHEMA} and older", hint="upgrade lrcompress"
        )
    report: dict[str, Any] = {}
    try:
        report = upgrade_report(values)
        fault = find_fault(report) or find_contradiction(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = f"an entry is missing or of another kind: {error}"
    if fault:
        raise ReportError(f"`{path}` is damaged: {fault}", hint="make it again with lrcompress evaluate or attack")
    return report


def read_report(path: Path, *, artifact_sha256: str) -> dict[str, Any] | None:
    """Returns the report beside an artifact, None if there is none or it is about another file.

    Raises:
        ArtifactError: if a report of a newer schema lies there, which must not be lost.
    """
    try:
        report = json.loads(path.read_bytes())
        if report["schema"] > REPORT_SCHEMA:
            raise ArtifactError(
                f"`{path}` has schema {report['schema']}, this program writes {REPORT_SCHEMA}",
                hint="upgrade lrcompress, or move the report away",
            )
        report = load_report(path)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        return None
    return report if report["artifact"]["sha256"] == artifact_sha256 else None
