import dataclasses
import re
from pathlib import Path

import pytest
from artifacts import compressed
from networks import tiny_cnn
from reports import Page, evaluation

from lrcompress.artifact import Cost
from lrcompress.models import Architecture
from lrcompress.report import build_report, render_html, with_evaluation
from lrcompress.robustness import Finding

NASTY = "<script>alert('x')</script> & <b>\"bold\"</b>"


def make_report(name="out.safetensors", *, training=False, layers=None, scheme="matrix"):
    _, manifest = compressed(
        tiny_cnn(), Architecture("custom", f"{name}:build", {"width": 3}), (3, 8, 8), tol=0.1, scheme=scheme
    )
    log = []
    if training:
        tuning = {"chosen_epoch": 1, "lr": 0.002, "max_rank": None, "data": "photos"}
        recipe = {"plan": {"name": "training start", "tol": 0.1}, "fine_tuning": tuning, "guaranteed_tol": None}
        manifest = dataclasses.replace(manifest, recipe=recipe)
        log = [
            {"epoch": 0, "loss": None, "held_out_accuracy": 0.25, "ranks": {}, "parameters": 1234, "frozen": False},
            {"epoch": 1, "loss": 0.5, "held_out_accuracy": 0.75, "ranks": {}, "parameters": 1200, "frozen": True},
        ]
    if layers is not None:
        manifest = dataclasses.replace(manifest, layers=layers)
    return build_report(manifest, artifact=Path(name), artifact_bytes=300, artifact_sha256="ab", training_log=log)


REPORTS = {
    "bare": make_report,
    "fine-tuned": lambda: make_report(training=True),
    "no layers": lambda: make_report(layers=()),
    "clean accuracy": lambda: with_evaluation(make_report(), evaluation(attacked=False), command="typed"),
    "attacked": lambda: with_evaluation(make_report(), evaluation(), command="typed"),
    "no baseline": lambda: with_evaluation(make_report(), evaluation(baseline=False), command="typed"),
    "nasty names": lambda: with_evaluation(make_report(NASTY), evaluation(data=NASTY), command=NASTY),
}


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS.keys())
def test_every_report_is_one_page_that_needs_neither_network_nor_scripts(make):
    html = render_html(make())
    page = Page.parse(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)


def test_names_are_text_and_never_markup():
    page = Page.parse(render_html(REPORTS["nasty names"]()))
    assert NASTY in page.text
    tags = {tag for tag, _ in page.tags}
    assert "b" not in tags or all(attributes == {} for tag, attributes in page.tags if tag == "b")
    assert "script" not in tags


def test_the_verdict_is_the_first_list_with_doubts_marked():
    doubt = Finding("unreliable", "PGD is too weak")
    report = with_evaluation(make_report(), evaluation(findings=(doubt,)), command="typed")
    html = render_html(report)
    page = Page.parse(html)
    assert page.text.index(report["verdict"][0][:20]) < page.text.index("whole model")
    for sentence in report["verdict"]:
        assert " ".join(sentence.split()) in page.text
    marked = [attributes for tag, attributes in page.tags if tag == "li" and attributes.get("class") == "doubt"]
    assert len(marked) == 1


def rows(html, name):
    """The cells of the rows that begin with a name."""
    found = re.findall(rf'<tr><th scope="row">{re.escape(name)}</th>(.*?)</tr>', html, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in found]


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_layers_are_listed_with_scheme_ranks_and_error_or_with_their_reason(scheme):
    report = make_report(scheme=scheme)
    html = render_html(report)
    page = Page.parse(html)
    # The second layer, 12×8×3×3, and what rank three in every mode leaves of its 864 weights.
    kept = {"matrix": 3 * (12 + 72), "spatial": 3 * (24 + 36), "tucker2": 3 * 8 + 81 + 3 * 12}[scheme]
    ((weight, form, ranks, share, bar, error, *_),) = rows(html, "3")
    assert (weight, form, ranks) == ("12×8×3×3", scheme, "3, 3" if scheme == "tucker2" else "3")
    assert share == f"{100 * kept / 864:.1f} %"
    assert f"width:{round(100 * kept / 864, 1)}%" in bar
    record = next(layer for layer in report["layers"] if layer["name"] == "3")
    assert error == f"{record['relative_error']:.4f}"
    for layer in report["layers"]:
        if layer["scheme"] == "dense":
            assert layer["reason"] in page.text
        else:
            assert f"{layer['relative_error']:.4f}" in page.text


def test_a_layer_of_no_condition_number_is_shown_as_infinite():
    report = make_report()
    layer = next(layer for layer in report["layers"] if layer["scheme"] == "matrix")
    del layer["kappa"]
    assert "∞" in Page.parse(render_html(report)).text


def test_the_log_of_the_training_is_shown_with_the_chosen_epoch():
    text = Page.parse(render_html(make_report(training=True))).text
    assert "The state of epoch 1 is the one in the file" in text
    assert "75.00 %" in text
    assert "0.5000" in text


def test_the_recipe_is_told_in_words():
    text = Page.parse(render_html(make_report(training=True))).text
    assert "chosen epoch 1, lr 0.002, data photos" in text
    assert "the tolerance bounds each truncation on the way" in text
    assert "bounds each truncation" not in Page.parse(render_html(make_report())).text


def test_the_chart_tells_its_figures_to_those_who_do_not_see_it():
    page = Page.parse(render_html(with_evaluation(make_report(), evaluation(), command="typed")))
    (chart,) = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert chart["role"] == "img"
    assert "compressed: 80.0 %, 60.0 %, 15.0 %" in chart["aria-label"]
    assert sum(tag == "circle" for tag, _ in page.tags) == 6


def test_a_file_that_grew_by_next_to_nothing_has_no_negative_zero():
    _, manifest = compressed(tiny_cnn(), Architecture("custom", "net.py:build"), (3, 8, 8))
    manifest = dataclasses.replace(manifest, baseline=Cost(100, 10_000, 1000))
    report = build_report(manifest, artifact=Path("a.safetensors"), artifact_bytes=10_001, artifact_sha256="ab")
    page = Page.parse(render_html(report)).text
    assert "-0.0 %" not in page
    assert "0.0 % larger" in page
