"""Reports of older versions of this program in the form of this one."""

from collections.abc import Mapping
from typing import Any

from lrcompress.plan import LayerRecord
from lrcompress.robustness import compare_paired

REPORT_SCHEMA = 2
EVALUATION_VERSION = 2
# The first version's findings had no names; these words of their messages tell them apart.
CHECKS = {
    "that PGD does not": "weaker-beats-stronger",
    "give wide intervals": "few-images",
    "every model is at 0 %": "floor",
    "answers no image rightly": "floor",
}


def upgrade_report(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report of any older schema in the present one.

    Args:
        values: a report; one of the present schema is returned as it is.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: if it is none.
    """
    if values["schema"] == REPORT_SCHEMA:
        return dict(values)
    return {
        **values,
        "schema": REPORT_SCHEMA,
        "command": None,
        "layers": [LayerRecord.from_json(layer).to_json() for layer in values["layers"]],
        "evaluations": [upgrade_evaluation(evaluation) for evaluation in values["evaluations"]],
        "gates": [],
    }


def upgrade_evaluation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an evaluation of any older version in the present one.

    The first version knew flips of clean images and of the worst case only; those of each attack are counted from the
    bits.
    """
    if values["version"] >= EVALUATION_VERSION:
        return dict(values)
    findings = [{"check": _check(one["message"]), "model": None, **one} for one in values["findings"]]
    upgraded = {**values, "version": EVALUATION_VERSION, "complete": True, "findings": findings}
    if "paired" in values:
        upgraded["paired"] = compare_models(values["models"]["baseline"], values["models"]["compressed"])
    return upgraded


def compare_models(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the paired comparison of two models' outcomes on the same images, clean and for each attack of both."""
    attacks = {name: rows for name, rows in second["attacks"].items() if name in first["attacks"]}
    return {
        "clean": _pair(first["clean"], second["clean"]),
        "attacks": {
            name: [
                {"eps": row["eps"], **_pair(other, row)}
                for other, row in zip(first["attacks"][name], rows, strict=True)
            ]
            for name, rows in attacks.items()
        },
    }


def _pair(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    one, other = ([bit == "1" for bit in row["bits"]] for row in (first, second))
    return compare_paired(one, other).to_json()


def _check(message: str) -> str:
    return next((check for words, check in CHECKS.items() if words in message), "unnamed")
