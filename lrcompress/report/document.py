"""The report as one JSON value: what `out.report.json` holds and every other document is rendered from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrcompress.artifact import Manifest
from lrcompress.factorize import LayerSpectra
from lrcompress.measure import LatencyRatio
from lrcompress.report.upgrade import REPORT_SCHEMA, upgrade_evaluation
from lrcompress.report.verdict import verdict
from lrcompress.robustness import Evaluation


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
    spectra: Mapping[str, LayerSpectra] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Returns the report of an artifact, without evaluations yet.

    Args:
        manifest: the artifact's.
        artifact: its path as the user wrote it.
        artifact_bytes: its size.
        artifact_sha256: its hash.
        training_log: one entry per epoch of fine-tuning.
        latency: of both models, timed in turn.
        spectra: by layer. The manifest has no room for them: a report that is made of it alone does without.
        command: that made the artifact; None if it is not known any more.
    """
    told = {name: one.to_json() for name, one in (spectra or {}).items()}
    baseline, compressed = asdict(manifest.baseline), asdict(manifest.compressed) | {"bytes": artifact_bytes}
    report: dict[str, Any] = {
        "schema": REPORT_SCHEMA,
        "artifact": {"path": str(artifact), "sha256": artifact_sha256, "bytes": artifact_bytes},
        "command": command,
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
        "latency": None if latency is None else asdict(latency) | {"ratio_quartiles": list(latency.ratio_quartiles)},
        "recipe": dict(manifest.recipe),
        "layers": [layer.to_json() | told.get(layer.name, {}) for layer in manifest.layers],
        "training_log": training_log or [],
        "evaluations": [],
        "gates": [],
        "versions": dict(manifest.versions),
    }
    return report | {"verdict": verdict(report)}


def with_evaluation(report: Mapping[str, Any], evaluation: Evaluation, *, command: str) -> dict[str, Any]:
    """Returns the report with an evaluation added; one of the same question, or a part of it, is replaced."""
    added = upgrade_evaluation(evaluation.to_json()) | {"command": command}
    kept = [other for other in report["evaluations"] if _question(other) != _question(added)]
    # Gates were judged by the figures before.
    updated = {**report, "evaluations": [*kept, added], "gates": []}
    return updated | {"verdict": verdict(updated)}


def with_operator_norms(report: Mapping[str, Any], norms: Mapping[str, Any], *, command: str) -> dict[str, Any]:
    """Returns the report with operator norms, see `compare_operator_norms`, in the place of those before."""
    return {**report, "operator_norms": {**norms, "command": command}}


def with_gates(report: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the report with the outcomes of gates in the place of those before."""
    updated = {**report, "gates": [dict(outcome) for outcome in outcomes]}
    return updated | {"verdict": verdict(updated)}


def _question(evaluation: Mapping[str, Any]) -> str:
    """Returns what was asked, the strength of attacks among it; what time did not suffice for was asked too."""
    images = evaluation.get("images_asked") or evaluation["images"]
    settings = {key: value for key, value in evaluation["settings"].items() if key != "batch_size"}
    return json.dumps([images, *(evaluation[key] for key in ("data", "norm", "seed")), settings], sort_keys=True)
