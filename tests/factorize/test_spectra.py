import pytest
import torch
from artifacts import family
from networks import matrix_with_spectrum, tiny_mlp

from lrcompress.factorize import LayerSpectra, describe_layers, factorize, layer_spectra, shipped_spectra
from lrcompress.plan import Decomposer, Tolerance, UniformRank, make_plan


@pytest.fixture
def made():
    """A network of which one layer has a known spectrum, cut to three of its values, and the plan."""
    model = tiny_mlp()
    with torch.no_grad():
        model[4].weight.copy_(matrix_with_spectrum([5.0, 3.0, 2.0, 0.5, 0.1], 24, 40))
    plan = make_plan(model, Tolerance(0.1), input_size=(3, 4, 4))
    return model, factorize(model, plan), plan


def test_spectra_are_those_of_the_dense_weight_and_of_the_shipped_factors(made):
    model, shipped, plan = made
    with torch.no_grad():
        shipped[4].expand.weight.mul_(2)  # as training would change them
    sigma = shipped_spectra(shipped, plan)
    assert sigma["4"].tolist() == pytest.approx([10, 6, 4], rel=1e-5)
    spectra = layer_spectra(model, plan, sigma)
    assert set(spectra) == set(plan.factorized()) == {"4"}
    assert [i for i, _ in spectra["4"].dense] == list(range(1, 25))
    values = [value for _, value in spectra["4"].dense]
    assert values == pytest.approx([5, 3, 2, 0.5, 0.1, *[0] * 19], abs=1e-6)
    assert spectra["4"].shipped == ((1, pytest.approx(10)), (2, pytest.approx(6)), (3, pytest.approx(4)))


def test_spectra_that_are_given_are_not_computed_again(made, monkeypatch):
    model, shipped, plan = made
    records, sigma = describe_layers(model, shipped, plan), shipped_spectra(shipped, plan)
    monkeypatch.setattr("lrcompress.factorize.describe.shipped_spectra", lambda *_: 1 / 0)
    assert describe_layers(model, shipped, plan, spectra=sigma) == records


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("beit", "split"), ("standardised", "tucker2"), ("standardised", "spatial"), ("grouped", "matrix"),
     ("multihead attention", "matrix"), ("one and three axes", "spatial")],
)  # fmt: skip
def test_both_spectra_are_of_the_same_unfolding(name, scheme):
    """Truncation leaves the leading singular values as they are, and those of another matrix are others."""
    model, _, size = family(name)
    decomposer = Decomposer(wanted=scheme)
    plan = make_plan(model, UniformRank(3), input_size=size, decomposer=decomposer)
    sigma = shipped_spectra(factorize(model, plan, decomposer=decomposer), plan)
    known, anew = layer_spectra(model, plan, sigma, decomposer=decomposer), layer_spectra(model, plan, sigma)
    assert any(layer.scheme == scheme for layer in plan.factorized().values())
    for layer in plan.factorized():
        assert known[layer].shipped[0][1] <= known[layer].dense[0][1] * (1 + 1e-5)
        if plan.factorized()[layer].scheme in ("matrix", "split", "spatial"):
            assert known[layer].shipped[0][1] == pytest.approx(known[layer].dense[0][1], rel=1e-5)
        assert [i for i, _ in known[layer].dense] == [i for i, _ in anew[layer].dense]
        for (_, one), (_, other) in zip(known[layer].dense, anew[layer].dense, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_a_record_has_no_dense_spectrum_where_there_is_none():
    assert LayerSpectra(((1, 2.0),), None).to_json() == {"spectrum": [[1, 2.0]]}
    assert LayerSpectra(((1, 2.0),), ((1, 3.0), (2, 1.0))).to_json() == {
        "spectrum": [[1, 2.0]],
        "dense_spectrum": [[1, 3.0], [2, 1.0]],
    }
