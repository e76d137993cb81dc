"""Operator norms of the layers of an artifact and of its original."""

from pathlib import Path
from typing import Any

from lrcompress.artifact import check_outputs, load_artifact, write_atomically
from lrcompress.checkpoint import LoadedModel, file_sha256
from lrcompress.measure import measure_operator_norms
from lrcompress.pipeline.baseline import REPORT_PLACE, find_baseline
from lrcompress.pipeline.observer import Observer
from lrcompress.report import (
    build_report,
    compare_operator_norms,
    read_report,
    render_documents,
    report_paths,
    with_operator_norms,
)

SEED = 0


def add_operator_norms(
    path: Path,
    *,
    baseline: str | None = None,
    arch: str | None = None,
    command: str = "lrcompress.pipeline.add_operator_norms(…)",
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Returns the report of an artifact with the operator norms of its layers, and of its original's if that is found.

    The report beside the artifact is updated, or written if there is none. Takes no images; some seconds to minutes.

    Args:
        path: the artifact.
        baseline: original checkpoint; None takes the recorded one if it is there and unchanged.
        arch: factory of one's own network.
        command: what the user typed, for the report.
        observer: follows the work.

    Raises:
        LRCompressError: for anything a user can mend.
    """
    observer = observer or Observer()
    artifact = load_artifact(path, arch=arch)
    manifest, sha256 = artifact.manifest, file_sha256(path)
    # Before the work, so that nothing is lost when a report cannot be read or written.
    check_outputs(report_paths(path), overwrite=True, elsewhere=REPORT_PLACE)
    report = read_report(report_paths(path)[0], artifact_sha256=sha256)
    original, missing = find_baseline(path, manifest, explicit=baseline, arch=arch)
    models = {"compressed": artifact.model}
    if original is None:
        observer.on_stage(f"no baseline, the compressed model is measured alone: {missing}")
    else:
        models = {"baseline": original.model, **models}
    norms, size = {}, manifest.preprocessing.input_size
    for role, model in models.items():
        observer.on_stage(f"measuring operator norms of the {role} model")
        norms[role] = measure_operator_norms(model, size, seed=SEED, on_progress=observer.on_layer)
    if report is None:
        report = build_report(manifest, artifact=path, artifact_bytes=path.stat().st_size, artifact_sha256=sha256)
    report = with_operator_norms(report, compare_operator_norms(norms, seed=SEED), command=command)
    for document, content in render_documents(report, path).items():
        write_atomically(document, content)
    return report


def checkpoint_operator_norms(loaded: LoadedModel, *, observer: Observer | None = None) -> dict[str, Any]:
    """Returns the operator norms of the layers of a checkpoint's network, as a report has them of its baseline."""
    observer = observer or Observer()
    observer.on_stage("measuring operator norms")
    size = loaded.preprocessing.input_size
    norms = measure_operator_norms(loaded.model, size, seed=SEED, on_progress=observer.on_layer)
    return compare_operator_norms({"baseline": norms}, seed=SEED)
