import dataclasses
import json
import math

import pytest
from PIL import Image

from lrcompress.data.pictures import FitToInput
from lrcompress.errors import OptionError
from lrcompress.models import Preprocessing
from lrcompress.models.preprocessing import CROPS, INTERPOLATIONS

COLOUR = Preprocessing((3, 32, 48), (0.3, 0.6, 0.9), (0.1, 0.2, 0.3), 0.9, "bicubic", "the test")


def test_the_values_survive_json():
    assert Preprocessing.from_json(json.loads(json.dumps(COLOUR.to_json()))) == COLOUR


def test_size_normalisation_and_origin_are_told():
    assert COLOUR.describe() == "input 3×32×48, mean 0.3, 0.6, 0.9, std 0.1, 0.2, 0.3 (the test)"


def test_equal_values_are_told_once_and_no_normalisation_as_such():
    grey = Preprocessing((3, 28, 28), (0.0,) * 3, (1.0,) * 3, 1.0, "bilinear", "assumed")
    assert grey.describe() == "input 3×28×28, no normalisation (assumed)"
    given = grey.updated("the command line", {"mean": (0.5,), "std": (0.25,)}).for_channels(3)
    assert given.describe() == "input 3×28×28, mean 0.5, std 0.25 (assumed; mean, std from the command line)"


def test_a_change_of_channels_averages_statistics_that_differ():
    grey = COLOUR.for_channels(1)
    assert grey.input_size == (1, 32, 48)
    assert grey.mean == pytest.approx((0.6,))
    assert grey.std == pytest.approx((0.2,))


def test_a_change_of_channels_repeats_a_single_value():
    colour = Preprocessing((1, 28, 28), (0.5,), (0.25,), 1.0, "bilinear", "the test").for_channels(3)
    assert (colour.input_size, colour.mean, colour.std) == ((3, 28, 28), (0.5,) * 3, (0.25,) * 3)


def test_the_same_number_of_channels_changes_nothing():
    assert COLOUR.for_channels(3) == COLOUR


def test_an_update_takes_what_is_known_and_not_none():
    updated = COLOUR.updated("elsewhere", {"mean": [0.5, 0.5, 0.5], "std": None, "crop_pct": 1.0, "classifier": "fc"})
    assert updated.mean == (0.5, 0.5, 0.5)
    assert updated.crop_pct == 1.0
    assert (updated.std, updated.input_size, updated.interpolation) == (COLOUR.std, COLOUR.input_size, "bicubic")
    assert updated.origin == "the test; crop_pct, mean from elsewhere"


def test_an_update_of_everything_takes_the_origin_of_its_values():
    new = Preprocessing((1, 28, 28), (0.5,), (0.25,), 1.0, "bilinear", "elsewhere")
    assert COLOUR.updated("elsewhere", new.to_json()) == new


@pytest.mark.parametrize("values", [{}, {"mean": None}, {"classifier": "fc"}])
def test_an_update_with_nothing_known_keeps_the_origin(values):
    assert COLOUR.updated("elsewhere", values) == COLOUR


def test_an_update_of_the_size_brings_the_statistics_to_its_channels():
    updated = COLOUR.updated("elsewhere", {"input_size": [1, 28, 28]})
    assert updated.input_size == (1, 28, 28)
    assert len(updated.mean) == len(updated.std) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_size": (3, 0, 48)}, "an input of the size"),
        ({"mean": (0.5,)}, "the mean .* for 3 channels"),
        ({"mean": (0.5, 0.5, math.nan)}, "the mean"),
        ({"std": (0.5, 0.5, math.inf)}, "the std"),
        ({"std": (0.5, 0.0, 0.5)}, "which is not positive"),
        ({"crop_pct": 0.0}, "a centre crop of 0.0"),
        ({"crop_pct": math.nan}, "a centre crop of nan"),
        ({"interpolation": "lanczos3"}, "the interpolation 'lanczos3', known are nearest"),
    ],
    ids=str,
)
def test_what_no_image_can_be_brought_into_is_refused(values, message):
    with pytest.raises(OptionError, match=message) as refused:
        dataclasses.replace(COLOUR, **values)
    assert refused.value.hint


def test_every_filter_and_crop_that_is_allowed_can_be_applied():
    for interpolation in INTERPOLATIONS:
        for crop in CROPS:
            fit = FitToInput((3, 8, 8), crop, interpolation)
            assert fit(Image.new("RGB", (12, 9))).shape == (3, 8, 8)


@pytest.mark.parametrize("values", [{"mean": ["0.5"] * 3}, {"std": "128"}, {"input_size": [3, 8.0, 8]}], ids=str)
def test_other_types_in_json_are_refused(values):
    with pytest.raises(TypeError):
        Preprocessing.from_json(COLOUR.to_json() | values)
