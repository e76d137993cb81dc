"""The Square attack: random squares of colour, kept where they lower the margin; it needs no gradients.

Source: Andriushchenko, Croce, Flammarion, Hein 2020 (arXiv 1912.00049), Algorithms 1 to 3.
"""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from lrcompress.perturb import project, uniform
from lrcompress.robustness.iterated import Images, IteratedAttack, State

FIRST_SHARE = 0.8  # of the pixels, in the first squares
# The share is halved after each of these numbers of 10,000 queries, and in proportion if there are others in all.
HALVED_AFTER, OF_QUERIES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), 10_000
START_TILES = 5  # along each side, of the first image in ℓ2
SMALLEST_WINDOW = 3  # in ℓ2: a single pixel has no two halves
TINY = 1e-12


class Square(IteratedAttack):
    """What both norms share: a change that does not lower the margin is forgotten.

    Args:
        eps: radius of the ball.
        norm: of the ball.
        steps: queries after which an image has withstood.
    """

    needs_gradient = False

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        start = project(images + self._start(images, seeds), images, self.eps, self.norm)
        worst = torch.full((len(images),), -torch.inf, device=images.device)
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
        tried = self._change(state["images"], best, state["seeds"], state["step"] + 1)
        moved = project(tried, state["images"], self.eps, self.norm)
        return {"moved": moved, "best": best, "best_loss": best_loss}

    def _sides(self, query: Int[Tensor, "n"], height: int, width: int) -> Int[Tensor, "n"]:
        """Returns the edge of the squares, which shrinks with the share of the queries that is spent."""
        spent = query * OF_QUERIES // self.steps
        halvings = (spent[:, None] > torch.tensor(HALVED_AFTER, device=query.device)).sum(1)
        return (FIRST_SHARE / 2.0**halvings * height * width).sqrt().round().long()

    @abstractmethod
    def _start(self, images: Images, seeds: Int[Tensor, "n"]) -> Images:
        """Returns the first perturbations."""

    @abstractmethod
    def _change(self, images: Images, best: Images, seeds: Int[Tensor, "n"], query: Int[Tensor, "n"]) -> Images:
        """Returns the best images with some squares changed at random."""


class LinfSquare(Square):
    """Stripes at first, then squares of ±ε in each colour."""

    @override
    def _start(self, images: Images, seeds: Int[Tensor, "n"]) -> Images:
        count, channels, _, width = images.shape
        stripes = _signs(uniform(seeds, channels * width).view(count, channels, 1, width))
        return (self.eps * stripes).expand_as(images)

    @override
    def _change(self, images: Images, best: Images, seeds: Int[Tensor, "n"], query: Int[Tensor, "n"]) -> Images:
        channels, height, width = images.shape[1:]
        side = self._sides(query, height, width).clamp_min(1).clamp_max(min(height, width))
        drawn = uniform(seeds, 2 + channels, stream=query)
        inside = _Windows(drawn[:, :2], side, height, width).inside()
        return torch.where(inside, images + self.eps * _signs(drawn[:, 2:])[:, :, None, None], best)


class L2Square(Square):
    """Bumps of two halves, one up and one down; what they take of ε is taken from a second square."""

    @override
    def _start(self, images: Images, seeds: Int[Tensor, "n"]) -> Images:
        count, channels, height, width = images.shape
        side = max(1, min(height, width) // START_TILES)
        rows, columns = height // side, width // side
        drawn = uniform(seeds, (1 + channels) * rows * columns).view(count, 1 + channels, rows, columns)
        bump = two_halves(side, device=images.device)
        bumps = torch.where(drawn[:, :1, :, :, None, None] < 0.5, bump, bump.T)
        tiles = bumps * _signs(drawn[:, 1:])[..., None, None]  # image, channel, row, column, height, width
        delta = torch.zeros_like(images)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        delta[:, :, top : top + rows * side, left : left + columns * side] = tiles.transpose(3, 4).reshape(
            count, channels, rows * side, columns * side
        )
        return self._of_full_size(delta)

    @override
    def _change(self, images: Images, best: Images, seeds: Int[Tensor, "n"], query: Int[Tensor, "n"]) -> Images:
        channels, height, width = images.shape[1:]
        largest = min(height, width)
        side = self._sides(query, height, width).clamp_min(SMALLEST_WINDOW)
        side = (side + (side % 2 == 0)).clamp_max(largest)
        drawn = uniform(seeds, 5 + channels, stream=query)
        filled = _Windows(drawn[:, :2], side, height, width)
        emptied = _Windows(drawn[:, 2:4], side, height, width).inside()
        inside = filled.inside()

        delta = best - images
        old = delta * inside
        bumps = filled.cut_out(self._bump_table(side, images), turned=drawn[:, 4] < 0.5)
        new = bumps * _signs(drawn[:, 5:])[:, :, None, None] + old / (_sizes(old) + TINY)
        # What is left of ε goes to the new square, beside what both squares had.
        unused = (self.eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / channels
        wanted = (unused + (delta * (inside | emptied)).square().sum((2, 3), keepdim=True)).sqrt()
        delta = torch.where(inside, new * wanted / (_sizes(new) + TINY), delta * ~emptied)
        return images + self._of_full_size(delta)

    def _of_full_size(self, delta: Images) -> Images:
        return self.eps * delta / (delta.square().sum((1, 2, 3), keepdim=True).sqrt() + TINY)

    def _bump_table(self, side: Int[Tensor, "n"], images: Images) -> Float[Tensor, "n s s"]:
        """Returns each image's bump in the corner of a square that is large enough for all."""
        sides, which = side.unique(return_inverse=True)
        table = images.new_zeros(len(sides), int(sides[-1]), int(sides[-1]))
        for row, one in zip(table, sides.tolist(), strict=True):
            row[:one, :one] = two_halves(one, device=images.device)
        return table[which]


class _Windows:
    """A square of its own place and size in each image.

    Args:
        drawn: numbers in [0, 1) that decide the place.
        side: pixels along an edge.
        height: of the images.
        width: of the images.
    """

    def __init__(self, drawn: Float[Tensor, "n 2"], side: Int[Tensor, "n"], height: int, width: int) -> None:
        top = (drawn[:, 0] * (height - side + 1)).long()
        left = (drawn[:, 1] * (width - side + 1)).long()
        self.side = side
        # Of each row and column of pixels: its number within the square.
        self.rows = torch.arange(height, device=side.device) - top[:, None]
        self.columns = torch.arange(width, device=side.device) - left[:, None]

    def inside(self) -> Bool[Tensor, "n 1 h w"]:
        rows, columns = ((numbers >= 0) & (numbers < self.side[:, None]) for numbers in (self.rows, self.columns))
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def cut_out(self, table: Float[Tensor, "n s s"], *, turned: Bool[Tensor, "n"]) -> Float[Tensor, "n 1 h w"]:
        """Returns images with each one's square of the table in its place, transposed where `turned`."""
        table = torch.where(turned[:, None, None], table.transpose(1, 2), table)
        rows, columns = (numbers.clamp(0, table.shape[1] - 1) for numbers in (self.rows, self.columns))
        image = torch.arange(len(table), device=table.device)[:, None, None]
        return table[image, rows[:, :, None], columns[:, None, :]][:, None] * self.inside()


def two_halves(side: int, *, device: torch.device | None = None) -> Float[Tensor, "s s"]:
    """Returns a square of ℓ2 size 1 with a bump in its upper half and one of the opposite sign below.

    Source: Algorithm 3 and equation 2 of the paper.
    """
    upper, lower = _bump(side // 2, side, device), _bump(side - side // 2, side, device)
    square = torch.cat([upper, -lower])
    return square / square.norm()


def _bump(height: int, width: int, device: torch.device | None) -> Float[Tensor, "h w"]:
    """Returns a sum of growing rectangles around the middle, the m-th one of height 1/m², of ℓ2 size 1."""
    bump = torch.zeros(height, width, device=device)
    row, column = height // 2, width // 2
    for number in range(max(row, column) + 1):
        rows = slice(max(row - number, 0), row + number + 1)
        columns = slice(max(column - number, 0), column + number + 1)
        bump[rows, columns] += 1 / (number + 1) ** 2
    return bump / bump.norm().clamp_min(TINY)


def _sizes(delta: Images) -> Float[Tensor, "n c 1 1"]:
    return delta.square().sum((2, 3), keepdim=True).sqrt()


def _signs(drawn: Tensor) -> Tensor:
    return torch.where(drawn < 0.5, -1.0, 1.0)
