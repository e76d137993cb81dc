import json

from command import assert_refused, run
from workshop import INPUT_OPTIONS

from lrcompress.artifact import read_manifest


def test_an_artifact_is_told_without_running_its_factory(shop):
    (shop / "net.py").write_text("raise RuntimeError('run unasked')")
    result = run("inspect", "out.safetensors", env={"COLUMNS": "40"})  # data are not cut to the terminal
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "kind: artifact"
    assert f"parameters: {read_manifest(shop / 'out.safetensors').compressed.parameters}" in result.stdout
    rows = result.stdout.split("\n\n")[1].splitlines()
    assert rows[0].split() == ["layer", "kind", "weight", "rank", "error", "kappa", "why", "dense"]
    assert [row.split()[0] for row in rows[1:]] == ["1", "3", "5", "7"]
    assert rows[2].split()[:4] == ["3", "Linear", "32x32", "4"]
    assert "rank 32 of 32 would be needed, which does not remove parameters" in rows[3]


def test_an_artifact_is_told_as_json(shop):
    values = json.loads(run("inspect", "out.safetensors", "--json").stdout)
    assert (values["kind"], values["num_classes"]) == ("artifact", 3)
    assert {layer["name"]: layer.get("rank") for layer in values["layers"]}["3"] == 4


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
    assert text.stdout.splitlines()[-3].split() == ["3", "Linear", "32x32", "-", "-", "-", "-"]


def test_a_checkpoint_of_an_unknown_network_is_refused(shop):
    assert_refused(run("inspect", "w.pt"), "has the 8 tensors in `w.pt`", "--arch")


def test_what_is_neither_is_refused(shop):
    assert_refused(run("inspect", "net.py"), "neither a torch nor a safetensors file")
    assert_refused(run("inspect", "nowhere.pt"), "no checkpoint at `nowhere.pt`")


def test_an_artifact_of_a_future_version_is_told_as_such(shop):
    content = (shop / "out.safetensors").read_bytes()
    assert content.count(b'\\"schema\\":1') == 1
    (shop / "future.safetensors").write_bytes(content.replace(b'\\"schema\\":1', b'\\"schema\\":2'))
    assert_refused(run("inspect", "future.safetensors"), "has schema 2", "upgrade lrcompress")
