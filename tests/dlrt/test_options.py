import dataclasses
import inspect
import json

import pytest
from trainings import construct

from lrcompress.dlrt import DlrtOptions, TrainingOptions
from lrcompress.dlrt.options import EXAMPLES
from lrcompress.errors import OptionError
from lrcompress.plan import Budget, Energy, Tolerance, UniformRank

NAN, INF = float("nan"), float("inf")
REFUSED = [
    ("coefficient_steps", 0, "--coefficient-steps"),
    ("lr", 0.0, "--lr"),
    ("lr", -1.0, "--lr"),
    ("lr", NAN, "--lr"),
    ("lr", INF, "--lr"),
    ("momentum", 1.0, "--momentum"),
    ("momentum", -0.1, "--momentum"),
    ("momentum", NAN, "--momentum"),
    ("weight_decay", -1.0, "--weight-decay"),
    ("weight_decay", NAN, "--weight-decay"),
    ("clip_norm", 0.0, "--clip-norm"),
    ("clip_norm", NAN, "--clip-norm"),
    ("beta", -0.1, "--beta"),
    ("beta", NAN, "--beta"),
    ("beta", INF, "--beta"),
    ("max_kappa", 1.0, "--max-kappa"),
    ("max_kappa", NAN, "--max-kappa"),
    ("min_rank", 0, "--min-rank"),
    ("max_rank", 0, "--max-rank"),
    ("round_ranks", 0, "--round-ranks"),
    ("optimizer", "adam", "--optimizer"),
    ("moments", "forget", "--moments"),
    ("penalty", "scale_free", "--penalty"),
    ("penalty_core", "all", "--penalty-core"),
    ("penalty_unfolding", "input", "--penalty-unfolding"),
]
ALLOWED = [
    ("coefficient_steps", 1),
    ("momentum", 0.0),
    ("beta", 0.0),
    ("clip_norm", None),
    ("max_kappa", 1.001),
    ("max_rank", 1),
    ("optimizer", "sgd"),
    ("moments", "reset"),
    ("penalty", "paper"),
    ("penalty_core", "augmented"),
    ("penalty_unfolding", "both"),
]


@pytest.mark.parametrize(("name", "value", "option"), REFUSED)
def test_a_value_out_of_range_is_refused_with_the_option_and_the_value(name, value, option):
    with pytest.raises(OptionError) as refused:
        construct(DlrtOptions, Tolerance(0.1), **{name: value})
    assert refused.value.message.startswith(f"{option} must be ")
    assert refused.value.message.endswith(f"got {value}")
    assert refused.value.hint


@pytest.mark.parametrize(("name", "value"), ALLOWED)
def test_the_ends_of_the_ranges_are_allowed(name, value):
    assert getattr(DlrtOptions(Tolerance(0.1), **{name: value}), name) == value


@pytest.mark.parametrize(("smallest", "largest", "allowed"), [(4, 3, False), (4, 4, True), (4, None, True)])
def test_the_largest_rank_is_at_least_the_smallest(smallest, largest, allowed):
    if allowed:
        assert DlrtOptions(Tolerance(0.1), min_rank=smallest, max_rank=largest).max_rank == largest
    else:
        with pytest.raises(OptionError, match="--max-rank"):
            DlrtOptions(Tolerance(0.1), min_rank=smallest, max_rank=largest)


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DlrtOptions(Tolerance(0.1)).lr = 1.0


@pytest.mark.parametrize(
    ("policy", "described"),
    [
        (Tolerance(0.1), {"name": "tolerance", "tol": 0.1}),
        (Energy(0.9), {"name": "energy", "energy": 0.9}),
        (UniformRank(4), {"name": "uniform rank", "rank": 4}),
        (Budget(macs=5), {"name": "budget", "macs": 5}),
    ],
    ids=str,
)
def test_the_description_has_every_setting_as_json_has_it(policy, described):
    options = DlrtOptions(policy, beta=0.25, max_rank=7)
    values = options.describe()
    assert values["policy"] == described
    assert (values["beta"], values["max_rank"], values["clip_norm"]) == (0.25, 7, None)
    assert values.keys() == {field.name for field in dataclasses.fields(DlrtOptions)}
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_every_example_of_a_hint_is_a_value_that_is_allowed():
    fields = dict.fromkeys(inspect.signature(DlrtOptions).parameters, DlrtOptions)
    fields |= dict.fromkeys(inspect.signature(TrainingOptions).parameters, TrainingOptions)
    for option, example in EXAMPLES.items():
        name = option.removeprefix("--").replace("-", "_")
        given = {name: 8 / 255 if example == "8/255" else example}
        if fields[name] is DlrtOptions:
            DlrtOptions(Tolerance(0.1), **given)
        else:
            needed = {"adversarial": "pgd"} if name == "trades" else {}
            TrainingOptions(DlrtOptions(Budget(fraction=0.5)), **needed, **given)
