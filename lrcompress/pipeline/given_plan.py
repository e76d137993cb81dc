"""A plan that was made before: the checkpoint as it was planned for, and the calibration that its ranks came from."""

from dataclasses import replace

from lrcompress.checkpoint import LoadedModel, LoadOptions, file_sha256, find_weights, load_checkpoint
from lrcompress.data import ImageSet
from lrcompress.errors import DataError, OptionError
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.planning import calibrate_loaded, draw_calibration
from lrcompress.plan import Calibration, CompressionPlan, Decomposer, check_plan, check_source, find_layers


def load_for_plan(source: str, options: LoadOptions, plan: CompressionPlan) -> LoadedModel:
    """Returns the checkpoint's network with the preprocessing of its plan, where the plan knows one.

    Args:
        source: checkpoint file, Hugging Face folder or hub name.
        options: what the user says of the checkpoint.
        plan: made for it.

    Raises:
        OptionError: if the plan is of another checkpoint, or the user asks for other images than it was made for.
    """
    known = plan.preprocessing
    if known is None:
        return load_checkpoint(source, options)
    check_source(plan, file_sha256(find_weights(source)))  # a network of its own may not take such images
    loaded = load_checkpoint(source, replace(options, preprocessing={**known.to_json(), **options.preprocessing}))
    wanted = replace(loaded.preprocessing, origin=known.origin)
    if wanted != known:
        raise OptionError(
            f"the plan was made for {known.describe()}, not for {replace(wanted, origin='given').describe()}",
            hint="leave out --input-size, --mean and --std, which the plan brings, or make the plan again with them",
        )
    return replace(loaded, preprocessing=known)


def prepare_given_plan(
    loaded: LoadedModel, plan: CompressionPlan, *, device: str, observer: Observer
) -> tuple[CompressionPlan, Decomposer]:
    """Returns the plan, once it is known to fit the network, and a decomposer in the metric of its calibration.

    Args:
        loaded: the network.
        plan: what is to be done with it.
        device: for the calibration images.
        observer: follows the work.

    Raises:
        OptionError: if the plan does not fit.
        DataError: if its calibration images are not where they were.
    """
    size, sha256 = loaded.preprocessing.input_size, loaded.source.sha256
    plan = check_plan(plan, loaded.model, input_size=size, sha256=sha256)
    if plan.calibration is None:
        return plan, Decomposer()
    calibration, drawn = _draw_planned(loaded, plan.calibration, observer)
    planned = plan.factorized()
    candidates = find_layers(loaded.model, size, include_first=True, include_classifier=True)
    wanted = [one for one in candidates if one.name in planned]
    metrics = calibrate_loaded(loaded, calibration, wanted, device=device, drawn=drawn)
    return replace(plan, calibration=calibration), Decomposer(metrics)


def _draw_planned(loaded: LoadedModel, calibration: Calibration, observer: Observer) -> tuple[Calibration, ImageSet]:
    try:
        return draw_calibration(loaded, calibration, observer)
    except DataError as error:  # the user has not named these images, the plan has
        raise DataError(
            f"the plan's calibration: {error.message}", hint="run it where its images are, or make the plan again"
        ) from error
