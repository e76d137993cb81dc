from pathlib import Path

import pytest
import timm
import torch
import workshop
from artifacts import compressed, family, rewrite, save
from networks import tiny_mlp
from safetensors.torch import load_file, save_file
from torch import nn

from lrcompress.artifact import is_artifact, load, load_artifact, read_manifest, verify_artifact
from lrcompress.errors import ArchitectureError, ArtifactError
from lrcompress.models import Architecture
from lrcompress.nn import LowRankLayer

SIZE = (3, 4, 4)
# The same network as `tiny_mlp`, and a mark of having been run.
FACTORY = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("marker").touch()

def build(width=40):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.Identity(), nn.ReLU(), nn.Linear(width, 24), nn.ReLU(),
                         nn.Linear(24, 4))
"""


@pytest.fixture
def made(tmp_path):
    """An artifact of a network of one's own: its path, its factory and the model in memory."""
    (tmp_path / "net.py").write_text(FACTORY)
    factory = f"{tmp_path / 'net.py'}:build"
    model, manifest = compressed(tiny_mlp(), Architecture("custom", factory), SIZE)
    save(tmp_path / "out.safetensors", model, manifest)
    (tmp_path / "marker").unlink()
    return tmp_path / "out.safetensors", factory, model


def test_ones_own_factory_is_never_run_unasked(made):
    path, factory, _ = made
    with pytest.raises(ArtifactError, match="code that is not run unasked") as refused:
        load(path)
    assert refused.value.hint == f"--arch {factory}"
    assert not (path.parent / "marker").exists()
    assert read_manifest(path).architecture.name == factory
    assert not (path.parent / "marker").exists()


def test_ones_own_factory_is_run_where_it_is_named(made):
    path, factory, model = made
    images = torch.rand(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(load(path, arch=factory)(images), model(images))
    assert (path.parent / "marker").exists()


def test_the_factory_may_have_moved(made):
    path, _, model = made
    (path.parent / "net.py").rename(path.parent / "moved.py")
    images = torch.rand(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(load(path, arch=f"{path.parent / 'moved.py'}:build")(images), model(images))


def test_pixels_are_normalised_by_the_manifests_statistics(made):
    path, factory, model = made
    images = torch.rand(3, *SIZE)
    mean, std = torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.5, 0.25, 0.125])
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        assert torch.equal(load(path, arch=factory, pixels=True)(images), model(normalised))


@pytest.mark.parametrize("pixels", [False, True])
def test_the_model_is_in_eval_mode_throughout(made, pixels):
    path, factory, _ = made
    assert not any(module.training for module in load(path, arch=factory, pixels=pixels).modules())


def test_the_model_can_be_trained_further(made):
    path, factory, _ = made
    model = load(path, arch=factory)
    model(torch.rand(2, *SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {type(module) for module in model.modules() if not list(module.children())} <= {
        nn.Flatten, nn.Linear, nn.ReLU, nn.Identity
    }  # fmt: skip


def test_another_factory_that_does_not_fit_is_refused(made):
    path, _, _ = made
    (path.parent / "other.py").write_text(FACTORY.replace("width=40", "width=41"))
    with pytest.raises(ArtifactError, match=r"factorises `4`, which is no such layer"):
        load(path, arch=f"{path.parent / 'other.py'}:build")


def test_a_framework_network_takes_no_other_name(tmp_path):
    dense = timm.create_model("test_resnet", num_classes=3).eval()
    save(
        tmp_path / "a.safetensors",
        *compressed(dense, Architecture("timm", "test_resnet", {"num_classes": 3}), (3, 32, 32)),
    )
    with pytest.raises(ArchitectureError, match="--arch does not apply"):
        load(tmp_path / "a.safetensors", arch="resnet18")


FILES = {
    "missing": None,
    "empty": b"",
    "text": b"no weights at all",
    "random": torch.randint(0, 256, (4000,), generator=torch.Generator().manual_seed(0))
    .to(torch.uint8)
    .numpy()
    .tobytes(),
    "zeros": bytes(500),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_what_is_no_artifact_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert not is_artifact(path)
    with pytest.raises(ArtifactError) as refused:
        load(path)
    assert str(path) in refused.value.message
    assert refused.value.hint


def test_a_folder_is_no_artifact(tmp_path):
    assert not is_artifact(tmp_path)
    with pytest.raises(ArtifactError):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.7, 0.999])
def test_a_file_that_is_cut_short_is_refused(made, keep):
    path, factory, _ = made
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        load(path, arch=factory)


def test_a_foreign_safetensors_file_is_told_from_an_artifact(tmp_path, made):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="not one that lrcompress wrote") as refused:
        load(tmp_path / "w.safetensors")
    assert "lrcompress compress" in refused.value.hint
    assert is_artifact(made[0])
    assert not is_artifact(tmp_path / "w.safetensors")


def layer_of(manifest, name):
    return next(layer for layer in manifest["layers"] if layer["name"] == name)


def with_layer(name, /, **values):
    return lambda manifest: layer_of(manifest, name).update(values)


def drop_layer(manifest):
    manifest["layers"] = [layer for layer in manifest["layers"] if layer["name"] != "4"]


DAMAGES = {
    "future schema": (lambda m: m.update(schema=3), "has schema 3"),
    "text as schema": (lambda m: m.update(schema="2"), "has schema 2"),
    "no schema": (lambda m: m.pop("schema"), "damaged"),
    "no architecture": (lambda m: m.pop("architecture"), "damaged"),
    "an unknown field": (lambda m: m["architecture"].update(code="x"), "damaged"),
    "no layers": (lambda m: m.update(layers=None), "damaged"),
    "no preprocessing": (lambda m: m.update(preprocessing={}), "damaged"),
    "another rank": (with_layer("4", ranks=[5]), "does not fit"),
    "a rank of the first schema": (with_layer("4", rank=5), "does not fit"),
    "a rank beyond the layer": (with_layer("4", ranks=[500]), "cannot have"),
    "no list of ranks": (with_layer("4", ranks=3), "damaged"),
    "another form": (with_layer("4", scheme="split", ranks=[1, 1, 1]), "cannot have"),
    "a layer that became dense": (with_layer("4", scheme="dense", ranks=[]), "does not fit"),
    "a layer less": (drop_layer, "does not fit"),
    "a layer of another kind": (with_layer("4", name="5"), "no such layer"),
    "a layer that is not there": (with_layer("4", name="9"), "no such layer"),
    "another shape": (with_layer("4", dense_shape=[24, 41]), "no such layer"),
    "a tensor too many": (lambda m: m.update(shared={"extra": "6.bias"}), "does not fit"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_changed_manifest_is_refused(made, change, message):
    path, factory, _ = made
    rewrite(path, change)
    with pytest.raises(ArtifactError, match=message) as refused:
        load_artifact(path, arch=factory)
    assert str(path) in refused.value.message
    assert "\n" not in refused.value.message


# Edits that a layer of the recorded form cannot have at all.
IMPOSSIBLE = {
    "no such scheme": {"scheme": "cp"},
    "no scheme": {"scheme": ["matrix"]},
    "a scheme that does not fit": {"scheme": "spatial"},
    "a scheme of two ranks that does not fit": {"scheme": "tucker2", "ranks": [3, 3]},
    "no rank": {"ranks": []},
    "a rank too many": {"ranks": [3, 3]},
    "a rank of zero": {"ranks": [0]},
    "a rank below zero": {"ranks": [-1]},
    "a rank that no memory holds": {"ranks": [10**13]},
    "a text": {"ranks": ["3"]},
    "half a rank": {"ranks": [2.5]},
    "a truth": {"ranks": [True]},
}


@pytest.mark.parametrize("values", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_edited_form_that_its_layer_cannot_have_is_refused(made, values):
    path, factory, _ = made
    rewrite(path, with_layer("4", **values))
    with pytest.raises(ArtifactError) as refused:
        load_artifact(path, arch=factory)
    assert str(path) in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("scheme", "edit"),
    [
        ("tucker2", {"scheme": "spatial", "ranks": [3]}),
        ("tucker2", {"ranks": [3, 4]}),
        ("tucker2", {"ranks": [10, 3]}),  # all outputs: two convolutions instead of three
        ("spatial", {"scheme": "matrix"}),
        ("spatial", {"scheme": "tucker2", "ranks": [3, 3]}),
        ("matrix", {"scheme": "spatial"}),
    ],
)
def test_an_edited_scheme_or_rank_that_the_tensors_do_not_have_is_refused(tmp_path, scheme, edit):
    dense, architecture, size = family("standardised")
    model, manifest = compressed(dense, architecture, size, scheme=scheme)
    save(tmp_path / "out.safetensors", model, manifest)
    assert next(layer for layer in manifest.layers if layer.name == "4").scheme == scheme
    rewrite(tmp_path / "out.safetensors", with_layer("4", **edit))
    with pytest.raises(ArtifactError, match=r"does not fit `artifacts:standardised` at `4\."):
        load(tmp_path / "out.safetensors", arch=architecture.name)


# A file that version 0.1.0 wrote: schema 1, one scheme with one rank per layer.
SCHEMA_1 = Path(__file__).parent / "schema1" / "mlp.safetensors"


def test_a_file_of_the_first_schema_is_loaded_and_computes_what_it_did(tmp_path):
    (tmp_path / "net.py").write_text(workshop.FACTORY)
    model = load(SCHEMA_1, arch=f"{tmp_path / 'net.py'}:build")
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 30).reshape(1, 1, 6, 5))
    expected = torch.tensor([[-0.019321102648973465, -0.14075735211372375, -0.002534765750169754]])
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-7)
    assert {name for name, module in model.named_modules() if isinstance(module, LowRankLayer)}


def test_a_file_of_the_first_schema_is_verified_and_told(tmp_path):
    (tmp_path / "net.py").write_text(workshop.FACTORY)
    manifest = read_manifest(SCHEMA_1)
    tensors = load_file(SCHEMA_1)
    factorized = [layer for layer in manifest.layers if layer.scheme != "dense"]
    assert factorized
    for layer in factorized:
        assert layer.scheme == "matrix"
        assert layer.ranks == (tensors[f"{layer.name}.reduce.weight"].shape[0],)
        factors = [tensors[f"{layer.name}.{part}.weight"] for part in ("reduce", "expand")]
        assert layer.parameters == sum(factor.numel() for factor in factors)
    checks = verify_artifact(SCHEMA_1, arch=f"{tmp_path / 'net.py'}:build")
    assert [check.passed for check in checks] == [True] * 4 + [None]


def test_a_file_of_the_first_schema_that_was_changed_is_not_loaded(tmp_path):
    (tmp_path / "net.py").write_text(workshop.FACTORY)
    path = tmp_path / "old.safetensors"
    path.write_bytes(SCHEMA_1.read_bytes())
    rewrite(path, lambda manifest: manifest.update(num_classes=7), sealed=False)
    with pytest.raises(ArtifactError, match="its SHA-256 differs"):
        load(path, arch=f"{tmp_path / 'net.py'}:build")


def test_the_loaded_model_is_independent_of_the_file(made):
    path, factory, model = made
    content, images = path.read_bytes(), torch.rand(2, *SIZE)
    loaded = load(path, arch=factory)
    path.write_bytes(bytes(len(content)))  # in place, while the model is in use
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
        path.write_bytes(content)
        for parameter in loaded.parameters():
            parameter.zero_()
    assert path.read_bytes() == content


def test_a_file_that_was_changed_is_not_loaded(made):
    path, factory, _ = made
    whole = path.read_bytes()
    rewrite(path, lambda manifest: manifest.update(num_classes=7), sealed=False)
    with pytest.raises(ArtifactError, match="its SHA-256 differs") as refused:
        load(path, arch=factory)
    assert f"lrcompress verify {path}" in refused.value.hint
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="its SHA-256 differs"):
        load(path, arch=factory)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_is_refused_with_what_to_do(tmp_path, legacy):
    path = tmp_path / "w.pt"
    torch.save({}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ArtifactError, match="is a torch checkpoint") as refused:
        load(path)
    assert refused.value.hint.startswith(f"lrcompress compress {path}")


def test_an_artifact_of_a_future_schema_is_still_an_artifact(made):
    path, _, _ = made
    rewrite(path, lambda manifest: manifest.update(schema=3))
    assert is_artifact(path)
    with pytest.raises(ArtifactError) as refused:
        read_manifest(path)
    assert refused.value.hint == "upgrade lrcompress"


@pytest.mark.parametrize(
    "architecture",
    [
        {"framework": "timm", "name": "hf-hub:evil/repo", "arguments": {}},
        {"framework": "timm", "name": "local-dir:x", "arguments": {}},
        {"framework": "timm", "name": "test_resnet", "arguments": {"pretrained": True}},
        {"framework": "timm", "name": "test_resnet", "arguments": {"checkpoint_path": "x.pt"}},
        {"framework": "evil", "name": "test_resnet", "arguments": {}},
    ],
    ids=lambda architecture: f"{architecture['framework']} {architecture['name']} {architecture['arguments']}",
)
def test_a_manifest_cannot_make_timm_fetch_or_read_anything(made, monkeypatch, architecture):
    calls = []
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: calls.append(args))
    path, _, _ = made
    rewrite(path, lambda manifest: manifest.update(architecture=architecture))
    with pytest.raises(ArchitectureError):
        load(path)
    assert calls == []
    assert not (path.parent / "marker").exists()
