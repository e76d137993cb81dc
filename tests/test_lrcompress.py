import pytest
import torch
from workshop import make_network

import lrcompress


def test_the_public_names_are_there_and_no_others():
    for name in lrcompress.__all__:
        assert getattr(lrcompress, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lrcompress.nothing  # noqa: B018


@pytest.mark.parametrize("path_type", [str, lambda path: path])
def test_a_file_is_loaded_by_its_path_alone_and_its_factory(shop, path_type):
    model = lrcompress.load(path_type(shop / "out.safetensors"), arch="net.py:build")
    assert not any(module.training for module in model.modules())
    images = torch.rand(4, 1, 6, 5)
    with torch.no_grad():
        # Only the layer of rank four was cut, so nothing but rounding differs.
        assert torch.allclose(model(images), make_network()(images), atol=1e-4)


def test_pixels_are_normalised_and_then_given_to_the_network(shop):
    network = lrcompress.load("out.safetensors", arch="net.py:build")
    on_pixels = lrcompress.load("out.safetensors", arch="net.py:build", pixels=True)
    pixels = torch.rand(4, 1, 6, 5)
    with torch.no_grad():
        assert torch.equal(on_pixels(pixels), network((pixels - 0.5) / 0.25))
        assert not torch.equal(on_pixels(pixels), network(pixels))


def test_a_loaded_network_is_an_ordinary_module(shop):
    model = lrcompress.load("out.safetensors", arch="net.py:build")
    assert type(model) is torch.nn.Sequential
    assert {type(layer) for layer in model[3].children()} == {torch.nn.Linear}
