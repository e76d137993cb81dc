import copy
import json

import pytest
from report_values import OLD_REPORT, plain_evaluation, report_with, rich_evaluation

from lrcompress.errors import ArtifactError, ReportError
from lrcompress.report import REPORT_SCHEMA, load_report, read_report
from lrcompress.report.upgrade import upgrade_evaluation, upgrade_report


def written(tmp_path, value):
    path = tmp_path / "r.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def test_a_report_of_the_first_schema_is_read_in_the_present_one():
    old, new = json.loads(OLD_REPORT.read_text()), load_report(OLD_REPORT)
    assert (old["schema"], new["schema"]) == (1, REPORT_SCHEMA)
    for key in ("artifact", "source", "size", "latency", "layers", "training_log", "verdict"):
        assert new[key] == old[key]
    assert (new["gates"], new["command"]) == ([], None)
    clean, attacked = new["evaluations"]
    assert attacked["models"] == old["evaluations"][1]["models"]
    for now, before in zip(
        [clean["paired"]["clean"], *attacked["paired"]["attacks"]["worst"]],
        [old["evaluations"][0]["paired"]["clean"], *old["evaluations"][1]["paired"]["worst"]],
        strict=True,
    ):
        assert before.items() <= now.items()
    assert list(attacked["paired"]["attacks"]) == list(attacked["models"]["baseline"]["attacks"])
    assert {one["check"] for one in attacked["findings"]} <= {"few-images", "weaker-beats-stronger", "floor"}


def test_flips_of_old_attacks_are_counted_from_the_bits():
    attacked = copy.deepcopy(json.loads(OLD_REPORT.read_text())["evaluations"][1])
    for role, bits in (("baseline", "1" * 20 + "0" * 10), ("compressed", "0" * 3 + "1" * 18 + "0" * 9)):
        row = attacked["models"][role]["attacks"]["pgd"][0]
        row.update(bits=bits, correct=bits.count("1"))
    pair = upgrade_evaluation(attacked)["paired"]["attacks"]["pgd"][0]
    assert (pair["lost"], pair["gained"], pair["difference"]) == (3, 1, pytest.approx(-2 / 30))


@pytest.mark.parametrize("report", [report_with(rich_evaluation()), load_report(OLD_REPORT)])
def test_a_report_of_the_present_schema_stays_as_it_is(report, tmp_path):
    assert upgrade_report(report) == report
    assert load_report(written(tmp_path, report)) == report


BAD = {
    "not there": (None, "no report at"),
    "empty": (b"", "is no JSON"),
    "half": (OLD_REPORT.read_bytes()[:5000], "is no JSON"),
    "no text": (b"\xff\xfe\x00", "is no JSON"),
    "deep": (b"[" * 100_000, "is no JSON"),
    "a list": (b"[]", "is no report of this program"),
    "something else": (b'{"schema": 1}', "is no report of this program"),
    "newer": ({"schema": 3, "evaluations": []}, "has schema 3, this program reads 2 and older"),
    "without layers": ({"schema": 2, "evaluations": []}, "is damaged"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_no_report_is_refused(content, words, tmp_path):
    path = tmp_path / "r.json" if content is None else written(tmp_path, content)
    with pytest.raises(ReportError) as refused:
        load_report(path)
    assert words in refused.value.message
    assert refused.value.hint


def contradiction(change):
    report = report_with(plain_evaluation())
    change(report["evaluations"][0])
    return report


CONTRADICTIONS = {
    "correct": lambda one: one["models"]["compressed"]["clean"].update(correct=999),
    "accuracy": lambda one: one["models"]["compressed"]["clean"].update(accuracy=0.99),
    "bits": lambda one: one["models"]["baseline"]["attacks"]["pgd"][0].update(bits="1"),
    "flips": lambda one: one["paired"]["clean"].update(lost=0),
    "flips under attack": lambda one: one["paired"]["attacks"]["pgd"][1].update(gained=5),
    "attacks": lambda one: one["models"]["baseline"]["attacks"].pop("fgsm"),
    "radii": lambda one: one["models"]["baseline"]["attacks"]["pgd"][0].update(eps=0.5),
    "pairs of other attacks": lambda one: one["paired"]["attacks"].update(other=[]),
    "pairs without a baseline": lambda one: one["models"].pop("baseline"),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_figures_that_contradict_each_other_are_refused(change, tmp_path):
    with pytest.raises(ReportError, match=r"is damaged: .*photos"):
        load_report(written(tmp_path, contradiction(change)))


def test_what_lies_beside_another_artifact_is_not_read(tmp_path):
    report = report_with(plain_evaluation())
    path = written(tmp_path, report)
    assert read_report(path, artifact_sha256=report["artifact"]["sha256"]) == report
    assert read_report(path, artifact_sha256="other") is None


@pytest.mark.parametrize("name", sorted(set(BAD) - {"newer"}))
def test_what_is_no_report_does_not_keep_an_evaluation_from_writing_one(name, tmp_path):
    content = BAD[name][0]
    path = tmp_path / "r.json" if content is None else written(tmp_path, content)
    assert read_report(path, artifact_sha256="ab") is None


def test_a_report_of_a_newer_schema_is_not_lost(tmp_path):
    path = written(tmp_path, report_with() | {"schema": 3})
    with pytest.raises(ArtifactError, match="has schema 3, this program writes 2") as refused:
        read_report(path, artifact_sha256="ab")
    assert "move the report away" in refused.value.hint


def without(layers, key):
    return [{name: value for name, value in layer.items() if name != key} for layer in layers]


def factorised(report):
    return next(layer for layer in report["layers"] if layer["scheme"] != "dense")


REPORTS = {
    "singular values that rise": lambda one: factorised(one)["dense_spectrum"].append([999, 50.0]),
    "singular values not in order": lambda one: factorised(one)["dense_spectrum"].append([2, 0.0]),
    "singular values without the first": lambda one: factorised(one)["dense_spectrum"].pop(0),
    "singular values of others": lambda one: factorised(one).update(sigma_max=99.0),
    "singular values that go on": lambda one: factorised(one)["spectrum"].append([999, 0.0]),
    "a layer without ranks": lambda one: one.update(layers=without(one["layers"], "ranks")),
    "a layer without weights": lambda one: one["layers"][0].update(dense_shape=[0, 4]),
    "a log of no training": lambda one: one["recipe"].pop("fine_tuning"),
    "distances of one model": lambda one: one["evaluations"][0]["models"]["baseline"].pop("distances"),
    "classes at other radii": lambda one: one["evaluations"][0]["per_class"][1]["compressed"].update(worst=[0.5]),
    "classes of one model": lambda one: one["evaluations"][0]["per_class"][1].pop("baseline"),
    "corruptions of one model": lambda one: one["evaluations"][0]["corruptions"]["models"].update(baseline={}),
    "other severities": lambda one: one["evaluations"][0]["corruptions"].update(severities=[1]),
    "certified radii of one model": lambda one: one["evaluations"][0]["certified"]["models"].update(baseline=[]),
}


@pytest.mark.parametrize("change", REPORTS.values(), ids=REPORTS.keys())
def test_reports_whose_parts_do_not_fit_together_are_refused(change, tmp_path):
    report = report_with(rich_evaluation())
    assert load_report(written(tmp_path, report)) == report
    change(report)
    with pytest.raises(ReportError, match="is damaged: "):
        load_report(written(tmp_path, report))
