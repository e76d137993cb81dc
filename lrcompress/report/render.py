"""All documents of a report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrcompress.report.document import report_paths
from lrcompress.report.html import render_html


def render_documents(report: Mapping[str, Any], artifact: Path) -> dict[Path, bytes]:
    """Returns the content of every document of a report, by the path beside the artifact where it belongs."""
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n"
    as_json, as_html = report_paths(artifact)
    return {as_json: text.encode(), as_html: render_html(report).encode()}
