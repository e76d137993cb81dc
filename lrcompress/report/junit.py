"""The report as JUnit XML, which build servers show case by case."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

from lrcompress.perturb import format_radius
from lrcompress.report.evaluation_parts import ordered_attacks, percent
from lrcompress.report.words import paper_scales

# What XML 1.0 cannot hold, not even escaped.
FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# How a case ends, by the outcome of a gate or the severity of a doubt; others pass.
ENDINGS = {
    "FAIL": "failure",
    "INCONCLUSIVE": "error",
    "error": "error",
    "unreliable": "failure",
    "inconclusive": "skipped",
}


def render_junit(report: Mapping[str, Any]) -> str:
    """Returns the report as JUnit XML: one suite of the gates, one of sizes, one per evaluation.

    Figures stand in the names of their cases. Cases of gates fail, or end with an error where they are inconclusive;
    doubts that void the figures are errors, doubts that overestimate them failures, and where there is too little
    evidence the case is skipped.
    """
    root = ET.Element("testsuites", name=_clean(report["artifact"]["path"]))
    if report["gates"]:
        suite = ET.SubElement(root, "testsuite", name="gates")
        for one in report["gates"]:
            found = f": {one['value']:.2f} {one['unit']}".rstrip() if "value" in one else ": missing"
            _add(suite, "gates", f"fail if {one['gate']}{found}", ENDINGS.get(one["outcome"]), one["message"])
    size = report["size"]
    suite = ET.SubElement(root, "testsuite", name="size")
    for key, removed in size["removed"].items():
        before, after = size["baseline"][key], size["compressed"][key]
        _add(suite, "size", f"{key}: {before:,} → {after:,} ({percent(removed)} removed)")
    for evaluation in report["evaluations"]:
        _add_evaluation(root, evaluation)
    for suite in (root, *root):
        for attribute, tag in (
            ("tests", "testcase"),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add_evaluation(root: ET.Element, evaluation: Mapping[str, Any]) -> None:
    data, models, images = evaluation["data"], evaluation["models"], evaluation["images"]
    suite = ET.SubElement(root, "testsuite", name=_clean(f"evaluation on {data}"))
    properties = ET.SubElement(suite, "properties")
    for key in ("command", "seed", "norm", "interval"):
        ET.SubElement(properties, "property", name=key, value=_clean(str(evaluation[key])))
    cells = [("clean", {role: model["clean"] for role, model in models.items()})]
    for attack in ordered_attacks(evaluation):
        for index, row in enumerate(models["compressed"]["attacks"][attack]):
            where = f"{attack}@{format_radius(row['eps'], evaluation['norm'])}"
            cells.append((where, {role: model["attacks"][attack][index] for role, model in models.items()}))
    apart = paper_scales(evaluation["settings"])
    for where, rows in cells:
        attack = where.partition("@")[0]
        low, high = rows["compressed"]["interval"]
        told = " → ".join(percent(row["accuracy"], 2) for row in rows.values())
        name = f"{where}.accuracy: {told} [{100 * low:.1f}, {100 * high:.1f}] on {images:,} images"
        name += ", the paper's ε, not comparable with ε in pixels" if attack in apart else ""
        _add(suite, f"evaluation.{attack}", name)
    for one in evaluation["findings"]:
        _add(suite, "findings", f"{one['check']}: {one['message']}", ENDINGS[one["severity"]], one["message"])


def _add(suite: ET.Element, group: str, name: str, ending: str | None = None, message: str = "") -> None:
    case = ET.SubElement(suite, "testcase", classname=f"lrcompress.{group}", name=_clean(name))
    if ending is not None:
        ET.SubElement(case, ending, message=_clean(message))


def _clean(text: str) -> str:
    return FORBIDDEN.sub("�", text)
