"""Stage 7: the values of all stages become documents."""

from lrcompress.report.document import REPORT_SCHEMA, build_report, read_report, report_paths, with_evaluation
from lrcompress.report.html import render_html
from lrcompress.report.render import render_documents
from lrcompress.report.verdict import accuracy_sentences, drop_sentences, radius, verdict

__all__ = [
    "REPORT_SCHEMA",
    "accuracy_sentences",
    "build_report",
    "drop_sentences",
    "radius",
    "read_report",
    "render_documents",
    "render_html",
    "report_paths",
    "verdict",
    "with_evaluation",
]
