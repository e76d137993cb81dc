import random

import numpy as np
import pytest
import torch

from lrcompress.data import Augmentation
from lrcompress.data.randomness import PURPOSES, draw_epoch, global_generators_kept, seed_globally_, seed_of


def global_numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(1, dtype=torch.float64))


def draw_and_fail():
    with global_generators_kept():
        seed_globally_(seed_of("image", seed=0, epoch=0))
        global_numbers()
        raise ZeroDivisionError


def test_numbers_depend_on_seed_epoch_purpose_and_number_and_nothing_else():
    cases = [
        (purpose, seed, epoch, number)
        for purpose in PURPOSES
        for seed in (0, 1)
        for epoch in (0, 1)
        for number in (0, 1)
    ]
    states = []
    for _ in range(2):
        for purpose, seed, epoch, number in cases:
            states.append(tuple(seed_of(purpose, seed=seed, epoch=epoch, number=number).generate_state(4).tolist()))
    assert states[: len(cases)] == states[len(cases) :]
    assert len(set(states)) == len(cases)


def test_a_negative_seed_is_one_like_any_other():
    states = {tuple(seed_of("order", seed=seed, epoch=0).generate_state(4).tolist()) for seed in (-1, 0, 1)}
    assert len(states) == 3


def test_the_three_global_generators_are_seeded_and_do_not_give_the_same_numbers():
    seed_globally_(seed_of("image", seed=0, epoch=0))
    first = global_numbers()
    global_numbers()
    seed_globally_(seed_of("image", seed=0, epoch=0))
    assert global_numbers() == first
    assert len(set(first)) == 3


def test_the_global_generators_are_put_back_even_after_an_error():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = global_numbers()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert global_numbers() == expected


def test_an_epoch_has_every_image_once_every_shift_and_both_sides():
    draws = draw_epoch(500, Augmentation(crop=1), seed=3, epoch=2)
    assert sorted(draws.order.tolist()) == list(range(500)) != draws.order.tolist()
    assert {tuple(shift) for shift in draws.shifts.tolist()} == {(top, left) for top in range(3) for left in range(3)}
    assert 200 < int(draws.mirrored.sum()) < 300


def test_the_order_and_the_shifts_are_the_same_whatever_else_is_done():
    plain, other = (draw_epoch(50, Augmentation(flip=flip), seed=3, epoch=2) for flip in (True, False))
    assert torch.equal(plain.order, other.order)
    assert torch.equal(plain.shifts, other.shifts)
    assert not other.mirrored.any()


def test_crops_of_pictures_take_the_place_of_the_shifts():
    assert not draw_epoch(50, Augmentation(crop=2, crop_scale=(0.5, 1.0)), seed=0, epoch=0).shifts.any()
