"""The report as a model card, with metadata that model hubs read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrcompress.perturb import format_radius
from lrcompress.report.evaluation_parts import accuracy_chart, percent
from lrcompress.report.markdown import escape, part_lines
from lrcompress.report.sections import report_sections, title
from lrcompress.report.words import NORM_SIGNS, counted_attacks

# Sections of a report that a card repeats; the others are of interest to whoever compressed the model.
CARD_SECTIONS = ("Gates", "Size and speed")
HUB_PREFIX = "timm/"


def render_model_card(report: Mapping[str, Any]) -> str:
    """Returns a model card: metadata with a `model-index`, the verdict, how to load the file, and its limits.

    The license is left to whoever publishes the model.

    Source: the model index of the Hugging Face hub, written by `huggingface_hub`.
    """
    name = Path(report["artifact"]["path"]).name.removesuffix(".safetensors") or "model"
    lines = ["---", _metadata(report, name), "---", "", f"# {escape(name)}", "", escape(title(report)), ""]
    lines += [f"- {escape(sentence)}" for sentence in report["verdict"]]
    arch = ', arch="FILE.py:FACTORY"' if report["architecture"]["framework"] == "custom" else ""
    file = Path(report["artifact"]["path"]).name
    lines += ["", "## How to use", "", "```python", "import lrcompress", ""]
    lines += [f"model = lrcompress.load({file!r}, pixels=True{arch})  # takes images in [0, 1]", "```"]
    for section in report_sections(report):
        if section.title in CARD_SECTIONS:
            lines += ["", f"## {escape(section.title)}"]
            for part in section.parts:
                lines += ["", *part_lines(part)]
    for evaluation in report["evaluations"]:
        lines += ["", f"## Evaluation on {escape(evaluation['data'])}", ""]
        lines += [f"- {escape(one['severity'].upper())}: {escape(one['message'])}" for one in evaluation["findings"]]
        chart = accuracy_chart(evaluation)
        lines += [f"- {escape(chart.summary)}"] if chart else []
        clean = evaluation["models"]["compressed"]["clean"]
        lines.append(f"- Clean accuracy {percent(clean['accuracy'], 2)} on {evaluation['images']:,} images.")
        lines.append(f"- Intervals: {escape(evaluation['interval'])}.")
    lines += ["", "## Limits", ""]
    lines.append(
        "Robust accuracy holds against the attacks named here at the strength named here, on the images named here. A "
        "stronger attack may find more. It says nothing about other data, other changes of the images, or fairness."
    )
    return "\n".join(lines) + "\n"


def _metadata(report: Mapping[str, Any], name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = {}  # by what was measured: of several answers to the same question the latest counts
    for evaluation in report["evaluations"]:
        compressed, norm = evaluation["models"]["compressed"], evaluation["norm"]
        rows = [("Accuracy", compressed["clean"])]
        for row in compressed["attacks"].get("worst", []):
            at = f"{NORM_SIGNS[norm]} ε = {format_radius(row['eps'], norm)}"
            rows.append((f"Robust accuracy, {' + '.join(counted_attacks(evaluation['settings']))}, {at}", row))
        for metric, row in rows:
            results[evaluation["data"], metric] = EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type=_slug(evaluation["data"]),
                dataset_name=evaluation["data"],
                metric_type="accuracy",
                metric_name=metric,
                metric_value=round(100 * row["accuracy"], 4),
                metric_args={
                    "images": evaluation["images"],
                    "interval": [round(100 * end, 2) for end in row["interval"]],
                },
            )
    base = report["source"]["path"]
    data = ModelCardData(
        model_name=name,
        library_name="timm" if report["architecture"]["framework"] == "timm" else None,
        base_model=base if base.startswith(HUB_PREFIX) else None,
        pipeline_tag="image-classification",
        metrics=["accuracy"],
        tags=["lrcompress", "low-rank", "model-compression", "adversarial-robustness"],
        eval_results=list(results.values()) or None,
    )
    return data.to_yaml()


def _slug(text: str) -> str:
    """Returns a text as an identifier of a data set.

    >>> _slug("samples/imagenet, 12 images drawn with seed 0")
    'samples-imagenet-12-images-drawn-with-seed-0'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "images"
