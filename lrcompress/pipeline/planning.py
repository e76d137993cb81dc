"""From checkpoint to plan."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lrcompress.checkpoint import LoadedModel
from lrcompress.data import ImageSet, iterate_batches, random_subset
from lrcompress.errors import DataError, OptionError
from lrcompress.factorize import factorize
from lrcompress.measure import count_parameters, measure_accuracy
from lrcompress.models import PixelModel
from lrcompress.nn import expose_, twin
from lrcompress.pipeline.images import open_for
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.search import Evaluation, MaxDrop, search_budget
from lrcompress.plan import (
    Calibration,
    Candidate,
    CompressionPlan,
    Decomposer,
    RankPolicy,
    UniformRank,
    find_layers,
    make_plan,
    measure_metrics,
)
from lrcompress.plan.layers import match_layers
from lrcompress.schemes import SCHEMES, Metric, find_scheme, schemes_for

DEFAULT_CALIBRATION_IMAGES = 256
FEW_IMAGES = 64


@dataclass(frozen=True)
class LayerOptions:
    """Which layers are factorised, and how, whatever chooses their ranks.

    Attributes:
        scheme: "auto" for whatever costs least at equal error, or "matrix", "spatial", "tucker2", "split": that scheme
            where it fits, the matrix form elsewhere.
        round_ranks: ranks are multiples of this, or full.
        include_first: factorise the first layer too.
        include_classifier: factorise the classifier too.
        exclude: patterns of the names of layers that stay dense.
        layer_ranks: ranks by patterns of names, instead of the policy's.
        layer_schemes: schemes by patterns of names.
        allow_zero_layers: leave all-zero layers dense instead of refusing them.

    Raises:
        OptionError: if a value is out of range.
    """

    scheme: str = "auto"
    round_ranks: int = 1
    include_first: bool = False
    include_classifier: bool = False
    exclude: tuple[str, ...] = ()
    layer_ranks: Mapping[str, int] = field(default_factory=dict)
    layer_schemes: Mapping[str, str] = field(default_factory=dict)
    allow_zero_layers: bool = False

    def __post_init__(self) -> None:
        for scheme in (self.scheme, *self.layer_schemes.values()):
            if scheme != "auto":
                find_scheme(scheme)
        if self.round_ranks < 1:
            raise OptionError(f"--round-ranks must be at least 1, got {self.round_ranks}", hint="--round-ranks 8")

    def describe(self) -> dict[str, Any]:
        """Returns what differs from the default and from what the layers' records say, as JSON types."""
        given = {
            "scheme": self.scheme if self.scheme != "auto" else None,
            "round_ranks": self.round_ranks if self.round_ranks > 1 else None,
            "layer_schemes": dict(self.layer_schemes) or None,
        }
        return {key: value for key, value in given.items() if value is not None}


def draw_calibration(loaded: LoadedModel, calibration: Calibration, observer: Observer) -> tuple[Calibration, ImageSet]:
    """Returns the calibration with the number of its images, and the images, drawn from the training split.

    Raises:
        DataError: if the images cannot be found, or there are fewer than were asked for.
    """
    images = open_for(loaded.preprocessing, None, calibration.data, "train", option="--calibrate")
    if calibration.images is not None and calibration.images > len(images):
        raise DataError(
            f"`{calibration.data}` has {len(images)} images to calibrate with, {calibration.images} were asked for",
            hint=f"--calibration-images {len(images)}",
        )
    drawn = random_subset(images, calibration.images or DEFAULT_CALIBRATION_IMAGES, seed=calibration.seed)
    observer.on_stage(f"calibrating with {len(drawn)} images of {calibration.data}")
    if len(drawn) < FEW_IMAGES:
        observer.on_stage(f"WARNING: {len(drawn)} images are few to calibrate with; some hundred are better")
    return replace(calibration, images=len(drawn)), drawn


def calibrate_loaded(
    loaded: LoadedModel,
    calibration: Calibration,
    candidates: Sequence[Candidate],
    *,
    device: str = "cpu",
    drawn: ImageSet | None = None,
) -> dict[str, Metric]:
    """Returns the metric of the truncation of each layer, from images of the training split.

    Args:
        loaded: the network.
        calibration: which images.
        candidates: the layers.
        device: where to compute.
        drawn: the images, where they have been drawn already.

    Raises:
        DataError: if the images cannot be read, or there are fewer than were asked for.
    """
    if drawn is None:
        _, drawn = draw_calibration(loaded, calibration, Observer())
    exposed = expose_(twin(loaded.model))
    pixel_model = PixelModel(exposed, loaded.preprocessing).to(device)
    batches = (pixels.to(device) for pixels, _ in iterate_batches(drawn, batch_size=32))
    wanted = {candidate.name: candidate for candidate in candidates}
    metrics = measure_metrics(exposed, wanted, batches, images=len(drawn), network=pixel_model)
    loaded.model.to("cpu")
    return metrics


def plan_loaded(
    loaded: LoadedModel,
    policy: RankPolicy | MaxDrop,
    layers: LayerOptions | None = None,
    *,
    calibration: Calibration | None = None,
    data: str | None = None,
    device: str = "cpu",
    observer: Observer | None = None,
) -> tuple[CompressionPlan, Decomposer]:
    """Returns what a policy would do with a checkpoint's network, which stays as it is, and with which decompositions.

    The plan knows its checkpoint, and is executed on no other one. See `make_plan`. A `MaxDrop` is searched with the
    training images of `data`.
    """
    observer, layers = observer or Observer(), layers or LayerOptions()
    searched = policy.check_data(data) if isinstance(policy, MaxDrop) else ""
    given = [*layers.layer_ranks.values(), *([policy.rank] if isinstance(policy, UniformRank) else [])]
    if odd := [rank for rank in given if rank % layers.round_ranks]:
        raise OptionError(
            f"rank {odd[0]} is no multiple of {layers.round_ranks}", hint="another rank, or no --round-ranks"
        )
    size = loaded.preprocessing.input_size
    find = functools.partial(
        find_layers,
        loaded.model,
        size,
        include_first=layers.include_first,
        include_classifier=layers.include_classifier,
        exclude=layers.exclude,
    )
    by_layer = _schemes_by_layer(layers.layer_schemes, find()) if layers.layer_schemes else {}
    metrics: dict[str, Metric] = {}
    if calibration is not None:
        calibration, drawn = draw_calibration(loaded, calibration, observer)
        wanted = [one for one in find() if not one.reason]
        metrics = calibrate_loaded(loaded, calibration, wanted, device=device, drawn=drawn)
    decomposer = Decomposer(metrics, layers.scheme, by_layer, layers.round_ranks, observer.on_layer)
    observer.on_stage("planning")
    make = functools.partial(
        make_plan,
        loaded.model,
        input_size=size,
        include_first=layers.include_first,
        include_classifier=layers.include_classifier,
        exclude=layers.exclude,
        layer_ranks=layers.layer_ranks,
        allow_zero_layers=layers.allow_zero_layers,
        decomposer=decomposer,
    )
    if isinstance(policy, MaxDrop):
        plan = _search(loaded, policy, make, decomposer, data=searched, device=device, observer=observer)
    else:
        plan = make(policy)
    plan = replace(
        plan,
        policy={**plan.policy, **layers.describe()},
        source_sha256=loaded.source.sha256,
        calibration=calibration,
        preprocessing=loaded.preprocessing,
    )
    return plan, decomposer


def _schemes_by_layer(layer_schemes: Mapping[str, str], candidates: Sequence[Candidate]) -> dict[str, str]:
    """Returns the name of the scheme of each layer that a pattern matches.

    Raises:
        OptionError: if a pattern matches no layer, or its scheme fits none of those that it matches.
    """
    free = {one.name: one.layer for one in candidates if not one.reason}
    dense = {one.name: one.reason for one in candidates if one.reason}
    by_layer: dict[str, str] = {}
    for pattern, scheme in layer_schemes.items():
        names = match_layers(pattern, free, dense)
        fitting = {one.name for name in names if (layer := free[name]) is not None for one in schemes_for(layer, name)}
        if scheme not in ("auto", *fitting):
            raise OptionError(
                f"the scheme {scheme} fits none of the layers that `{pattern}` matches, `{names[0]}` for one",
                hint=f"what fits there: {', '.join(name for name in SCHEMES if name in fitting)}",
            )
        by_layer |= dict.fromkeys(names, scheme)
    return by_layer


def _search(
    loaded: LoadedModel,
    target: MaxDrop,
    make: Callable[[RankPolicy], CompressionPlan],
    decomposer: Decomposer,
    *,
    data: str,
    device: str,
    observer: Observer,
) -> CompressionPlan:
    images = open_for(loaded.preprocessing, loaded.num_classes, data, "train")
    images = random_subset(images, target.images, seed=target.seed)

    def accuracy_of(network: nn.Module) -> float:
        accuracy = measure_accuracy(PixelModel(network, loaded.preprocessing).to(device), images)
        network.to("cpu")  # what it shares with the original too
        return accuracy

    def tell(one: Evaluation) -> None:
        observer.on_stage(
            f"{100 * one.kept:.1f} % of the parameters: {100 * one.accuracy:.2f} % right, {-one.drop:+.2f} points"
        )

    dense_accuracy = accuracy_of(loaded.model)
    observer.on_stage(
        f"searching the smallest model within {target.points:g} points of {100 * dense_accuracy:.2f} % "
        f"on {len(images):,} training images"
    )
    return search_budget(
        replace(target, images=len(images)),
        parameters=count_parameters(loaded.model),
        dense_accuracy=dense_accuracy,
        make=make,
        accuracy_of=lambda plan: accuracy_of(factorize(loaded.model, plan, decomposer=decomposer)),
        on_evaluation=tell,
    )
