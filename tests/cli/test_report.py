import json
import shutil
import xml.etree.ElementTree as ET

import pytest
from command import assert_refused, run
from report_values import OLD_REPORT, plain_evaluation, report_with, rich_evaluation

from lrcompress.report import find_fault


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a report."""
    (tmp_path / "out.report.json").write_text(json.dumps(report_with(plain_evaluation(), rich_evaluation())))
    monkeypatch.chdir(tmp_path)
    return tmp_path


KINDS = {
    "html": ("out.report.html", "<!doctype html>"),
    "md": ("out.report.md", "# out.safetensors"),
    "junit": ("out.junit.xml", "<?xml"),
    "card": ("out.card.md", "---\n"),
}


@pytest.mark.parametrize(("kind", "expected"), KINDS.items())
def test_a_document_is_written_beside_the_report_and_again(folder, kind, expected):
    for _ in range(2):
        result = run("report", "out.report.json", "--to", kind)
        assert (result.exit_code, result.stdout) == (0, f"{expected[0]}\n")
    assert (folder / expected[0]).read_text().startswith(expected[1])
    assert {path.name for path in folder.iterdir()} == {"out.report.json", expected[0]}


def test_a_document_goes_to_stdout(folder):
    result = run("report", "out.report.json", "--to", "junit", "-o", "-")
    assert ET.fromstring(result.stdout).tag == "testsuites"
    assert {path.name for path in folder.iterdir()} == {"out.report.json"}


def test_a_named_file_is_replaced_only_if_that_is_said(folder):
    (folder / "README.md").write_text("mine")
    assert_refused(run("report", "out.report.json", "--to", "card", "-o", "README.md"), "`README.md` exists")
    assert (folder / "README.md").read_text() == "mine"
    assert run("report", "out.report.json", "--to", "card", "-o", "README.md", "--overwrite").exit_code == 0
    assert (folder / "README.md").read_text().startswith("---")


def test_the_report_itself_is_never_replaced(folder):
    before = (folder / "out.report.json").read_bytes()
    assert_refused(run("report", "out.report.json", "-o", "out.report.json", "--overwrite"), "read by the same command")
    assert (folder / "out.report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("condition", "code", "outcome"),
    [("clean.drop > 3", 0, "PASS"), ("clean.drop > 0.1", 3, "FAIL"), ("clean.drop > 1", 4, "INCONCLUSIVE")],
)
def test_gates_stand_in_the_document_and_leave_the_report_as_it_is(folder, condition, code, outcome):
    before = (folder / "out.report.json").read_bytes()
    result = run("report", "out.report.json", "--to", "md", "-o", "-", "--fail-if", condition)
    assert result.exit_code == code
    assert f"| {outcome} | fail if" in result.stdout
    assert f"{outcome}: fail if {condition}" in result.stderr
    assert (folder / "out.report.json").read_bytes() == before


def test_a_report_of_the_first_schema_is_printed_in_the_present_one(folder):
    shutil.copy(OLD_REPORT, folder / "old.report.json")
    result = run("report", "old.report.json", "--json")
    assert result.exit_code == 0
    assert find_fault(json.loads(result.stdout)) == ""
    assert "html: old.report.html" in result.stderr


def test_attacks_of_the_report_may_be_named_in_gates(folder):
    values = json.loads((folder / "out.report.json").read_text())
    for evaluation in values["evaluations"]:
        for rows in (*(model["attacks"] for model in evaluation["models"].values()), evaluation["paired"]["attacks"]):
            rows["L2FMNAttack"] = rows.pop("pgd")
    (folder / "out.report.json").write_text(json.dumps(values))
    command = ("report", "out.report.json", "--to", "md", "-o", "-", "--fail-if", "L2FMNAttack@4/255.drop > 90")
    assert "L2FMNAttack" in run(*command).stderr
    assert run(*command[:-1], "L2FNMAttack@4/255.drop > 90").stderr.endswith("did you mean L2FMNAttack?\n")


BAD = {
    "another kind": (["out.report.json", "--to", "pdf"], "--to must be one of html, md, junit, card, got pdf"),
    "not there": (["nowhere.json"], "no report at `nowhere.json`"),
    "a folder": (["."], "no report at `.`"),
    "no text": (["bytes.pt"], "`bytes.pt` is no JSON: it is no text"),
    "no JSON": (["text.json"], "`text.json` is no JSON"),
    "newer": (["newer.json"], "has schema 3, this program reads 2"),
    "damaged": (["damaged.json"], "has no `size`"),
    "no folder": (["out.report.json", "-o", "nowhere/out.md"], "no folder `nowhere`"),
    "two on stdout": (["out.report.json", "-o", "-", "--json"], "--json and -o - exclude each other"),
    "no gate": (["out.report.json", "--fail-if", "clean"], "a gate is"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_done_is_refused_and_nothing_is_written(folder, options, words):
    (folder / "text.json").write_text("no JSON")
    (folder / "bytes.pt").write_bytes(b"\x80\x02")
    values = json.loads((folder / "out.report.json").read_text())
    (folder / "newer.json").write_text(json.dumps(values | {"schema": 3}))
    del values["size"]
    (folder / "damaged.json").write_text(json.dumps(values))
    before = {path.name for path in folder.iterdir()}
    assert_refused(run("report", *options), words)
    assert {path.name for path in folder.iterdir()} == before
