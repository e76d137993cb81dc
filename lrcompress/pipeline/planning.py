"""From checkpoint to plan."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lrcompress.checkpoint import LoadedModel
from lrcompress.data import iterate_batches, random_subset
from lrcompress.errors import DataError, OptionError
from lrcompress.factorize import factorize, fold_
from lrcompress.measure import count_parameters, measure_accuracy
from lrcompress.models import PixelModel
from lrcompress.pipeline.images import open_for
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.search import Evaluation, MaxDrop, search_budget
from lrcompress.plan import Calibration, CompressionPlan, RankPolicy, find_layers, make_plan, output_grams

DEFAULT_CALIBRATION_IMAGES = 256
OutputGrams = dict[str, Tensor]


def calibrate_loaded(
    loaded: LoadedModel, calibration: Calibration, layers: Collection[str], *, device: str = "cpu"
) -> OutputGrams:
    """Returns the metric of the truncation of each layer, from images of the training split.

    Raises:
        DataError: if the images cannot be read, or there are fewer than were asked for.
    """
    images = open_for(loaded.preprocessing, None, calibration.data, "train")
    if calibration.images is not None and calibration.images > len(images):
        raise DataError(
            f"`{calibration.data}` has {len(images)} images to calibrate with, {calibration.images} were asked for",
            hint=f"--calibration-images {len(images)}",
        )
    chosen = random_subset(images, calibration.images or DEFAULT_CALIBRATION_IMAGES, seed=calibration.seed)
    model = PixelModel(loaded.model, loaded.preprocessing).to(device)
    batches = (pixels.to(device) for pixels, _ in iterate_batches(chosen, batch_size=32))
    grams = output_grams(model, [f"network.{name}" for name in layers], batches)
    model.to("cpu")
    return {name.removeprefix("network."): gram for name, gram in grams.items()}


def plan_loaded(
    loaded: LoadedModel,
    policy: RankPolicy | MaxDrop,
    *,
    include_first: bool = False,
    include_classifier: bool = False,
    exclude: Sequence[str] = (),
    layer_ranks: Mapping[str, int] | None = None,
    allow_zero_layers: bool = False,
    calibration: Calibration | None = None,
    data: str | None = None,
    device: str = "cpu",
    observer: Observer | None = None,
) -> tuple[CompressionPlan, OutputGrams]:
    """Returns what a policy would do with a checkpoint's network, which stays as it is, and the metric of its errors.

    The plan knows its checkpoint, and is executed on no other one. See `make_plan`; without a calibration the metric
    is empty. A `MaxDrop` is searched with the training images of `data`.
    """
    observer = observer or Observer()
    size, grams = loaded.preprocessing.input_size, {}
    if calibration is not None:
        candidates = find_layers(
            loaded.model, size, include_first=include_first, include_classifier=include_classifier, exclude=exclude
        )
        observer.on_stage(f"calibrating with images of {calibration.data}")
        names = [candidate.name for candidate in candidates if not candidate.reason]
        grams = calibrate_loaded(loaded, calibration, names, device=device)
    observer.on_stage("planning")
    make = functools.partial(
        make_plan,
        loaded.model,
        input_size=size,
        include_first=include_first,
        include_classifier=include_classifier,
        exclude=exclude,
        layer_ranks=layer_ranks,
        allow_zero_layers=allow_zero_layers,
        output_grams=grams,
    )
    if isinstance(policy, MaxDrop):
        plan = _search(loaded, policy, make, grams, data=data, device=device, observer=observer)
    else:
        plan = make(policy)
    return replace(plan, source_sha256=loaded.source.sha256, calibration=calibration), grams


def _search(
    loaded: LoadedModel,
    target: MaxDrop,
    make: Callable[[RankPolicy], CompressionPlan],
    grams: OutputGrams,
    *,
    data: str | None,
    device: str,
    observer: Observer,
) -> CompressionPlan:
    if data is None or data.startswith("samples/"):
        raise OptionError(
            "--max-drop needs images to measure accuracy on" + (f", `{data}` has too few" if data else ""),
            hint="--data DIR",
        )
    images = open_for(loaded.preprocessing, loaded.num_classes, data, "train")
    images = random_subset(images, target.images, seed=target.seed)

    def accuracy_of(network: nn.Module) -> float:
        return measure_accuracy(PixelModel(network, loaded.preprocessing).to(device), images)

    def tell(one: Evaluation) -> None:
        observer.on_stage(
            f"{100 * one.kept:.1f} % of the parameters: {100 * one.accuracy:.2f} % right, {-one.drop:+.2f} points"
        )

    dense_accuracy = accuracy_of(loaded.model)
    loaded.model.to("cpu")
    observer.on_stage(
        f"searching the smallest model within {target.points:g} points of {100 * dense_accuracy:.2f} % "
        f"on {len(images):,} training images"
    )
    return search_budget(
        target,
        parameters=count_parameters(loaded.model),
        dense_accuracy=dense_accuracy,
        make=make,
        accuracy_of=lambda plan: accuracy_of(fold_(factorize(loaded.model, plan, output_grams=grams))),
        on_evaluation=tell,
    )
