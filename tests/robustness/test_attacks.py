import foolbox
import pytest

from lrcompress.errors import OptionError
from lrcompress.robustness import ATTACKS, SUITES, AttackSettings, parse_eps, parse_norm
from lrcompress.robustness.attacks import relative_stepsize


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["8/255"], [8 / 255]),
        (["8/255,4/255"], [8 / 255, 4 / 255]),
        (["8/255", "0.03"], [8 / 255, 0.03]),
        ([" 1/255 , 0 "], [1 / 255, 0]),
        (["0.99"], [0.99]),
        ([], []),
        (["1e-3"], [0.001]),
    ],
)
def test_radii_are_fractions_or_numbers(texts, expected):
    assert parse_eps(texts, "linf") == pytest.approx(tuple(expected))


@pytest.mark.parametrize("text", ["8", "2/1", "255", "1"])
def test_a_radius_in_bytes_is_refused_with_what_was_meant(text):
    with pytest.raises(OptionError, match=r"in units of images in \[0, 1\]") as refused:
        parse_eps([text], "linf")
    assert "did you mean" in refused.value.hint


def test_the_hint_for_eps_8_is_the_option_to_type():
    with pytest.raises(OptionError, match=r"got 8$") as refused:
        parse_eps(["8"], "linf")
    assert refused.value.hint == "did you mean --eps 8/255?"


def test_a_radius_above_one_is_allowed_in_the_euclidean_norm():
    assert parse_eps(["8"], "l2") == (8.0,)


@pytest.mark.parametrize("text", ["", "eight", "8/0", "8//255", "1,,2", "nan", "inf", "-1/255", "1/255;2/255"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_no_radius_is_refused(text, norm):
    with pytest.raises(OptionError, match="--eps") as refused:
        parse_eps([text], norm)
    assert refused.value.hint


@pytest.mark.parametrize("norm", ["l3", "Linf", "inf", "", "2"])
def test_an_unknown_norm_is_answered_with_those_that_are_known(norm):
    with pytest.raises(OptionError, match=r"must be one of linf, l2") as refused:
        parse_norm(norm)
    assert refused.value.hint == "--norm linf"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_known_norm_is_itself(norm):
    assert parse_norm(norm) == norm


def test_an_unknown_attack_is_answered_with_the_nearest_names_or_all():
    with pytest.raises(OptionError, match="no attack named `pgdd`") as refused:
        AttackSettings(attacks=("pgdd",))
    assert "pgd" in refused.value.hint
    with pytest.raises(OptionError, match="no attack named `L2FNMAttack:steps=3`") as refused:
        AttackSettings(attacks=("L2FNMAttack:steps=3",), norm="l2")
    assert "did you mean L2FMNAttack" in refused.value.hint
    with pytest.raises(OptionError, match="no attack named `zzzz`") as refused:
        AttackSettings(attacks=("zzzz",))
    assert all(name in refused.value.hint for name in ATTACKS)
    with pytest.raises(OptionError, match="no attack named `pgd:steps=3`") as refused:
        AttackSettings(attacks=("pgd:steps=3",))
    assert "only foolbox's classes take options" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "norm", "hint"), [("square", "l1", "linf"), ("ddn", "linf", "l2"), ("deepfool", "l1", "linf")]
)
def test_an_attack_is_refused_in_a_norm_that_it_does_not_know(name, norm, hint):
    with pytest.raises(OptionError, match=f"{name} does not work in {norm}") as refused:
        AttackSettings(attacks=(name,), norm=norm)
    assert refused.value.hint == f"--norm {hint}"


def test_suites_name_attacks_of_the_table_in_its_order():
    order = list(ATTACKS)
    for names in SUITES.values():
        assert [order.index(name) for name in names] == sorted(order.index(name) for name in names)
    assert set(SUITES["quick"]) < set(SUITES["standard"]) < set(SUITES["full"])


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"restarts": 0}, *({"eps": (eps,)} for eps in (-0.1, 8.0, float("nan")))]
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(OptionError, match="--") as refused:
        AttackSettings(attacks=("pgd",), **values)
    assert refused.value.hint


def test_radii_ascend_and_are_taken_once():
    assert AttackSettings(attacks=("pgd",), eps=(0.2, 0.1, 0.2)).eps == (0.1, 0.2)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
def test_pgd_can_cross_the_ball_but_no_step_leaves_it(steps):
    step = relative_stepsize(steps)
    assert step <= 1
    assert steps * step >= min(steps, 2.5) - 1e-12


def test_the_description_names_the_engine_with_its_version_and_all_that_decides_the_figures():
    settings = AttackSettings(attacks=("fgsm", "pgd"), eps=(0.1,), steps=10, restarts=3, batch_size=50)
    assert settings.describe() == {
        "attacks": ["fgsm", "pgd"],
        "batch_size": 50,
        "eps": [0.1],
        "eps_by_trial": False,
        "steps": 10,
        "restarts": 3,
        "rel_stepsize": 0.25,
        "random_start": True,
    }


def test_what_comes_from_foolbox_is_named_with_its_version():
    told = AttackSettings(attacks=("pgd", "fmn"), eps=(0.1,)).describe()
    assert told["foolbox"] == f"{foolbox.__version__} for fmn"
    assert AttackSettings(attacks=("square",), eps=(0.1,), queries=70).describe()["queries"] == 70


def test_without_attacks_the_batch_size_is_all_there_is_to_describe():
    assert AttackSettings(batch_size=50).describe() == {"attacks": [], "batch_size": 50}
