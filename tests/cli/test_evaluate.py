import json

from command import assert_refused, run
from workshop import listing

from lrcompress.cli.evaluate import evaluation_rows
from lrcompress.robustness import AttackOutcome, Evaluation, ModelOutcome


def evaluate(*args):
    return run("evaluate", "out.safetensors", "--arch", "net.py:build", *args)


def test_the_reports_path_is_all_that_goes_to_stdout(shop):
    result = evaluate("--data", "data")
    assert (result.exit_code, result.stdout) == (0, "out.report.json\n")
    assert "Clean accuracy" in result.stderr
    assert "McNemar" in result.stderr


def test_json_on_stdout_is_the_evaluation_without_attacks(shop):
    values = json.loads(evaluate("--data", "data", "--samples", "12", "--json").stdout)
    assert (values["images"], values["settings"]["attacks"]) == (12, [])
    assert list(values["models"]) == ["baseline", "compressed"]


def test_without_data_the_user_is_asked_for_some(shop):
    before = listing(shop)
    assert_refused(evaluate(), "no sample images fit a network of 3 classes and 1 channels", "--data DIR")
    assert listing(shop) == before


def test_the_data_of_the_fine_tuning_is_used_again(shop):
    result = run("evaluate", "tuned.safetensors", "--arch", "net.py:build", "--json")
    assert json.loads(result.stdout)["images"] == 30


def test_data_that_are_not_there_are_refused(shop):
    before = listing(shop)
    assert_refused(evaluate("--data", "nowhere"), "no data at `nowhere`")
    assert listing(shop) == before


def test_the_table_has_models_side_by_side_with_intervals():
    attacks = (AttackOutcome("worst", (2 / 255,), ((False, False, True, False),)),)
    models = tuple(
        ModelOutcome(role, "0", (True, True, True, False), attacks, 1.0) for role in ("baseline", "compressed")
    )
    values = Evaluation("data", 4, "linf", {"attacks": ["pgd"]}, 0, models, ()).to_json()
    columns, rows = evaluation_rows(values)
    assert columns == ["attack", "ε", "uncompressed", "compressed"]
    assert rows[0] == ["none (clean)", "0", "75.00 % [30.1, 95.4]", "75.00 % [30.1, 95.4]"]
    assert rows[1] == ["worst case", "2/255", "25.00 % [4.6, 69.9]", "25.00 % [4.6, 69.9]"]
