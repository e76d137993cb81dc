"""The report as one HTML file that opens without a network and without scripts."""

from collections.abc import Mapping
from typing import Any

from lrcompress.report.curves import draw_chart, draw_spectrum
from lrcompress.report.sections import report_sections, title


def render_html(report: Mapping[str, Any]) -> str:
    """Returns the report as HTML: verdict first, then gates, sizes, curves, layers, training and settings."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lrcompress", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda part: type(part).__name__
    environment.filters["draw"] = draw_chart
    environment.filters["draw_spectrum"] = draw_spectrum
    template = environment.get_template("report.html.j2")
    return template.render(report=report, title=title(report), sections=report_sections(report))
