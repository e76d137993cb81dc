"""What goes wrong in a training: where a network stops being finite, and numbers that are finite but hopeless."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.measure import eval_mode

MANY_TIMES = 10.0  # what the loss of the first step is multiplied by when training is said to diverge
LOWER = "lower --lr or --beta"
RECENT = 5  # steps whose mean loss is looked at: a single batch may be an odd one


def find_not_finite(model: nn.Module, pixels: Tensor) -> str:
    """Returns " (first in `name`)" for the first layer of the forward pass that puts out infinities or NaN.

    An empty text if there is none: the logits are finite, what is made of them is not.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, arguments: object, output: object) -> None:
        wrong = isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all()
        if wrong and not found and next(module.children(), None) is None:
            found.append(names.get(id(module), type(module).__name__))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        with torch.no_grad(), eval_mode(model):
            model(pixels)
    finally:
        handle.remove()
    return f" (first in `{found[0]}`)" if found else ""


def find_not_finite_value(model: nn.Module) -> str | None:
    """Returns the name of the first weight or buffer that is stored and holds infinities or NaN; None if none does.

    A running variance that has overflowed makes no loss infinite, and no answer: batch norm divides by it.
    """
    wrong = (name for name, value in model.state_dict().items() if not torch.isfinite(value).all())
    return next(wrong, None)


def is_guessing(accuracy: float, *, images: int, classes: int) -> bool:
    """Whether an accuracy is at most two standard errors above that of guessing among equally frequent classes."""
    chance = 1 / classes
    return accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / images)


def doubt_lengths(images: int, *, batch: int, cycle: int, adaptive: int, steps: int) -> list[str]:
    """Returns what makes the lengths of a run doubtful, a sentence each.

    Args:
        images: that are trained on.
        batch: images of a step.
        cycle: steps between two truncations, 0 without low-rank layers.
        adaptive: steps before ranks and bases are frozen.
        steps: of the run.
    """
    doubts = []
    if batch > images:
        doubts.append(f"a batch of {batch} is more than the {images} training images: each epoch is a single step")
    if adaptive < cycle:
        doubts.append(
            f"only {adaptive} of {steps} steps come before ranks and bases are frozen, a cycle has {cycle}: "
            "they hardly adapt; train longer, or lower --coefficient-steps or --frozen-fraction"
        )
    return doubts


class LossWatch:
    """Notices a loss that has risen to many times that of the first step, and beyond that of guessing.

    Args:
        classes: of the network.
    """

    def __init__(self, classes: int) -> None:
        self.guessing = math.log(classes)
        self.first: float | None = None
        self.recent: list[float] = []
        self.told = False

    def add(self, loss: float, *, step: int, steps: int) -> str:
        """Takes note of a step's loss, and returns a warning when training begins to diverge; once, else ""."""
        if self.first is None:
            self.first = loss
        self.recent = [*self.recent, loss][-RECENT:]
        mean = sum(self.recent) / len(self.recent)
        if self.told or len(self.recent) < RECENT or mean <= max(MANY_TIMES * self.first, self.guessing):
            return ""
        self.told = True
        return (
            f"the loss has risen from {self.first:.4g} to {mean:.4g} by step {step} of {steps}: training diverges; "
            + LOWER
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to warn of the same."""
        return {"first": self.first, "recent": self.recent, "told": self.told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self.first, self.recent, self.told = state["first"], list(state["recent"]), state["told"]
