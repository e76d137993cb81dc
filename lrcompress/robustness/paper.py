"""Attacks as in the code of the RobustDLRT paper, for its tables: not comparable with ε in pixels.

Source: Schotthöfer, Yang, Schnake 2025, Dynamical Low-Rank Compression of Neural Networks with Robustness under
Adversarial Attacks (arXiv 2505.08022), as its published code has them, not as the literature that it names has them.

# Note [Normalised units]
The attacks move what the network sees, z = (x − mean) / std, and but for ℓ1-FGSM their ε is in units of z. A change by
ε there is one by ε·std of the pixels, so the same ε means more in one channel than in another, and something else for
each normalisation. Every result is a picture: in [0, 1], rounded to multiples of 1/255, which moves a pixel by up to
1/510 more, and undoes changes that are smaller. Here all of it is computed as a change of pixels. Their code
unnormalises with ImageNet's statistics whatever the network's are; here they are the model's own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lrcompress.models import PixelModel
from lrcompress.perturb import normal, uniform
from lrcompress.robustness.iterated import Images, IteratedAttack, State

# As in the published script: ℓ2-FGSM at 0.05, 0.1 and 0.3, Mixup from 0.025, Jitter at 0.035 and 0.045.
PAPER_EPS = (0.025, 0.05, 0.1, 0.3)
UNIT = "as in the code of arXiv 2505.08022, which moves normalised images: not comparable with ε in pixels"
STEPS = 5  # of Jitter and Mixup
JITTER_SCALE, JITTER_NOISE = 10.0, 0.1
MIXUP_ENTROPY, MIXUP_STEP, MIXUP_DECAY = 1e-3, 1.0, 1.0
CELLS = 8  # of the mix image, in each direction
LEVELS = 255


class PaperAttack(IteratedAttack):
    """An attack on what one model sees; see Note [Normalised units].

    Whether the model is misled is asked at the end only, as there: Jitter goes on from images that it has broken.

    Args:
        eps: in the units of the model's normalised images.
        model: takes images in [0, 1]; one that is no `PixelModel` sees them as they are.
    """

    steps_taken = 1
    judged_at_end = True

    def __init__(self, eps: float, model: nn.Module) -> None:
        # The ball in pixels that it cannot leave.
        super().__init__(eps * self.pixels_per_unit(model) + 0.5 / LEVELS, "linf", self.steps_taken)
        self.bound = eps
        self.mean, self.std = _statistics(model)

    @classmethod
    def pixels_per_unit(cls, model: nn.Module) -> float:
        """Returns by how much a pixel moves at most at ε = 1, in the channel where it is most; rounding adds 1/510."""
        return float(_statistics(model)[1].max())

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        return {"moved": images, "seeds": seeds}

    def climb(self, state: State, gradient: Images, size: float) -> Images:
        """Returns images one step along a gradient by z, its largest entry scaled to `size`, within ±ε, as pictures."""
        delta = self.delta(state) + size * gradient / _column(_largest(gradient).clamp_min(_tiny(gradient)))
        return as_picture(state["images"] + self.std * delta.clamp(-self.bound, self.bound))

    def delta(self, state: State) -> Images:
        """Returns z' − z."""
        return (state["moved"] - state["images"]) / self.std


class PaperL2Fgsm(PaperAttack):
    """One step z' = z + ε g / ‖g‖∞ along the gradient g of the cross entropy by z; no ℓ2 norm is in it but by name."""

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        assert gradient is not None
        return {"moved": self.climb(state, gradient * self.std, self.bound)}


class PaperL1Fgsm(PaperAttack):
    """One step z' = z + ε sign(g) / std, within the smallest and the largest value of z in the image.

    That is ε in pixels, and FGSM in ℓ∞ but for the bounds.
    """

    @classmethod
    @override
    def pixels_per_unit(cls, model: nn.Module) -> float:
        return 1.0

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        assert gradient is not None
        images = state["images"]
        seen = ((images - self.mean) / self.std).flatten(1)
        lowest, highest = (_column(bound) * self.std + self.mean for bound in (seen.amin(1), seen.amax(1)))
        return {"moved": as_picture((images + self.bound * gradient.sign()).clamp(lowest, highest))}


class PaperJitter(PaperAttack):
    """Five steps of ε g / ‖g‖∞ on the squared distance of scaled and noisy probabilities from the right answer.

    The loss is the mean over the classes of (softmax(10 f / ‖f‖∞) + 0.1 noise − one-hot)², with f the logits. Where the
    answer is wrong already it is divided by ‖z' − z‖∞, so that the step makes the perturbation smaller too.
    """

    steps_taken = STEPS

    @override
    def loss(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"], state: State) -> Float[Tensor, "n"]:
        classes = logits.shape[1]
        size = logits.abs().amax(1, keepdim=True).clamp_min(_tiny(logits))
        noise = normal(state["seeds"], classes, stream=state["step"]).to(logits)
        probabilities = (JITTER_SCALE * logits / size).softmax(1) + JITTER_NOISE * noise
        losses = (probabilities - functional.one_hot(labels, classes)).square().mean(1)
        size = _largest(self.delta(state))
        misled = (logits.argmax(1) != labels) & (size > 0)
        return losses / torch.where(misled, size, 1.0)

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        assert gradient is not None
        return {"moved": self.climb(state, gradient * self.std, self.bound)}


class PaperMixup(PaperAttack):
    """Five steps of length 1 with momentum towards the answer to another image, within ±ε.

    The loss is 10⁻³ cross entropy + the mean over the classes of f q, with f the logits of the image and q those of
    the mix image. Their code writes −`KLDivLoss`(f, q), which takes log-probabilities and probabilities: of logits it
    is NaN wherever q is negative. Its gradient by f, −q, is finite all the same, and is that of the loss above.

    The mix image is a file that was not published: here each image has its own, smooth uniform noise of 8 × 8 cells,
    which depends on nothing but the image's seed. Where a network returns features too, theirs takes those.
    """

    steps_taken = STEPS
    looks_before = 1

    def __init__(self, eps: float, model: nn.Module) -> None:
        super().__init__(eps, model)
        self.model = model

    @override
    def begin(self, images: Images, logits: Float[Tensor, "n k"], seeds: Int[Tensor, "n"]) -> State:
        with torch.no_grad():
            target = self.model(mix_images(images, seeds))
        return super().begin(images, logits, seeds) | {"target": target, "momentum": torch.zeros_like(images)}

    @override
    def loss(self, logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"], state: State) -> Float[Tensor, "n"]:
        entropy = functional.cross_entropy(logits, labels, reduction="none")
        return MIXUP_ENTROPY * entropy + (logits * state["target"]).mean(1)

    @override
    def advance(self, state: State, losses: Float[Tensor, "n"], gradient: Images | None) -> State:
        assert gradient is not None
        seen = gradient * self.std
        seen = seen / _column(seen.flatten(1).abs().sum(1).clamp_min(_tiny(seen)))
        seen = seen + MIXUP_DECAY * state["momentum"]
        return {"moved": self.climb(state, seen, MIXUP_STEP), "momentum": seen}


def as_picture(images: Images) -> Images:
    """Returns images as eight bits per value have them: in [0, 1] and multiples of 1/255."""
    return (LEVELS * images.clamp(0, 1)).round() / LEVELS


def mix_images(images: Images, seeds: Int[Tensor, "n"]) -> Images:
    """Returns uniform noise of 8 × 8 cells with smooth transitions, one image of the same shape for each seed."""
    count, channels, height, width = images.shape
    cells = uniform(seeds, channels * CELLS * CELLS).view(count, channels, CELLS, CELLS).to(images.dtype)
    return functional.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False)


def describe_paper(attacks: Mapping[str, type[PaperAttack]], models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Returns what a report says of ε in these attacks: its unit, and the pixels that it is at most, by model.

    Args:
        attacks: by name.
        models: by role.
    """
    if not attacks:
        return {}
    scales = {
        name: {role: attack.pixels_per_unit(model) for role, model in models.items()}
        for name, attack in attacks.items()
    }
    return {"paper": {"unit": UNIT, "pixels_per_unit": scales}}


def _statistics(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation by which a model normalises images, each of shape (1, c, 1, 1)."""
    if isinstance(model, PixelModel):
        return model.mean, model.std
    device = next((one.device for one in model.parameters()), None)
    return torch.zeros(1, 1, 1, 1, device=device), torch.ones(1, 1, 1, 1, device=device)


def _largest(values: Images) -> Float[Tensor, "n"]:
    return values.flatten(1).abs().amax(1)


def _column(values: Float[Tensor, "n"]) -> Float[Tensor, "n 1 1 1"]:
    return values[:, None, None, None]


def _tiny(values: Tensor) -> float:
    # So that what is zero everywhere stays zero instead of becoming NaN.
    return torch.finfo(values.dtype).tiny
