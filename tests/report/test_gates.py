import re
from pathlib import Path

import pytest
from report_values import plain_evaluation, report_with, rich_evaluation

from lrcompress.errors import OptionError
from lrcompress.report import GatePolicy, exit_code, find_fault, judge, outcome_sentence, parse_gate, with_gates
from lrcompress.report.bounds import drop_bounds
from lrcompress.report.figures import FIXED

ATTACKS = ("noise", "fgsm", "pgd")


def outcome(report, text, *, confidence=0.95):
    (found,) = judge(report, GatePolicy((parse_gate(text, attacks=ATTACKS),), confidence))
    return found


PLAIN = report_with(plain_evaluation())
# 10 of 1,000 images lost clean, none gained; under PGD at 4/255 likewise 10; at 8/255 20.
DECIDED = {
    "clean.drop > 3": "PASS",
    "clean.drop > 1": "INCONCLUSIVE",
    "clean.drop > 0.1": "FAIL",
    "clean.drop >= 0.1": "FAIL",
    "clean.drop < 0.1": "PASS",
    "clean.accuracy < 85": "PASS",
    "clean.accuracy < 89": "INCONCLUSIVE",
    "clean.accuracy < 95": "FAIL",
    "clean.accuracy <= 95": "FAIL",
    "clean.accuracy > 95": "PASS",
    "pgd@4/255.drop > 3": "PASS",
    "pgd@8/255.drop > 0.5": "FAIL",
    "pgd@8/255.drop > 2": "INCONCLUSIVE",
    "pgd@0.03137255.drop > 0.5": "FAIL",
    "worst@8/255.accuracy < 20": "PASS",
    "fgsm@4/255.accuracy < 90": "FAIL",
}


@pytest.mark.parametrize(("text", "expected"), DECIDED.items())
def test_a_gate_fails_passes_or_is_inconclusive_by_the_bounds_of_its_figure(text, expected):
    assert outcome(PLAIN, text)["outcome"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("size.bytes > 50", "FAIL"), ("size.bytes >= 40", "FAIL"), ("size.bytes > 40", "PASS"), ("size.macs < 90", "PASS"),
     ("size.parameters < 61", "FAIL")],
)  # fmt: skip
def test_what_is_counted_is_decided_without_bounds(text, expected):
    costs = {"baseline": {"bytes": 100, "parameters": 100, "macs": 100}, "removed": PLAIN["size"]["removed"]}
    kept = {"bytes": 40 if "40" in text else 60, "parameters": 60, "macs": 95}
    assert outcome(PLAIN | {"size": costs | {"compressed": kept}}, text)["outcome"] == expected


@pytest.mark.parametrize(
    ("quartiles", "expected"), [([0.7, 0.9], "PASS"), ([0.9, 1.1], "INCONCLUSIVE"), ([1.05, 1.2], "FAIL")]
)
def test_a_latency_is_decided_by_the_middle_half_of_its_rounds(quartiles, expected):
    latency = PLAIN["latency"] | {"ratio": sum(quartiles) / 2, "ratio_quartiles": quartiles}
    assert outcome(PLAIN | {"latency": latency}, "latency.ratio > 1")["outcome"] == expected


ALONE = plain_evaluation()
del ALONE["paired"], ALONE["models"]["baseline"]
VOID = {"severity": "error", "check": "nan", "model": "compressed", "message": "logits are not finite"}
MISSING = {
    "no evaluation": (report_with(), "clean.drop > 90", "nothing was evaluated"),
    "no latency": (PLAIN | {"latency": None}, "latency.ratio > 90", "not timed"),
    "no baseline": (report_with(ALONE), "clean.drop > 90", "no original"),
    "another attack": (PLAIN, "noise@4/255.drop > 90", "noise was not measured, but fgsm, pgd, worst"),
    "another radius": (PLAIN, "pgd@3/255.drop > 90", "pgd was measured at ε = 4/255, 8/255"),
    "void": (report_with(plain_evaluation(findings=[VOID])), "clean.drop > 90", "void: logits are not finite"),
    "two norms": (
        report_with(plain_evaluation(), plain_evaluation(norm="l2")), "pgd@4/255.drop > 90",
        "several norms, l2 and linf",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("report", "text", "why"), MISSING.values(), ids=MISSING.keys())
def test_a_missing_figure_fails_and_says_why(report, text, why):
    found = outcome(report, text)
    assert found["outcome"] == "FAIL"
    assert found["message"].startswith("the figure is missing: ")
    assert why in found["message"]
    assert "value" not in found


WEAK = {"severity": "unreliable", "check": "weaker-beats-stronger", "message": "PGD is too weak"}


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        ("compressed", "pgd@4/255.drop > 90", "INCONCLUSIVE"),
        ("baseline", "pgd@4/255.drop > 90", "INCONCLUSIVE"),
        (None, "pgd@4/255.accuracy < 5", "INCONCLUSIVE"),
        ("baseline", "pgd@4/255.accuracy < 5", "PASS"),
        ("compressed", "clean.drop > 90", "PASS"),
        ("compressed", "pgd@8/255.drop > 0.5", "FAIL"),
    ],
)
def test_robustness_that_may_be_overestimated_passes_no_gate(model, text, expected):
    report = report_with(plain_evaluation(findings=[WEAK | {"model": model}]))
    found = outcome(report, text)
    assert found["outcome"] == expected
    assert ("overestimated: PGD is too weak" in found["message"]) == (expected == "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        ("compressed", "clean.drop > 90", "INCONCLUSIVE"),
        ("compressed", "clean.accuracy < 5", "INCONCLUSIVE"),
        ("compressed", "pgd@4/255.drop > 90", "INCONCLUSIVE"),
        ("baseline", "clean.drop > 90", "INCONCLUSIVE"),
        ("baseline", "clean.accuracy < 5", "PASS"),
        ("compressed", "clean.drop > 0.1", "FAIL"),
    ],
)
def test_a_model_that_guesses_passes_no_gate(model, text, expected):
    guess = {"severity": "inconclusive", "check": "guesses", "message": "it guesses", "model": model}
    found = outcome(report_with(plain_evaluation(findings=[guess])), text)
    assert found["outcome"] == expected
    assert ("it guesses" in found["message"]) == (expected == "INCONCLUSIVE")


def test_where_the_original_is_right_nowhere_no_drop_passes():
    report = report_with(plain_evaluation(robust=((600, 0), (590, 0))))
    assert "none could be lost" in outcome(report, "pgd@8/255.drop > 2")["message"]
    assert outcome(report, "pgd@8/255.drop > 2")["outcome"] == "INCONCLUSIVE"


def test_of_several_evaluations_the_one_of_most_images_counts_and_is_named():
    few = plain_evaluation(20, (18, 10), ((10, 5), (10, 5)), data="few photos")
    for order in ((few, plain_evaluation()), (plain_evaluation(), few)):
        found = outcome(report_with(*order), "clean.drop > 3")
        assert found["outcome"] == "PASS"
        assert "1,000 images of photos: 10 lost, 0 gained" in found["message"]


def test_the_sign_of_a_drop_is_what_the_compressed_model_loses():
    gained = report_with(plain_evaluation(clean=(890, 900)))
    assert outcome(gained, "clean.drop > 0")["value"] == pytest.approx(-1)
    assert outcome(PLAIN, "clean.drop > 0")["value"] == pytest.approx(1)


def test_more_confidence_decides_less():
    assert outcome(PLAIN, "clean.drop > 2")["outcome"] == "PASS"
    assert outcome(PLAIN, "clean.drop > 2", confidence=0.9999)["outcome"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [([], 0), (["PASS"], 0), (["PASS", "INCONCLUSIVE"], 4), (["INCONCLUSIVE", "FAIL"], 3), (["FAIL"], 3)],
)
def test_the_worst_outcome_decides_the_exit_code(outcomes, code):
    assert exit_code([{"outcome": one} for one in outcomes]) == code


def test_outcomes_stand_in_the_report_and_follow_its_schema():
    texts = ("clean.drop > 0.1", "clean.drop > 3", "clean.drop > 1", "latency.ratio > 9", "pgd@1/255.drop > 1")
    gates = GatePolicy(tuple(parse_gate(text, attacks=ATTACKS) for text in texts))
    report = report_with(rich_evaluation())
    updated = with_gates(report, judge(report, gates))
    assert [one["outcome"] for one in updated["gates"]] == ["FAIL", "PASS", "INCONCLUSIVE", "PASS", "FAIL"]
    assert find_fault(updated) == ""
    assert updated["verdict"][0] == "Gates: 2 failed, 1 inconclusive, 2 passed."
    assert outcome_sentence(updated["gates"][0]).startswith("FAIL: fail if clean.drop > 0.1: 1.00 points, bounds ")


@pytest.mark.parametrize(
    "text",
    ["clean.drop > 1.0", "  clean.drop>1 ", "pgd@4/255.drop >= 2", "worst@0.5.accuracy < 1e1", "size.bytes <= 50"],
)
def test_gates_are_written_in_one_way(text):
    gate = parse_gate(text, attacks=ATTACKS)
    assert parse_gate(gate.text, attacks=ATTACKS) == gate


BAD = {
    "": ("a gate is", "--fail-if"),
    "clean.drop": ("a gate is", "--fail-if"),
    "clean.drop = 1": ("a gate is", "--fail-if"),
    "clean.drop > 1 > 2": ("a gate is", "--fail-if"),
    "clean.drop > much": ("`much`, which is no number", "--fail-if"),
    "clean.drop > nan": ("no number", "--fail-if"),
    "clean.drop > inf": ("no number", "--fail-if"),
    "clean.dorp > 1": ("no figure is named `clean.dorp`", "clean.drop"),
    "size.byte > 1": ("no figure is named `size.byte`", "size.bytes"),
    "pgd@4/255.dorp > 1": ("no figure is named `pgd@4/255.dorp`", "pgd@4/255.drop"),
    "pdg@4/255.drop > 1": ("no attack is named `pdg`", "did you mean pgd?"),
    "zzz@4/255.drop > 1": ("no attack is named `zzz`", "known are worst, noise, fgsm, pgd"),
    "pgd@4/0.drop > 1": ("no radius", "4/255"),
    "pgd@four.drop > 1": ("no radius", "4/255"),
}


@pytest.mark.parametrize(("text", "words"), BAD.items())
def test_what_is_no_gate_is_refused_with_the_nearest_names(text, words):
    with pytest.raises(OptionError) as refused:
        parse_gate(text, attacks=ATTACKS)
    assert words[0] in refused.value.message
    assert words[1] in refused.value.hint


@pytest.mark.parametrize("confidence", [0.5, 1, 95])
def test_a_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(OptionError, match=r"above 0\.5 and below 1"):
        GatePolicy((), confidence)


def test_every_figure_and_the_bounds_in_the_reference_are_right():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "gates.md").read_text()
    figures = [
        text.replace("NAME", "pgd").replace("EPS", "4/255") for text in re.findall(r"^\| `(\S+)` \|", page, re.M)
    ]
    assert {*FIXED, "pgd@4/255.drop", "pgd@4/255.accuracy"} == set(figures)
    for images, points in re.findall(r"^\| ([\d,]+) \| ([\d.]+) points? \|", page, re.MULTILINE):
        high = 100 * drop_bounds(0, 0, int(images.replace(",", "")), confidence=0.95)[1]
        assert f"{high:.{len(points.partition('.')[2])}f}" == points
