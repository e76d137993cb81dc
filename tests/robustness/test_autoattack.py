import sys

import pytest
import torch
from networks import TensorImages
from torch import nn

from lrcompress.data import ImageSet
from lrcompress.errors import OptionError
from lrcompress.robustness import AttackSettings, EvaluatedModel, autoattack, evaluate_models


class TenClasses(nn.Module):
    """Two classes that count, on either side of the mean pixel ½, and eight that are far away."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        lead = self.scale * (images.flatten(1).mean(1) - 0.5)
        others = -20 - torch.arange(8.0).expand(len(images), -1) + 0 * lead[:, None]
        return torch.cat([torch.stack([lead, -lead], 1), others], 1)


def test_the_ensemble_breaks_what_can_be_broken_and_leaves_generators_and_traces_alone():
    # In ℓ∞ the mean moves by ε: one image lies closer to the border, one farther away.
    pixels = torch.stack([torch.full((1, 2, 2), 0.5 + shift) for shift in (0.02, 0.2, -0.1)])
    images = ImageSet(TensorImages(pixels, torch.zeros(3, dtype=torch.long)), (), "grey")
    settings = AttackSettings(("autoattack",), eps=(0.05,))
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def trace(*_):
        return None

    sys.settrace(trace)
    try:
        evaluation = evaluate_models([EvaluatedModel("compressed", TenClasses(), "0")], images, settings)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(None)
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluation.models[0].outcome("autoattack").robust == ((False, True, False),)
    assert evaluation.settings["autoattack"].startswith("pyautoattack 0.")


def test_where_the_package_is_missing_the_hint_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(autoattack.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="AutoAttack is not installed") as refused:
        AttackSettings(("autoattack",))
    assert refused.value.hint == "pip install 'lrcompress[autoattack]'"


def test_few_classes_are_refused():
    class Two(TenClasses):
        def forward(self, images):
            return super().forward(images)[:, :2]

    images = ImageSet(TensorImages(torch.full((2, 1, 2, 2), 0.6), torch.zeros(2, dtype=torch.long)), (), "grey")
    with pytest.raises(OptionError, match="autoattack needs 10 classes, the models have 2"):
        evaluate_models([EvaluatedModel("compressed", Two(), "0")], images, AttackSettings(("autoattack",)))
