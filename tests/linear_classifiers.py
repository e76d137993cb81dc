"""A linear classifier of two classes, for which every attack's optimum is known, and images at chosen margins."""

import torch
from networks import TensorImages
from torch import Tensor, nn

from lrcompress.data import ImageSet

SHAPE = (3, 4, 4)


class Linear(nn.Module):
    """Logits W(x − ½): the margin of class 0 over class 1 is ⟨w, x − ½⟩ with w = W₀ − W₁."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        # Entries of similar size, so that images near the boundary stay well inside of [0, 1].
        signs = torch.randint(0, 2, (48,), generator=generator) * 2 - 1
        difference = signs * (0.8 + 0.4 * torch.rand(48, generator=generator))
        self.weight = nn.Parameter(torch.stack([difference / 2, -difference / 2]))

    @property
    def difference(self) -> Tensor:
        """w."""
        return (self.weight[0] - self.weight[1]).detach()

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T


def images_at(model: Linear, margins: list[float]) -> ImageSet:
    """Returns one image per margin of its label over the other class, labels in turn."""
    w = model.difference
    labels = torch.arange(len(margins)) % 2
    along = torch.tensor(margins) * torch.where(labels == 0, 1.0, -1.0) / w.square().sum()
    pixels = 0.5 + along[:, None] * w
    assert float(pixels.min()) > 0.2
    assert float(pixels.max()) < 0.8
    return ImageSet(TensorImages(pixels.reshape(-1, *SHAPE), labels), ("a", "b"), "images at margins")
