"""APGD: steps with momentum whose size is halved where they do not help, image by image.

Source: Croce, Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks (arXiv 2003.01690), Algorithm 1 and section 4.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lrcompress.perturb import Norm, project, seeded_start
from lrcompress.robustness.iterated import Images, IteratedAttack, State
from lrcompress.robustness.pgd import step_up

MOMENTUM, RISING = 0.75, 0.75  # α, and ρ: the share of an interval's steps that must raise the loss
TINY = 1e-12


def checkpoints(steps: int) -> dict[int, int]:
    """Returns the steps after which step sizes are looked at, each with the number of steps since the one before."""
    interval, shortest, shrink = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    found, at = {}, interval
    while at <= steps:
        found[at] = interval
        interval = max(interval - shrink, shortest)
        at += interval
    return found


class Apgd(IteratedAttack):
    """APGD on the cross entropy, from a random start, in ℓ∞ or ℓ2."""

    def __init__(self, eps: float, norm: Norm, steps: int) -> None:
        super().__init__(eps, norm, steps)
        self.intervals = torch.zeros(steps + 1)
        for step, interval in checkpoints(steps).items():
            self.intervals[step] = interval

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        start = seeded_start(images, self.eps, self.norm, seeds=seeds, at_radius=True)
        zeros = torch.zeros(len(images), device=images.device)
        none = torch.zeros_like(images)
        return {
            "moved": start,
            "before": start,
            "best": start,
            "best_gradient": none,
            "best_loss": zeros - torch.inf,
            "last_loss": zeros - torch.inf,
            "size": zeros + 2 * self.eps,
            "rises": zeros,
            "best_at_check": zeros - torch.inf,
            "halved": zeros + 1,
        }

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        assert gradient is not None
        moved = state["moved"]
        better = losses > state["best_loss"]
        wide = _wide(better)
        best = torch.where(wide, moved, state["best"])
        best_gradient = torch.where(wide, gradient, state["best_gradient"])
        best_loss = torch.where(better, losses, state["best_loss"])
        started = state["step"] > 0
        rises = state["rises"] + (started & (losses > state["last_loss"]))
        # The size is halved where the loss rose too seldom, or nothing was gained with the size of the last interval.
        interval = self.intervals.to(losses)[state["step"]]
        checked = interval > 0
        stuck = (state["halved"] == 0) & (state["best_at_check"] >= best_loss)
        halve = checked & ((rises <= RISING * interval) | stuck)
        size = torch.where(halve, state["size"] / 2, state["size"])
        start_anew = _wide(halve)
        moved, gradient = torch.where(start_anew, best, moved), torch.where(start_anew, best_gradient, gradient)
        # The difference to the point before is taken from where the step starts.
        drift = moved - state["before"]
        tried = step_up(moved, gradient, _wide(size), state["images"], self.eps, self.norm)
        share = _wide(torch.where(started, MOMENTUM, 1.0))
        after = project(moved + share * (tried - moved) + (1 - share) * drift, state["images"], self.eps, self.norm)
        # Before the first check the best loss is that of the start.
        at_check = torch.where(started, state["best_at_check"], losses)
        return {
            "moved": after,
            "before": moved,
            "best": best,
            "best_gradient": best_gradient,
            "best_loss": best_loss,
            "last_loss": losses,
            "size": size,
            "rises": torch.where(checked, 0.0, rises),
            "best_at_check": torch.where(checked, best_loss, at_check),
            "halved": torch.where(checked, halve.to(size), state["halved"]),
        }


class ApgdDlr(Apgd):
    """APGD on the difference-of-logits ratio, which no rescaling of the logits changes; three classes or more."""

    @override
    def loss(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"], state: State) -> Float[Tensor, "n"]:
        ordered, order = logits.sort(dim=1, descending=True)
        right = logits.gather(1, labels[:, None])[:, 0]
        other = torch.where(order[:, 0] == labels, ordered[:, 1], ordered[:, 0])
        return (other - right) / (ordered[:, 0] - ordered[:, 2] + TINY)


class ApgdTargeted(Apgd):
    """APGD on the targeted difference-of-logits ratio, towards one of the classes; four classes or more.

    Args:
        eps: radius of the ball.
        norm: of the ball.
        steps: after which an image has withstood.
        rank: the target is the class with this place in the order of the clean logits, 1 for the second largest.
    """

    def __init__(self, eps: float, norm: Norm, steps: int, *, rank: int) -> None:
        super().__init__(eps, norm, steps)
        self.rank = rank

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        target = logits.argsort(dim=1, descending=True)[:, self.rank]
        return super().begin(images, logits, seeds) | {"target": target}

    @override
    def loss(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"], state: State) -> Float[Tensor, "n"]:
        ordered = logits.sort(dim=1, descending=True).values
        right = logits.gather(1, labels[:, None])[:, 0]
        target = logits.gather(1, state["target"][:, None])[:, 0]
        return (target - right) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + TINY)


def _wide(column: Tensor) -> Tensor:
    return column[:, None, None, None]
