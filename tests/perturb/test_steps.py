import math

import pytest
import torch

from lrcompress.perturb import ascend, project, random_start, seeded_start

ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
# Rounding of x + δ − x, which adds up in ℓ1.
ROUNDING = {"linf": 1e-7, "l2": 5e-7, "l1": 6e-6}
every_norm = pytest.mark.parametrize("norm", ORDERS)
training_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
# Radii from less than one level of eight bits to more than the whole range.
every_radius = pytest.mark.parametrize("eps", [0.001, 8 / 255, 0.5, 3.0])


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(count=6):
    """Images anywhere in [0, 1], black ones and white ones."""
    images = torch.rand(count, 3, 5, 4, generator=numbers())
    images[0], images[1] = 0.0, 1.0
    return images


def distances(moved, images, norm):
    return torch.stack([torch.linalg.vector_norm(a - b, ORDERS[norm]) for a, b in zip(moved, images, strict=True)])


def direction(seed=1, size=1.0):
    return size * torch.randn(6, 3, 5, 4, generator=numbers(seed))


@every_norm
@every_radius
@pytest.mark.parametrize("size", [1e-4, 0.1, 100.0])
def test_a_projection_lies_within_the_ball_and_the_range_of_pixels(size, eps, norm):
    images = some_images()
    moved = project(images + direction(size=size), images, eps, norm)
    assert float(distances(moved, images, norm).max()) <= eps * (1 + 1e-5) + ROUNDING[norm]
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


@every_norm
def test_what_lies_within_already_stays_where_it_is(norm):
    images = 0.25 + some_images() / 2
    delta = direction(size=0.01)
    eps = float(distances(images + delta, images, norm).max()) * 1.01
    assert torch.allclose(project(images + delta, images, eps, norm), images + delta, atol=1e-7)
    assert torch.equal(project(images, images, eps, norm), images)


@every_norm
def test_what_lies_outside_is_brought_to_the_nearest_point_of_the_ball(norm):
    images = torch.full((6, 3, 5, 4), 0.5)
    delta, eps = direction(), 0.2
    moved = project(images + delta, images, eps, norm)
    if norm == "linf":  # coordinate by coordinate
        expected = torch.maximum(torch.minimum(delta, torch.tensor(eps)), torch.tensor(-eps))
    elif norm == "l1":  # all entries shrunk alike; found by bisection
        low, high = torch.zeros(6, 1, 1, 1), delta.abs().amax((1, 2, 3), keepdim=True)
        for _ in range(60):
            middle = (low + high) / 2
            large = (delta.abs() - middle).clamp_min(0).sum((1, 2, 3), keepdim=True) > eps
            low, high = torch.where(large, middle, low), torch.where(large, high, middle)
        expected = delta.sign() * (delta.abs() - high).clamp_min(0)
    else:  # along the ray to the centre
        expected = torch.stack([eps * one / torch.linalg.vector_norm(one) for one in delta])
    assert torch.allclose(moved - images, expected, atol=1e-6)
    assert torch.allclose(distances(moved, images, norm), torch.full((6,), eps), rtol=1e-5)


@pytest.mark.parametrize("size", [0.02, 0.3, 5.0])
def test_what_the_range_of_pixels_cuts_off_in_l1_is_given_to_other_pixels(size):
    images = some_images()
    images[0] = 0.0  # half of all directions have no room at all
    delta, eps = direction(size=size), 2.0
    moved = project(images + delta, images, eps, "l1") - images
    # The nearest point shrinks all entries by the same, but for those that their room limits; found by bisection.
    delta = (images + delta) - images
    room = torch.where(delta > 0, 1 - images, images)
    low, high = torch.zeros(6, 1, 1, 1), delta.abs().amax((1, 2, 3), keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        large = torch.minimum((delta.abs() - middle).clamp_min(0), room).sum((1, 2, 3), keepdim=True) > eps
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    cut = torch.where(torch.minimum(delta.abs(), room).sum((1, 2, 3), keepdim=True) > eps, high, 0.0)
    expected = delta.sign() * torch.minimum((delta.abs() - cut).clamp_min(0), room)
    assert torch.allclose(moved, expected, atol=2e-6)
    if size > 0.02:
        assert torch.allclose(distances(images + moved, images, "l1"), torch.full((6,), eps), rtol=1e-4)


@every_norm
def test_images_are_projected_each_for_itself(norm):
    images, moved = some_images(), some_images() + direction()
    together = project(moved, images, 0.1, norm)
    for index in range(6):
        one = slice(index, index + 1)
        assert torch.allclose(together[one], project(moved[one], images[one], 0.1, norm))


@training_norms
@every_radius
def test_random_starts_lie_within_the_ball_and_the_range_of_pixels(eps, norm):
    images = some_images()
    for seed in range(5):
        start = random_start(images, eps, norm, generator=numbers(seed))
        assert float(distances(start, images, norm).max()) <= eps * (1 + 1e-5) + ROUNDING[norm]
        assert float(start.min()) >= 0
        assert float(start.max()) <= 1
        assert start.dtype == images.dtype


@training_norms
def test_random_starts_fill_the_ball_in_every_direction(norm):
    images = torch.full((4000, 1, 2, 2), 0.5)
    delta = random_start(images, 0.2, norm, generator=numbers()) - images
    assert float(delta.mean((0, 1)).abs().max()) < 0.01
    sizes = distances(images + delta, images, norm) / 0.2
    if norm == "linf":  # the largest of four uniform coordinates
        assert float((delta / 0.2).square().mean()) == pytest.approx(1 / 3, rel=0.05)
        expected = torch.arange(1, 10) / 10
        assert torch.allclose(torch.quantile(sizes, expected**0.25), expected.pow(0.25) ** 0.25, atol=0.02)
    else:  # a uniform radius
        assert torch.allclose(torch.quantile(sizes, torch.arange(1, 10) / 10), torch.arange(1, 10) / 10, atol=0.03)


@training_norms
def test_random_starts_depend_on_the_generator_only(norm):
    images = some_images()
    first, again, other = (random_start(images, 0.1, norm, generator=numbers(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0] - images[0], first[1] - images[1])


@every_norm
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20])
def test_a_step_has_the_asked_size_at_any_scale_of_the_gradient(scale, norm):
    images, gradient = torch.full((6, 3, 5, 4), 0.5), direction(size=scale)
    moved = ascend(images, gradient, 0.05, norm)
    step = moved - images
    assert torch.allclose(distances(moved, images, norm), torch.full((6,), 0.05), rtol=1e-5)
    expected = 0.05 * gradient.sign()
    if norm == "l1":  # of sixty entries the largest one
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        expected = torch.where(gradient.abs() == largest, expected, 0.0)
    if norm == "l2":
        expected = torch.stack([0.05 * (one / scale) / torch.linalg.vector_norm(one / scale) for one in gradient])
    assert torch.allclose(step, expected, atol=1e-6)


@every_norm
def test_a_step_goes_the_steepest_way_up_that_its_norm_allows(norm):
    images, gradient = some_images(), direction()
    gain = ((ascend(images, gradient, 0.1, norm) - images) * gradient).sum((1, 2, 3))
    # Hölder: the largest gain of a step of this size is that times the dual norm.
    dual = torch.stack([torch.linalg.vector_norm(one, DUAL[norm]) for one in gradient])
    assert torch.allclose(gain, 0.1 * dual, rtol=1e-4)


@every_norm
def test_a_zero_gradient_moves_nothing(norm):
    images = some_images()
    assert torch.equal(ascend(images, torch.zeros_like(images), 0.1, norm), images)


SEEDS = torch.arange(6)


@every_norm
@every_radius
@pytest.mark.parametrize("at_radius", [False, True])
def test_a_seeded_start_lies_within_the_ball_and_is_each_images_own(norm, eps, at_radius):
    images = some_images()
    moved = seeded_start(images, eps, norm, seeds=SEEDS, at_radius=at_radius)
    assert float(distances(moved, images, norm).max()) <= eps * (1 + 1e-5) + ROUNDING[norm]
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert torch.equal(moved[[4, 2]], seeded_start(images[[4, 2]], eps, norm, seeds=SEEDS[[4, 2]], at_radius=at_radius))
    assert not torch.equal(moved, seeded_start(images, eps, norm, seeds=SEEDS + 6, at_radius=at_radius))


@every_norm
def test_a_start_at_the_radius_uses_all_of_it(norm):
    grey = torch.full((6, 3, 5, 4), 0.5)
    sizes = distances(seeded_start(grey, 0.4, norm, seeds=SEEDS, at_radius=True), grey, norm)
    if norm == "linf":
        assert bool((sizes > 0.35).all())
    else:
        assert torch.allclose(sizes, torch.full((6,), 0.4), rtol=1e-4)
        inner = distances(seeded_start(grey, 0.4, norm, seeds=SEEDS), grey, norm)
        assert len(set((inner / 0.4).mul(20).int().tolist())) > 2


def test_a_step_in_l1_goes_along_the_largest_entries():
    gradient = torch.zeros(2, 3, 10, 10)
    gradient[0, 1, 2, 3], gradient[0, 2, 2, 2], gradient[0, 0, 0, 0], gradient[0, 0, 0, 1] = -9.0, 8.0, 7.0, 1.0
    moved = ascend(torch.full((2, 3, 10, 10), 0.5), gradient, 0.3, "l1")[0] - 0.5
    assert moved[1, 2, 3] == pytest.approx(-0.1)
    assert moved[2, 2, 2] == moved[0, 0, 0] == pytest.approx(0.1)
    assert float(moved.abs().sum()) == pytest.approx(0.3)


def test_a_step_in_l1_leaves_out_what_is_at_the_end_of_its_range():
    images, gradient = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[-9.0, 8.0], [7.0, 1.0]]]])
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0.0, 1.0
    moved = ascend(images, gradient, 0.3, "l1") - images
    assert moved.flatten().tolist() == pytest.approx([0, 0, 0.3, 0])
    inward = ascend(images, -gradient, 0.3, "l1") - images
    assert inward.flatten().tolist() == pytest.approx([0.3, 0, 0, 0])
