"""Stage 7: the values of all stages become documents."""

from lrcompress.report.comparison import compare_reports, comparison_rows
from lrcompress.report.document import (
    build_report,
    report_paths,
    with_evaluation,
    with_gates,
    with_operator_norms,
)
from lrcompress.report.evaluation_parts import ordered_attacks, share_cell, tables_beside
from lrcompress.report.figures import same_radius
from lrcompress.report.gates import Gate, GatePolicy, exit_code, judge, outcome_sentence, parse_gate
from lrcompress.report.html import render_html
from lrcompress.report.junit import render_junit
from lrcompress.report.markdown import render_markdown
from lrcompress.report.model_card import render_model_card
from lrcompress.report.operator_norms import compare_operator_norms, operator_norm_rows, product_sentence
from lrcompress.report.reading import load_report, read_report
from lrcompress.report.render import FORMATS, document_path, render_documents, render_report
from lrcompress.report.schema import find_fault, report_schema
from lrcompress.report.upgrade import REPORT_SCHEMA
from lrcompress.report.verdict import accuracy_sentences, drop_sentences, robustness_sentences, verdict
from lrcompress.report.words import radius_of

__all__ = [
    "FORMATS",
    "REPORT_SCHEMA",
    "Gate",
    "GatePolicy",
    "accuracy_sentences",
    "build_report",
    "compare_operator_norms",
    "compare_reports",
    "comparison_rows",
    "document_path",
    "drop_sentences",
    "exit_code",
    "find_fault",
    "judge",
    "load_report",
    "operator_norm_rows",
    "ordered_attacks",
    "outcome_sentence",
    "parse_gate",
    "product_sentence",
    "radius_of",
    "read_report",
    "render_documents",
    "render_html",
    "render_junit",
    "render_markdown",
    "render_model_card",
    "render_report",
    "report_paths",
    "report_schema",
    "robustness_sentences",
    "same_radius",
    "share_cell",
    "tables_beside",
    "verdict",
    "with_evaluation",
    "with_gates",
    "with_operator_norms",
]
