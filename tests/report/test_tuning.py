import pytest

from lrcompress.data import Augmentation
from lrcompress.dlrt import DlrtOptions, TrainingOptions
from lrcompress.plan import Tolerance
from lrcompress.report.tuning import augmentation_settings, effective_settings, tuning_sentences

DROP = {
    "max_drop": 0.5,
    "held_out_images": 6000,
    "held_out_accuracy": 0.9277,
    "held_out_accuracy_uncompressed": 0.931,
    "target_reached": True,
}
KAPPA = {"max_kappa": 5.0, "largest_kappa": {"layer": "layer1.0.conv2", "kappa": 4.25}}
ROBUST = {
    "adversarial": "pgd",
    "adversarial_norm": "linf",
    "adversarial_eps": 8 / 255,
    "attacked_images": 1000,
    "held_out_robust_accuracy": 0.71,
    "held_out_robust_accuracy_before": 0.4,
}


def settings(**values):
    """The settings as the recipe has them."""
    known = DlrtOptions.__dataclass_fields__
    method = {name: value for name, value in values.items() if name in known}
    loop = {name: value for name, value in values.items() if name not in known}
    return TrainingOptions(DlrtOptions(Tolerance(0.1), **method), **loop).describe()


def test_a_largest_drop_is_told_with_what_was_lost_where_and_what_is_left():
    assert tuning_sentences(DROP, 0.95) == [
        "The largest drop asked for, 0.5 points, was kept on 6,000 images held out of training: 93.10 → 92.77 %, "
        "-0.33 points, with 5.0 % of the parameters."
    ]
    lost = DROP | {"held_out_accuracy": 0.92, "target_reached": False}
    (said,) = tuning_sentences(lost, 0.95)
    assert "0.5 points, WAS NOT KEPT on 6,000 images held out of training: 93.10 → 92.00 %, -1.10 points" in said


@pytest.mark.parametrize(("reached", "words"), [(True, "was kept"), (False, "WAS NOT KEPT")])
def test_a_drop_of_an_older_version_is_told_without_the_figures_it_does_not_have(reached, words):
    tuning = {"target_reached": reached, "max_drop": 0.5, "held_out_images": 6000}
    said = f"The largest drop asked for, 0.5 points, {words} on 6,000 images held out of training."
    assert tuning_sentences(tuning, 0.95) == [said]


@pytest.mark.parametrize(
    ("kappa", "words"),
    [
        (4.25, "is 4.25 (`layer1.0.conv2`); at most 5 was asked for, and is reached."),
        (5.0, "is reached."),
        (7.125, "is 7.125 (`layer1.0.conv2`); at most 5 was asked for, and is NOT REACHED: more --epochs"),
        (None, "is ∞ (`layer1.0.conv2`); at most 5 was asked for, and is NOT REACHED"),
    ],
)
def test_the_largest_condition_number_is_told_beside_the_one_that_was_asked_for(kappa, words):
    (said,) = tuning_sentences(KAPPA | {"largest_kappa": {"layer": "layer1.0.conv2", "kappa": kappa}}, 0.9)
    assert said.startswith("The largest κ of a core is ")
    assert words in said


def test_of_a_condition_number_that_nobody_asked_for_nothing_is_said():
    assert tuning_sentences(KAPPA | {"max_kappa": None}, 0.9) == []
    assert tuning_sentences(KAPPA | {"max_kappa": None, "beta": 0.0}, 0.9) == []


def test_a_penalty_alone_is_told_with_what_it_has_reached():
    told = tuning_sentences(KAPPA | {"max_kappa": None, "beta": 0.05}, 0.9)
    assert told == ["The largest κ of a core is 4.25 (`layer1.0.conv2`), with β = 0.05."]


def test_accuracy_under_the_own_adversary_of_the_training_is_told_and_called_no_evidence():
    (said,) = tuning_sentences(ROBUST, 0.9)
    assert said == (
        "Against the training's own adversary (pgd, ℓ∞ ε = 8/255) 40.00 % of 1,000 held-out images were right before "
        "training and 71.00 % after it: no evidence of robustness, run `lrcompress attack`."
    )


ADVERSARIAL = {"adversarial_eps", "adversarial_norm", "adversarial_steps", "adversarial_share"}
PENALTY = {"penalty", "penalty_core", "penalty_unfolding"}
# Settings, what of them is not shown, and what is.
SHOWN = [
    ({}, ADVERSARIAL | PENALTY | {"trades", "temperature", "momentum", "anneal"}, {"lr", "moments", "distill", "beta"}),
    ({"adversarial": "fgsm-rs"}, {"adversarial_steps", "trades"}, ADVERSARIAL - {"adversarial_steps"}),
    ({"adversarial": "pgd", "trades": 6.0}, set(), ADVERSARIAL | {"trades"}),
    ({"distill": 0.9}, set(), {"temperature", "label_smoothing"}),
    ({"distill": 1.0}, {"label_smoothing"}, {"temperature"}),
    ({"optimizer": "sgd"}, {"moments"}, {"momentum"}),
    ({"optimizer": "sgd", "moments": "reset"}, set(), {"moments", "momentum"}),
    ({"beta": 0.1}, set(), PENALTY | {"beta"}),
    ({"max_kappa": 5.0}, {"beta"}, PENALTY | {"max_kappa"}),
]


@pytest.mark.parametrize(("values", "hidden", "shown"), SHOWN, ids=str)
def test_settings_of_what_is_off_are_not_shown(values, hidden, shown):
    found = effective_settings(settings(**values)).keys()
    assert not found & hidden
    assert found >= shown


def test_what_is_done_to_training_images_is_shown_and_what_is_not_is_left_out():
    plain = settings(augmentation=Augmentation(crop=2, flip=True))
    assert augmentation_settings(plain) == {"crop": 2, "flip": True}
    crops = settings(augmentation=Augmentation(crop_scale=(0.35, 1.0), flip=False, mixup=0.2))
    assert augmentation_settings(crops) == {"crop_scale": "0.35 to 1", "mixup": 0.2}
    assert augmentation_settings(settings(augmentation=Augmentation(crop=0, flip=False))) == {}
    assert augmentation_settings({"chosen_epoch": 3}) == {}
