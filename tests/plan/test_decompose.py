import collections
import threading

import pytest
import torch
from networks import snapshot, tiny_cnn
from torch import nn

from lrcompress.factorize import factorize
from lrcompress.plan import Budget, Decomposer, FullRank, Tolerance, decompose, find_layers, make_plan
from lrcompress.schemes import SCHEMES, Metric

SIZE = (3, 8, 8)


class Attention(nn.Module):
    """A fused projection, so that every scheme has a layer that it fits."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Linear(36, 12)

    def forward(self, x):
        return self.out(self.qkv(x))


def network():
    torch.manual_seed(0)
    return nn.Sequential(tiny_cnn()[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), Attention(), nn.Linear(12, 4)).eval()


@pytest.fixture
def counted(monkeypatch):
    """How often each scheme decomposed a layer of some shape."""
    counts = collections.Counter()

    def counting(original):
        def decompose_and_count(self, layer, metric=None):
            counts[self.name, tuple(layer.weight.shape)] += 1
            return original(self, layer, metric)

        return decompose_and_count

    for scheme in SCHEMES.values():
        monkeypatch.setattr(type(scheme), "decompose", counting(type(scheme).decompose))
    return counts


def candidates(model):
    return [one for one in find_layers(model, SIZE) if not one.reason]


EVERYTHING = {
    **{(name, (12, 8, 3, 3)): 1 for name in ("matrix", "spatial", "tucker2")},
    **{(name, (36, 12)): 1 for name in ("matrix", "split")},
    ("matrix", (12, 36)): 1,
}


def test_every_layer_is_decomposed_once_by_every_scheme_that_fits_it(counted):
    decomposer, found = Decomposer(), candidates(network())
    first = decomposer.choices(found)
    assert counted == EVERYTHING
    again = decomposer.choices(found)
    assert counted == EVERYTHING
    assert all(again[name] is choices for name, choices in first.items())
    assert list(first) == ["0.3", "3.qkv", "3.out"]


def test_factorising_after_planning_decomposes_nothing_again(counted):
    model, decomposer = network(), Decomposer()
    plan = make_plan(model, Tolerance(0.7), input_size=SIZE, decomposer=decomposer)
    assert len(plan.factorized()) == 3
    assert counted == EVERYTHING
    make_plan(model, Tolerance(0.9), input_size=SIZE, decomposer=decomposer)
    factorize(model, plan, decomposer=decomposer)
    assert counted == EVERYTHING


@pytest.mark.parametrize("scheme", ["auto", *SCHEMES])
def test_what_was_kept_and_what_is_computed_again_give_the_same_bits(counted, scheme):
    results = []
    for kept_bytes in (decompose.KEPT_BYTES, 0, None):
        model, decomposer = network(), Decomposer(wanted=scheme, kept_bytes=kept_bytes or 0)
        plan = make_plan(model, Tolerance(0.7), input_size=SIZE, decomposer=decomposer)
        counted.clear()
        low_rank = factorize(model, plan, decomposer=decomposer if kept_bytes is not None else Decomposer())
        assert sum(counted.values()) == (0 if kept_bytes else len(plan.factorized()))
        results.append((plan, snapshot(low_rank)))
    assert len(results[0][0].factorized()) == 3
    for plan, tensors in results[1:]:
        assert plan == results[0][0]
        assert all(torch.equal(tensors[name], value) for name, value in results[0][1].items())


# Twelve rows of ten, eight and eight leading directions in float32: the useful ranks of 12×72, 36×12 and 12×36.
@pytest.mark.parametrize(("allowed", "again"), [(479, 2), (480, 2), (480 + 383, 2), (480 + 384, 1), (480 + 768, 0)])
def test_no_more_bytes_are_kept_than_are_allowed(counted, allowed, again):
    model, decomposer = network(), Decomposer(wanted="matrix", kept_bytes=allowed)
    plan = make_plan(model, Tolerance(0.7), input_size=SIZE, decomposer=decomposer)
    counted.clear()
    factorize(model, plan, decomposer=decomposer)
    assert sum(counted.values()) == again


@pytest.mark.parametrize(
    "policies",
    [
        (Tolerance(0.7), FullRank(), Tolerance(0.5)),
        (FullRank(), Tolerance(0.7)),
    ],
    ids=["full rank last", "full rank first"],
)
def test_one_decomposer_serves_several_plans(policies):
    model, decomposer = network(), Decomposer()
    plans = [make_plan(model, policy, input_size=SIZE, decomposer=decomposer) for policy in policies]
    for plan in plans:
        low_rank, alone = factorize(model, plan, decomposer=decomposer), factorize(model, plan)
        assert all(torch.equal(alone.state_dict()[name], value) for name, value in low_rank.state_dict().items())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_is_what_it_was(threads):
    torch.set_num_threads(threads)  # set to one again before the next test
    seen = []
    decomposer = Decomposer(on_progress=lambda done, total: seen.append(torch.get_num_threads()))
    decomposer.choices(candidates(network()))
    assert torch.get_num_threads() == threads
    assert len(seen) == 3


def test_the_number_of_threads_is_what_it_was_after_an_error(monkeypatch):
    def failing(self, layer, metric=None):
        raise ValueError("no decomposition")

    monkeypatch.setattr(type(SCHEMES["matrix"]), "decompose", failing)
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="no decomposition"):
        Decomposer().choices(candidates(network()))
    assert torch.get_num_threads() == 2
    assert threading.active_count() < 10


def test_results_do_not_depend_on_the_number_of_workers():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(Decomposer().choices(candidates(network())))
    one, two = results
    for name, choices in one.items():
        assert torch.equal(choices.ranks, two[name].ranks)
        assert torch.allclose(choices.squared_errors, two[name].squared_errors, atol=1e-12)


def expected_spectrum(*matrices):
    """Of matrices that have no more singular values together than a thinned spectrum has."""
    sigma = torch.cat([torch.linalg.svdvals(matrix.detach().double()) for matrix in matrices]).sort(descending=True)
    return [(i + 1, pytest.approx(float(value), rel=1e-5)) for i, value in enumerate(sigma.values)]


def truncated(model):
    """What each scheme truncates of each layer."""
    kernel, qkv = model[0][3].weight, model[3].qkv.weight
    return {
        ("0.3", "matrix"): [kernel.flatten(1)],
        ("0.3", "spatial"): [kernel.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)],
        ("0.3", "tucker2"): [kernel.flatten(1)],
        ("3.qkv", "matrix"): [qkv],
        ("3.qkv", "split"): [part[:10] for part in qkv.chunk(3)],
        ("3.out", "matrix"): [model[3].out.weight],
    }


def never(*_):
    raise AssertionError("decomposed once more")


@pytest.mark.parametrize("kept_bytes", [decompose.KEPT_BYTES, 0])
def test_spectra_of_what_was_decomposed_are_not_computed_again(monkeypatch, kept_bytes):
    model, decomposer = network(), Decomposer(kept_bytes=kept_bytes)
    found = candidates(model)
    decomposer.choices(found)
    layers = {one.name: one.layer for one in found}
    with monkeypatch.context() as patch:
        patch.setattr("lrcompress.schemes.scheme.singular_values", never)
        patch.setattr("torch.linalg.eigh", never)
        spectra = {key: decomposer.dense_spectrum(key[0], layers[key[0]], key[1]) for key in truncated(model)}
    for key, matrices in truncated(model).items():
        if key[1] != "split":  # has more values than are kept
            assert list(spectra[key]) == expected_spectrum(*matrices)
    assert spectra["3.qkv", "split"][-1][0] == 36


@pytest.mark.parametrize("in_a_metric", [False, True])
def test_spectra_of_what_was_not_decomposed_or_in_a_metric_are_computed(in_a_metric):
    model = network()
    layers = {one.name: one.layer for one in candidates(model)}
    metrics = {"3.out": Metric(torch.eye(12, dtype=torch.float64)[None])} if in_a_metric else {}
    decomposer = Decomposer(metrics)
    if in_a_metric:
        decomposer.choices([one for one in candidates(model) if one.name == "3.out"])
    for (name, scheme), matrices in truncated(model).items():
        if scheme != "split":
            assert list(decomposer.dense_spectrum(name, layers[name], scheme)) == expected_spectrum(*matrices)


@pytest.mark.parametrize(("longest", "known"), [(11, False), (12, True)])
def test_a_spectrum_that_would_take_long_is_only_told_if_it_was_found_in_passing(monkeypatch, longest, known):
    monkeypatch.setattr(decompose, "LONGEST_SIDE", longest)
    found = candidates(network())
    layer = next(one.layer for one in found if one.name == "3.out")
    assert (Decomposer().dense_spectrum("3.out", layer, "matrix") is not None) == known
    decomposer = Decomposer()
    decomposer.choices(found)
    assert decomposer.dense_spectrum("3.out", layer, "matrix") is not None


def test_progress_is_told_layer_by_layer_and_only_for_what_is_computed():
    seen = []
    decomposer, found = Decomposer(on_progress=lambda done, total: seen.append((done, total))), candidates(network())
    decomposer.choices(found[:1])
    decomposer.choices(found)
    decomposer.choices(found)
    assert seen == [(1, 1), (1, 2), (2, 2)]


def test_the_wanted_scheme_is_taken_where_it_fits_and_the_matrix_form_elsewhere():
    found = candidates(network())
    names = {
        wanted: {name: choices.names for name, choices in Decomposer(wanted=wanted).choices(found).items()}
        for wanted in ("auto", "spatial", "split")
    }
    assert names["auto"]["0.3"] == ("matrix", "spatial", "tucker2")
    assert names["auto"]["3.qkv"] == ("matrix", "split")
    assert names["spatial"] == {"0.3": ("spatial",), "3.qkv": ("matrix",), "3.out": ("matrix",)}
    assert names["split"] == {"0.3": ("matrix",), "3.qkv": ("split",), "3.out": ("matrix",)}


def test_a_layer_may_have_a_scheme_of_its_own():
    choices = Decomposer(wanted="matrix", by_layer={"0.3": "tucker2"}).choices(candidates(network()))
    assert {name: one.names for name, one in choices.items()} == {
        "0.3": ("tucker2",),
        "3.qkv": ("matrix",),
        "3.out": ("matrix",),
    }


def test_one_rank_for_all_compares_ranks_and_not_schemes():
    choices = Decomposer().choices(candidates(network()), wanted_rank=3)
    assert {one.names for one in choices.values()} == {("matrix",)}
    assert {one.option(one.wanted).ranks for one in choices.values()} == {(3,)}


def test_a_scheme_whose_metric_was_not_measured_is_left_out():
    """Errors in two metrics could not be compared."""
    found = candidates(network())[:1]
    eye = torch.eye(12, dtype=torch.float64)[None]
    (without,) = Decomposer({"0.3": Metric(eye)}).choices(found).values()
    assert without.names == ("matrix",)
    (with_inputs,) = Decomposer({"0.3": Metric(eye, torch.eye(72))}).choices(found).values()
    assert with_inputs.names == ("matrix", "spatial", "tucker2")
    (wanted,) = Decomposer({"0.3": Metric(eye)}, wanted="tucker2").choices(found).values()
    assert wanted.names == ("matrix",)


def test_a_layer_is_truncated_in_its_metric_kept_or_not():
    model, found = network(), candidates(network())
    torch.manual_seed(1)
    rows = torch.randn(12, 40, dtype=torch.float64) * torch.logspace(0, -2, 12, dtype=torch.float64)[:, None]
    metric = Metric((rows @ rows.T)[None])
    layer = next(one.layer for one in found if one.name == "3.out")
    plain = Decomposer().low_rank_layer("3.out", layer, "matrix", (4,))
    decomposer = Decomposer({"3.out": metric})
    calibrated = decomposer.low_rank_layer("3.out", layer, "matrix", (4,))
    leading = torch.linalg.eigh(metric.output_gram[0]).eigenvectors[:, -4:]
    expected = leading @ leading.T @ model[3].out.weight.double()
    assert torch.allclose(calibrated.weight.double(), expected, atol=1e-6)
    assert not torch.allclose(plain.weight.double(), expected, atol=1e-2)
    decomposer.choices(found)
    assert torch.equal(decomposer.low_rank_layer("3.out", layer, "matrix", (4,)).weight, calibrated.weight)


def test_what_is_kept_whole_serves_the_next_plan_too(counted):
    model, decomposer = network(), Decomposer()
    full = make_plan(model, FullRank(), input_size=SIZE, decomposer=decomposer)
    matrices = {key: count for key, count in counted.items() if key[0] == "matrix"}
    assert set(matrices.values()) == {1}
    halved = make_plan(model, Budget(fraction=0.6), input_size=SIZE, decomposer=decomposer)
    assert {key: count for key, count in counted.items() if key[0] == "matrix"} == matrices
    alone = make_plan(model, Budget(fraction=0.6), input_size=SIZE, decomposer=Decomposer())
    assert halved.layers == alone.layers
    assert halved.layers != full.layers


def test_the_layers_of_another_network_are_not_taken_for_their_namesakes():
    decomposer, model = Decomposer(), network()
    plan = make_plan(model, Tolerance(0.5), input_size=SIZE, decomposer=decomposer)
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim > 1:
                parameter[-1] += 1e-3
    with pytest.raises(ValueError, match="with other weights"):
        make_plan(other, Tolerance(0.5), input_size=SIZE, decomposer=decomposer)
    with pytest.raises(ValueError, match="with other weights"):
        factorize(other, plan, decomposer=decomposer)
    factorize(network(), plan, decomposer=decomposer)  # the same weights in another module are the same layers
