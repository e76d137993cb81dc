"""The report as one JSON value: what `out.report.json` holds and every other document is rendered from."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrcompress.artifact import Manifest
from lrcompress.errors import ArtifactError
from lrcompress.measure import LatencyRatio
from lrcompress.plan import LayerRecord
from lrcompress.report.verdict import verdict
from lrcompress.robustness import Evaluation

REPORT_SCHEMA = 1
REPORT_KEYS = {
    "artifact",
    "dtype",
    "source",
    "size",
    "latency",
    "recipe",
    "layers",
    "training_log",
    "evaluations",
    "versions",
}


def report_paths(artifact: Path) -> tuple[Path, Path]:
    """Returns where the report of an artifact lies: (`out.report.json`, `out.report.html`)."""
    stem = artifact.name.removesuffix(".safetensors")
    return artifact.with_name(f"{stem}.report.json"), artifact.with_name(f"{stem}.report.html")


def build_report(
    manifest: Manifest,
    *,
    artifact: Path,
    artifact_bytes: int,
    artifact_sha256: str,
    training_log: list[dict[str, Any]] | None = None,
    latency: LatencyRatio | None = None,
) -> dict[str, Any]:
    """Returns the report of an artifact, without evaluations yet.

    Args:
        manifest: the artifact's.
        artifact: its path as the user wrote it.
        artifact_bytes: its size.
        artifact_sha256: its hash.
        training_log: one entry per epoch of fine-tuning.
        latency: of both models, timed in turn.
    """
    baseline, compressed = asdict(manifest.baseline), asdict(manifest.compressed) | {"bytes": artifact_bytes}
    report: dict[str, Any] = {
        "schema": REPORT_SCHEMA,
        "artifact": {"path": str(artifact), "sha256": artifact_sha256, "bytes": artifact_bytes},
        "source": dict(manifest.source),
        "architecture": asdict(manifest.architecture) | {"label": manifest.architecture.label},
        "preprocessing": manifest.preprocessing.to_json(),
        "num_classes": manifest.num_classes,
        "dtype": manifest.dtype,
        "size": {
            "baseline": baseline,
            "compressed": compressed,
            "removed": {key: 1 - compressed[key] / baseline[key] for key in ("parameters", "bytes", "macs")},
        },
        "latency": None if latency is None else asdict(latency),
        "recipe": dict(manifest.recipe),
        "layers": [layer.to_json() for layer in manifest.layers],
        "training_log": training_log or [],
        "evaluations": [],
        "versions": dict(manifest.versions),
    }
    return report | {"verdict": verdict(report)}


def with_evaluation(report: Mapping[str, Any], evaluation: Evaluation, *, command: str) -> dict[str, Any]:
    """Returns the report with an evaluation added; one of the same data, images, norm and attacks is replaced."""
    added = evaluation.to_json() | {"command": command}
    kept = [other for other in report["evaluations"] if _question(other) != _question(added)]
    updated = {**report, "evaluations": [*kept, added]}
    return updated | {"verdict": verdict(updated)}


def _question(evaluation: Mapping[str, Any]) -> str:
    values = [evaluation[key] for key in ("data", "images", "norm", "seed")]
    return json.dumps([*values, evaluation["settings"]["attacks"]], sort_keys=True)


def read_report(path: Path, *, artifact_sha256: str) -> dict[str, Any] | None:
    """Returns the report beside an artifact, None if there is none or it is about another file.

    Raises:
        ArtifactError: if a report of a newer schema lies there, which must not be lost.
    """
    try:
        report = json.loads(path.read_text())
        if report["schema"] > REPORT_SCHEMA:
            raise ArtifactError(
                f"`{path}` has schema {report['schema']}, this program writes {REPORT_SCHEMA}",
                hint="upgrade lrcompress, or move the report away",
            )
        report["layers"] = [LayerRecord.from_json(layer).to_json() for layer in report["layers"]]  # older ones too
        report["schema"] = REPORT_SCHEMA
        whole = report.keys() >= REPORT_KEYS
        return report if whole and report["artifact"]["sha256"] == artifact_sha256 else None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return None
