import os
import subprocess
import sys

import pytest
import torch
from networks import tiny_cnn, tiny_mlp

from lrcompress.errors import EvaluationError
from lrcompress.robustness import AttackSettings, foolbox_adapter
from lrcompress.robustness.foolbox_adapter import make_attack, ready_for_attack, run_attack


def attacked(name, norm, eps, *, seed=0, steps=5, active=None):
    model = tiny_cnn()
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[:4] = images[:4].round()  # many pixels at the ends of the range
    settings = AttackSettings(attacks=(name,), norm=norm, eps=(eps,), steps=steps)
    with torch.no_grad():
        labels = model(images).argmax(1)
    with ready_for_attack(model):
        everyone = torch.arange(12) if active is None else active
        result = run_attack(name, model, images, labels, active=everyone, eps=eps, settings=settings, seed=seed)
    return images, result


@pytest.mark.parametrize("name", ["noise", "fgsm", "pgd"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("linf", 0.5), ("l2", 0.5), ("l2", 3.0)])
def test_attacked_images_stay_in_the_ball_and_in_the_range_of_pixels(name, norm, eps):
    images, result = attacked(name, norm, eps)
    delta = (result - images).flatten(1)
    sizes = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert float(sizes.max()) <= eps * (1 + 1e-6) + 1e-6
    assert float(sizes.max()) > 0.5 * eps
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    assert not result.requires_grad


@pytest.mark.parametrize(("name", "random"), [("noise", True), ("pgd", True), ("fgsm", False)])
def test_the_seed_decides_where_an_attack_is_random(name, random):
    one, same, other = (attacked(name, "linf", 0.1, seed=seed, steps=1)[1] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert torch.equal(one, other) is not random


@pytest.mark.parametrize("move", [lambda x: x + 0.2, lambda x: x * 0 - 0.05, lambda x: x * 0 + 1.05])
def test_an_attack_that_leaves_its_ball_or_the_range_voids_the_figures(monkeypatch, move):
    def cheating(model, images, labels, *, epsilons):
        return None, move(images), None

    images = torch.full((2, 3, 8, 8), 0.0 if move(torch.tensor(0.5)) < 0 else 0.97)
    if float(move(torch.tensor(0.5))) == pytest.approx(0.7):
        images = torch.full((2, 3, 8, 8), 0.5)
    settings = AttackSettings(attacks=("fgsm",), eps=(0.1,))
    monkeypatch.setattr(foolbox_adapter, "make_attack", lambda name, settings: cheating)
    keywords = {"active": torch.arange(2), "eps": 0.1, "settings": settings, "seed": 0}
    with pytest.raises(EvaluationError, match="left its ball"):
        run_attack("fgsm", tiny_cnn(), images, torch.zeros(2, dtype=torch.long), **keywords)


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_pgd_is_at_least_as_strong_as_one_step(eps):
    # foolbox's own step size hardly leaves the ball's centre, and then breaks fewer images than one long step.
    model, images = tiny_mlp(), torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    broken = {}
    with ready_for_attack(model), torch.no_grad():
        labels = model(images).argmax(1)
        for name in ("fgsm", "pgd"):
            settings = AttackSettings(attacks=(name,), eps=(eps,), steps=20)
            keywords = {"active": torch.arange(64), "eps": eps, "settings": settings, "seed": 0}
            attacked_images = run_attack(name, model, images, labels, **keywords)
            broken[name] = int((model(attacked_images).argmax(1) != labels).sum())
    assert broken["pgd"] >= broken["fgsm"] > 0


def test_pgd_gets_its_settings():
    settings = AttackSettings(attacks=("pgd",), steps=20)
    attack = make_attack("pgd", settings)
    assert attack.rel_stepsize == pytest.approx(0.125)
    assert (attack.steps, attack.random_start) == (20, True)


def test_parameters_are_frozen_inside_and_free_again_outside():
    model = tiny_cnn().train()
    with ready_for_attack(model) as ready:
        assert ready is model
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_foolbox_is_imported_where_there_is_no_git_program(tmp_path):
    code = (
        "from lrcompress.robustness.foolbox_adapter import make_attack\n"
        "from lrcompress.robustness import AttackSettings\n"
        "print([kind.__name__ for kind in type(make_attack('pgd', AttackSettings(attacks=('pgd',)))).__mro__[:2]])"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["PATH"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "['PairedStart', 'LinfProjectedGradientDescentAttack']\n", done.stderr


@pytest.mark.parametrize("name", ["noise", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_meets_the_same_random_numbers_whoever_else_is_left_in_the_batch(name, norm):
    everyone = attacked(name, norm, 0.3, steps=1)[1]
    some = torch.tensor([2, 7, 11])
    assert torch.allclose(attacked(name, norm, 0.3, steps=1, active=some)[1], everyone[some], atol=1e-6)
    assert not torch.allclose(everyone[some], attacked(name, norm, 0.3, steps=1, active=some, seed=1)[1], atol=1e-3)
