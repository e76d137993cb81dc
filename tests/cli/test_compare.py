import json

import pytest
from command import assert_refused, run
from report_values import plain_evaluation, report_with
from workshop import listing


@pytest.fixture
def evaluated(shop):
    """The folder with both compressed files evaluated on the same images."""
    for file in ("out.safetensors", "tuned.safetensors"):
        assert run("evaluate", file, "--arch", "net.py:build", "--data", "data").exit_code == 0
    return shop


def test_two_files_stand_side_by_side_on_stdout(evaluated):
    result = run("compare", "out.safetensors", "tuned.safetensors")
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["figure", "out.safetensors", "tuned.safetensors", "difference"]
    assert [line.split()[0] for line in lines[:4]] == ["bytes", "parameters", "macs", "latency"]
    assert lines[4] == "30 images of data (test split)"
    assert "lost" in lines[5]
    assert "McNemar p" in lines[5]


def test_files_and_their_reports_are_compared_alike(evaluated):
    files = run("compare", "out.safetensors", "tuned.safetensors", "--json").stdout
    reports = run("compare", "out.report.json", "tuned.report.json", "--json").stdout
    assert json.loads(files) == json.loads(reports)


def test_a_file_without_a_report_is_compared_by_its_size(shop):
    (shop / "out.report.json").unlink()
    before = listing(shop)
    result = run("compare", "out.safetensors", "tuned.safetensors")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].startswith("bytes")
    assert listing(shop) == before


def test_a_file_compared_with_itself_loses_nothing(evaluated):
    values = json.loads(run("compare", "out.safetensors", "out.safetensors", "--json").stdout)
    pair = values["evaluations"][0]["paired"]["clean"]
    assert (pair["lost"], pair["gained"], pair["p_value"]) == (0, 0, 1)
    assert values["size"]["removed"] == {"bytes": 0, "parameters": 0, "macs": 0}


@pytest.mark.parametrize(
    ("condition", "code"),
    [("clean.drop > 5", 0), ("clean.drop > 0.1", 3), ("clean.drop > 1.5", 4), ("size.macs > 99", 3)],
)
def test_gates_decide_the_exit_code(tmp_path, condition, code):
    for name, right in (("a", 890), ("b", 875)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report_with(plain_evaluation(clean=(900, right)))))
    result = run("compare", tmp_path / "a.json", tmp_path / "b.json", "--json", "--fail-if", condition)
    assert result.exit_code == code
    (outcome,) = json.loads(result.stdout)["gates"]
    assert outcome["gate"] == condition
    assert f"{outcome['outcome']}: fail if {condition}" in result.stderr


BAD = {
    "not there": (["nowhere.json", "out.safetensors"], "no report at `nowhere.json`"),
    "a checkpoint": (["out.safetensors", "w.pt"], "`w.pt`"),
    "a typo in a gate": (["out.safetensors", "tuned.safetensors", "--fail-if", "clean.dorp > 1"], "clean.drop"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_compared_is_refused(shop, options, words):
    assert_refused(run("compare", *options), words)
