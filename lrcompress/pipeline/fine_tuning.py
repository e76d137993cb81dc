"""From a plan to a fine-tuned low-rank network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from lrcompress.checkpoint import LoadedModel
from lrcompress.data import ImageSet, telling_of_ended_workers
from lrcompress.dlrt import Circumstances, FineTuning, TrainingOptions, agree, fine_tune_, world
from lrcompress.errors import OutputError, TrainingError
from lrcompress.factorize import condition_numbers, factorize_for_training, fold_
from lrcompress.measure import count_macs
from lrcompress.models import PixelModel
from lrcompress.nn import LowRankLayer, PlainLayer
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.search import MaxDrop
from lrcompress.pipeline.unfinished import GO_ON, UnfinishedRun, stop_on_signal, telling_how_to_go_on
from lrcompress.plan import (
    Budget,
    CompressionPlan,
    Decomposer,
    Energy,
    RankPolicy,
    Tolerance,
    TrainingStart,
    WideStart,
    find_layers,
)
from lrcompress.schemes import build_layer, count_positions


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning has made.

    Attributes:
        model: in its shipped form.
        tuning: what happened.
        start_kappas: κ of the layers before.
        kept: whether the state at the end of the training has been saved.
    """

    model: nn.Module
    tuning: FineTuning
    start_kappas: Mapping[str, float]
    kept: bool


@dataclass(frozen=True)
class Beginning:
    """What a fine-tuning begins with, or goes on with; the same on all processes.

    Attributes:
        model: in the form that is trained.
        kappas: κ of its layers before any training.
        state: to go on from, None at the very beginning.
    """

    model: nn.Module
    kappas: Mapping[str, float]
    state: Any


def starting_policy(training: TrainingOptions, *, seed: int) -> RankPolicy | MaxDrop:
    """Returns the policy of the plan that a fine-tuning starts from.

    A tolerance that no useful option meets does not keep a layer dense, since training closes the gap; a budget is
    come down to; a largest drop starts from the smallest model that keeps it without training. A given rank is also
    that of the start.
    """
    policy = training.dlrt.policy
    if training.max_drop is not None:
        return MaxDrop(training.max_drop, seed=seed)
    if isinstance(policy, Tolerance | Energy):
        tol = policy.guaranteed_tol()
        assert tol is not None  # both promise one
        return TrainingStart(tol, max_rank=training.dlrt.max_rank)
    if isinstance(policy, Budget):
        return WideStart(policy, training.anneal)
    return policy


def begin_training(
    loaded: LoadedModel,
    plan: CompressionPlan,
    decomposer: Decomposer | None,
    saved: Mapping[str, Any] | None,
    observer: Observer,
) -> Beginning:
    """Returns what a fine-tuning begins with: process 0 factorises, the others take over what it has made.

    Args:
        loaded: the checkpoint's network; not changed.
        plan: what the training starts from.
        decomposer: the one the plan was made with; needed by process 0 alone, and not to go on with a run.
        saved: the run to go on with, the same on all processes; None begins anew.
        observer: follows the work.
    """
    if saved is not None:
        model = factorize_for_training(loaded.model, plan, decomposer=_FormsOnly())  # the state brings the values
        return Beginning(model, saved["kappas"], saved["state"])
    if world()[0] == 0:
        model = factorize_for_training(loaded.model, plan, decomposer=decomposer, on_progress=observer.on_layer)
        made = condition_numbers(model), model.state_dict()
    else:
        model, made = factorize_for_training(loaded.model, plan, decomposer=_FormsOnly()), ({}, {})
    kappas, weights = agree(made)
    model.load_state_dict(weights)
    return Beginning(model, kappas, None)


class _FormsOnly(Decomposer):
    """Gives layers their low-rank form without decomposing them, and no values."""

    @override
    def low_rank_layer(self, name: str, layer: PlainLayer, scheme: str, ranks: tuple[int, ...]) -> LowRankLayer:
        return build_layer(layer, scheme, ranks)


def fine_tune_loaded(
    loaded: LoadedModel,
    plan: CompressionPlan,
    beginning: Beginning,
    images: ImageSet,
    training: TrainingOptions,
    *,
    unfinished: UnfinishedRun,
    given_ranks: Mapping[str, tuple[int, ...]],
    device: str,
    observer: Observer,
) -> FineTuned:
    """Returns the fine-tuned network of a plan.

    Its state is kept from time to time, when the process is asked to end, and at the end.

    Args:
        loaded: the checkpoint's network; not changed.
        plan: what the training starts from.
        beginning: the network as it is before, and the state to go on from; changed.
        images: to train on.
        training: the settings.
        unfinished: where the state is kept.
        given_ranks: of layers whose ranks are not to change.
        device: where to compute.
        observer: follows the work.

    Raises:
        TrainingError: if training cannot go on, or was asked to end; its state is then kept.
    """
    model, kappas = beginning.model, beginning.kappas
    observer.on_stage(f"fine-tuning on {images.description}")
    student = PixelModel(model, loaded.preprocessing).to(device)
    teacher = PixelModel(loaded.model, loaded.preprocessing).to(device)
    prefix = "network."  # of the network within the student
    kept = False

    def save(values: dict[str, Any]) -> bool:
        nonlocal kept
        try:
            unfinished.write(plan=plan.to_json(), kappas=dict(kappas), state=values)
            kept = True
        except OutputError as error:  # training goes on, and the next time there may be room
            observer.on_stage(f"the state of the run could not be saved: {error.message}")
            kept = False
        return kept

    with telling_how_to_go_on(unfinished.path, GO_ON), telling_of_ended_workers(), stop_on_signal() as is_stopped:
        try:
            tuning = fine_tune_(
                student,
                images,
                training,
                dense=teacher,
                circumstances=_circumstances(loaded, plan, given_ranks, prefix),
                on_progress=observer.on_training,
                on_warning=lambda message: observer.on_stage(f"WARNING: {message}"),
                save=save,
                resume=beginning.state,
                is_stopped=is_stopped,
            )
        except TrainingError as error:
            raise TrainingError(error.message.replace(f"`{prefix}", "`"), hint=error.hint) from error
        # Asked while the last epoch was measured.
        if is_stopped():
            hint = "--resume goes on with measuring and writing" if kept else GO_ON
            raise TrainingError("stopped after the last step of the training", hint=hint)
    if tuning.ended_by:
        done = tuning.log[-1].epoch
        observer.on_stage(f"{tuning.ended_by} has ended the training after {done} epoch{'s' * (done != 1)}")
    if tuning.chosen_epoch > 0:
        observer.on_stage(f"the state after epoch {tuning.chosen_epoch} is kept, the best with final ranks")
    for network in (student, teacher):
        network.to("cpu").to(memory_format=torch.contiguous_format)
    return FineTuned(fold_(model), _without_prefix(tuning, prefix), kappas, kept)


def _circumstances(
    loaded: LoadedModel, plan: CompressionPlan, given_ranks: Mapping[str, tuple[int, ...]], prefix: str
) -> Circumstances:
    size = loaded.preprocessing.input_size
    candidates = find_layers(loaded.model, size, include_first=True, include_classifier=True)
    positions = {f"{prefix}{one.name}": count_positions(one.calls) for one in candidates if one.calls}
    return Circumstances(
        positions,
        count_macs(loaded.model, size),
        fixed_ranks={f"{prefix}{name}": ranks for name, ranks in given_ranks.items()},
        left_out={f"{prefix}{name}": (layer.relative_error or 0.0) ** 2 for name, layer in plan.factorized().items()},
    )


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
