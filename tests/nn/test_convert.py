import pytest
import torch
from networks import CONVOLUTIONS, LINEAR_LAYERS, SAME_CONVOLUTIONS, random_matrix
from torch import nn

from lrcompress.linalg import Factors
from lrcompress.nn import FactoredConv2d, FactoredLinear, factored_from_dense, is_trainable

TRAINABLE = LINEAR_LAYERS | CONVOLUTIONS | SAME_CONVOLUTIONS


@pytest.mark.parametrize("make", TRAINABLE.values(), ids=TRAINABLE.keys())
def test_linear_layers_and_ungrouped_convolutions_are_trained(make):
    assert is_trainable(make())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv1d(4, 4, 3),
        nn.Conv3d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
    ],
)
def test_no_other_convolutions_are(layer):
    assert not is_trainable(layer)


@pytest.mark.parametrize("make", TRAINABLE.values(), ids=TRAINABLE.keys())
def test_the_factored_layer_has_the_given_factors_in_the_type_of_the_dense_one(make):
    dense = make()
    m, n = dense.weight.flatten(1).shape
    rank = min(m, n, 2)
    factors = Factors(random_matrix(m, rank), random_matrix(rank, rank, seed=1), random_matrix(n, rank, seed=2))
    factored = factored_from_dense(dense, factors)
    assert type(factored) is (FactoredLinear if isinstance(dense, nn.Linear) else FactoredConv2d)
    for kept, given in zip(factored.factors(), factors, strict=True):
        assert torch.equal(kept, given.float())
    assert torch.allclose(factored.weight.flatten(1), (factors.U @ factors.S @ factors.V.T).float(), atol=1e-5)
