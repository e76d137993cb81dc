import pytest
import torch
from networks import tiny_cnn
from torch import nn

from lrcompress.models import PixelModel, Preprocessing

STATISTICS = Preprocessing((3, 8, 8), (0.2, 0.4, 0.6), (0.5, 0.25, 0.125), 1.0, "bilinear", "the test")


def test_images_are_normalised_channel_by_channel():
    pixels = torch.rand(2, 3, 4, 4)
    seen = PixelModel(nn.Flatten(), STATISTICS)(pixels).reshape(2, 3, 4, 4)
    for channel, (mean, std) in enumerate([(0.2, 0.5), (0.4, 0.25), (0.6, 0.125)]):
        assert torch.allclose(seen[:, channel], (pixels[:, channel] - mean) / std, atol=1e-6)


def test_the_logits_are_those_of_the_network_on_normalised_images():
    network, pixels = tiny_cnn(), torch.rand(3, 3, 8, 8)
    mean, std = torch.tensor(STATISTICS.mean), torch.tensor(STATISTICS.std)
    normalised = (pixels.permute(0, 2, 3, 1) - mean) / std
    expected = network(normalised.permute(0, 3, 1, 2))
    assert torch.allclose(PixelModel(network, STATISTICS)(pixels), expected, atol=1e-6)


def test_gradients_reach_the_pixels_in_pixel_units():
    pixels = torch.rand(1, 3, 2, 2, requires_grad=True)
    PixelModel(nn.Flatten(), STATISTICS)(pixels).sum().backward()
    assert torch.allclose(pixels.grad[0, :, 0, 0], torch.tensor([2.0, 4.0, 8.0]))


def test_the_statistics_are_not_in_the_state_dict_and_follow_the_model():
    model = PixelModel(tiny_cnn(), STATISTICS)
    assert all(key.startswith("network.") for key in model.state_dict())
    assert model.double().mean.dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_network_is_kept(training):
    network = tiny_cnn().train(training)
    model = PixelModel(network, STATISTICS)
    assert model.training is training
    assert network[1].training is training
