import pytest
import torch

from lrcompress.perturb import normal, uniform

SEEDS = torch.tensor([0, 1, 2, -5, 2**62, 123456789])


def test_the_first_numbers_are_those_of_splitmix64():
    # Computed with Python's integers from the published algorithm.
    def mixed(state):
        mask = 2**64 - 1
        state &= mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    golden = 0x9E3779B97F4A7C15
    for seed, row in zip(SEEDS.tolist(), uniform(SEEDS, 4, stream=7).tolist(), strict=True):
        base = mixed(seed + golden * 8)
        assert row == [(mixed(base + golden * (position + 1)) >> 40) / 2**24 for position in range(4)]


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_number_depends_on_its_seed_and_stream_alone(draw):
    whole = draw(SEEDS, 50)
    assert torch.equal(whole[[3, 1]], draw(SEEDS[[3, 1]], 50))
    assert torch.equal(whole, draw(SEEDS, 50, stream=torch.zeros(6, dtype=torch.long)))
    other = draw(SEEDS, 50, stream=torch.tensor([0, 1, 0, 1, 0, 1]))
    assert [bool(torch.equal(a, b)) for a, b in zip(whole, other, strict=True)] == [True, False] * 3


def test_numbers_are_distributed_as_they_should_be():
    seeds = torch.arange(200)
    flat = uniform(seeds, 500).double()
    assert float(flat.min()) >= 0
    assert float(flat.max()) < 1
    assert float(flat.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(flat.var()) == pytest.approx(1 / 12, rel=0.02)
    bell = normal(seeds, 500).double()
    assert (float(bell.mean()), float(bell.std())) == (pytest.approx(0, abs=0.015), pytest.approx(1, rel=0.01))
    assert float((bell.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.006)
    # Neither neighbours in a row nor in a column go together.
    for values in (flat, bell):
        centred = values - values.mean()
        for one, other in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
            assert abs(float((one * other).mean() / values.var())) < 0.015
