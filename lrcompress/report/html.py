"""The report as one HTML file that opens without a network and without scripts."""

import math
from collections.abc import Mapping
from typing import Any

from lrcompress.report.curves import draw_chart
from lrcompress.report.verdict import radius


def render_html(report: Mapping[str, Any]) -> str:
    """Returns the report as HTML: verdict first, then sizes, curves, layers with reasons, training and settings."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lrcompress", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["radius"] = radius
    environment.filters["percent"] = _percent
    environment.filters["product"] = math.prod
    environment.filters["settings"] = _settings
    environment.filters["largest_kappa"] = _largest_kappa
    charts = [draw_chart(evaluation) for evaluation in report["evaluations"]]
    factorized = [layer for layer in report["layers"] if layer["scheme"] != "dense"]
    dense = [layer for layer in report["layers"] if layer["scheme"] == "dense"]
    template = environment.get_template("report.html.j2")
    return template.render(
        report=report,
        evaluations=list(zip(report["evaluations"], charts, strict=True)),
        factorized=factorized,
        dense=dense,
    )


def _percent(share: float, digits: int = 1) -> str:
    return f"{round(100 * share, digits) + 0.0:.{digits}f} %"  # never -0.0


def _largest_kappa(cores: Any) -> str:
    """Returns the largest condition number of an epoch's cores; reports of older versions do not know them."""
    kappas = [core["kappa"] for core in cores.values()] if cores else []
    if not kappas:
        return "–"
    return "∞" if None in kappas else f"{max(kappas):.3g}"


def _settings(values: Mapping[str, Any]) -> str:
    """Returns settings as one line of text; those that are not set or hold several values are left out."""
    plain = {key: value for key, value in values.items() if not isinstance(value, list | dict)}
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in plain.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items() if value is not None)
