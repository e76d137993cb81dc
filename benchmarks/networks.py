"""The benchmarks' own networks, given to the tool as `--arch benchmarks/networks.py:vgg11_bn`."""

from collections.abc import Sequence

from torch import nn

VGG11_WIDTHS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, 512, 512)


def vgg11_bn(
    num_classes: int = 10, in_chans: int = 1, widths: Sequence[int | str] = VGG11_WIDTHS, hidden: int = 512
) -> nn.Sequential:
    """Returns a VGG11 with batch norm for 28×28 images: 9.5 million parameters, 97 % of them in 3×3 convolutions.

    Unlike the ImageNet VGG11 it has no large fully connected layers, which would flatter every compression rate, and
    it pools only three times, so that every tap of every 3×3 kernel sees pixels.
    """
    layers: list[nn.Module] = []
    channels = in_chans
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))
