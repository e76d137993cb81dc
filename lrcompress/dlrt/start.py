"""Whether training has made the network any better than the truncation it started from."""

import math

from lrcompress.dlrt.diagnosis import is_guessing
from lrcompress.dlrt.log import EpochRecord
from lrcompress.dlrt.settings import TrainingOptions
from lrcompress.plan import Budget

NEARLY_AS_SMALL = 1.05  # sizes that differ by less are one size to whoever judges a training


def compare_with_start(
    start: EpochRecord,
    best: EpochRecord,
    options: TrainingOptions,
    *,
    images: int,
    classes: int,
    whole_parameters: int,
) -> tuple[bool, str]:
    """Returns (whether the start is to be kept instead of the best trained state, a warning or "").

    The start is kept where it does all that was asked for and is better by more than chance explains: it is no larger
    than the trained network, or than the budget, and no conditioning was asked for, which only training gives.
    A warning is given too where it is not kept but nearly as small, or where far more accuracy was lost than chance
    explains; a largest drop asks for such a loss, and says itself whether it was kept. Against a start that guesses
    nothing can be lost.

    Args:
        start: the state before training.
        best: the best state of the frozen phase.
        options: of the run.
        images: how many both were measured on.
        classes: of the network.
        whole_parameters: of the dense network.
    """
    lost = start.score() - best.score()
    if lost <= 0 or is_guessing(start.score(), images=images, classes=classes):
        return False, ""
    noise = math.sqrt(sum(one.score() * (1 - one.score()) for one in (start, best)) / images)
    small_enough = start.parameters <= max(best.parameters, _allowed_parameters(options, whole_parameters))
    conditioned = options.dlrt.beta > 0 or options.dlrt.max_kappa is not None
    kept = small_enough and not conditioned and lost > noise
    comparable = small_enough or start.parameters <= NEARLY_AS_SMALL * best.parameters
    if not comparable and (options.max_drop is not None or lost <= 2 * noise):
        return False, ""
    perturbed = " perturbed" if start.held_out_robust_accuracy is not None else ""
    text = (
        f"training lost {100 * lost:.2f} points against the truncation it started from: {100 * start.score():.2f} → "
        f"{100 * best.score():.2f} % of {images:,}{perturbed} held-out images, with {start.parameters:,} → "
        f"{best.parameters:,} parameters"
    )
    longer = "--epochs" if options.time_limit is None else "--time-limit"
    if kept:
        return True, f"{text}; so the truncation itself is written; for more, lower --lr or raise {longer}"
    why = "which is smaller"
    if conditioned:
        why = "whose cores are conditioned"
    elif small_enough:
        why = "since chance may explain as much"
    return False, f"{text}; the trained network is written, {why}; lower --lr, raise {longer}, or allow more parameters"


def _allowed_parameters(options: TrainingOptions, whole: int) -> int:
    """Returns how many parameters were asked for, 0 if that was not what was asked for."""
    policy = options.dlrt.policy
    if not isinstance(policy, Budget) or options.max_drop is not None:
        return 0
    return policy.parameters or math.floor((policy.fraction or 0.0) * whole)
