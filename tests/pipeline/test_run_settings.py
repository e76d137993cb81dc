from dataclasses import replace

import pytest
from networks import pattern_images
from workshop import load_options, training

from lrcompress.checkpoint import load_checkpoint
from lrcompress.data import Augmentation, shuffle_images
from lrcompress.pipeline import LayerOptions
from lrcompress.pipeline.run_settings import explain_differences, found_settings, option_settings
from lrcompress.plan import Budget, Calibration, Energy, Tolerance, UniformRank

DEFAULTS = {"layers": LayerOptions(), "calibration": Calibration("data"), "data": "data"}


def differences(changes=None, **values):
    then = option_settings(training(), **DEFAULTS)
    return explain_differences(then, option_settings(training(**(changes or {})), **{**DEFAULTS, **values}))


# What is changed, and how it stands on the command line; the method's, the loop's, the layers', the images'.
OPTIONS = {
    "learning rate": ({"lr": 0.5}, {}, ["--lr 0.5, was 0.001"]),
    "tolerance": ({"policy": Tolerance(0.2)}, {}, ["--tol 0.2, was 0.1"]),
    "energy": ({"policy": Energy(0.9)}, {}, ["--energy 0.9, was --tol 0.1"]),
    "rank": ({"policy": UniformRank(4)}, {}, ["--rank 4, was --tol 0.1"]),
    "budget": ({"policy": Budget(fraction=0.5)}, {}, ["--budget 0.5, was --tol 0.1"]),
    "parameters": ({"policy": Budget(parameters=5)}, {}, ["--max-params 5, was --tol 0.1"]),
    "macs": ({"policy": Budget(macs=5)}, {}, ["--max-macs 5, was --tol 0.1"]),
    "drop": ({"policy": Budget(fraction=0.9), "max_drop": 1.5}, {}, ["--max-drop 1.5, was --tol 0.1"]),
    "a switch": ({"every_gradient": False}, {}, ["--no-every-gradient, was --every-gradient"]),
    "none before": ({"max_rank": 7}, {}, ["--max-rank 7, was no --max-rank"]),
    "augmentation": (
        {"augmentation": Augmentation(crop=0, crop_scale=(0.5, 1.0))},
        {},
        ["--crop-scale 0.5,1.0, was no --crop-scale"],
    ),
    "layers": (
        {},
        {"layers": LayerOptions(exclude=("a", "b"), layer_ranks={"c": 3}, include_first=True)},
        [
            "--include-first, was no --include-first",
            "--exclude a --exclude b, was no --exclude",
            "--layer-rank c=3, was no --layer-rank",
        ],
    ),
    "calibration": (
        {},
        {"calibration": None},
        ["--no-calibration, was --calibrate data"],
    ),
    "images": ({}, {"calibration": Calibration("data", 20)}, ["--calibration-images 20, was no --calibration-images"]),
    "data": ({}, {"data": "other"}, ["--data other, was data"]),
}


@pytest.mark.parametrize(("changes", "values", "told"), OPTIONS.values(), ids=OPTIONS.keys())
def test_what_differs_is_told_as_it_stands_on_the_command_line(changes, values, told):
    assert differences(changes, **values) == told


def test_nothing_differs_from_the_same_and_what_changes_no_byte_does_not_count():
    assert differences() == []
    assert differences({"save_seconds": 1.0, "workers": 2}) == []


@pytest.mark.parametrize("spelling", ["data", "./data", "data/", "../shop/data", "absolute"])
def test_the_spelling_of_a_path_does_not_count(shop, spelling):
    spelled = str(shop / "data") if spelling == "absolute" else spelling
    assert differences(data=spelled, calibration=Calibration(spelled)) == []


def test_names_that_are_no_paths_are_compared_as_they_are():
    assert differences(data="torch/cifar10") == ["--data torch/cifar10, was data"]


def test_checkpoint_architecture_preprocessing_and_number_of_images_are_compared(shop):
    loaded, images = load_checkpoint("w.pt", load_options(shop)), pattern_images(60)
    then = found_settings(loaded, images)
    spelled = load_checkpoint("./w.pt", replace(load_options(shop), arch="net.py:build"))
    assert explain_differences(then, found_settings(spelled, images)) == []
    others = {
        "--mean 0.4, was 0.5": replace(loaded, preprocessing=replace(loaded.preprocessing, mean=(0.4,))),
        "a checkpoint with SHA-256 123456789012…, was a checkpoint with SHA-256 ": replace(
            loaded, source=replace(loaded.source, sha256="1234567890123")
        ),
        "--arch timm/resnet18, was ": replace(
            loaded, architecture=replace(loaded.architecture, framework="timm", name="resnet18")
        ),
        "--arch-arg classes=3, was no --arch-arg": replace(
            loaded, architecture=replace(loaded.architecture, arguments={"classes": 3})
        ),
    }
    for words, other in others.items():
        (told,) = explain_differences(then, found_settings(other, images))
        assert told.startswith(words)
    assert explain_differences(then, found_settings(loaded, pattern_images(66))) == [
        "66 training images, was 60 training images"
    ]
    (told,) = explain_differences(then, found_settings(loaded, shuffle_images(images, seed=0)))
    assert told.startswith("images with SHA-256 ")
