"""From a plan to a fine-tuned low-rank network."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrcompress.checkpoint import LoadedModel
from lrcompress.data import ImageSet
from lrcompress.dlrt import Circumstances, FineTuning, TrainingOptions, agree, fine_tune_, world
from lrcompress.errors import LRCompressError, OutputError, TrainingError
from lrcompress.factorize import condition_numbers, factorize_for_training, fold_
from lrcompress.measure import count_macs
from lrcompress.models import PixelModel
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.search import MaxDrop
from lrcompress.pipeline.unfinished import UnfinishedRun, stop_on_signal
from lrcompress.plan import CompressionPlan, Decomposer, Energy, RankPolicy, Tolerance, TrainingStart, find_layers
from lrcompress.schemes import count_positions

# What torch says when another process does not answer any more.
LOST_PROCESS = re.compile(r"connection (was )?(closed|reset)|broken pipe|timed ?out|gloo|nccl", re.IGNORECASE)


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning has made.

    Attributes:
        model: in its shipped form.
        tuning: what happened.
        start_kappas: κ of the layers before.
    """

    model: nn.Module
    tuning: FineTuning
    start_kappas: Mapping[str, float]


def starting_policy(training: TrainingOptions, *, seed: int) -> RankPolicy | MaxDrop:
    """Returns the policy of the plan that a fine-tuning starts from.

    A tolerance that no useful option meets does not keep a layer dense, since training closes the gap; a largest drop
    starts from the smallest model that keeps it without training. Other policies choose the start as they choose what
    follows.
    """
    policy = training.dlrt.policy
    if training.max_drop is not None:
        return MaxDrop(training.max_drop, seed=seed)
    if isinstance(policy, Tolerance | Energy):
        tol = policy.guaranteed_tol()
        assert tol is not None  # both promise one
        return TrainingStart(tol, max_rank=training.dlrt.max_rank)
    return policy


def fine_tune_loaded(
    loaded: LoadedModel,
    plan: CompressionPlan,
    decomposer: Decomposer,
    images: ImageSet,
    training: TrainingOptions,
    *,
    data: str,
    output: Path,
    resume: bool,
    given_ranks: Mapping[str, tuple[int, ...]],
    device: str,
    observer: Observer,
) -> FineTuned:
    """Returns the fine-tuned network of a plan.

    Its state is kept beside the output from time to time, and when the process is asked to end.

    Args:
        loaded: the checkpoint's network; not changed.
        plan: what the training starts from.
        decomposer: the one the plan was made with.
        images: to train on.
        training: the settings.
        data: what `images` were opened from.
        output: the file that will be written.
        resume: whether to go on from the state of a run that did not end.
        given_ranks: of layers whose ranks are not to change.
        device: where to compute.
        observer: follows the work.

    Raises:
        TrainingError: if training cannot go on, or was asked to end; its state is then kept.
        OptionError: if the state is that of another run.
    """
    settings = {
        "checkpoint": loaded.source.sha256,
        "plan": [[layer.name, layer.scheme, list(layer.ranks)] for layer in plan.layers],
        "preprocessing": loaded.preprocessing.to_json(),
        "calibration": None if plan.calibration is None else asdict(plan.calibration),
        "given ranks": {name: list(ranks) for name, ranks in sorted(given_ranks.items())},
        "data": data,
        "images": len(images),
        "processes": world()[1],
        **training.describe(),
    }
    unfinished = UnfinishedRun.beside(output, settings)
    # Process 0 has written it; the others may be on machines that do not see the file.
    state: Any = agree(unfinished.read() if resume and world()[0] == 0 else None)
    if resume:
        observer.on_stage(f"going on from `{unfinished.path}`" if state else "nothing to resume: starting anew")
    model = factorize_for_training(loaded.model, plan, decomposer=decomposer, on_progress=observer.on_layer)
    kappas = condition_numbers(model)
    observer.on_stage(f"fine-tuning on {images.description}")
    student = PixelModel(model, loaded.preprocessing).to(device)
    teacher = PixelModel(loaded.model, loaded.preprocessing).to(device)
    prefix = "network."  # of the network within the student

    def save(values: dict[str, Any]) -> bool:
        try:
            unfinished.write(values)
        except OutputError as error:  # training goes on, and the next time there may be room
            observer.on_stage(f"the state of the run could not be saved: {error.message}")
            return False
        return True

    with stop_on_signal() as is_stopped:
        try:
            tuning = fine_tune_(
                student,
                images,
                training,
                dense=teacher,
                circumstances=_circumstances(loaded, {f"{prefix}{k}": v for k, v in given_ranks.items()}, prefix),
                on_progress=observer.on_training,
                on_warning=lambda message: observer.on_stage(f"WARNING: {message}"),
                save=save,
                resume=state,
                is_stopped=is_stopped,
            )
        except RuntimeError as error:
            # The others' end reaches this process as an error of whatever they did together.
            if world()[1] == 1 or isinstance(error, LRCompressError) or not LOST_PROCESS.search(str(error)):
                raise
            raise TrainingError(
                f"another process of the run has ended: {str(error).splitlines()[0]}",
                hint="start all again with --resume, which goes on from the last saved state",
            ) from error
    for network in (student, teacher):
        network.to("cpu").to(memory_format=torch.contiguous_format)
    return FineTuned(fold_(model), _without_prefix(tuning, prefix), kappas)


def _circumstances(loaded: LoadedModel, fixed_ranks: Mapping[str, tuple[int, ...]], prefix: str) -> Circumstances:
    size = loaded.preprocessing.input_size
    candidates = find_layers(loaded.model, size, include_first=True, include_classifier=True)
    positions = {f"{prefix}{one.name}": count_positions(one.calls) for one in candidates if one.calls}
    return Circumstances(positions, count_macs(loaded.model, size), fixed_ranks)


def _without_prefix(tuning: FineTuning, prefix: str) -> FineTuning:
    """Returns the log with the layers' names as the network has them."""
    log = [
        replace(
            record,
            ranks={name.removeprefix(prefix): ranks for name, ranks in record.ranks.items()},
            cores={name.removeprefix(prefix): core for name, core in record.cores.items()},
        )
        for record in tuning.log
    ]
    return replace(tuning, log=tuple(log))
