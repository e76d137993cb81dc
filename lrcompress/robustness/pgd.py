"""Random noise, the fast gradient method and projected gradient descent, for the stream of `iterated`."""

from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lrcompress.perturb import Norm, ascend, project, seeded_start
from lrcompress.robustness.iterated import Images, IteratedAttack, State


class Noise(IteratedAttack):
    """A random point: uniform in the ℓ∞ ball, on the sphere otherwise. No attack, a floor for attacks."""

    needs_gradient = False

    def __init__(self, eps: float, norm: Norm) -> None:
        super().__init__(eps, norm, steps=0)

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        return {"moved": seeded_start(images, self.eps, self.norm, seeds=seeds, at_radius=True)}

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        raise AssertionError("noise takes no step")


class Fgsm(IteratedAttack):
    """One step of ε up the gradient of the cross entropy.

    Source: Goodfellow, Shlens, Szegedy 2015 (arXiv 1412.6572).
    """

    def __init__(self, eps: float, norm: Norm) -> None:
        super().__init__(eps, norm, steps=1)

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        return {"moved": images}

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        assert gradient is not None
        return {"moved": step_up(state["moved"], gradient, self.eps, state["images"], self.eps, self.norm)}


class Pgd(IteratedAttack):
    """Steps of 2.5 ε / steps from a random start, which let it cross the ball.

    Source: Madry et al. 2018 (arXiv 1706.06083); the step of Engstrom et al., robustness package.
    """

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        return {"moved": seeded_start(images, self.eps, self.norm, seeds=seeds)}

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        assert gradient is not None
        size = relative_stepsize(self.steps) * self.eps
        return {"moved": step_up(state["moved"], gradient, size, state["images"], self.eps, self.norm)}


def relative_stepsize(steps: int) -> float:
    """Returns the step of PGD relative to ε."""
    return min(1.0, 2.5 / steps)


def step_up(moved: Images, gradient: Images, size: float | Tensor, images: Images, eps: float, norm: Norm) -> Images:
    """Returns images one step up a gradient, within the ball and the range of pixels."""
    return project(ascend(moved.detach(), gradient, size, norm), images, eps, norm)
