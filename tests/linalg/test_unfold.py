import pytest
import torch

from lrcompress.linalg import fold_kernel, unfold_kernel


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (1, 1, 1, 1), (2, 7, 3, 3)])
def test_unfolding_and_folding_gives_the_kernel_back(shape):
    kernel = torch.randn(shape)
    assert torch.equal(fold_kernel(unfold_kernel(kernel), shape[2:]), kernel)


def test_columns_are_ordered_by_input_channel_row_and_column():
    kernel = torch.arange(2 * 3 * 2 * 4).float().reshape(2, 3, 2, 4)
    matrix = unfold_kernel(kernel)
    assert matrix.shape == (2, 24)
    for channel, row, column in [(0, 0, 0), (1, 0, 3), (2, 1, 2)]:
        assert torch.equal(matrix[:, (channel * 2 + row) * 4 + column], kernel[:, channel, row, column])


def test_a_convolution_is_the_unfolded_kernel_times_the_patches():
    kernel, image = torch.randn(5, 3, 2, 3), torch.randn(1, 3, 6, 7)
    patches = torch.nn.functional.unfold(image, (2, 3))
    product = (unfold_kernel(kernel) @ patches[0]).reshape(1, 5, 5, 5)
    assert torch.allclose(product, torch.nn.functional.conv2d(image, kernel), atol=1e-5)
