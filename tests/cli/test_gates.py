import gzip
import json

import numpy as np
import pytest
import torch
from command import assert_refused, run
from idx_files import idx_bytes, write_idx_pair
from workshop import INPUT_OPTIONS, listing, make_network, report_of

from lrcompress.cli.gates import read_policy
from lrcompress.errors import OptionError


@pytest.fixture
def shop(shop):
    """The usual folder with labels that the network gives: no gate passes for one that guesses."""
    images, labels = (shop / "data" / f"t10k-{name}.gz" for name in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    pixels = np.frombuffer(gzip.decompress(images.read_bytes())[16:], np.uint8).reshape(-1, 1, 6, 5)
    with torch.no_grad():
        answers = make_network()((torch.from_numpy(pixels / 255).float() - 0.5) / 0.25).argmax(1)
    labels.write_bytes(gzip.compress(idx_bytes(answers.numpy().astype(np.uint8))))
    return shop


def test_no_gate_passes_for_a_network_that_guesses(shop):
    write_idx_pair(shop / "data", "t10k", count=30, seed=1)
    result = evaluate(*fail_if(PASSED))
    assert result.exit_code == 4
    assert "no more than by guessing among 3 classes" in result.stderr


# Thirty images decide nothing near zero, and everything far away from it.
PASSED, FAILED, UNDECIDED = "clean.drop > 90", "clean.drop > -90", "clean.drop > 1"


def evaluate(*args):
    return run("evaluate", "out.safetensors", "--arch", "net.py:build", "--data", "data", *args)


def fail_if(*conditions):
    return [word for condition in conditions for word in ("--fail-if", condition)]


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        ((PASSED,), 0),
        ((PASSED, UNDECIDED), 4),
        ((UNDECIDED, FAILED), 3),
        (("size.bytes > 100", "latency.ratio > 99"), 0),
    ],
)
def test_gates_decide_the_exit_code_and_stand_in_the_report(shop, conditions, code):
    result = evaluate(*fail_if(*conditions))
    assert (result.exit_code, result.stdout) == (code, "out.report.json\n")
    outcomes = report_of(shop / "out.safetensors")["gates"]
    assert [one["gate"] for one in outcomes] == list(conditions)
    for one in outcomes:
        assert f"{one['outcome']}: fail if {one['gate']}" in result.stderr
        assert one["outcome"] in (shop / "out.report.html").read_text()


def test_gates_of_an_evaluation_are_judged_by_it_alone(shop):
    assert run("attack", "out.safetensors", "--arch", "net.py:build", "--data", "data", "--fgsm").exit_code == 0
    refused = evaluate(*fail_if("fgsm@4/255.drop > 90"))
    assert_refused(refused, "needs fgsm, which this run does not measure", "lrcompress attack")
    judged = run("report", "out.report.json", "--to", "md", "-o", "-", *fail_if("fgsm@4/255.drop > 90"))
    assert "PASS: fail if fgsm@4/255.drop > 90" in judged.stderr


IMPOSSIBLE = {
    "another attack": (["--fgsm", "--eps", "4/255"], "square@4/255.drop > 1", "needs square", "it attacks with fgsm"),
    "another radius": (["--fgsm", "--eps", "4/255"], "fgsm@8.drop > 1", "about a radius", "--eps 4/255 was given"),
    "a radius nearly": (["--fgsm", "--eps", "1/255,4/255"], "worst@0.0157.drop > 1", "about a radius", "1/255,4/255"),
    "no worst case": (["--suite", "paper"], "worst@0.1.drop > 1", "needs worst", "paper"),
}


@pytest.mark.parametrize(("options", "gate", "message", "hint"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_gate_that_no_attack_of_the_run_can_meet_is_refused_before_the_work(shop, options, gate, message, hint):
    before = listing(shop)
    refused = run("attack", "out.safetensors", "--arch", "net.py:build", "--data", "data", *options, *fail_if(gate))
    assert_refused(refused, message, hint)
    assert listing(shop) == before


def test_a_radius_that_is_written_otherwise_is_the_same(shop):
    options = ("--arch", "net.py:build", "--data", "data", "--fgsm", "--eps", "4/255")
    assert run("attack", "out.safetensors", *options, *fail_if("fgsm@0.01568627451.drop > 90")).exit_code == 0


def test_a_compression_does_not_take_gates_of_attacks(shop):
    options = ("--arch", "net.py:build", *INPUT_OPTIONS, "--tol", "0.1")
    refused = run("compress", "w.pt", *options, "-o", "new.safetensors", *fail_if("pgd@4/255.drop > 1"))
    assert_refused(refused, "needs pgd, which this run does not measure", "lrcompress attack")


def test_gates_of_an_attack_know_what_it_measured(shop):
    options = ("--arch", "net.py:build", "--data", "data", "--fgsm", "--eps", "4/255", "--json")
    result = run("attack", "out.safetensors", *options, *fail_if("fgsm@4/255.drop > 90", "worst@4/255.accuracy < 0"))
    assert result.exit_code == 0
    assert [one["outcome"] for one in json.loads(result.stdout)["gates"]] == ["PASS", "PASS"]


@pytest.mark.usefixtures("_short_timing")
def test_compress_has_gates_too(shop):
    options = ("--arch", "net.py:build", *INPUT_OPTIONS, "--tol", "0.1", "--data", "data", "--epochs", "0")
    result = run("compress", "w.pt", *options, "-o", "new.safetensors", *fail_if("size.bytes > 1", PASSED))
    assert (result.exit_code, result.stdout) == (3, "new.safetensors\n")
    report = report_of(shop / "new.safetensors")
    assert [one["outcome"] for one in report["gates"]] == ["FAIL", "PASS"]
    assert report["command"] == report["evaluations"][0]["command"] != ""


def test_without_gates_none_stand_in_the_report(shop):
    assert evaluate().exit_code == 0
    assert report_of(shop / "out.safetensors")["gates"] == []


def test_gates_of_a_file_and_of_options_are_judged_together(shop):
    (shop / "gates.toml").write_text(f'fail_if = ["{PASSED}"]\nconfidence = 0.99\n')
    result = evaluate("--policy", "gates.toml", *fail_if("size.bytes > 100"))
    assert result.exit_code == 0
    outcomes = report_of(shop / "out.safetensors")["gates"]
    assert [(one["gate"], one["confidence"]) for one in outcomes] == [(PASSED, 0.99), ("size.bytes > 100", 0.99)]


BAD = {
    "no condition": (fail_if("clean.drop"), "a gate is"),
    "a typo": (fail_if("clean.dorp > 1"), "clean.drop"),
    "a typo in an attack": (fail_if("pdg@4/255.drop > 1"), "did you mean pgd?"),
    "no file": (["--policy", "nowhere.toml"], "no policy in `nowhere.toml`"),
    "a folder": (["--policy", "data"], "no policy in `data`"),
    "no TOML": (["--policy", "net.py"], "no policy in `net.py`"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_bad_gates_are_refused_before_anything_is_done(shop, options, words):
    before = listing(shop)
    assert_refused(evaluate(*options), words)
    assert listing(shop) == before


POLICIES = {
    "": "has no gates",
    "fail_if = []": "has no gates",
    "fail_if = 'clean.drop > 1'": "is no list of conditions",
    "fail_if = [1]": "is no list of conditions",
    "fail_fi = ['clean.drop > 1']": "has the key `fail_fi`",
    "fail_if = ['clean.drop > 1']\nconfidence = 1": "is no number below 1",
    "fail_if = ['clean.drop > 1']\nconfidence = true": "is no number below 1",
    "fail_if = [": "no policy in",
}


@pytest.mark.parametrize(("text", "words"), POLICIES.items())
def test_what_is_no_policy_is_refused(tmp_path, text, words):
    (tmp_path / "gates.toml").write_text(text)
    with pytest.raises(OptionError, match=words) as refused:
        read_policy(tmp_path / "gates.toml")
    assert refused.value.hint
    if "fail_fi" in text:
        assert refused.value.hint == "did you mean fail_if?"
