"""From checkpoint to plan."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from lrcompress.checkpoint import LoadedModel
from lrcompress.data import iterate_batches, random_subset
from lrcompress.errors import DataError
from lrcompress.models import PixelModel
from lrcompress.pipeline.images import open_for
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
    policy: RankPolicy,
    *,
    include_first: bool = False,
    include_classifier: bool = False,
    exclude: Sequence[str] = (),
    allow_zero_layers: bool = False,
    calibration: Calibration | None = None,
    device: str = "cpu",
) -> tuple[CompressionPlan, OutputGrams]:
    """Returns what a policy would do with a checkpoint's network, which stays as it is, and the metric of its errors.

    The plan knows its checkpoint, and is executed on no other one. See `make_plan`; without a calibration the metric
    is empty.
    """
    size, grams = loaded.preprocessing.input_size, {}
    if calibration is not None:
        candidates = find_layers(
            loaded.model, size, include_first=include_first, include_classifier=include_classifier, exclude=exclude
        )
        names = [candidate.name for candidate in candidates if not candidate.reason]
        grams = calibrate_loaded(loaded, calibration, names, device=device)
    plan = make_plan(
        loaded.model,
        policy,
        input_size=size,
        include_first=include_first,
        include_classifier=include_classifier,
        exclude=exclude,
        allow_zero_layers=allow_zero_layers,
        output_grams=grams,
    )
    return replace(plan, source_sha256=loaded.source.sha256, calibration=calibration), grams
