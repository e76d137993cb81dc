import json
import shutil
import signal
from pathlib import Path

import pytest
import timm
import torch
from checkpoint_files import write_zip
from command import assert_refused, run
from interrupted import PLACE, interrupted
from workshop import INPUT_OPTIONS, listing, make_network, report_of

from lrcompress.artifact import load_artifact, read_manifest
from lrcompress.report import load_report


def test_an_artifact_is_told_without_running_its_factory(shop):
    (shop / "net.py").write_text("raise RuntimeError('run unasked')")
    result = run("inspect", "out.safetensors", env={"COLUMNS": "40"})  # data are not cut to the terminal
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "kind: artifact"
    assert f"parameters: {read_manifest(shop / 'out.safetensors').compressed.parameters}" in result.stdout
    rows = result.stdout.split("\n\n")[1].splitlines()
    assert rows[0].split() == ["layer", "kind", "weight", "scheme", "ranks", "error", "kappa", "why", "dense"]
    assert [row.split()[0] for row in rows[1:]] == ["1", "3", "5", "7"]
    assert rows[2].split()[:5] == ["3", "Linear", "32x32", "matrix", "4"]
    assert rows[3].split()[:7] == ["5", "Linear", "32x32", "dense", "-", "-", "-"]
    assert "what was asked for does not remove parameters" in rows[3]


def test_an_artifact_is_told_as_json(shop):
    values = json.loads(run("inspect", "out.safetensors", "--json").stdout)
    assert (values["kind"], values["num_classes"]) == ("artifact", 3)
    assert {layer["name"]: layer.get("ranks") for layer in values["layers"]}["3"] == [4]


def test_a_checkpoint_is_told_with_the_reasons_of_its_layers(shop):
    result = run("inspect", "w.pt", "--arch", "net.py:build", *INPUT_OPTIONS, "--json")
    values = json.loads(result.stdout)
    assert (values["kind"], values["num_classes"], values["dtype"]) == ("checkpoint", 3, "float32")
    assert {layer["name"]: bool(layer["reason"]) for layer in values["layers"]} == {
        "1": True,
        "3": False,
        "5": False,
        "7": True,
    }
    text = run("inspect", "w.pt", "--arch", "net.py:build", *INPUT_OPTIONS)
    assert text.stdout.splitlines()[0] == "kind: checkpoint"
    assert "input: 1x6x5" in text.stdout
    assert text.stdout.splitlines()[-3].split() == ["3", "Linear", "32x32", "-", "-", "-", "-", "-"]


def test_a_checkpoint_of_an_unknown_network_is_refused(shop):
    assert_refused(run("inspect", "w.pt"), "has the 8 tensors in `w.pt`", "--arch")


def test_what_is_neither_is_refused(shop):
    assert_refused(run("inspect", "net.py"), "neither a torch nor a safetensors file")
    assert_refused(run("inspect", "nowhere.pt"), "no checkpoint at `nowhere.pt`")


def test_an_artifact_of_a_future_version_is_told_as_such(shop):
    content = (shop / "out.safetensors").read_bytes()
    assert content.count(b'\\"schema\\":2') == 1
    (shop / "future.safetensors").write_bytes(content.replace(b'\\"schema\\":2', b'\\"schema\\":3'))
    assert_refused(run("inspect", "future.safetensors"), "has schema 3", "upgrade lrcompress")


def test_an_artifact_of_the_first_schema_is_told(shop):
    shutil.copy(Path(__file__).parents[1] / "artifact" / "schema1" / "mlp.safetensors", shop / "old.safetensors")
    result = run("inspect", "old.safetensors")
    assert result.exit_code == 0
    layers = {layer.name: layer for layer in read_manifest(shop / "old.safetensors").layers}
    rows = [row.split() for row in result.stdout.split("\n\n")[1].splitlines()[1:]]
    assert [row[0] for row in rows] == list(layers)
    for row in rows:
        ranks = layers[row[0]].ranks
        assert row[3:5] == (["matrix", str(ranks[0])] if ranks else ["dense", "-"])


def test_ranks_of_several_modes_stand_in_one_column(shop):
    write_zip(timm.create_model("test_vit", num_classes=5).state_dict(), shop / "vit.pt")
    assert run("compress", "vit.pt", "--rank", "3", "--scheme", "split", "-o", "vit.safetensors").exit_code == 0
    rows = run("inspect", "vit.safetensors").stdout.split("\n\n")[1].splitlines()
    (row,) = (row.split() for row in rows if row.startswith("blocks.0.attn.qkv "))
    assert row[:5] == ["blocks.0.attn.qkv", "Linear", "192x64", "split", "3,3,3"]


ARCH = ("--arch", "net.py:build")


def test_operator_norms_of_both_models_are_told_and_added_to_the_report(shop, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lrcompress", "inspect", "tuned.safetensors", "--operator-norms", *ARCH])
    before = report_of(shop / "tuned.safetensors")
    result = run("inspect", "tuned.safetensors", "--operator-norms", *ARCH)
    assert result.exit_code == 0, result.stderr
    _, layers, norms = result.stdout.split("\n\n")
    assert layers.splitlines()[0].startswith("layer")
    title, columns, *rows, product = norms.splitlines()
    assert title == "operator norms, lower bounds:"
    assert columns.split() == ["layer", "input", "uncompressed", "compressed", "ratio"]
    assert [row.split()[:2] for row in rows] == [["1", "30"], ["3", "32"], ["5", "32"], ["7", "32"]]
    assert product.startswith("Vacuous: the product of these norms is 10^")
    after = report_of(shop / "tuned.safetensors")
    assert {key: value for key, value in after.items() if key != "operator_norms"} == before
    added = after["operator_norms"]
    assert added["command"] == "lrcompress inspect tuned.safetensors --operator-norms --arch net.py:build"
    shipped, dense = load_artifact(shop / "tuned.safetensors", arch=ARCH[1]).model, make_network()
    for layer in added["layers"]:
        for role, model in (("baseline", dense), ("compressed", shipped)):
            sigma = torch.linalg.svdvals(model.get_submodule(layer["name"]).weight.detach().double())
            assert layer[role]["norm"] == pytest.approx(float(sigma[0]), rel=1e-3)
    assert "Operator norms" in (shop / "tuned.report.html").read_text()
    assert "report: tuned.report.html" in result.stderr


def test_operator_norms_are_told_as_json_and_without_a_baseline_of_the_compressed_model_alone(shop):
    (shop / "w.pt").unlink()
    (shop / "out.report.json").unlink()
    result = run("inspect", "out.safetensors", "--operator-norms", "--json", *ARCH)
    values = json.loads(result.stdout)["operator_norms"]
    assert [set(layer) for layer in values["layers"]] == [{"name", "compressed"}] * 4
    assert values["vacuous_log10_product_ratio"] is None
    assert "command" not in values
    assert "no baseline, the compressed model is measured alone" in result.stderr
    assert load_report(shop / "out.report.json")["operator_norms"]["layers"] == values["layers"]


def test_the_baseline_of_operator_norms_can_be_named(shop):
    (shop / "w.pt").rename(shop / "elsewhere.pt")
    result = run("inspect", "out.safetensors", "--operator-norms", "--baseline", "elsewhere.pt", "--json", *ARCH)
    assert "baseline" in json.loads(result.stdout)["operator_norms"]["layers"][0]
    refused = run("inspect", "out.safetensors", "--operator-norms", "--baseline", "nowhere.pt", *ARCH)
    assert_refused(refused, "no checkpoint at `nowhere.pt`")


def test_operator_norms_of_a_checkpoint_are_told_and_nothing_is_written(shop):
    before = listing(shop)
    arguments = ("inspect", "w.pt", *ARCH, *INPUT_OPTIONS, "--operator-norms")
    values = json.loads(run(*arguments, "--json").stdout)["operator_norms"]
    assert [layer["name"] for layer in values["layers"]] == ["1", "3", "5", "7"]
    assert values["layers"][1]["baseline"]["norm"] == pytest.approx(4, rel=1e-5)
    assert "operator norms, lower bounds:\nlayer  input  uncompressed\n" in run(*arguments).stdout
    assert listing(shop) == before


def test_operator_norms_need_the_network_and_are_refused_where_there_is_none(shop):
    before = listing(shop)
    assert_refused(run("inspect", "out.safetensors", "--operator-norms"), "code that is not run unasked", "--arch")
    for arguments in (("out.safetensors",), ("w.pt", "--operator-norms")):
        assert_refused(run("inspect", *arguments, "--baseline", "w.pt"), "--baseline is for --operator-norms")
    assert listing(shop) == before


@pytest.fixture
def stopped(shop, monkeypatch):
    """The folder with small.unfinished.pt, of a run of six steps that was stopped after its fourth, and its command."""
    arguments = ["w.pt", "--arch", "net.py:build", *INPUT_OPTIONS, "--data", "data", "--epochs", "2", "--batch-size"]
    arguments += ["20", "-o", "small.safetensors", "--adversarial", "fgsm-rs"]
    monkeypatch.setattr("sys.argv", ["lrcompress", "compress", *arguments])
    with monkeypatch.context() as patch:
        patch.setattr(PLACE, interrupted(4, signal.SIGTERM))
        assert_refused(run("compress", *arguments), "stopped in step 4 of 6")
    return " ".join(["lrcompress compress", *arguments])


def test_the_state_of_a_run_is_told_and_how_it_goes_on(stopped):
    result = run("inspect", "small.unfinished.pt", env={"COLUMNS": "40"})
    assert result.exit_code == 0, result.stderr
    head, table = result.stdout.split("\n\n")
    lines = head.splitlines()
    assert lines[:3] == ["kind: unfinished run", "step: 4 of 6", "epoch: 2"]
    assert lines[3].startswith("parameters: ")
    assert lines[4:6] == [f"command: {stopped}", f"resume: {stopped} --resume"]
    rows = [row.split() for row in table.splitlines()]
    assert rows[0] == ["epoch", "loss", "held-out", "robust", "parameters", "frozen"]
    assert [row[0] for row in rows[1:]] == ["0", "1"]
    assert rows[1][1] == "-"  # no training, no loss
    assert all(row[3] == row[5] == "%" for row in rows[1:])


def test_the_state_of_a_run_is_told_as_json(stopped):
    values = json.loads(run("inspect", "small.unfinished.pt", "--json").stdout)
    assert (values["kind"], values["step"], values["steps"], values["training_is_over"]) == (
        "unfinished run",
        4,
        6,
        False,
    )
    assert [record["epoch"] for record in values["log"]] == [0, 1]
    assert values["settings"]["adversarial"] == "fgsm-rs"
    assert values["resume"] == f"{stopped} --resume"


def test_a_run_whose_training_is_over_is_told_as_such(stopped, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lrcompress.pipeline.compression.measure_latency", interrupt)
        result = run(*stopped.split()[1:], "--resume")
    assert_refused(result, "interrupted", "--resume goes on with measuring")
    told = run("inspect", "small.unfinished.pt").stdout
    assert "step: 6 of 6 (the training is over, the result is not written)\nepoch: 2\n" in told


def test_the_state_of_a_run_has_no_operator_norms(stopped):
    assert_refused(run("inspect", "small.unfinished.pt", "--operator-norms"), "has no model to measure", "--resume")


def test_a_damaged_state_of_a_run_is_refused(shop):
    (shop / "small.unfinished.pt").write_bytes(b"PK nothing")
    assert_refused(run("inspect", "small.unfinished.pt"), "`small.unfinished.pt` is no state of a run, or damaged")


def test_a_file_with_the_name_of_an_unfinished_evaluation_that_is_none_is_no_traceback(shop):
    values = {"version": 3, "subject": {"images": 1, "data": "d", "norm": "linf", "settings": [], "models": {}}}
    for content in (json.dumps(values | {"blocks": [], "sha256": "0"}), "[" * 200_000, "{"):
        (shop / "out.unfinished-evaluation.00000000.0.json").write_text(content)
        assert_refused(run("inspect", "out.unfinished-evaluation.00000000.0.json"), "out.unfinished-evaluation")
