"""The stages from checkpoint to report."""

import fnmatch
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrcompress.artifact import (
    Cost,
    Manifest,
    check_outputs,
    installed_versions,
    pack_artifact,
    round_weights_,
    save_artifact,
    write_atomically,
)
from lrcompress.checkpoint import LoadedModel, LoadOptions, file_sha256, find_weights, load_checkpoint
from lrcompress.data import ImageSet, random_subset
from lrcompress.dlrt import FineTuning, TrainingOptions, agree, world
from lrcompress.errors import DataError, OptionError, OutputError, SearchError
from lrcompress.factorize import describe_layers, factorize
from lrcompress.measure import count_macs, count_parameters, measure_latency, tensor_bytes
from lrcompress.models import PixelModel, is_hub_name
from lrcompress.pipeline.fine_tuning import FineTuned, fine_tune_loaded, starting_policy
from lrcompress.pipeline.images import open_for
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.planning import LayerOptions, calibrate_loaded, draw_calibration, plan_loaded
from lrcompress.pipeline.search import MaxDrop
from lrcompress.pipeline.unfinished import refuse_to_lose, unfinished_path
from lrcompress.plan import (
    Calibration,
    CompressionPlan,
    Decomposer,
    LayerRecord,
    RankPolicy,
    TrainingStart,
    check_plan,
    check_source,
    find_layers,
)
from lrcompress.report import build_report, render_documents, report_paths, with_evaluation
from lrcompress.robustness import AttackSettings, EvaluatedModel, evaluate_models

START_TOL = 0.1  # where a largest drop cannot be kept without training


@dataclass(frozen=True)
class CompressOptions:
    """What `compress` is to do.

    Attributes:
        policy: chooses the ranks of a compression without fine-tuning; `MaxDrop` needs `data`.
        plan: a plan to execute instead, without fine-tuning.
        load: how to read the checkpoint; a plan brings its preprocessing, and what is given must agree with it.
        data: source of images for fine-tuning and for the clean accuracy in the report; None compresses without data.
        training: settings of the fine-tuning, whose policy chooses the ranks; None does not fine-tune.
        samples: largest number of test images for the report; None takes all.
        seed: of the choice of these images.
        layers: which layers are factorised, and how; without effect on a plan, which says so itself.
        calibration: the images whose activations are the metric of the truncation; None truncates the weights alone.
            A plan brings its own.
        timing: whether both models are timed, which needs both in memory at once.
        device: where to compute.
        overwrite: whether existing outputs may be replaced.
        resume: whether a fine-tuning that did not end goes on.
        command: what the user typed, for the report.
    """

    policy: RankPolicy | MaxDrop | None = None
    plan: CompressionPlan | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    data: str | None = None
    training: TrainingOptions | None = None
    samples: int | None = None
    seed: int = 0
    layers: LayerOptions = field(default_factory=LayerOptions)
    calibration: Calibration | None = None
    timing: bool = True
    device: str = "cpu"
    overwrite: bool = False
    resume: bool = False
    command: str = "lrcompress.compress(…)"

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.policy, self.plan, self.training)) != 1:
            raise OptionError(
                "a compression takes one of a rank policy, a plan, and a fine-tuning, which has its own tolerance",
                hint="policy=Tolerance(0.1), plan=CompressionPlan.from_json(…), or training=TrainingOptions(…)",
            )
        if self.plan is not None and (self.calibration is not None or self.layers != LayerOptions()):
            raise OptionError(
                "a plan brings its own calibration, schemes, ranks and dense layers",
                hint="give them when the plan is made: lrcompress plan … --calibrate DIR --exclude PATTERN",
            )
        if isinstance(self.policy, MaxDrop):
            self.policy.check_data(self.data)
        if self.training is not None and self.data is None:
            raise OptionError("fine-tuning needs images", hint="--data DIR")
        if self.resume and self.training is None:
            raise OptionError("there is nothing to resume without fine-tuning", hint="--data DIR, and not --epochs 0")


def compress(
    source: str, output: str | Path, options: CompressOptions, *, observer: Observer | None = None
) -> dict[str, Any]:
    """Writes a compressed model and its report, and returns the report; of several processes only the first one does.

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
    _check_places(source, path, options)

    observer.on_stage(f"reading {source}")
    loaded = _load(source, options)
    observer.on_stage(loaded.describe())
    train, test = _open_data(loaded, options)
    plan, decomposer = _plan(loaded, options, observer)
    plan = agree(plan)  # of several processes, which may round differently
    observer.on_stage(f"factorising {len(plan.factorized())} of {len(plan.layers)} layers")
    tuned = None
    if train is not None and options.training is not None and plan.factorized():
        tuned = _fine_tune(loaded, plan, decomposer, train, path, options, observer)
        model = tuned.model
    else:
        model = factorize(loaded.model, plan, decomposer=decomposer, on_progress=observer.on_layer)
    if world()[0] != 0:
        return {}  # the rest is the work of process 0
    _check_runs(model, loaded)
    round_weights_(model, loaded.dtype)

    tuning = None if tuned is None else tuned.tuning
    kappas = {} if tuned is None else tuned.start_kappas
    layers = describe_layers(loaded.model, model, plan, start_kappas=kappas)
    manifest = _describe(loaded, model, layers, _recipe(plan, options, tuning), test)
    packed = pack_artifact(model, manifest)
    baseline = PixelModel(loaded.model, loaded.preprocessing).to(options.device)
    compressed = PixelModel(model, loaded.preprocessing).to(options.device)
    latency = None
    if options.timing:
        observer.on_stage("timing both models")
        latency = measure_latency(baseline, compressed, loaded.preprocessing.input_size)
    report = build_report(
        packed.manifest,
        artifact=path,
        artifact_bytes=packed.size,
        artifact_sha256=packed.sha256,
        training_log=[record.to_json() for record in tuning.log] if tuning else None,
        latency=latency,
        command=options.command,
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
    documents = render_documents(report, path)
    save_artifact(path, packed)
    for document, content in documents.items():
        write_atomically(document, content)
    unfinished_path(path).unlink(missing_ok=True)
    return report


def _load(source: str, options: CompressOptions) -> LoadedModel:
    """Returns the checkpoint's network, with the preprocessing of the plan if there is one that knows it."""
    known = options.plan.preprocessing if options.plan is not None else None
    if options.plan is None or known is None:
        return load_checkpoint(source, options.load)
    check_source(options.plan, file_sha256(find_weights(source)))  # a network of its own may not take such images
    given = options.load.preprocessing
    loaded = load_checkpoint(source, replace(options.load, preprocessing={**known.to_json(), **given}))
    wanted = replace(loaded.preprocessing, origin=known.origin)
    if wanted != known:
        raise OptionError(
            f"the plan was made for {known.describe()}, not for {replace(wanted, origin='given').describe()}",
            hint="leave out --input-size, --mean and --std, which the plan brings, or make the plan again with them",
        )
    return replace(loaded, preprocessing=known)


def _plan(loaded: LoadedModel, options: CompressOptions, observer: Observer) -> tuple[CompressionPlan, Decomposer]:
    """Returns the plan that was given, once it is known to fit, or makes one; and the decomposer of its layers."""
    if options.plan is not None:
        size, sha256 = loaded.preprocessing.input_size, loaded.source.sha256
        plan = check_plan(options.plan, loaded.model, input_size=size, sha256=sha256)
        if plan.calibration is None:
            return plan, Decomposer()
        calibration, drawn = _draw_planned(loaded, plan.calibration, observer)
        planned = plan.factorized()
        candidates = find_layers(loaded.model, size, include_first=True, include_classifier=True)
        wanted = [one for one in candidates if one.name in planned]
        metrics = calibrate_loaded(loaded, calibration, wanted, device=options.device, drawn=drawn)
        return replace(plan, calibration=calibration), Decomposer(metrics)
    policy = options.policy
    if options.training is not None:
        policy = starting_policy(options.training, seed=options.seed)
    assert policy is not None  # checked when the options were made
    make = functools.partial(
        plan_loaded,
        loaded,
        layers=options.layers,
        calibration=options.calibration,
        data=options.data,
        device=options.device,
        observer=observer,
    )
    try:
        return make(policy)
    except SearchError as error:
        if options.training is None:
            raise
        # What is lost without training may be won back by it.
        observer.on_stage(f"{error.message}; fine-tuning starts from a tolerance")
        return make(TrainingStart(START_TOL, max_rank=options.training.dlrt.max_rank))


def _draw_planned(loaded: LoadedModel, calibration: Calibration, observer: Observer) -> tuple[Calibration, ImageSet]:
    try:
        return draw_calibration(loaded, calibration, observer)
    except DataError as error:  # the user has not named these images, the plan has
        raise DataError(
            f"the plan's calibration: {error.message}", hint="run it where its images are, or make the plan again"
        ) from error


def _check_runs(model: nn.Module, loaded: LoadedModel) -> None:
    """Raises `OptionError` if a network's own code asks of a layer what its low-rank form has not."""
    try:
        count_macs(model, loaded.preprocessing.input_size)
    except Exception as error:  # a network's own code may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(
            f"the factorised network does not run: {reason}", hint="leave the layer dense with --exclude NAME"
        ) from error


def _check_places(source: str, output: Path, options: CompressOptions) -> None:
    """Raises what is wrong with the names of input and outputs, before hours of work are lost to it."""
    if output.suffix != ".safetensors":
        raise OptionError(f"the output must end in .safetensors, got `{output}`", hint=f"-o {output.stem}.safetensors")
    weights = None if is_hub_name(source) else find_weights(source)
    check_outputs([output, *report_paths(output)], overwrite=options.overwrite)
    refuse_to_lose(output, resume=options.resume, overwrite=options.overwrite)
    if weights is not None and output.exists() and output.samefile(weights):
        raise OutputError(f"`{output}` is the checkpoint itself, which is kept", hint="name another file with -o")


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


def _fine_tune(
    loaded: LoadedModel,
    plan: CompressionPlan,
    decomposer: Decomposer,
    images: ImageSet,
    output: Path,
    options: CompressOptions,
    observer: Observer,
) -> FineTuned:
    assert options.training is not None and options.data is not None  # checked when the options were made
    planned = plan.factorized()
    given = {name for pattern in options.layers.layer_ranks for name in fnmatch.filter(planned, pattern)}
    return fine_tune_loaded(
        loaded,
        plan,
        decomposer,
        images,
        options.training,
        data=options.data,
        output=output,
        resume=options.resume,
        given_ranks={name: planned[name].ranks for name in given},
        device=options.device,
        observer=observer,
    )


def _recipe(plan: CompressionPlan, options: CompressOptions, tuning: FineTuning | None) -> dict[str, Any]:
    """Returns how the model was made, for the manifest."""
    policy = {"name": "plan", "made_by": dict(plan.policy)} if options.plan is not None else dict(plan.policy)
    guaranteed = options.policy.guaranteed_tol() if isinstance(options.policy, RankPolicy) else None
    # A calibrated truncation promises an error of the outputs for its images, not of the weights.
    if plan.calibration is not None or options.layers.layer_ranks:
        guaranteed = None
    recipe: dict[str, Any] = {"plan": policy, "guaranteed_tol": guaranteed}
    if plan.calibration is not None:
        recipe["calibration"] = asdict(plan.calibration)
    if tuning is not None and options.training is not None:
        chosen = next(entry for entry in tuning.log if entry.epoch == tuning.chosen_epoch)
        recipe["fine_tuning"] = {
            **options.training.describe(),
            "penalty": tuning.penalty,
            "data": options.data,
            "chosen_epoch": tuning.chosen_epoch,
            "held_out_images": tuning.held_out_images,
            "held_out_accuracy": chosen.held_out_accuracy,
            "held_out_accuracy_before": tuning.log[0].held_out_accuracy,
            **({} if tuning.reached is None else {"target_reached": tuning.reached}),
        }
    return recipe


def _describe(
    loaded: LoadedModel,
    model: nn.Module,
    layers: tuple[LayerRecord, ...],
    recipe: Mapping[str, Any],
    images: ImageSet | None,
) -> Manifest:
    """Returns the manifest of the folded model; its digest and shared tensors are filled in when it is packed."""
    size = loaded.preprocessing.input_size
    stored_bytes = tensor_bytes(model, getattr(torch, loaded.dtype))
    return Manifest(
        architecture=loaded.architecture,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        class_names=images.class_names if images else (),
        dtype=loaded.dtype,
        layers=layers,
        recipe=recipe,
        source=asdict(loaded.source) | {"candidates": list(loaded.source.candidates)},
        baseline=Cost(count_parameters(loaded.model), loaded.source.bytes, count_macs(loaded.model, size)),
        compressed=Cost(count_parameters(model), stored_bytes, count_macs(model, size)),
        shared={},
        tensors_sha256="",
        versions=installed_versions(),
    )
