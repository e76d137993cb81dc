import xml.etree.ElementTree as ET

import pytest
from report_values import paper_evaluation, plain_evaluation, report_with, rich_evaluation

from lrcompress.report import GatePolicy, judge, parse_gate, render_junit, with_gates

GATES = ("clean.drop > 0.1", "clean.drop > 3", "clean.drop > 1", "pgd@1/255.drop > 1")


def suites(report):
    return {suite.get("name"): suite for suite in ET.fromstring(render_junit(report))}


@pytest.fixture
def judged():
    report = report_with(rich_evaluation())
    policy = GatePolicy(tuple(parse_gate(text, attacks=["pgd"]) for text in GATES))
    return with_gates(report, judge(report, policy))


def test_figures_stand_in_the_names_of_the_cases():
    found = suites(report_with(plain_evaluation()))
    names = [case.get("name") for case in found["evaluation on photos"].iter("testcase")]
    assert names[0] == "clean.accuracy: 90.00 % → 89.00 % [86.9, 90.8] on 1,000 images"
    assert [name.partition(".accuracy")[0] for name in names[1:]] == [
        "fgsm@4/255", "fgsm@8/255", "pgd@4/255", "pgd@8/255", "worst@4/255", "worst@8/255",
    ]  # fmt: skip
    sizes = [case.get("name") for case in found["size"].iter("testcase")]
    assert any(name.startswith("bytes: ") and name.endswith(" removed)") for name in sizes)


def test_an_eps_that_is_not_one_of_pixels_is_told_in_the_name():
    found = suites(report_with(paper_evaluation()))["evaluation on paper's"].iter("testcase")
    told = [name for case in found if "not comparable with ε in pixels" in (name := case.get("name"))]
    assert [name.partition("@")[0] for name in told] == ["paper-jitter"] * 2


def test_gates_fail_pass_or_end_with_an_error(judged):
    cases = list(suites(judged)["gates"].iter("testcase"))
    assert [[child.tag for child in case] for case in cases] == [["failure"], [], ["error"], ["failure"]]
    assert [case.get("name") for case in cases] == [
        "fail if clean.drop > 0.1: 1.00 points", "fail if clean.drop > 3: 1.00 points",
        "fail if clean.drop > 1: 1.00 points", "fail if pgd@1/255.drop > 1: missing",
    ]  # fmt: skip
    assert "bounds" in cases[0][0].get("message")


def test_doubts_are_cases_with_their_severity(judged):
    cases = [case for case in suites(judged)["evaluation on photos"].iter("testcase") if len(case)]
    assert [case[0].tag for case in cases] == ["failure", "skipped"]


def test_counts_are_those_of_the_cases(judged):
    root = ET.fromstring(render_junit(judged))
    for suite in (root, *root):
        for attribute, tag in (
            ("tests", "testcase"),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            assert int(suite.get(attribute)) == len(list(suite.iter(tag)))
    assert (root.get("failures"), root.get("errors"), root.get("skipped")) == ("3", "1", "1")


def test_characters_that_xml_cannot_hold_are_replaced():
    report = report_with(plain_evaluation(data="a\x00b\x1b]0;<&>\"'\ud800 ε"))
    (name,) = [name for name in suites(report) if name.startswith("evaluation")]
    assert name == "evaluation on a\ufffdb\ufffd]0;<&>\"'\ufffd ε"


def test_without_gates_there_is_no_suite_of_them():
    assert list(suites(report_with())) == ["size"]
