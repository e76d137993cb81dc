import math

import pytest
from report_values import NORMS, report_with
from reports import Page

from lrcompress.measure import OperatorNorm
from lrcompress.report import compare_operator_norms, find_fault, render_html, render_markdown, with_operator_norms
from lrcompress.report.operator_norms import operator_norm_rows, product_sentence


def norms(**values):
    return {name: OperatorNorm(value, True, 7, (3, 8, 8)) for name, value in values.items()}


def test_the_product_is_told_as_the_logarithm_of_its_ratio_over_the_layers_of_both_models():
    baseline, compressed = norms(a=2.0, b=8.0, c=5.0), norms(a=1.0, b=16.0, d=3.0, c=0.5)
    values = compare_operator_norms({"baseline": baseline, "compressed": compressed}, seed=3)
    assert values["vacuous_log10_product_ratio"] == pytest.approx(math.log10(0.5 * 2 * 0.1))
    assert values["seed"] == 3
    assert [layer["name"] for layer in values["layers"]] == ["a", "b", "c", "d"]
    assert [set(layer) - {"name"} for layer in values["layers"]] == [{"baseline", "compressed"}] * 3 + [{"compressed"}]
    assert values["layers"][0]["baseline"] == {
        "norm": 2.0, "converged": True, "iterations": 7, "input_size": [3, 8, 8],
    }  # fmt: skip


def test_norms_of_very_many_layers_do_not_overflow():
    names = [f"l{index}" for index in range(500)]
    models = {"baseline": norms(**dict.fromkeys(names, 1.0)), "compressed": norms(**dict.fromkeys(names, 1e3))}
    assert compare_operator_norms(models, seed=0)["vacuous_log10_product_ratio"] == pytest.approx(1500)


@pytest.mark.parametrize(
    "models",
    [
        {"compressed": norms(a=1.0)},
        {"baseline": norms(a=1.0)},
        {"baseline": norms(), "compressed": norms()},
        {"baseline": norms(a=0.0), "compressed": norms(a=1.0)},
        {"baseline": norms(a=1.0), "compressed": norms(a=0.0)},
    ],
)
def test_without_two_products_that_are_not_zero_there_is_no_ratio(models):
    values = compare_operator_norms(models, seed=0)
    assert values["vacuous_log10_product_ratio"] is None
    assert product_sentence(values) == ""
    report = with_operator_norms(report_with(), values, command="typed")
    assert find_fault(report) == ""
    assert "Operator norms" in render_html(report)
    assert "Vacuous" not in render_html(report)


def test_rows_have_the_norms_of_both_models_and_say_what_has_not_converged():
    columns, rows = operator_norm_rows(NORMS)
    assert columns == ["layer", "input", "uncompressed", "compressed", "ratio"]
    assert rows == [
        ["stem", "3×8×8", "2.5", "1.25 (not converged)", "0.5"],
        ["head", "12", "0", "3", "–"],
        ["late", "12", "–", "1.5", "–"],
        ["never", "", "–", "–", "–"],
    ]


@pytest.mark.parametrize(("exponent", "shown"), [(-0.301, "-0.30"), (-0.001, "+0.00"), (2.0, "+2.00")])
def test_the_product_of_like_norms_is_no_negative_power(exponent, shown):
    assert f" is 10^{shown} times " in product_sentence(NORMS | {"vacuous_log10_product_ratio": exponent})


@pytest.mark.parametrize("role", ["baseline", "compressed"])
def test_rows_of_one_model_have_no_ratio(role):
    columns, rows = operator_norm_rows(compare_operator_norms({role: norms(a=2.0)}, seed=0))
    assert columns == ["layer", "input", "uncompressed" if role == "baseline" else "compressed"]
    assert rows == [["a", "3×8×8", "2"]]


@pytest.mark.parametrize("render", [render_html, lambda report: render_markdown(report).replace("\\", "")])
def test_documents_show_norms_where_there_are_some_and_call_the_product_vacuous(render):
    text = render(report_with(operator_norms=NORMS))
    shown = Page.parse(text).text
    assert "lower bounds" in shown
    assert "1.25 (not converged)" in shown
    assert "Vacuous: the product of these norms is 10^-0.30 times that of the uncompressed model." in shown
    assert "lrcompress inspect out.safetensors --operator-norms" in shown
    assert "Operator norms" not in render(report_with())


def test_norms_replace_those_before_and_leave_the_rest():
    before = report_with(operator_norms=NORMS)
    values = compare_operator_norms({"compressed": norms(a=2.0)}, seed=0)
    after = with_operator_norms(before, values, command="typed")
    assert after == {**before, "operator_norms": {**values, "command": "typed"}}
