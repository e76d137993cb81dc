import os
import subprocess
import sys

import pytest
import torch
from linear_classifiers import Linear, images_at
from networks import pattern_images, tiny_cnn

from lrcompress.data import iterate_batches
from lrcompress.errors import EvaluationError, OptionError
from lrcompress.robustness.evaluate import ready_for_attack
from lrcompress.robustness.foolbox_adapter import find_foolbox_attack, foolbox_attacks, is_minimal, run_foolbox


def everything(images):
    return next(iterate_batches(images, batch_size=len(images)))


def attacked(name, *, eps=None, seed=0, **options):
    model = Linear()
    pixels, labels = everything(images_at(model, [0.2, 0.5, 1.0, 0.3]))
    with ready_for_attack(model):
        return pixels, run_foolbox(name, options, model, pixels, labels, eps=eps, seed=seed)


def test_attacks_that_need_nothing_but_images_are_known():
    names = foolbox_attacks()
    assert {"L2FMNAttack", "LinfPGD", "DDNAttack", "LinfDeepFoolAttack", "L1FMNAttack"} <= set(names)
    assert not any("Attack" not in name and name.islower() for name in names)
    assert "DatasetAttack" not in names  # it is fed with a data set first


def test_options_are_read_as_python_has_them():
    assert find_foolbox_attack("L2FMNAttack", "steps=200,gamma=0.1") == ("l2", {"steps": 200, "gamma": 0.1})
    assert find_foolbox_attack("LinfPGD", "") == ("linf", {})


@pytest.mark.parametrize(
    ("texts", "message", "hint"),
    [
        ("step=20", "has no option `step`", "did you mean steps?"),
        ("zzz=20", "has no option `zzz`", "it has "),
        ("steps", "takes steps=VALUE, got `steps`", "L2FMNAttack:steps=10"),
        ("steps=many", "takes steps=VALUE, got `steps=many`", "steps=10"),
        ("steps=0", "takes a whole number of at least 1 as steps, got `0`", "L2FMNAttack:steps=100"),
        ("steps=-3", "takes a whole number of at least 1 as steps", "steps="),
        ("steps=1.5", "takes a whole number of at least 1 as steps", "steps="),
        ("steps=True", "takes a whole number of at least 1 as steps", "steps="),
    ],
)
def test_options_that_an_attack_does_not_have_are_refused(texts, message, hint):
    with pytest.raises(OptionError, match=message) as refused:
        find_foolbox_attack("L2FMNAttack", texts)
    assert hint in refused.value.hint


def test_attacks_within_a_ball_are_told_from_those_that_look_for_the_nearest_mistake():
    assert not is_minimal("LinfPGD")
    assert is_minimal("L2FMNAttack")


@pytest.mark.parametrize(("name", "order"), [("L2DeepFoolAttack", 2), ("LinfDeepFoolAttack", torch.inf)])
def test_the_nearest_mistake_of_a_linear_classifier_is_as_far_as_its_margin_says(name, order):
    pixels, moved = attacked(name, overshoot=0.0001)
    dual = torch.linalg.vector_norm(Linear().difference, 2 if order == 2 else 1)
    expected = torch.tensor([0.2, 0.5, 1.0, 0.3]) / dual
    sizes = torch.stack([torch.linalg.vector_norm(one, order) for one in moved - pixels])
    assert torch.allclose(sizes, expected, rtol=0.03)


def test_a_seed_decides_and_the_global_generator_stays():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (attacked("LinfPGD", eps=0.1, seed=seed, steps=1)[1] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_foolbox_raises_is_told_with_the_attacks_name():
    model = tiny_cnn()
    pixels, labels = everything(pattern_images(4, size=8))
    with ready_for_attack(model), pytest.raises(EvaluationError, match="foolbox's LinfPGD failed"):
        run_foolbox("LinfPGD", {}, model, pixels, labels + 100, eps=0.1, seed=0)


def test_foolbox_is_imported_where_there_is_no_git_program(tmp_path):
    code = "from lrcompress.robustness.foolbox_adapter import foolbox_attacks\nprint('DDNAttack' in foolbox_attacks())"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["PATH"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
