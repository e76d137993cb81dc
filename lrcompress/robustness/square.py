"""The Square attack: random squares of colour, kept where they lower the margin; it needs no gradients.

Source: Andriushchenko, Croce, Flammarion, Hein 2020 (arXiv 1912.00049), Algorithms 1 and 2, for ℓ∞.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lrcompress.perturb import Norm, project, uniform
from lrcompress.robustness.iterated import Images, IteratedAttack, State

FIRST_SHARE = 0.8  # of the pixels, in the first squares
# The share is halved after each of these numbers of queries.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(IteratedAttack):
    """Square in ℓ∞.

    Args:
        eps: radius of the ball.
        norm: "linf".
        steps: queries after which an image has withstood.
    """

    needs_gradient = False

    def __init__(self, eps: float, norm: Norm, steps: int) -> None:
        assert norm == "linf"  # the table of attacks knows
        super().__init__(eps, norm, steps)

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        count, channels, _, width = images.shape
        stripes = uniform(seeds, channels * width).view(count, channels, 1, width)
        start = project(images + self.eps * _signs(stripes), images, self.eps, self.norm)
        worst = torch.full((count,), -torch.inf, device=images.device)
        return {"moved": start, "best": start, "best_loss": worst, "seeds": seeds}

    @override
    def loss(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"], state: State) -> Float[Tensor, "n"]:
        right = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        return others - right

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        better = losses > state["best_loss"]
        best = torch.where(better[:, None, None, None], state["moved"], state["best"])
        best_loss = torch.where(better, losses, state["best_loss"])
        images, query = state["images"], state["step"] + 1
        _, channels, height, width = images.shape
        halvings = (query[:, None] > torch.tensor(HALVED_AFTER, device=query.device)).sum(1)
        side = (FIRST_SHARE / 2.0**halvings * height * width).sqrt().round().clamp_min(1)
        side = side.clamp_max(min(height, width))
        drawn = uniform(state["seeds"], 2 + channels, stream=query)
        top = (drawn[:, 0] * (height - side + 1)).floor()[:, None]
        left = (drawn[:, 1] * (width - side + 1)).floor()[:, None]
        rows, columns = torch.arange(height, device=side.device), torch.arange(width, device=side.device)
        in_rows = (rows >= top) & (rows < top + side[:, None])
        in_columns = (columns >= left) & (columns < left + side[:, None])
        inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
        colours = self.eps * _signs(drawn[:, 2:])[:, :, None, None]
        tried = torch.where(inside, images + colours, best)
        return {"moved": project(tried, images, self.eps, self.norm), "best": best, "best_loss": best_loss}


def _signs(drawn: Tensor) -> Tensor:
    return torch.where(drawn < 0.5, -1.0, 1.0)
