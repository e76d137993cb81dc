"""The spectral regulariser over all layers, and the weights it has there."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.dlrt.options import DlrtOptions
from lrcompress.linalg import conditioning_penalty
from lrcompress.nn import FactoredLayer

# In the names of normalisation layers and of weight-standardised convolutions, torch's and timm's.
NORMALIZATION = ("norm", "stdconv")
# Where a largest κ is asked for: what part of it β is driven towards, so that it is reached and not only approached;
# what a layer's β is multiplied by at most and at least per cycle.
AIM, RISE, FALL = 0.9, 2.0, 0.5
# Its first value. From 1e-4 a β needs longer to be felt than many a training has steps. AdamW divides by the size of
# the gradient: with more than some 0.1 cores are hardly conditioned faster.
FIRST_BETA, SMALLEST_BETA, LARGEST_BETA = 0.01, 1e-4, 1.0


@dataclass
class Penalty:
    """β R of every layer, with one β or, where a largest κ is asked for, one per layer that is driven towards it.

    Attributes:
        options: the settings.
        scale_free: whether R/α² is taken, as resolved.
        betas: the weight of each layer's penalty.
    """

    options: DlrtOptions
    scale_free: bool
    betas: dict[str, float]

    @classmethod
    def of(cls, model: nn.Module, layers: Mapping[str, FactoredLayer], options: DlrtOptions) -> "Penalty":
        """Returns the penalty of a network."""
        start = options.beta
        if options.max_kappa is not None:
            start = start or FIRST_BETA
        return cls(options, _is_scale_free(model, options), dict.fromkeys(layers, start))

    def value(self, layers: Mapping[str, FactoredLayer], retained: Mapping[str, tuple[int, ...]]) -> Float[Tensor, ""]:
        """Returns Σ β R over the layers, differentiable in their cores.

        Of an augmented core only the block of the retained directions counts, unless the options ask for all of it.
        The rows and columns that augmentation has just added are near zero, and punishing them would push against the
        very truncation that follows.

        Args:
            layers: by name.
            retained: the ranks before augmentation.
        """
        terms = []
        for name, layer in layers.items():
            if self.betas[name] == 0:
                continue
            core: Tensor = layer.S
            ranks = retained.get(name, layer.ranks)
            if self.options.penalty_core == "retained":
                core = core[:, : ranks[0], : ranks[-1]]
            terms.append(self.betas[name] * self._of_core(layer, core, outputs=ranks[0]))
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def steer_(self, kappas: Mapping[str, float]) -> None:
        """Moves the weight of each layer whose κ is to stay below the largest one that is allowed.

        By the square of how far κ is from a little less: far away by as much as is allowed, near it by hardly anything.
        """
        target = self.options.max_kappa
        if target is None:
            return
        for name, kappa in kappas.items():
            factor = min(max((kappa / (AIM * target)) ** 2, FALL), RISE)
            self.betas[name] = min(max(self.betas[name] * factor, SMALLEST_BETA), LARGEST_BETA)

    def _of_core(self, layer: FactoredLayer, core: Float[Tensor, "g r s p"], *, outputs: int) -> Float[Tensor, ""]:
        unfoldings = [layer.conditioned(core, outputs=outputs)]
        if core.shape[3] > 1 and self.options.penalty_unfolding == "both" and outputs < layer.U.shape[1]:
            unfoldings.append(core.transpose(1, 2).flatten(2))
        return torch.stack([conditioning_penalty(one, scale_free=self.scale_free) for one in unfoldings]).sum()


def _is_scale_free(model: nn.Module, options: DlrtOptions) -> bool:
    if options.penalty == "auto":
        return any(word in type(module).__name__.lower() for module in model.modules() for word in NORMALIZATION)
    return options.penalty == "scale-free"
