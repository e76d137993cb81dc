"""APGD: steps with momentum whose size is halved where they do not help, image by image; in ℓ1 sparse steps.

Source: Croce, Hein 2020, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks (arXiv 2003.01690), Algorithm 1 and section 4; for ℓ1 Croce, Hein 2021, Mind the box (arXiv 2103.01208),
section 3.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lrcompress.perturb import Norm, normal, project, seeded_start
from lrcompress.robustness.iterated import Images, IteratedAttack, State
from lrcompress.robustness.pgd import step_up

MOMENTUM, RISING = 0.75, 0.75  # α, and ρ: the share of an interval's steps that must raise the loss
TINY = 1e-12
# In ℓ1:
FIRST_SHARE = 0.2  # of the values, that the first steps change
LOOKED_AT = 0.04  # share of the steps after which shares and sizes are looked at
SHRINK = 1.5  # what both are then divided by
SMALLER = 0.95  # below this share of the values that were changed before, they have become fewer
SMALLEST = 0.1  # size of a step relative to ε


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
    """APGD on the cross entropy, from a random start."""

    def __init__(self, eps: float, norm: Norm, steps: int) -> None:
        super().__init__(eps, norm, steps)
        self.interval = max(int(LOOKED_AT * steps), 1)
        self.intervals = torch.zeros(steps + 1)
        for step, interval in checkpoints(steps).items():
            self.intervals[step] = interval

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        if self.norm == "l1":
            return self._begin_sparse(images, seeds)
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
        if self.norm == "l1":
            return self._advance_sparse(state, losses, gradient)
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

    def _begin_sparse(self, images: Images, seeds: Int[Tensor, "n"]) -> State:
        values = images[0].numel()
        start = project(images + normal(seeds, values).view_as(images), images, self.eps, "l1")
        zeros = torch.zeros(len(images), device=images.device)
        return {
            "moved": start,
            "best": start,
            "best_gradient": torch.zeros_like(images),
            "best_loss": zeros - torch.inf,
            "size": zeros + self.eps,
            "share": zeros + FIRST_SHARE,
            "changed": zeros + values,
        }

    def _advance_sparse(self, state: State, losses: Float[Tensor, "n"], gradient: Images) -> State:
        """Steps along the largest entries; their number follows that of the values which the best point changes."""
        images, moved, values = state["images"], state["moved"], gradient[0].numel()
        better = losses > state["best_loss"]
        best = torch.where(_wide(better), moved, state["best"])
        best_gradient = torch.where(_wide(better), gradient, state["best_gradient"])
        checked = (state["step"] > 0) & (state["step"] % self.interval == 0)
        changed = (best != images).flatten(1).sum(1).to(losses)
        fewer = changed < SMALLER * state["changed"]
        smaller_size = (state["size"] / SHRINK).clamp_min(SMALLEST * self.eps)
        size = torch.where(checked, torch.where(fewer, self.eps, smaller_size), state["size"])
        share = torch.where(checked, changed / values / SHRINK, state["share"])
        start_anew = _wide(checked & fewer)
        moved, gradient = torch.where(start_anew, best, moved), torch.where(start_anew, best_gradient, gradient)
        return {
            "moved": project(moved + _wide(size) * _sparse_direction(gradient, share), images, self.eps, "l1"),
            "best": best,
            "best_gradient": best_gradient,
            "best_loss": torch.where(better, losses, state["best_loss"]),
            "size": size,
            "share": share,
            "changed": torch.where(checked, changed, state["changed"]),
        }


def _sparse_direction(gradient: Images, share: Float[Tensor, "n"]) -> Images:
    """Returns signs of the given share of each image's largest gradient entries, of ℓ1 size 1."""
    sizes = gradient.flatten(1).abs()
    values = sizes.shape[1]
    smallest = ((1 - share) * values).long().clamp(0, values - 1)
    least = sizes.sort(dim=1).values.gather(1, smallest[:, None])
    signs = torch.where(sizes >= least, gradient.flatten(1).sign(), 0.0)
    return (signs / (signs.abs().sum(1, keepdim=True) + TINY)).view_as(gradient)


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
