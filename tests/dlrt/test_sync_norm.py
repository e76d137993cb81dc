import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from two_processes import run_in_two

from lrcompress.dlrt import world
from lrcompress.dlrt.sync_norm import synchronised_batch_norms
from lrcompress.errors import OptionError


class WithActivation(nn.BatchNorm2d):
    """As timm's `BatchNormAct2d`."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class OfItsOwn(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


# A norm, and the shape of one image's features.
NORMS = {
    "1d": (lambda: nn.BatchNorm1d(5), ()),
    "1d, positions": (lambda: nn.BatchNorm1d(5), (7,)),
    "2d": (lambda: nn.BatchNorm2d(5), (4, 3)),
    "3d": (lambda: nn.BatchNorm3d(5), (2, 3, 2)),
    "not affine": (lambda: nn.BatchNorm2d(5, affine=False), (4, 3)),
    "average of all batches": (lambda: nn.BatchNorm2d(5, momentum=None), (4, 3)),
    "momentum": (lambda: nn.BatchNorm2d(5, momentum=0.4, eps=1e-2), (4, 3)),
    "no running statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (4, 3)),
    "with an activation": (lambda: WithActivation(5), (4, 3)),
}
COUNT = 7  # images: four and three


def network(name):
    torch.manual_seed(1)
    make, shape = NORMS[name]
    norm = make()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    scale = nn.Parameter(torch.randn(5, *[1] * len(shape)))
    return norm, scale, 1 + torch.randn(2, COUNT, 5, *shape), torch.randn(COUNT, 5, *shape)


def train(name, chosen, processes):
    """Two forward passes and one backward pass: outputs, gradients and statistics."""
    norm, scale, batches, weights = network(name)
    with synchronised_batch_norms(norm):
        norm(batches[0, chosen])
        x = batches[1, chosen]
        output = norm(x + scale * x.square())  # a norm does not feel a factor alone
        # Each process's own part of the loss of the whole batch; the average over processes is taken of gradients.
        loss = processes * (output.square() * weights[chosen]).sum()
        loss.backward()
        norm.eval()
        with torch.no_grad():
            evaluated = norm(batches[0, chosen])
    gradients = {key: value.grad for key, value in norm.named_parameters()} | {"scale": scale.grad}
    return {
        "output": output.detach(),
        "evaluated": evaluated,
        "gradients": gradients,
        "buffers": dict(norm.named_buffers()),
        "restored": "forward" not in vars(norm),
    }


def in_two_processes():
    rank, processes = world()
    chosen = range(4) if rank == 0 else range(4, COUNT)
    results = {name: train(name, list(chosen), processes) for name in NORMS}
    for result in results.values():
        for gradient in result["gradients"].values():
            dist.all_reduce(gradient.div_(processes))
    try:
        with synchronised_batch_norms(nn.Sequential(OfItsOwn(3))):
            results["refused"] = "no"
    except OptionError as error:
        results["refused"] = error.message
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_two(__file__, "in_two_processes", tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", NORMS)
def test_two_processes_normalise_as_one_with_all_the_images(results, name):
    expected = train(name, list(range(COUNT)), 1)
    found = [result[name] for result in results]
    assert torch.allclose(torch.cat([one["output"] for one in found]), expected["output"], atol=1e-5)
    if name != "no running statistics":
        assert torch.allclose(torch.cat([one["evaluated"] for one in found]), expected["evaluated"], atol=1e-5)
    for one in found:
        assert one["restored"]
        for kind in ("gradients", "buffers"):
            assert one[kind].keys() == expected[kind].keys()
            for key, value in expected[kind].items():
                assert torch.allclose(one[kind][key], value, rtol=1e-3, atol=1e-4), (kind, key)


def test_a_batch_norm_with_a_forward_pass_of_its_own_is_refused(results):
    assert all(result["refused"] == "OfItsOwn cannot be trained by several processes" for result in results)


@pytest.mark.parametrize("name", [*NORMS, "of its own"])
def test_alone_nothing_is_changed(name):
    norm = OfItsOwn(5) if name == "of its own" else network(name)[0]
    other = copy.deepcopy(norm)
    x = torch.randn(6, 5, *(NORMS[name][1] if name in NORMS else (4, 3)))
    with synchronised_batch_norms(norm):
        assert "forward" not in vars(norm)
        assert torch.equal(norm(x), other(x))
