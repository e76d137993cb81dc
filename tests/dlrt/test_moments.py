import pytest
import torch
from networks import orthonormal

from lrcompress.dlrt import BasisChange
from lrcompress.dlrt.moments import carry_first, carry_second

POSITIONS = pytest.mark.parametrize("positions", [1, 9])


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stack(m, r, *, groups=2, seed=0):
    return torch.stack([orthonormal(m, r, seed=seed + 10 * group) for group in range(groups)])


def identity_change(old, new, groups=1):
    """New directions beside the old ones, or the last ones dropped."""
    return BasisChange(torch.eye(new, old).expand(groups, -1, -1), torch.eye(old, new).expand(groups, -1, -1))


@POSITIONS
@pytest.mark.parametrize(("old", "new"), [(3, 6), (6, 3), (4, 4)])
def test_the_first_moment_moves_as_a_gradient_does(old, new, positions):
    # The weight does not change, so neither does G; its core is Uᵀ G V before and Ûᵀ G V̂ after.
    U_hat, V_hat = stack(10, max(old, new)), stack(12, max(old, new), seed=1)
    U, V, to_U, to_V = U_hat[:, :, :old], V_hat[:, :, :old], U_hat[:, :, :new], V_hat[:, :, :new]
    G = torch.einsum("gma,gabp,gnb->gmnp", U, normal(2, old, old, positions, seed=2), V)
    before, expected = (torch.einsum("gma,gmnp,gnb->gabp", left, G, right) for left, right in ((U, V), (to_U, to_V)))
    first = carry_first(before, BasisChange(to_U.mT @ U, V.mT @ to_V))
    assert first.shape == (2, new, new, positions)
    assert torch.allclose(first, expected, atol=1e-12)


def test_the_modes_of_a_moment_move_apart_from_each_other():
    moment, change = normal(1, 2, 3, 4), BasisChange(normal(1, 5, 2, seed=1), normal(1, 3, 6, seed=2))
    expected = torch.stack([change.left[0] @ moment[0, :, :, p] @ change.right[0] for p in range(4)], dim=2)[None]
    assert torch.allclose(carry_first(moment, change), expected, atol=1e-12)
    assert carry_second(moment.square(), change, floor=True).shape == (1, 5, 6, 4)


@POSITIONS
@pytest.mark.parametrize("floor", [True, False])
def test_permuted_bases_permute_the_second_moment(floor, positions):
    second = normal(1, 5, 5, positions).square() + 1
    rows, columns = [3, 1, 4, 0, 2], [1, 0, 2, 4, 3]
    eye = torch.eye(5, dtype=torch.float64)
    moved = carry_second(second, BasisChange(eye[rows][None], eye[:, columns][None]), floor=floor)
    ordered = second.flatten().sort().values
    median = float(ordered[(len(ordered) - 1) // 2])
    expected = second[:, rows][:, :, columns]
    assert torch.allclose(moved, expected.clamp_min(median) if floor else expected)


def test_turned_signs_do_not_change_the_second_moment():
    second = normal(1, 3, 3, 1).square() + 1
    signs = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))[None]
    assert torch.allclose(carry_second(second, BasisChange(signs, -signs), floor=False), second)


def test_entries_of_new_directions_start_at_the_median_of_the_old_ones():
    second = torch.tensor([[1.0, 4.0, 9.0], [16.0, 25.0, 36.0], [49.0, 64.0, 81.0]])[None, :, :, None]
    moved = carry_second(second, identity_change(3, 5), floor=True)
    assert torch.all(moved[:, 3:] == 25.0)
    assert torch.all(moved[:, :, 3:] == 25.0)
    assert torch.allclose(moved[:, :3, :3], second.clamp_min(25.0))


def test_without_a_floor_entries_of_new_directions_start_at_zero():
    second = torch.tensor([[1.0, 4.0], [9.0, 16.0]])[None, :, :, None]
    moved = carry_second(second, identity_change(2, 3), floor=False)
    assert torch.equal(moved[0, :, :, 0], torch.tensor([[1.0, 4.0, 0.0], [9.0, 16.0, 0.0], [0.0, 0.0, 0.0]]))


@POSITIONS
@pytest.mark.parametrize("seed", range(3))
def test_the_second_moment_stays_positive_so_that_no_step_is_infinite(seed, positions):
    change = BasisChange(stack(8, 4, seed=seed), stack(8, 4, seed=seed + 9).mT)
    moved = carry_second(normal(2, 4, 4, positions, seed=seed).square() + 1e-8, change, floor=True)
    assert (moved > 0).all()


@pytest.mark.parametrize("floor", [True, False])
def test_moments_of_zero_stay_zero(floor):
    change, zero = BasisChange(stack(6, 3), stack(6, 3).mT), torch.zeros(2, 3, 3, 1, dtype=torch.float64)
    assert torch.count_nonzero(carry_first(zero, change)) == 0
    assert torch.count_nonzero(carry_second(zero, change, floor=floor)) == 0
