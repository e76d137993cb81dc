"""The stages as calls: `compress` from checkpoint to report, `evaluate` from artifact to report."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrcompress.artifact import (
    Cost,
    LoadedArtifact,
    Manifest,
    check_outputs,
    installed_versions,
    load_artifact,
    pack_artifact,
    round_weights_,
    save_artifact,
    write_atomically,
)
from lrcompress.checkpoint import LoadedModel, LoadOptions, file_sha256, find_weights, load_checkpoint
from lrcompress.data import ImageSet, open_images, random_subset
from lrcompress.dlrt import DlrtOptions, FineTuning, TrainingProgress, fine_tune_
from lrcompress.errors import DataError, LRCompressError, OptionError, OutputError
from lrcompress.factorize import describe_layers, factorize, fold_
from lrcompress.linalg import condition_number
from lrcompress.measure import count_macs, count_parameters, measure_latency, tensor_bytes
from lrcompress.models import PixelModel, Preprocessing, is_hub_name
from lrcompress.nn import factored_layers
from lrcompress.plan import CompressionPlan, Tolerance, TrainingStart, make_plan
from lrcompress.report import build_report, read_report, render_html, report_paths, with_evaluation
from lrcompress.robustness import AttackSettings, EvaluatedModel, Evaluation, evaluate_models


@dataclass(frozen=True)
class Observer:
    """Callbacks through which whoever called follows the work; each does nothing by default."""

    on_stage: Callable[[str], None] = lambda message: None
    on_training: Callable[[TrainingProgress], None] = lambda progress: None
    on_attack: Callable[[str, int, int], None] = lambda what, done, total: None


@dataclass(frozen=True)
class CompressOptions:
    """What `compress` is to do.

    Attributes:
        tol: relative truncation tolerance τ.
        load: how to read the checkpoint.
        data: source of images for fine-tuning and for the clean accuracy in the report; None compresses without data.
        training: settings of DLRT; None does not fine-tune.
        samples: largest number of test images for the report; None takes all.
        seed: of the choice of these images.
        include_first: factorise the first layer too.
        include_classifier: factorise the classifier too.
        allow_zero_layers: leave all-zero layers dense instead of refusing them.
        device: where to compute.
        overwrite: whether existing outputs may be replaced.
        command: what the user typed, for the report.
    """

    tol: float
    load: LoadOptions = field(default_factory=LoadOptions)
    data: str | None = None
    training: DlrtOptions | None = None
    samples: int | None = None
    seed: int = 0
    include_first: bool = False
    include_classifier: bool = False
    allow_zero_layers: bool = False
    device: str = "cpu"
    overwrite: bool = False
    command: str = "lrcompress.compress(…)"

    def __post_init__(self) -> None:
        if self.training is not None and self.training.tol != self.tol:
            raise OptionError(
                f"the plan has tolerance {self.tol}, the training {self.training.tol}", hint="give both the same"
            )


def compress(
    source: str, output: str | Path, options: CompressOptions, *, observer: Observer | None = None
) -> dict[str, Any]:
    """Writes a compressed model and its report, and returns the report.

    Writes `output`, and beside it `.report.json` and `.report.html`. Either all of the artifact is written or nothing.

    Args:
        source: checkpoint file, Hugging Face folder or hub name.
        output: the artifact to write, ending in `.safetensors`.
        options: what to do.
        observer: follows the work.

    Raises:
        LRCompressError: for anything a user can mend; nothing is then written.
    """
    observer, path = observer or Observer(), Path(output)
    policy = (
        Tolerance(options.tol)
        if options.training is None
        else TrainingStart(options.tol, max_rank=options.training.max_rank)
    )
    if options.training is not None and options.data is None:
        raise OptionError("fine-tuning needs images", hint="--data DIR")
    if path.suffix != ".safetensors":
        raise OptionError(f"the output must end in .safetensors, got `{path}`", hint=f"-o {path.stem}.safetensors")
    check_outputs([path, *report_paths(path)], overwrite=options.overwrite)
    if path.exists() and not is_hub_name(source) and path.samefile(find_weights(source)):
        raise OutputError(f"`{path}` is the checkpoint itself, which is kept", hint="name another file with -o")

    observer.on_stage(f"reading {source}")
    loaded = load_checkpoint(source, options.load)
    observer.on_stage(describe_choice(loaded))
    train, test = _open_data(loaded, options)
    observer.on_stage("planning")
    plan = make_plan(
        loaded.model,
        policy,
        input_size=loaded.preprocessing.input_size,
        include_first=options.include_first,
        include_classifier=options.include_classifier,
        allow_zero_layers=options.allow_zero_layers,
    )
    observer.on_stage(f"factorising {len(plan.factorized())} of {len(plan.layers)} layers")
    model = factorize(loaded.model, plan)
    start_kappas = _kappas(model)
    tuning = None
    if train is not None and options.training is not None and plan.factorized():
        observer.on_stage(f"fine-tuning on {train.description}")
        tuning = _fine_tune_(model, loaded, train, options, observer)
    fold_(model)
    round_weights_(model, loaded.dtype)

    packed = pack_artifact(model, _manifest(loaded, model, plan, options, tuning, start_kappas, test))
    baseline = PixelModel(loaded.model, loaded.preprocessing).to(options.device)
    compressed = PixelModel(model, loaded.preprocessing).to(options.device)
    observer.on_stage("timing both models")
    report = build_report(
        packed.manifest,
        artifact=path,
        artifact_bytes=len(packed.content),
        artifact_sha256=packed.sha256,
        training_log=[asdict(entry) for entry in tuning.log] if tuning else None,
        latency=measure_latency(baseline, compressed, loaded.preprocessing.input_size),
    )
    if test is not None:
        observer.on_stage(f"measuring accuracy on {test.description}")
        models = [
            EvaluatedModel("baseline", baseline, loaded.source.sha256),
            EvaluatedModel("compressed", compressed, packed.sha256),
        ]
        evaluation = evaluate_models(models, test, AttackSettings())
        report = with_evaluation(report, evaluation, command=options.command)
    # Only now, when all that takes long is done: an interrupted run leaves nothing behind.
    observer.on_stage("writing")
    model.to("cpu")
    documents = _render(report)
    save_artifact(path, packed)
    _write_report(path, documents)
    return report


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
        command: what the user typed, for the report.
    """

    settings: AttackSettings
    data: str | None = None
    samples: int | None = None
    baseline: str | None = None
    arch: str | None = None
    device: str = "cpu"
    command: str = "lrcompress.pipeline.evaluate(…)"


def evaluate(
    path: Path, options: EvaluateOptions, *, observer: Observer | None = None
) -> tuple[Evaluation, dict[str, Any]]:
    """Returns the evaluation of an artifact beside its original, and the report it was added to.

    The report beside the artifact is updated, or written if there is none.

    Args:
        path: the artifact.
        options: what to do.
        observer: follows the work.

    Raises:
        LRCompressError: for anything a user can mend.
    """
    observer = observer or Observer()
    artifact = load_artifact(path, arch=options.arch)
    manifest, sha256 = artifact.manifest, file_sha256(path)
    # Before the work, so that nothing is lost when a report cannot be read or written.
    check_outputs(report_paths(path), overwrite=True)
    report = read_report(report_paths(path)[0], artifact_sha256=sha256)
    images = _evaluation_images(manifest, options, observer)
    models = [EvaluatedModel("compressed", _on_pixels(artifact.model, manifest.preprocessing, options.device), sha256)]
    baseline, missing = find_baseline(path, artifact, explicit=options.baseline, arch=options.arch)
    if baseline is None:
        observer.on_stage(f"no baseline, the compressed model is evaluated alone: {missing}")
    else:
        network = _on_pixels(baseline.model, baseline.preprocessing, options.device)
        models.insert(0, EvaluatedModel("baseline", network, baseline.source.sha256))
    observer.on_stage(f"evaluating on {len(images)} images: {images.description}")
    evaluation = evaluate_models(models, images, options.settings, on_progress=observer.on_attack)
    if report is None:
        report = build_report(manifest, artifact=path, artifact_bytes=path.stat().st_size, artifact_sha256=sha256)
    report = with_evaluation(report, evaluation, command=options.command)
    _write_report(path, _render(report))
    return evaluation, report


def find_baseline(
    path: Path, artifact: LoadedArtifact, *, explicit: str | None = None, arch: str | None = None
) -> tuple[LoadedModel | None, str]:
    """Returns the original of an artifact, or None and the reason why it is not at hand.

    Looks at the recorded path, from here and, whole or its last parts, from the artifact's folder. The file must have
    the recorded hash. Nothing is fetched unless `explicit` asks for it.

    Args:
        path: the artifact.
        artifact: what was loaded from it.
        explicit: where the user says it is; anything wrong with it is then an error.
        arch: factory of one's own network.

    Raises:
        LRCompressError: if `explicit` cannot be read or is another file.
    """
    manifest = artifact.manifest
    recorded = str(manifest.source["path"])
    parts = Path(recorded).parts
    beside = [str(path.parent.joinpath(*parts[index:])) for index in range(len(parts))]
    # An artifact must not be able to name something to be fetched, in whatever spelling.
    local = [place for place in (recorded, *beside) if not is_hub_name(place)]
    places = [explicit] if explicit else local
    reason = f"`{recorded}` is not there (name it with --baseline)"
    for place in dict.fromkeys(places):
        try:
            if file_sha256(find_weights(place)) == manifest.source["sha256"]:
                return load_checkpoint(place, _baseline_options(manifest, arch)), ""
        except LRCompressError as error:
            if explicit:
                raise
            if Path(place).exists():
                reason = error.message
            continue
        reason = f"`{place}` is not the file that was compressed: its SHA-256 differs"
        if explicit:
            raise OptionError(reason, hint="name the original checkpoint with --baseline")
    return None, reason


def describe_choice(loaded: LoadedModel) -> str:
    """Returns one line on what was taken out of a checkpoint, and between which candidates."""
    source, where = loaded.source, []
    if source.wrapper:
        where.append(f"weights under `{source.wrapper}`")
    if source.prefix:
        where.append(f"prefix `{source.prefix}` stripped")
    if source.match != "by name":
        where.append(f"matched {source.match}")
    size = "×".join(map(str, loaded.preprocessing.input_size))
    others = [name for name in source.candidates if name != loaded.architecture.label]
    choice = (
        f"{loaded.architecture.label} (by {source.chosen_by}; {', '.join([*where, f'{loaded.num_classes} classes'])})"
    )
    if others:
        choice += f"; {', '.join(others)} have the same tensors: --arch chooses"
    return f"{choice}; input {size}, statistics from {loaded.preprocessing.origin}"


def open_for(preprocessing: Preprocessing, num_classes: int, source: str, split: str) -> ImageSet:
    """Returns the images of a source as a network takes them.

    Raises:
        DataError: if the number of classes does not fit the network.
    """
    if split not in ("train", "test"):
        raise OptionError(f"no split named `{split}`", hint="train or test")
    images = open_images(
        source,
        "train" if split == "train" else "test",
        input_size=preprocessing.input_size,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
    )
    if images.class_names and len(images.class_names) != num_classes:
        raise DataError(
            f"`{source}` has {len(images.class_names)} classes, the network {num_classes}",
            hint="give the data set the network was trained on",
        )
    return images


def _open_data(loaded: LoadedModel, options: CompressOptions) -> tuple[ImageSet | None, ImageSet | None]:
    """Returns the images to train on and to report on; each may be None."""
    if options.data is None:
        return None, None
    if options.training is not None and options.data.startswith("samples/"):
        raise OptionError(
            f"`{options.data}` has 20 images, too few to fine-tune on", hint="--epochs 0 evaluates on them only"
        )
    test = open_for(loaded.preprocessing, loaded.num_classes, options.data, "test")
    if options.samples is not None:
        test = random_subset(test, options.samples, seed=options.seed)
    if options.training is None:
        return None, test
    return open_for(loaded.preprocessing, loaded.num_classes, options.data, "train"), test


def _kappas(model: nn.Module) -> dict[str, float]:
    """Returns κ of every factored layer whose σ_r is not zero."""
    kappas = {
        name: condition_number(torch.linalg.svdvals(layer.S.detach().double()))
        for name, layer in factored_layers(model).items()
    }
    return {name: kappa for name, kappa in kappas.items() if math.isfinite(kappa)}


def _fine_tune_(
    model: nn.Module, loaded: LoadedModel, images: ImageSet, options: CompressOptions, observer: Observer
) -> FineTuning:
    assert options.training is not None  # checked by the caller
    student = PixelModel(model, loaded.preprocessing).to(options.device)
    teacher = PixelModel(loaded.model, loaded.preprocessing).to(options.device)
    tuning = fine_tune_(student, images, options.training, teacher=teacher, on_progress=observer.on_training)
    for network in (student, teacher):
        network.to("cpu").to(memory_format=torch.contiguous_format)
    return tuning


def _manifest(
    loaded: LoadedModel,
    model: nn.Module,
    plan: CompressionPlan,
    options: CompressOptions,
    tuning: FineTuning | None,
    start_kappas: Mapping[str, float],
    images: ImageSet | None,
) -> Manifest:
    size = loaded.preprocessing.input_size
    recipe: dict[str, Any] = {"plan": dict(plan.policy), "guaranteed_tol": None if tuning else options.tol}
    if tuning is not None and options.training is not None:
        chosen = next(entry for entry in tuning.log if entry.epoch == tuning.chosen_epoch)
        recipe["fine_tuning"] = {
            **asdict(options.training),
            "penalty": tuning.penalty,
            "data": options.data,
            "chosen_epoch": tuning.chosen_epoch,
            "held_out_images": tuning.held_out_images,
            "held_out_accuracy": chosen.held_out_accuracy,
            "held_out_accuracy_before": tuning.log[0].held_out_accuracy,
        }
    return Manifest(
        architecture=loaded.architecture,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names=images.class_names if images else (),
        dtype=loaded.dtype,
        layers=describe_layers(loaded.model, model, plan, start_kappas=start_kappas if tuning else {}),
        recipe=recipe,
        source=asdict(loaded.source) | {"candidates": list(loaded.source.candidates)},
        baseline=Cost(count_parameters(loaded.model), loaded.source.bytes, count_macs(loaded.model, size)),
        compressed=Cost(
            count_parameters(model), tensor_bytes(model, getattr(torch, loaded.dtype)), count_macs(model, size)
        ),
        shared={},
        tensors_sha256="",
        versions=installed_versions(),
    )


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
    return images


def _is_local_folder(source: str | None) -> bool:
    return source is not None and not source.startswith(("torch/", "hfds/", "samples/")) and Path(source).is_dir()


def _fallback_samples(manifest: Manifest) -> str:
    known = {(1000, 3): "samples/imagenet", (100, 3): "samples/cifar100", (10, 3): "samples/cifar10"}
    key = (manifest.num_classes, manifest.preprocessing.input_size[0])
    if key not in known:
        raise DataError(
            f"no sample images fit a network of {key[0]} classes and {key[1]} channels",
            hint="name images with --data DIR",
        )
    return known[key]


def _baseline_options(manifest: Manifest, arch: str | None) -> LoadOptions:
    architecture, source = manifest.architecture, manifest.source
    return LoadOptions(
        arch=arch or architecture.label,
        arch_arguments=architecture.arguments,
        match_by_order=source["match"] == "by order",
        weights_key=source["wrapper"] or None,
        preprocessing=manifest.preprocessing.to_json(),
    )


def _on_pixels(model: nn.Module, preprocessing: Preprocessing, device: str) -> PixelModel:
    return PixelModel(model, preprocessing).to(device)


def _render(report: dict[str, Any]) -> tuple[bytes, bytes]:
    """Returns the report as JSON and as HTML."""
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return text.encode(), render_html(report).encode()


def _write_report(artifact: Path, documents: tuple[bytes, bytes]) -> None:
    for path, content in zip(report_paths(artifact), documents, strict=True):
        write_atomically(path, content)
