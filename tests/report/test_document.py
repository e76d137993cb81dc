import json
from dataclasses import replace
from pathlib import Path

import pytest
from artifacts import compressed
from networks import tiny_cnn
from reports import evaluation

from lrcompress.factorize import LayerSpectra
from lrcompress.measure import LatencyRatio
from lrcompress.models import Architecture
from lrcompress.report import build_report, find_fault, report_paths, with_evaluation, with_gates

LATENCY = LatencyRatio(4.0, 2.0, 0.5, (0.4, 0.6), 1, 9, "cpu, 1 threads")


@pytest.fixture
def report():
    manifest = compressed(tiny_cnn(), Architecture("custom", "net.py:build"), (3, 8, 8), tol=0.1)[1]
    return build_report(
        manifest, artifact=Path("out.safetensors"), artifact_bytes=300, artifact_sha256="ab", latency=LATENCY
    )


@pytest.mark.parametrize(
    ("artifact", "stem"), [("out.safetensors", "out"), ("a/b.c.safetensors", "a/b.c"), ("bare", "bare")]
)
def test_reports_lie_beside_the_artifact(artifact, stem):
    assert [str(path) for path in report_paths(Path(artifact))] == [f"{stem}.report.json", f"{stem}.report.html"]


def test_a_report_is_the_same_after_a_trip_through_json(report):
    report = with_evaluation(report, evaluation(), command="lrcompress attack out.safetensors")
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert json.loads(json.dumps(report, allow_nan=False))["latency"]["ratio"] == 0.5


def test_spectra_stand_in_the_records_of_their_layers(report):
    manifest = compressed(tiny_cnn(), Architecture("custom", "net.py:build"), (3, 8, 8), tol=0.1)[1]
    record = next(layer for layer in manifest.layers if layer.scheme != "dense")
    ends = ((1, record.sigma_max), (3, record.sigma_min))
    given = {"artifact": Path("out.safetensors"), "artifact_bytes": 300, "artifact_sha256": "ab"}
    told = build_report(manifest, spectra={record.name: LayerSpectra(ends, None)}, **given)
    assert find_fault(told) == ""
    for layer in told["layers"]:
        before = next(one for one in report["layers"] if one["name"] == layer["name"])
        expected = {"spectrum": [list(pair) for pair in ends]} if layer["name"] == record.name else {}
        assert layer == before | expected


def test_sizes_are_those_of_the_costs_and_of_the_file(report):
    # The helper's costs: 100 → 50 parameters, 1000 → 500 operations; 400 bytes → the file's 300.
    assert report["size"]["removed"] == pytest.approx({"parameters": 0.5, "macs": 0.5, "bytes": 0.25})
    assert report["size"]["compressed"]["bytes"] == report["artifact"]["bytes"] == 300


def test_an_evaluation_is_added_and_the_report_before_is_as_it_was(report):
    before = json.dumps(report)
    updated = with_evaluation(report, evaluation(), command="typed")
    assert json.dumps(report) == before
    assert updated["evaluations"][0]["command"] == "typed"
    assert updated["verdict"] != report["verdict"]


def test_the_same_question_is_answered_once_with_the_latest_answer(report):
    report = with_evaluation(report, evaluation(clean=(18, 16)), command="first")
    report = with_evaluation(report, evaluation(clean=(18, 17)), command="second")
    (only,) = report["evaluations"]
    assert (only["command"], only["models"]["compressed"]["clean"]["correct"]) == ("second", 17)


def test_a_part_of_an_answer_is_replaced_by_a_larger_part_of_it_and_by_the_whole(report):
    for images, asked in ((8, 20), (16, 20), (20, None)):
        part = replace(evaluation(), images=images, images_asked=asked)
        report = with_evaluation(report, part, command=f"{images} images")
        assert [one["command"] for one in report["evaluations"]] == [f"{images} images"]


@pytest.mark.parametrize(
    "other",
    [{"data": "other data"}, {"attacked": False}, {"seed": 1}, {"steps": 99}, {"eps": (1 / 255, 2 / 255)}],
)
def test_other_questions_stand_beside_each_other(report, other):
    report = with_evaluation(report, evaluation(), command="first")
    report = with_evaluation(report, evaluation(**other), command="second")
    assert [e["command"] for e in report["evaluations"]] == ["first", "second"]


def test_reports_follow_the_schema_with_and_without_evaluations(report):
    assert find_fault(report) == find_fault(json.loads(json.dumps(report))) == ""
    for given in ({}, {"baseline": False}, {"attacked": False}):
        updated = with_evaluation(report, evaluation(**given), command="typed")
        assert find_fault(json.loads(json.dumps(updated))) == ""


def test_a_new_evaluation_puts_gates_away_that_were_judged_by_the_old_ones(report):
    judged = with_gates(report, [{"outcome": "FAIL"}])
    assert judged["verdict"][0] == "Gates: 1 failed."
    updated = with_evaluation(judged, evaluation(), command="typed")
    assert updated["gates"] == []
    assert not any("Gates" in sentence for sentence in updated["verdict"])
