import dataclasses
import re
from pathlib import Path

import pytest
from artifacts import compressed
from networks import tiny_cnn
from report_values import OLD_REPORT, plain_evaluation, report_with, rich_evaluation
from reports import Page, evaluation

from lrcompress.artifact import Cost
from lrcompress.models import Architecture
from lrcompress.report import build_report, load_report, render_html, with_evaluation
from lrcompress.report.sections import MOST_DECADES, spectrum_charts
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
    "everything": lambda: report_with(plain_evaluation(), rich_evaluation()),
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
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "action", "data"} & set(attributes)
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not any(name.startswith("on") for name in attributes)


def test_names_are_text_and_never_markup():
    page = Page.parse(render_html(REPORTS["nasty names"]()))
    assert NASTY in page.text
    tags = {tag for tag, _ in page.tags}
    assert "b" not in tags or all(attributes == {} for tag, attributes in page.tags if tag == "b")
    assert "script" not in tags


def test_the_verdict_is_the_first_list_with_doubts_marked():
    doubt = Finding("unreliable", "PGD is too weak", "weaker-beats-stronger")
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
    ((weight, form, ranks, share, error, *_),) = rows(html, "3")
    assert (weight, form, ranks) == ("12×8×3×3", scheme, "3, 3" if scheme == "tucker2" else "3")
    assert share.startswith(f"{100 * kept / 864:.1f} %<span")
    assert f"width:{round(100 * kept / 864, 1)}%" in share
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
    assert sum(tag == "circle" for tag, _ in page.tags) == 3
    assert sum(tag == "rect" for tag, _ in page.tags) == 3


def test_a_file_that_grew_by_next_to_nothing_has_no_negative_zero():
    _, manifest = compressed(tiny_cnn(), Architecture("custom", "net.py:build"), (3, 8, 8))
    manifest = dataclasses.replace(manifest, baseline=Cost(100, 10_000, 1000))
    report = build_report(manifest, artifact=Path("a.safetensors"), artifact_bytes=10_001, artifact_sha256="ab")
    page = Page.parse(render_html(report)).text
    assert "-0.0 %" not in page
    assert "0.0 % larger" in page


def test_everything_that_was_measured_is_shown():
    html = render_html(REPORTS["everything"]())
    text = Page.parse(html).text
    for words in (
        "UNRELIABLE (compressed model): Robustness may be overestimated. PGD is too weak [weaker-beats-stronger]",
        "1,000 images (of 2000 asked for), seed 0",
        "-1.00 points [-3.0, +1.0] 10 0",
        "cat 333 75.0 → 70.0 50.0 → 50.0 25.0 → 25.0",
        "uncompressed compressed 62.50 %",
        "fmn uncompressed ℓ∞ 0.012 0.01 to – 990",
        "fog 70.0 → 70.0 60.0 → 60.0",
        "with probability 0.999",
        "51.20 % [48.0, 54.0]",
        "compressed 0.321 –",
        "Image 17, labelled fox: the uncompressed model says cat at ε = 8/255, "
        "the compressed model says dog at ε = 4/255.",
        "lrcompress compress w.pt",
        "lrcompress attack out.safetensors --pgd --data photos",
    ):
        assert words in text, words


def test_pictures_have_alternative_texts():
    page = Page.parse(render_html(REPORTS["everything"]()))
    told = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert told == [f"{kind} of image 17, fox" for kind in ("original", "perturbation", "adversarial")]


def test_of_many_classes_those_with_the_largest_loss_are_shown():
    classes = [
        {"class": index, "images": 10, "baseline": {"clean": 0.9, "worst": [0.5, 0.4]},
         "compressed": {"clean": 0.9 - index / 1000, "worst": [0.5, 0.4]}}
        for index in range(100)
    ]  # fmt: skip
    html = render_html(report_with(rich_evaluation(per_class=classes, class_names=None)))
    assert "20 of 100 classes, those with the largest loss" in html
    assert [len(rows(html, str(index))) for index in (99, 80, 79, 50)] == [1, 1, 0, 0]


@pytest.mark.parametrize(("outcome", "marked"), [("FAIL", True), ("INCONCLUSIVE", True), ("PASS", False)])
def test_gates_stand_first_and_are_set_off_if_they_are_not_passed(outcome, marked):
    gate = {
        "gate": "clean.drop > 1", "figure": "clean.drop", "operator": ">", "threshold": 1.0, "confidence": 0.95,
        "outcome": outcome, "message": "what was found",
    }  # fmt: skip
    page = Page.parse(render_html(report_with(gates=[gate])))
    assert f"{outcome} fail if clean.drop > 1 what was found" in page.text
    first = next(attributes for tag, attributes in page.tags if tag == "li")
    assert (first.get("class") == "doubt") == marked


def luminance(colour):
    """Relative luminance. Source: WCAG 2.2."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def palettes():
    html = render_html(make_report())
    found = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    ]
    return dict(zip(("light", "dark", "print"), found, strict=True))


@pytest.mark.parametrize("palette", palettes().values(), ids=palettes().keys())
def test_colours_meet_the_contrast_rules(palette):
    for text in ("ink", "soft", "doubt", "bad", "comp"):
        for ground in ("paper", "panel"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for drawn, ground in (("base", "paper"), ("comp", "paper"), ("comp", "track")):
        assert contrast(palette[drawn], palette[ground]) >= 3, (drawn, ground)


def test_condition_numbers_before_training_have_a_column_only_where_there_was_one():
    assert "κ before training" in render_html(REPORTS["everything"]())
    assert "κ before training" not in render_html(make_report())


def layer(*values, dense=None):
    """A record with singular values."""
    record = {"name": "x", "spectrum": [[i, value] for i, value in enumerate(values, 1)]}
    return record | ({} if dense is None else {"dense_spectrum": [[i, value] for i, value in enumerate(dense, 1)]})


@pytest.mark.parametrize(
    ("layers", "decades"),
    [
        ([layer(8.0, 4.0)], 1),
        ([layer(8.0), layer(1.0, 0.02)], 2),
        ([layer(8.0, dense=[8.0, 0.005])], MOST_DECADES),  # 3.2
        ([layer(1.0, dense=[1.0, 1e-9])], MOST_DECADES),
        ([layer(1.0, 0.0)], 1),
    ],
)
def test_one_scale_of_singular_values_serves_all_layers(layers, decades):
    assert [chart.decades for chart in spectrum_charts(layers)] == [decades] * len(layers)


def test_a_layer_without_singular_values_is_not_drawn():
    unknown = {"name": "x", "sigma_max": 1.0, "sigma_min": 0.5}
    first, second, third = spectrum_charts([unknown, layer(0.0), layer(2.0, 1.0)])
    assert first is second is None
    assert list(third.spectra) == ["compressed"]


def drawings(html):
    return [attributes for tag, attributes in Page.parse(html).tags if tag == "svg"]


def test_singular_values_of_both_models_are_drawn_beside_those_of_the_layer_and_told_in_words():
    report = report_with()
    html = render_html(report)
    factorised = [one for one in report["layers"] if one["scheme"] != "dense"]
    assert len(drawings(html)) == len(factorised) > 1
    for one, drawn in zip(factorised, drawings(html), strict=True):
        (cells,) = rows(html, one["name"])
        (cell,) = [cell for cell in cells if "<svg" in cell]
        assert cell.startswith(f"{one['sigma_min']:.3g} to {one['sigma_max']:.3g}")
        assert re.findall(r'<polyline class="(\w+)"', cell) == ["baseline", "compressed"]
        assert drawn["role"] == "img"
        (first, last), before = ([value for _, value in one["spectrum"]], one["dense_spectrum"])
        count = one["ranks"][0]
        assert drawn["aria-label"] == (
            f"Singular values of {one['name']}. "
            f"baseline: σ1 = {before[0][1]:.3g} to σ{3 * count} = {before[-1][1]:.3g}; "
            f"compressed: σ1 = {first:.3g} to σ{count + 1} = {last:.3g}."
        )
        assert f"<title>{drawn['aria-label']}</title>" in cell
    assert "The curves are the singular values" in Page.parse(html).text


def test_a_report_of_an_older_version_has_no_curves_of_singular_values_and_says_nothing_of_them():
    html = render_html(load_report(OLD_REPORT) | {"evaluations": []})
    assert drawings(html) == []
    assert "The curves are" not in html


def test_a_model_that_was_tried_and_lost_next_to_nothing_lost_no_negative_zero():
    report = make_report()
    tried = {"kept": 0.5, "accuracy": 0.9, "drop": 0.001, "budget": 0.5}
    report["recipe"]["plan"] = {"name": "max drop", "evaluations": [tried, {**tried, "drop": 1.25}]}
    text = Page.parse(render_html(report)).text
    assert "90.00 % (+0.00 points)" in text
    assert "90.00 % (-1.25 points)" in text
