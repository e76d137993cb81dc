"""Operator norms of the layers of both models: as a report has them, and as documents show them."""

import math
from collections.abc import Mapping
from typing import Any

from lrcompress.measure import OperatorNorm
from lrcompress.measure.operator_norms import MOST_ITERATIONS, TOLERANCE
from lrcompress.report.evaluation_parts import ROLES, figure
from lrcompress.report.parts import Command, Note, Part, Section, Table

PRODUCT = "vacuous_log10_product_ratio"


def compare_operator_norms(models: Mapping[str, Mapping[str, OperatorNorm]], *, seed: int) -> dict[str, Any]:
    """Returns the norms of both models layer by layer, as JSON types.

    Args:
        models: norms by layer, by role: "baseline", "compressed", or one of them.
        seed: they were measured with.
    """
    names = dict.fromkeys(name for norms in models.values() for name in norms)
    layers = [
        {"name": name} | {role: norms[name].to_json() for role, norms in models.items() if name in norms}
        for name in names
    ]
    return {
        "seed": seed,
        "tolerance": TOLERANCE,
        "most_iterations": MOST_ITERATIONS,
        "layers": layers,
        PRODUCT: _log10_product_ratio(layers),
    }


def _log10_product_ratio(layers: list[dict[str, Any]]) -> float | None:
    """Returns log₁₀ of Π compressed/baseline over the layers of both; None without any, or where a norm is zero."""
    pairs = [(one["baseline"]["norm"], one["compressed"]["norm"]) for one in layers if len(ROLES.keys() & one) == 2]
    if not pairs or not all(map(all, pairs)):
        return None
    return sum(math.log10(compressed) - math.log10(baseline) for baseline, compressed in pairs)


def operator_norm_rows(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and rows of the table of norms."""
    roles = [role for role in ROLES if any(role in layer for layer in values["layers"])]
    columns = ["layer", "input", *(ROLES[role] for role in roles), *(["ratio"] if len(roles) == 2 else [])]
    rows = []
    for layer in values["layers"]:
        found = [layer[role] for role in roles if role in layer]
        sizes = dict.fromkeys("×".join(map(str, one["input_size"])) for one in found)
        norms = [_norm(layer.get(role)) for role in roles]
        ratio = found[1]["norm"] / found[0]["norm"] if len(found) == 2 and found[0]["norm"] > 0 else None
        rows.append([layer["name"], ", ".join(sizes), *norms, *([figure(ratio)] if len(roles) == 2 else [])])
    return columns, rows


def product_sentence(values: Mapping[str, Any]) -> str:
    """Returns what there is to say of the product of all norms, "" if there is none."""
    if values[PRODUCT] is None:
        return ""
    exponent = round(values[PRODUCT], 2) + 0.0  # never -0.00
    return (
        f"Vacuous: the product of these norms is 10^{exponent:+.2f} times that of the uncompressed model. "
        "Such products say nothing of a network's robustness."
    )


def operator_norm_section(values: Mapping[str, Any]) -> Section:
    """Returns the norms as a section of a document."""
    caption = (
        "Spectral norm of each layer as the linear operator it is on inputs of their real size, without its bias: of a "
        "convolution with its stride, padding, dilation and groups, of a low-rank layer as a whole. Found by power "
        "iteration in float64, and therefore lower bounds. Normalisations and products of an attention are no layers "
        "here. Diagnostics, not certificates."
    )
    columns, rows = operator_norm_rows(values)
    parts: list[Part] = [Table(caption, columns, rows)]
    if sentence := product_sentence(values):
        parts.append(Note(sentence))
    return Section("Operator norms", [*parts, Command(values["command"])])


def _norm(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['norm']:.4g}{'' if found['converged'] else ' (not converged)'}"
