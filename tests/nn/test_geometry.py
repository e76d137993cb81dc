import dataclasses

import pytest
import torch
from networks import CONVOLUTIONS

from lrcompress.nn import ConvGeometry


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_the_geometry_applies_a_kernel_as_the_layer_does(make):
    conv = make()
    x = torch.randn(2, conv.in_channels, 8, 11)
    bias = 0 if conv.bias is None else conv.bias[:, None, None]
    assert torch.allclose(ConvGeometry.of(conv).conv2d(x, conv.weight) + bias, conv(x), atol=1e-6)


def test_a_geometry_is_a_value():
    conv = CONVOLUTIONS["stride and padding"]
    assert ConvGeometry.of(conv()) == ConvGeometry.of(conv())
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConvGeometry.of(conv()).stride = (1, 1)
