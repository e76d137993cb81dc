"""The stages from checkpoint to report."""

import fnmatch
import functools
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from lrcompress.artifact import (
    check_outputs,
    pack_artifact,
    round_weights_,
    save_artifact,
    write_atomically,
)
from lrcompress.checkpoint import LoadedModel, load_checkpoint, source_files
from lrcompress.data import ImageSet, random_subset
from lrcompress.dlrt import agree, world
from lrcompress.errors import OptionError, SearchError
from lrcompress.factorize import describe_layers, factorize, layer_spectra, shipped_spectra
from lrcompress.measure import count_macs, measure_latency
from lrcompress.models import PixelModel
from lrcompress.pipeline.fine_tuning import FineTuned, begin_training, fine_tune_loaded, starting_policy
from lrcompress.pipeline.given_plan import load_for_plan, prepare_given_plan
from lrcompress.pipeline.images import open_for
from lrcompress.pipeline.manifest import describe_recipe, describe_result
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.options import CompressOptions
from lrcompress.pipeline.planning import plan_loaded
from lrcompress.pipeline.plausibility import check_plausible
from lrcompress.pipeline.processes import check_processes
from lrcompress.pipeline.run_settings import found_settings, option_settings
from lrcompress.pipeline.unfinished import (
    GO_ON,
    MEASURE,
    UnfinishedRun,
    refuse_to_lose,
    telling_how_to_go_on,
    unfinished_path,
)
from lrcompress.plan import CompressionPlan, Decomposer, TrainingStart
from lrcompress.report import build_report, render_documents, report_paths, with_evaluation
from lrcompress.robustness import AttackSettings, EvaluatedModel, evaluate_models

START_TOL = 0.1  # where a largest drop cannot be kept without training


def compress(
    source: str | Path, output: str | Path, options: CompressOptions, *, observer: Observer | None = None
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
    observer, source, path = observer or Observer(), os.fspath(source), Path(output)
    is_first = world()[0] == 0  # the others are there for the training alone, and may not see the files
    if not is_first and options.training is None:
        return {}
    if is_first:
        _check_places(source, path, options)
    unfinished = _unfinished(path, options)
    # Before the work starts: a state that does not fit must not be told of after minutes of it.
    saved = unfinished.read() if unfinished is not None and options.resume and is_first else None

    observer.on_stage(f"reading {source}")
    loaded = _load(source, options)
    observer.on_stage(loaded.describe())
    train, test = _open_data(loaded, options)
    if unfinished is not None and train is not None:
        unfinished = unfinished.knowing(found_settings(loaded, train))
        saved = _check_resumed(unfinished, saved, train, options, observer)
        if saved is None and is_first and options.training is not None:
            check_plausible(loaded, train, options.training, device=options.device, observer=observer)
    plan, decomposer = None, None
    if saved is not None:
        plan = CompressionPlan.from_json(saved["plan"])
    elif is_first:
        plan, decomposer = _plan(loaded, options, observer)
    plan = agree(plan)
    assert plan is not None  # process 0 has made it
    observer.on_stage(f"factorising {len(plan.factorized())} of {len(plan.layers)} layers")
    tuned = None
    if train is not None and unfinished is not None and plan.factorized():
        tuned = _fine_tune(loaded, plan, decomposer, train, unfinished, saved, options, observer)
        model = tuned.model
    else:
        model = factorize(loaded.model, plan, decomposer=decomposer, on_progress=observer.on_layer)
    if not is_first:
        return {}
    telling = nullcontext()
    if tuned is not None:
        telling = telling_how_to_go_on(unfinished_path(path), MEASURE if tuned.kept else GO_ON)
    with telling:
        report = _measure_and_write(loaded, model, plan, decomposer, tuned, test, path, options, observer)
    unfinished_path(path).unlink(missing_ok=True)
    return report


def _measure_and_write(
    loaded: LoadedModel,
    model: nn.Module,
    plan: CompressionPlan,
    decomposer: Decomposer | None,
    tuned: FineTuned | None,
    test: ImageSet | None,
    path: Path,
    options: CompressOptions,
    observer: Observer,
) -> dict[str, Any]:
    _check_runs(model, loaded)
    round_weights_(model, loaded.dtype)
    kappas, shipped = tuned.start_kappas if tuned else {}, shipped_spectra(model, plan)
    layers = describe_layers(loaded.model, model, plan, start_kappas=kappas, spectra=shipped)
    recipe = describe_recipe(plan, options, tuned.tuning if tuned else None)
    manifest = describe_result(loaded, model, layers, recipe, test)
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
        training_log=[record.to_json() for record in tuned.tuning.log] if tuned else None,
        latency=latency,
        spectra=layer_spectra(loaded.model, plan, shipped, decomposer=decomposer),
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
    # Only now, when all that takes long is done: an interrupted run leaves no output behind.
    observer.on_stage("writing")
    model.to("cpu")
    documents = render_documents(report, path)
    save_artifact(path, packed)
    for document, content in documents.items():
        write_atomically(document, content)
    return report


def _unfinished(path: Path, options: CompressOptions) -> UnfinishedRun | None:
    """Returns where the state of a fine-tuning is kept, with the settings that the options give; None without one."""
    if options.training is None or options.data is None:
        return None
    settings = option_settings(options.training, options.layers, options.calibration, data=options.data)
    return UnfinishedRun.beside(path, settings, command=options.command)


def _check_resumed(
    unfinished: UnfinishedRun,
    saved: dict[str, Any] | None,
    images: ImageSet,
    options: CompressOptions,
    observer: Observer,
) -> dict[str, Any] | None:
    """Returns the run to go on with, once all its settings are known to be the same; None begins anew."""
    if saved is not None:
        unfinished.check(saved)
    if options.resume:
        observer.on_stage(f"going on from `{unfinished.path}`" if saved else "nothing to resume: starting anew")
    # Process 0 has read it; the others may be on machines that do not see the file.
    saved = agree(saved)
    if saved is not None and options.training is not None:
        check_processes(saved["processes"], images, options.training, on_notice=observer.on_stage)
    return saved


def _load(source: str, options: CompressOptions) -> LoadedModel:
    if options.plan is None:
        return load_checkpoint(source, options.load)
    return load_for_plan(source, options.load, options.plan)


def _plan(loaded: LoadedModel, options: CompressOptions, observer: Observer) -> tuple[CompressionPlan, Decomposer]:
    """Returns the plan that was given, once it is known to fit, or makes one; and the decomposer of its layers."""
    if options.plan is not None:
        return prepare_given_plan(loaded, options.plan, device=options.device, observer=observer)
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
    inputs = [*options.read_files, *source_files(source)]
    check_outputs([output, *report_paths(output)], overwrite=options.overwrite, inputs=inputs)
    refuse_to_lose(output, resume=options.resume, overwrite=options.overwrite)


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
    decomposer: Decomposer | None,
    images: ImageSet,
    unfinished: UnfinishedRun,
    saved: Mapping[str, Any] | None,
    options: CompressOptions,
    observer: Observer,
) -> FineTuned:
    assert options.training is not None  # checked when the options were made
    planned = plan.factorized()
    given = {name for pattern in options.layers.layer_ranks for name in fnmatch.filter(planned, pattern)}
    return fine_tune_loaded(
        loaded,
        plan,
        begin_training(loaded, plan, decomposer, saved, observer),
        images,
        options.training,
        unfinished=unfinished,
        given_ranks={name: planned[name].ranks for name in given},
        device=options.device,
        observer=observer,
    )
