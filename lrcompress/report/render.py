"""All documents of a report."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrcompress.report.document import report_paths
from lrcompress.report.html import render_html
from lrcompress.report.junit import render_junit
from lrcompress.report.markdown import render_markdown
from lrcompress.report.model_card import render_model_card

# By the word after --to: how the name of the document ends, and what writes it.
FORMATS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "html": (".report.html", render_html),
    "md": (".report.md", render_markdown),
    "junit": (".junit.xml", render_junit),
    "card": (".card.md", render_model_card),
}


def render_documents(report: Mapping[str, Any], artifact: Path) -> dict[Path, bytes]:
    """Returns the content of every document that is always there, by the path beside the artifact where it belongs."""
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n"
    as_json, as_html = report_paths(artifact)
    return {as_json: text.encode(), as_html: render_report(report, "html")}


def render_report(report: Mapping[str, Any], kind: str) -> bytes:
    """Returns the report as a document of a kind: a key of `FORMATS`."""
    # Names of files may hold bytes that are no text.
    return FORMATS[kind][1](report).encode(errors="replace")


def document_path(report_file: Path, kind: str) -> Path:
    """Returns where the document of a kind lies beside `out.report.json`."""
    stem = report_file.name.removesuffix(".json").removesuffix(".report")
    return report_file.with_name(stem + FORMATS[kind][0])
