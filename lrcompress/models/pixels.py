"""A network behind its own normalisation."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.models.preprocessing import Preprocessing


class PixelModel(nn.Module):
    """Takes images in [0, 1], normalises them, and returns the logits of `network`.

    Inside of the tool every model is used in this form, so that attack radii are in pixel units.

    Args:
        network: takes normalised images.
        preprocessing: the statistics it was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        # Not persistent: the artifact's manifest is the one place where the statistics are kept.
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1), persistent=False)
        self.train(network.training)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Returns the logits of images in [0, 1]."""
        return self.network((images - self.mean) / self.std)
