import pytest
import torch
from networks import pattern_images, tiny_mlp
from trainings import held_out_accuracy, options

from lrcompress.dlrt.held_out import HeldOut, divide_images, doubt_amounts
from lrcompress.errors import DataError, OptionError


def test_images_are_divided_by_the_share():
    rest, held_out = divide_images(pattern_images(160), options(held_out=0.25))
    assert (len(rest), len(held_out)) == (120, 40)


@pytest.mark.parametrize(("count", "held_out", "left"), [(160, 0.9999, 0), (160, 0.994, 1)])
def test_where_the_share_leaves_too_few_images_the_option_is_to_blame(count, held_out, left):
    with pytest.raises(OptionError, match=f"--held-out {held_out} leaves {left} of {count} training images") as refused:
        divide_images(pattern_images(count), options(held_out=held_out))
    assert refused.value.hint == "--held-out 0.1"


@pytest.mark.parametrize("held_out", [0.1, 0.9999])
def test_where_there_are_too_few_images_for_any_share_the_data_are(held_out):
    with pytest.raises(DataError, match="2 training images are too few"):
        divide_images(pattern_images(2), options(held_out=held_out))


@pytest.mark.parametrize(
    ("count", "held_out", "words"),
    [
        (20, 0.1, "20 training images are few to fine-tune on, and the best state is chosen on 2 of them"),
        (999, 0.1, "999 training images are few"),
        (1000, 0.1, ""),
        (1000, 0.5, ""),
        (1000, 0.51, "--held-out 0.51 leaves 490 of 1,000 training images to train on"),
        (1000, 0.01, "--held-out 0.01 leaves 10 of 1,000 training images to choose the best state on"),
    ],
)
def test_what_makes_a_training_doubtful_is_named(count, held_out, words):
    settings = options(held_out=held_out)
    said = doubt_amounts(*divide_images(pattern_images(count), settings), settings)
    assert said.startswith(words)
    assert bool(said) is bool(words)


def test_accuracy_is_of_all_held_out_images_and_robust_accuracy_needs_an_adversary():
    images, settings = pattern_images(160), options(held_out=0.3)
    _, held_out = divide_images(images, settings)
    model = tiny_mlp()
    measured = HeldOut(held_out, None, torch.device("cpu"), seed=0)
    assert (measured.count, measured.robust_accuracy(model)) == (48, None)
    assert measured.accuracy(model) == held_out_accuracy(model, images, settings)
    adversary = options(adversarial="pgd", adversarial_eps=0.5).adversary()
    attacked = HeldOut(held_out, adversary, torch.device("cpu"), seed=0)
    assert attacked.robust_accuracy(model) < measured.accuracy(model)
