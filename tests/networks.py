"""Matrices, tiny networks and tiny data sets that several tests share, and the tables of cases."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lrcompress.data import ImageSet
from lrcompress.nn import SameConv2d

# Rows and columns: tall, square, wide, and the degenerate ones.
SHAPES = [(12, 5), (7, 7), (4, 19), (1, 6), (6, 1), (1, 1)]

LINEAR_LAYERS = {
    "linear": lambda: nn.Linear(10, 8),
    "linear, no bias": lambda: nn.Linear(6, 9, bias=False),
    "linear, one output": lambda: nn.Linear(5, 1),
}

CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(4, 6, 3),
    "3x3, no bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "1x1": lambda: nn.Conv2d(5, 7, 1),
    "stride and padding": lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "dilation": lambda: nn.Conv2d(3, 5, 3, padding=2, dilation=2),
    "not square": lambda: nn.Conv2d(3, 5, (1, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "not square, same": lambda: nn.Conv2d(3, 5, (3, 5), padding="same"),
    "same, dilated": lambda: nn.Conv2d(3, 5, 3, padding="same", dilation=2),
    "valid": lambda: nn.Conv2d(3, 5, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(3, 5, 3, padding=(1, 2), padding_mode="reflect"),
    "circular, same": lambda: nn.Conv2d(3, 5, (2, 4), padding="same", padding_mode="circular"),
    "replicate, valid": lambda: nn.Conv2d(3, 5, 3, padding="valid", padding_mode="replicate"),
}

SAME_CONVOLUTIONS = {
    "SAME": lambda: SameConv2d(4, 6, 3, stride=2),
    "SAME, no stride": lambda: SameConv2d(3, 5, (5, 3), bias=False),
    "SAME, not square": lambda: SameConv2d(3, 5, (2, 5), stride=(3, 1), dilation=(2, 1)),
}

OTHER_AXES = {
    "1d": lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1),
    "1d, circular": lambda: nn.Conv1d(3, 7, 4, padding="same", padding_mode="circular", bias=False),
    "3d": lambda: nn.Conv3d(3, 5, (3, 2, 3), stride=(2, 1, 2), padding=(1, 0, 2)),
    "3d, replicate": lambda: nn.Conv3d(2, 7, 2, padding=1, padding_mode="replicate", dilation=(1, 2, 1), bias=False),
    "3d, one wide": lambda: nn.Conv3d(3, 4, (3, 1, 1), padding=(1, 0, 0)),
}

GROUPED_CONVOLUTIONS = {
    "groups": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
    "groups, 1x1": lambda: nn.Conv2d(8, 6, 1, groups=2, bias=False),
    "groups, reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2),
    "groups, SAME": lambda: SameConv2d(6, 9, 3, stride=2, groups=3),
    "groups, 1d": lambda: nn.Conv1d(6, 4, 3, groups=2),
    "groups, 3d": lambda: nn.Conv3d(4, 6, 2, groups=2),
}

TRANSPOSED_CONVOLUTIONS = {
    "transposed 1d": lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
    "transposed 2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2, output_padding=1),
    "transposed 2d, not square": lambda: nn.ConvTranspose2d(5, 3, (2, 4), stride=(1, 3), padding=(0, 2), bias=False),
    "transposed 3d": lambda: nn.ConvTranspose3d(3, 5, 2, stride=2),
    "transposed 1d, groups": lambda: nn.ConvTranspose1d(6, 4, 3, groups=2),
    "transposed 2d, groups": lambda: nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1, groups=3),
    "transposed 3d, groups": lambda: nn.ConvTranspose3d(4, 6, 2, stride=(1, 2, 1), output_padding=(0, 1, 0), groups=2),
}

DEPTHWISE_CONVOLUTIONS = {
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "depthwise, multiplied": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "depthwise, 1d": lambda: nn.Conv1d(4, 4, 3, groups=4),
    "depthwise, transposed": lambda: nn.ConvTranspose2d(4, 4, 3, groups=4),
}

# Everything that has a low-rank form.
ALL_LAYERS = (
    LINEAR_LAYERS | CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES | GROUPED_CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS
)


def example_input(layer: nn.Module, *, seed: int = 0) -> Tensor:
    """Returns a batch that the layer takes, of its type."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (2, 3, layer.in_features)
    else:
        shape = (2, layer.in_channels, *(9, 11, 6)[: len(layer.kernel_size)])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(layer.weight.dtype)


def with_weight(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Returns a copy of the layer with other values."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def random_matrix(m: int, n: int, *, seed: int = 0) -> Tensor:
    """Returns an m×n float64 matrix of normal values."""
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(m: int, r: int, *, seed: int = 0) -> Tensor:
    """Returns an m×r float64 matrix with orthonormal columns."""
    return torch.linalg.qr(random_matrix(m, r, seed=seed)).Q


def matrix_with_spectrum(sigma: list[float], m: int, n: int, *, seed: int = 0) -> Tensor:
    """Returns an m×n float64 matrix with the given singular values (and zeros, if there are fewer than min(m, n))."""
    left, right = orthonormal(m, len(sigma), seed=seed), orthonormal(n, len(sigma), seed=seed + 1)
    return left @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ right.T


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Returns ‖actual − expected‖/‖expected‖ in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def tiny_mlp(*, seed: int = 0, norm: bool = False) -> nn.Sequential:
    """Returns a network on 3×4×4 images with four classes: two inner layers that may be factorised and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(48, 40),
        nn.LayerNorm(40) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Linear(40, 24),
        nn.ReLU(),
        nn.Linear(24, 4),
    ).eval()


def tiny_cnn(*, seed: int = 0, bias: bool = True) -> nn.Sequential:
    """Returns a convolutional network on 3×8×8 images with four classes, with batch norm and a grouped convolution."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.Conv2d(12, 12, 3, padding=1, groups=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 16, bias=bias),
        nn.ReLU(),
        nn.Linear(16, 4),
    ).eval()


class TensorImages(Dataset[tuple[Tensor, int]]):
    """Images and labels that lie in memory."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], int(self.labels[index])


def pattern_images(count: int = 160, *, size: int = 4, noise: float = 0.15, seed: int = 0) -> ImageSet:
    """Returns images of four classes: a pattern per class in [0, 1], and noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(4, 3, size, size, generator=generator)
    labels = torch.arange(count) % 4
    pixels = patterns[labels] + noise * torch.randn(count, 3, size, size, generator=generator)
    return ImageSet(TensorImages(pixels.clamp(0, 1), labels), ("a", "b", "c", "d"), f"{count} patterns")


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of the state dict."""
    return copy.deepcopy(dict(model.state_dict()))
