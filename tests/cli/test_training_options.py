import inspect
import json
import re

import pytest
from command import assert_refused, run

from lrcompress.cli.training_options import training_options
from lrcompress.data import Augmentation
from lrcompress.dlrt import DlrtOptions, TrainingOptions
from lrcompress.pipeline import CompressOptions, MaxDrop
from lrcompress.plan import Budget, Calibration, CompressionPlan, Energy, Tolerance, UniformRank


@pytest.fixture
def asked(monkeypatch):
    """Returns what `lrcompress compress` would do, and does nothing."""
    options = []

    def compress(source, output, given, *, observer):
        options.append(given)
        return {}

    monkeypatch.setattr("lrcompress.pipeline.compress", compress)

    def ask(*arguments) -> CompressOptions:
        result = run("compress", "w.pt", *arguments)
        assert result.exit_code == 0, result.output
        return options.pop()

    return ask


ADVERSARIAL = ["--adversarial", "pgd"]
# What is typed, and where in the settings it is found; with what it does nothing without.
OPTIONS = {
    "epochs": (["--epochs", "7"], {"epochs": 7}),
    "steps": (["--steps", "11"], {"steps": 11}),
    "time_limit": (["--time-limit", "60"], {"time_limit": 60.0}),
    "patience": (["--patience", "3"], {"patience": 3}),
    "anneal": (["--budget", "0.1", "--anneal", "3"], {"anneal": 3.0}),
    "optimizer": (["--optimizer", "sgd"], {"dlrt.optimizer": "sgd"}),
    "lr": (["--lr", "0.5"], {"dlrt.lr": 0.5}),
    "momentum": (["--optimizer", "sgd", "--momentum", "0.5"], {"dlrt.momentum": 0.5}),
    "weight_decay": (["--weight-decay", "0.25"], {"dlrt.weight_decay": 0.25}),
    "clip_norm": (["--clip-norm", "2"], {"dlrt.clip_norm": 2.0}),
    "batch_size": (["--batch-size", "32"], {"batch_size": 32}),
    "accumulate": (["--accumulate", "4"], {"accumulate": 4}),
    "precision": (["--precision", "bfloat16"], {"precision": "bfloat16"}),
    "distill": (["--distill", "0.25"], {"distill": 0.25}),
    "temperature": (["--temperature", "5"], {"temperature": 5.0}),
    "label_smoothing": (["--label-smoothing", "0.1"], {"label_smoothing": 0.1}),
    "held_out": (["--held-out", "0.2"], {"held_out": 0.2}),
    "crop": (["--crop", "4"], {"augmentation.crop": 4}),
    "flip": (["--no-flip"], {"augmentation.flip": False}),
    "crop_scale": (["--crop-scale", "0.35,1"], {"augmentation.crop_scale": (0.35, 1.0)}),
    "randaugment": (["--randaugment", "rand-m9-mstd0.5-inc1"], {"augmentation.randaugment": "rand-m9-mstd0.5-inc1"}),
    "mixup": (["--mixup", "0.2"], {"augmentation.mixup": 0.2}),
    "cutmix": (["--cutmix", "1"], {"augmentation.cutmix": 1.0}),
    "workers": (["--workers", "2"], {"workers": 2}),
    "coefficient_steps": (["--coefficient-steps", "75"], {"dlrt.coefficient_steps": 75}),
    "every_gradient": (["--no-every-gradient"], {"dlrt.every_gradient": False}),
    "moments": (["--moments", "reset"], {"dlrt.moments": "reset"}),
    "frozen_fraction": (["--frozen-fraction", "0.5"], {"frozen_fraction": 0.5}),
    "warm_up": (["--warm-up", "0.1"], {"warm_up": 0.1}),
    "min_rank": (["--min-rank", "2"], {"dlrt.min_rank": 2}),
    "max_rank": (["--max-rank", "9"], {"dlrt.max_rank": 9}),
    "beta": (["--beta", "0.05"], {"dlrt.beta": 0.05}),
    "penalty": (["--beta", "0.1", "--penalty", "paper"], {"dlrt.penalty": "paper"}),
    "penalty_core": (["--beta", "0.1", "--penalty-core", "augmented"], {"dlrt.penalty_core": "augmented"}),
    "penalty_unfolding": (["--max-kappa", "3", "--penalty-unfolding", "both"], {"dlrt.penalty_unfolding": "both"}),
    "max_kappa": (["--max-kappa", "3"], {"dlrt.max_kappa": 3.0}),
    "adversarial": (["--adversarial", "fgsm-rs"], {"adversarial": "fgsm-rs"}),
    "adversarial_eps": ([*ADVERSARIAL, "--adversarial-eps", "4/255"], {"adversarial_eps": 4 / 255}),
    "adversarial_norm": ([*ADVERSARIAL, "--adversarial-norm", "l2"], {"adversarial_norm": "l2"}),
    "adversarial_steps": ([*ADVERSARIAL, "--adversarial-steps", "3"], {"adversarial_steps": 3}),
    "adversarial_share": ([*ADVERSARIAL, "--adversarial-share", "0.5"], {"adversarial_share": 0.5}),
    "trades": ([*ADVERSARIAL, "--trades", "6"], {"trades": 6.0}),
}


def look_up(settings, place):
    for name in place.split("."):
        settings = getattr(settings, name)
    return settings


def spelling(name):
    return f"--{name.replace('_', '-')}"


def test_the_table_has_every_option_of_training():
    assert OPTIONS.keys() == inspect.signature(training_options).parameters.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_arrives_in_the_settings_and_changes_them(asked, name):
    typed, expected = OPTIONS[name]
    default = asked("--data", "data").training
    settings = asked("--data", "data", *typed).training
    for place, value in expected.items():
        assert look_up(settings, place) == value
        assert type(look_up(settings, place)) is type(value)
        assert look_up(default, place) != value


def test_without_options_the_defaults_are_those_of_the_python_interface_and_the_help(asked):
    settings = asked("--data", "data").training
    assert settings == TrainingOptions(DlrtOptions(Tolerance(0.1)), epochs=5, distill=0.9)
    text = " ".join(run("compress", "--help", env={"COLUMNS": "200", "TERM": "dumb"}).stdout.split())
    for name, default in (("epochs", 5), ("coefficient-steps", 10), ("batch-size", 128), ("temperature", 3)):
        assert re.search(rf"--{name} .*?\(default {default}\b", text), name
    assert (Augmentation().crop, settings.batch_size, settings.dlrt.coefficient_steps) == (2, 128, 10)


@pytest.mark.parametrize(
    ("typed", "policy"),
    [
        ([], Tolerance(0.1)),
        (["--tol", "0.2"], Tolerance(0.2)),
        (["--energy", "0.9"], Energy(0.9)),
        (["--rank", "8"], UniformRank(8)),
        (["--budget", "0.1"], Budget(fraction=0.1)),
        (["--max-params", "1000"], Budget(parameters=1000)),
        (["--max-macs", "1000"], Budget(macs=1000)),
    ],
    ids=str,
)
def test_what_chooses_the_ranks_goes_on_choosing_while_training(asked, typed, policy):
    with_data = asked("--data", "data", *typed)
    assert with_data.policy is None
    assert with_data.training.dlrt.policy == policy
    assert with_data.training.max_drop is None
    for without in (asked(*typed), asked("--data", "data", "--epochs", "0", *typed)):
        assert without.training is None
        assert without.policy == policy


def test_a_largest_drop_drives_the_budget_of_a_training_or_is_searched_without_one(asked):
    trained = asked("--data", "data", "--max-drop", "0.5", "--epochs", "20")
    assert (trained.policy, trained.training.max_drop, trained.training.epochs) == (None, 0.5, 20)
    assert isinstance(trained.training.dlrt.policy, Budget)
    searched = asked("--data", "data", "--max-drop", "0.5", "--epochs", "0", "--seed", "3")
    assert searched.training is None
    assert searched.policy == MaxDrop(0.5, seed=3)


def test_a_fine_tuning_starts_calibrated_with_its_own_images_unless_told_otherwise(asked):
    assert asked("--data", "data").calibration == Calibration("data", None, 0)
    assert asked("--data", "data", "--calibrate", "other").calibration == Calibration("other", None, 0)
    images = asked("--data", "data", "--calibration-images", "50", "--seed", "2").calibration
    assert images == Calibration("data", 50, 2)
    assert asked("--data", "data", "--no-calibration").calibration is None
    assert asked("--data", "data", "--epochs", "0").calibration is None
    assert asked().calibration is None


def test_ranks_are_rounded_and_the_seed_is_one_for_all(asked):
    options = asked("--data", "data", "--round-ranks", "8", "--seed", "5")
    assert (options.training.dlrt.round_ranks, options.training.seed, options.seed) == (8, 5, 5)
    assert options.layers.round_ranks == 8


def test_resuming_is_asked_for(asked):
    assert asked("--data", "data", "--resume").resume is True
    assert asked("--data", "data").resume is False


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_without_training_is_refused_and_not_ignored(name):
    typed, _ = OPTIONS[name]
    said = "needs images to fine-tune on"
    assert_refused(run("compress", "nowhere.pt", *typed), said, "--data DIR")
    if name != "epochs":
        typed_so = run("compress", "nowhere.pt", *typed, "--data", "X", "--epochs", "0")
        assert_refused(typed_so, "does nothing with --epochs 0", "or --epochs 0")
    only = typed[2:] if len(typed) > 2 else typed
    assert_refused(run("compress", "nowhere.pt", *only), f"{only[0]} {said}")


ALONE = {
    "--momentum": (["--momentum", "0.5"], "--optimizer sgd"),
    "--momentum with another": (["--optimizer", "adamw", "--momentum", "0.5"], "--optimizer sgd"),
    "--adversarial-eps": (["--adversarial-eps", "4/255"], "--adversarial"),
    "--adversarial-norm": (["--adversarial-norm", "l2"], "--adversarial"),
    "--adversarial-share": (["--adversarial-share", "0.5"], "--adversarial"),
    "--adversarial-steps": (["--adversarial-steps", "3"], "--adversarial pgd"),
    "--adversarial-steps with one": (["--adversarial", "fgsm-rs", "--adversarial-steps", "3"], "--adversarial pgd"),
    "--trades": (["--trades", "6"], "--adversarial"),
    "--penalty": (["--penalty", "paper"], "--beta"),
    "--penalty with none": (["--penalty", "paper", "--beta", "0"], "--beta"),
    "--penalty-core": (["--penalty-core", "augmented"], "--beta"),
    "--penalty-unfolding": (["--penalty-unfolding", "both"], "--beta"),
}


@pytest.mark.parametrize("case", ALONE)
def test_an_option_that_does_nothing_without_another_one_is_refused(case):
    typed, needed = ALONE[case]
    name = case.split()[0]
    assert_refused(run("compress", "nowhere.pt", "--data", "X", *typed), f"{name} does nothing without {needed}")


IDLE = {
    "--label-smoothing": (["--label-smoothing", "0.1", "--distill", "1"], "--distill 1.0"),
    "--temperature": (["--temperature", "5", "--distill", "0"], "--distill 0"),
    "--crop": (["--crop", "4", "--crop-scale", "0.35,1"], "--crop-scale"),
}


@pytest.mark.parametrize("name", IDLE)
def test_an_option_that_does_nothing_with_another_one_is_refused(name):
    typed, other = IDLE[name]
    refused = run("compress", "nowhere.pt", "--data", "X", *typed)
    assert_refused(refused, f"{name} does nothing with {other}", f"leave out {name}")


BAD = {
    "crop scale": (["--crop-scale", "small"], ["--crop-scale takes two numbers, got `small`"]),
    "crop scale, three": (["--crop-scale", "0.1,0.2,0.3"], ["--crop-scale takes two numbers"]),
    "crop scale, falling": (["--crop-scale", "1,0.5"], ["--crop-scale must be two rising areas"]),
    "RandAugment": (["--randaugment", "much"], ["--randaugment must be written as timm does"]),
    "radius": ([*ADVERSARIAL, "--adversarial-eps", "wide"], ["--adversarial-eps must be numbers", "`wide`"]),
    "radius in 255ths": ([*ADVERSARIAL, "--adversarial-eps", "8"], ["did you mean --adversarial-eps 8/255?"]),
    "two radii": ([*ADVERSARIAL, "--adversarial-eps", "4/255,8/255"], ["--adversarial-eps is one radius"]),
    "share with TRADES": (
        [*ADVERSARIAL, "--trades", "6", "--adversarial-share", "0.5"],
        ["--adversarial-share must be 1 with --trades"],
    ),
    "ranks": (["--min-rank", "5", "--max-rank", "4"], ["--max-rank must be >= --min-rank, got 4"]),
    "parts": (["--batch-size", "8", "--accumulate", "5"], ["--accumulate must be 1 to half of --batch-size 8, got 5"]),
    "steps": (["--steps", "0"], ["--steps must be at least 1"]),
    "learning rate": (["--lr", "nan"], ["--lr must be more than 0, got nan"]),
    "two policies": (["--budget", "0.1", "--tol", "0.1"], ["exclude each other"]),
    "moments of SGD": (["--optimizer", "sgd", "--moments", "floor"], ["--moments floor is about the second moment"]),
    "annealing a tolerance": (["--tol", "0.1", "--anneal", "2"], ["--anneal needs a budget", "--budget 0.1"]),
    "annealing a drop": (["--max-drop", "1", "--anneal", "2"], ["--anneal needs a budget"]),
    "patience": (["--patience", "0"], ["--patience must be at least 1, got 0", "hint: --patience 3"]),
    "drop": (["--max-drop", "0"], ["--max-drop"]),
    "drop with budget": (["--max-drop", "1", "--budget", "0.1"], ["exclude each other"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_cannot_be_is_refused_before_anything_is_read(case):
    typed, words = BAD[case]
    assert_refused(run("compress", "nowhere.pt", "--data", "X", *typed), *words)


def test_a_seed_is_not_negative():
    refused = run("compress", "nowhere.pt", "--data", "X", "--seed", "-1")
    assert refused.exit_code == 2
    assert "--seed" in refused.stderr


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 1e-3), ("sgd", 1e-2)])
def test_each_optimiser_has_a_learning_rate_of_its_own(asked, optimizer, rate):
    assert asked("--data", "data", "--optimizer", optimizer).training.dlrt.lr == rate
    assert asked("--data", "data", "--optimizer", optimizer, "--lr", "0.3").training.dlrt.lr == 0.3


def test_the_help_has_the_options_under_titles():
    text = run("compress", "--help", env={"COLUMNS": "100", "TERM": "dumb"}).stdout
    titles = ["Arguments", "Options", "Ranks and layers", "Fine-tuning (with --data)", "Adversarial training", "Gates"]
    places = [text.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    assert places[1] < text.index("\n  --data") < text.index("\n  -h, --help") < places[2] < text.index("\n  --budget")
    assert places[3] < text.index("\n  --epochs") < places[4] < text.index("\n  --trades") < places[5]


@pytest.mark.parametrize("name", ["optimizer", "penalty", "penalty_core", "penalty_unfolding", "moments", "precision"])
def test_a_name_that_is_none_of_the_choices_is_wrong_usage(name):
    result = run("compress", "nowhere.pt", "--data", "X", spelling(name), "whatever")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "whatever" in result.stderr


def test_there_is_nothing_to_resume_without_fine_tuning():
    assert_refused(run("compress", "nowhere.pt", "--resume"), "nothing to resume without fine-tuning", "--data DIR")
    assert_refused(run("compress", "nowhere.pt", "--resume", "--data", "X", "--epochs", "0"), "nothing to resume")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_plan_is_executed_without_fine_tuning(tmp_path, name):
    typed, _ = OPTIONS[name]
    plan = tmp_path / "p.json"
    plan.write_text(json.dumps(CompressionPlan({"name": "by hand"}, ()).to_json()))
    only = typed[2:] if len(typed) > 2 else typed
    result = run("compress", "nowhere.pt", "--plan", plan, "--data", "X", *only)
    assert_refused(result, f"a plan is executed without fine-tuning, {only[0]} has no effect")


def test_the_help_names_every_option():
    text = run("compress", "--help", env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    assert all(re.search(rf"{spelling(name)}\b", text) for name in (*OPTIONS, "resume", "no_calibration", "max_drop"))
