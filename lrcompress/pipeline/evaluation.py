"""The stages from artifact to report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrcompress.artifact import Manifest, check_outputs, load_artifact, write_atomically
from lrcompress.checkpoint import file_sha256
from lrcompress.data import ImageSet, random_subset, shuffle_images
from lrcompress.dlrt import world
from lrcompress.errors import DataError, EvaluationError
from lrcompress.models import PixelModel
from lrcompress.pipeline.baseline import REPORT_PLACE, find_baseline
from lrcompress.pipeline.images import open_for
from lrcompress.pipeline.journal import Journal, describe_subject, gather_blocks
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.unfinished import ended_as_by_ctrl_c
from lrcompress.report import build_report, read_report, render_documents, report_paths, with_evaluation
from lrcompress.robustness import (
    AttackSettings,
    EvaluatedModel,
    Evaluation,
    Work,
    block_size,
    evaluate_models,
    of_these_images,
)


@dataclass(frozen=True)
class EvaluateOptions:
    """What `evaluate` is to do.

    Attributes:
        settings: which attacks; none measures clean accuracy only.
        data: source of images; None takes what the artifact was fine-tuned on, else the samples that foolbox ships.
        samples: largest number of images, drawn with the settings' seed; None takes all.
        baseline: original checkpoint; None takes the recorded one if it is there and unchanged.
        arch: factory of one's own network.
        device: where to compute.
        time_limit: in seconds, after which no further images are begun; they are then taken in an order drawn at
            random, so that those that are finished stand for all.
        command: what the user typed, for the report.
    """

    settings: AttackSettings
    data: str | None = None
    samples: int | None = None
    baseline: str | None = None
    arch: str | None = None
    device: str = "cpu"
    time_limit: float | None = None
    command: str = "lrcompress.pipeline.evaluate(…)"


def evaluate(
    path: str | Path, options: EvaluateOptions, *, observer: Observer | None = None
) -> tuple[Evaluation, dict[str, Any]]:
    """Returns the evaluation of an artifact beside its original, and the report it was added to.

    The report beside the artifact is updated, or written if there is none; of several processes, which share the
    images, the first one does so, the others return an empty report. What is done stands in a journal beside the
    artifact until all is, so that the same call goes on after an interruption.

    Args:
        path: the artifact.
        options: what to do.
        observer: follows the work.

    Raises:
        LRCompressError: for anything a user can mend.
    """
    observer, path = observer or Observer(), Path(path)
    artifact = load_artifact(path, arch=options.arch)
    manifest, sha256 = artifact.manifest, file_sha256(path)
    # Before the work, so that nothing is lost when a report cannot be read or written.
    check_outputs(report_paths(path), overwrite=True, elsewhere=REPORT_PLACE)
    report = read_report(report_paths(path)[0], artifact_sha256=sha256)
    images = _evaluation_images(manifest, options, observer)
    compressed = PixelModel(artifact.model, manifest.preprocessing).to(options.device)
    models = [EvaluatedModel("compressed", compressed, sha256)]
    baseline, missing = find_baseline(path, manifest, explicit=options.baseline, arch=options.arch)
    if baseline is None:
        observer.on_stage(f"no baseline, the compressed model is evaluated alone: {missing}")
    else:
        network = PixelModel(baseline.model, baseline.preprocessing).to(options.device)
        models.insert(0, EvaluatedModel("baseline", network, baseline.source.sha256))
    observer.on_stage(f"evaluating on {len(images)} images: {images.description}")
    subject = describe_subject(models, options.settings, data=images.description, images=len(images))
    journal = Journal.open(path, subject)
    journal.blocks = of_these_images(journal.blocks, images, options.settings)
    done = sum(len(block.labels) for block in journal.blocks)
    if done:
        observer.on_stage(f"going on: {done} of {len(images)} images were finished before an interruption")
    process, processes = world()
    work = Work(tuple(journal.blocks), journal.add, process, processes, gather_blocks, options.time_limit)
    try:
        with ended_as_by_ctrl_c():
            evaluation = evaluate_models(models, images, options.settings, work=work, on_progress=observer.on_attack)
    except KeyboardInterrupt:
        done = sum(len(block.labels) for block in journal.blocks)
        hint = "start the same command again: it goes on with them"
        if not done:
            hint = f"images are kept {block_size(options.settings)} at a time; a smaller --batch-size keeps them sooner"
        raise EvaluationError(f"interrupted; {done:,} of {len(images):,} images are finished", hint=hint) from None
    if process != 0:
        return evaluation, {}
    if report is None:
        report = build_report(manifest, artifact=path, artifact_bytes=path.stat().st_size, artifact_sha256=sha256)
    report = with_evaluation(report, evaluation, command=options.command)
    for document, content in render_documents(report, path).items():
        write_atomically(document, content)
    if evaluation.images_asked is None:
        journal.close()
    return evaluation, report


def _evaluation_images(manifest: Manifest, options: EvaluateOptions, observer: Observer) -> ImageSet:
    recorded = (manifest.recipe.get("fine_tuning") or {}).get("data")
    # Only a folder that is there: an artifact must not be able to name something to be fetched.
    source = options.data or (recorded if _is_local_folder(recorded) else None)
    if source is None:
        source = _fallback_samples(manifest)
        observer.on_stage(f"WARNING: no --data given: using {source}, 20 images, which give wide intervals")
    images = open_for(manifest.preprocessing, manifest.num_classes, source, "test")
    if options.samples is not None:
        images = random_subset(images, options.samples, seed=options.settings.seed)
    if options.time_limit is not None:
        images = shuffle_images(images, seed=options.settings.seed)
    return images


def _is_local_folder(source: str | None) -> bool:
    return source is not None and not source.startswith(("torch/", "hfds/", "samples/")) and Path(source).is_dir()


def _fallback_samples(manifest: Manifest) -> str:
    known = {(1000, 3): "samples/imagenet", (100, 3): "samples/cifar100", (10, 3): "samples/cifar10"}
    key = (manifest.num_classes, manifest.preprocessing.input_size[0])
    if key not in known:
        grey = " (or samples/mnist, samples/fashionMNIST, if it was trained on these)" * (key == (10, 1))
        raise DataError(
            f"no sample images fit a network of {key[0]} classes and {key[1]} channels",
            hint=f"name images with --data DIR{grey}",
        )
    return known[key]
