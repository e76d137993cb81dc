import dataclasses
import json
from collections import Counter

import pytest
from trainings import construct

from lrcompress.data import Augmentation
from lrcompress.dlrt import Adversary, DlrtOptions, TrainingOptions
from lrcompress.errors import OptionError
from lrcompress.plan import Tolerance

NAN = float("nan")
METHOD = DlrtOptions(Tolerance(0.1))
PGD = {"adversarial": "pgd"}
REFUSED = [
    ({"epochs": 0}, "--epochs"),
    ({"steps": 0}, "--steps"),
    ({"time_limit": 0.0}, "--time-limit"),
    ({"time_limit": NAN}, "--time-limit"),
    ({"patience": 0}, "--patience"),
    ({"max_drop": 0.0}, "--max-drop"),
    ({"max_drop": NAN}, "--max-drop"),
    ({"batch_size": 1}, "--batch-size"),
    ({"accumulate": 0}, "--accumulate"),
    ({"accumulate": 11, "batch_size": 20}, "--accumulate"),
    ({"frozen_fraction": 0.0}, "--frozen-fraction"),
    ({"frozen_fraction": 1.1}, "--frozen-fraction"),
    ({"warm_up": 1.0}, "--warm-up"),
    ({"warm_up": -0.1}, "--warm-up"),
    ({"held_out": 0.0}, "--held-out"),
    ({"held_out": 1.0}, "--held-out"),
    ({"distill": -0.1}, "--distill"),
    ({"distill": 1.1}, "--distill"),
    ({"temperature": 0.0}, "--temperature"),
    ({"label_smoothing": 1.0}, "--label-smoothing"),
    ({"label_smoothing": -0.1}, "--label-smoothing"),
    ({"precision": "int8"}, "--precision"),
    ({"workers": -1}, "--workers"),
    ({"adversarial": "fgsm"}, "--adversarial"),
    ({"adversarial_norm": "l1", **PGD}, "--adversarial-norm"),
    ({"adversarial_eps": 0.0, **PGD}, "--adversarial-eps"),
    ({"adversarial_eps": 8.0, **PGD}, "--adversarial-eps"),  # pixels of [0, 255], by mistake
    ({"adversarial_eps": -1.0, "adversarial_norm": "l2", **PGD}, "--adversarial-eps"),
    ({"adversarial_eps": NAN, "adversarial_norm": "l2", **PGD}, "--adversarial-eps"),
    ({"adversarial_steps": 0, **PGD}, "--adversarial-steps"),
    ({"adversarial_share": 0.0, **PGD}, "--adversarial-share"),
    ({"adversarial_share": 1.1, **PGD}, "--adversarial-share"),
    ({"trades": 1.0}, "--trades"),
    ({"trades": -1.0, **PGD}, "--trades"),
    ({"trades": float("inf"), **PGD}, "--trades"),
    ({"trades": 1.0, "adversarial_share": 0.5, **PGD}, "--adversarial-share"),
]
ALLOWED = [
    {"accumulate": 10, "batch_size": 20},
    {"frozen_fraction": 1.0},
    {"warm_up": 0.0},
    {"distill": 0.0},
    {"distill": 1.0},
    {"batch_size": 2},
    {"adversarial_eps": 1.0, **PGD},
    {"adversarial_eps": 2.5, "adversarial_norm": "l2", **PGD},
    {"trades": 6.0, **PGD},
]


@pytest.mark.parametrize(("values", "option"), REFUSED, ids=str)
def test_a_value_out_of_range_is_refused_with_the_option_and_the_value(values, option):
    with pytest.raises(OptionError) as refused:
        construct(TrainingOptions, METHOD, **values)
    assert refused.value.message.startswith(f"{option} must be ")
    got = values.get(option[2:].replace("-", "_"))
    assert refused.value.message.endswith(f"got {got}")
    assert refused.value.hint


@pytest.mark.parametrize("values", ALLOWED, ids=str)
def test_the_ends_of_the_ranges_are_allowed(values):
    options = TrainingOptions(METHOD, **values)
    assert all(getattr(options, name) == value for name, value in values.items())


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingOptions(METHOD).epochs = 3


@pytest.mark.parametrize(("epochs", "steps", "count"), [(3, None, 21), (3, 5, 5), (3, 21, 21), (3, 1000, 21)])
def test_a_run_has_so_many_steps(epochs, steps, count):
    assert TrainingOptions(METHOD, epochs=epochs, steps=steps).count_steps(7) == count


def test_the_adversary_has_the_settings_and_there_is_none_without_them():
    assert TrainingOptions(METHOD, adversarial_eps=0.5).adversary() is None
    settings = {"adversarial_eps": 0.5, "adversarial_norm": "l2", "adversarial_steps": 4, "adversarial_share": 0.25}
    made = TrainingOptions(METHOD, precision="bfloat16", **settings, **PGD).adversary()
    assert made == Adversary("pgd", 0.5, "l2", 4, 0.25, bfloat16=True)


def test_the_description_is_all_that_the_result_depends_on_as_json_has_it():
    augmentation = Augmentation(crop=1, crop_scale=(0.35, 1.0), mixup=0.2)
    options = TrainingOptions(METHOD, epochs=7, augmentation=augmentation, workers=3, save_seconds=1.0, seed=5)
    values = options.describe()
    assert (values["epochs"], values["seed"], values["policy"]["tol"], values["lr"]) == (7, 5, 0.1, METHOD.lr)
    assert values["augmentation"]["mixup"] == 0.2
    every = Counter(field.name for kind in (DlrtOptions, TrainingOptions) for field in dataclasses.fields(kind))
    assert max(every.values()) == 1  # none hides another
    assert values.keys() == every.keys() - {"dlrt", "workers", "save_seconds"}
    assert json.dumps(values, allow_nan=False)
