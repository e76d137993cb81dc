import copy
import json
import random
from pathlib import Path

import jsonschema
import pytest
from report_values import NORMS, OLD_REPORT, paper_evaluation, plain_evaluation, report_with, rich_evaluation

from lrcompress.errors import ReportError
from lrcompress.report import FORMATS, find_fault, load_report, render_report, report_schema

VALIDATOR = jsonschema.Draft202012Validator(report_schema())
RICH = report_with(plain_evaluation(), rich_evaluation(), paper_evaluation(), operator_norms=NORMS)


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(report_schema())


def test_every_definition_is_used():
    text = json.dumps(report_schema())
    for name in report_schema()["$defs"]:
        assert f'"#/$defs/{name}"' in text, name


@pytest.mark.parametrize(
    "report", [RICH, report_with(), load_report(OLD_REPORT)], ids=["rich", "without evaluations", "of schema 1"]
)
def test_reports_follow_the_schema(report):
    VALIDATOR.validate(report)
    assert find_fault(report) == ""


def test_a_report_of_the_first_schema_does_not_follow_it():
    assert find_fault(json.loads(OLD_REPORT.read_text())) != ""


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


REPLACEMENTS = (None, True, -1, 2, 0.5, "x", [], {}, [1], {"x": 1}, float("nan"))
PLACES = [place for place in places(RICH) if place]


def damaged(place, replacement):
    """The report with something else, or nothing, in one place."""
    report = copy.deepcopy(RICH)
    inside = report
    for key in place[:-1]:
        inside = inside[key]
    if replacement == "gone":
        del inside[place[-1]]
    else:
        inside[place[-1]] = replacement
    return report


def test_its_own_check_agrees_with_the_schema_wherever_something_is_changed():
    chosen = random.Random(0)
    disagreements = []
    for place in chosen.sample(PLACES, 150):  # jsonschema takes its time
        report = damaged(place, replacement := chosen.choice(("gone", *REPLACEMENTS[:-1])))
        if VALIDATOR.is_valid(report) != (find_fault(report) == ""):
            disagreements.append((place, replacement))
    assert len(PLACES) > 400
    assert disagreements == []


def test_a_fault_is_told_with_its_place():
    report = damaged(("evaluations", 0, "models", "compressed", "clean", "accuracy"), 7)
    assert find_fault(report) == (
        "`accuracy` of `clean` of `compressed` of `models` of entry 0 of `evaluations` of the report must be a number "
        "from 0 to 1, got 7"
    )
    assert find_fault(damaged(("size",), "gone")) == "the report has no `size`"
    assert find_fault([]) == "the report must be object, got []"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_report_is_refused_or_rendered_but_never_fails_otherwise(kind, tmp_path):
    chosen, path = random.Random(1), tmp_path / "r.json"
    refused = []
    for place in chosen.sample(PLACES, 250):
        path.write_text(json.dumps(damaged(place, chosen.choice(("gone", *REPLACEMENTS)))))
        try:
            report = load_report(path)
        except ReportError as error:
            refused.append(error)
        else:
            assert render_report(report, kind)
    assert len(refused) > 50
    assert all(error.hint and "\n" not in error.message for error in refused)


def schema_of(name):
    return report_schema()["$defs"][name]


def test_every_key_of_reports_and_evaluations_is_in_the_reference():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "report.md").read_text()
    keys = [*report_schema()["properties"], *report_schema()["$defs"]["evaluation"]["properties"]]
    keys += [key for name in ("gate", "operator_norms", "operator_norm") for key in schema_of(name)["properties"]]
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_the_documented_schema_is_the_shipped_one():
    page = Path(__file__).parents[2] / "docs" / "reference" / "report.schema.json"
    assert json.loads(page.read_text()) == report_schema()
