import struct

import pytest
import torch
from artifacts import compressed, family, save
from networks import matrix_with_spectrum, tiny_mlp

from lrcompress.artifact import verify_artifact
from lrcompress.artifact.manifest import Manifest
from lrcompress.artifact.tensors import METADATA_KEY, digest_tensors, iterate_file, stored_tensors
from lrcompress.errors import ArtifactError
from lrcompress.models import Architecture
from lrcompress.plan import Tolerance

SIZE = (3, 4, 4)
FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.Identity(), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(),
                         nn.Linear(24, 4))
"""


@pytest.fixture
def made(tmp_path):
    """A dense network, its compressed model, the manifest, the factory and the path of the artifact."""
    (tmp_path / "net.py").write_text(FACTORY)
    factory = f"{tmp_path / 'net.py'}:build"
    dense = tiny_mlp()
    with torch.no_grad():
        dense[4].weight.copy_(matrix_with_spectrum([5, 3, 2, 0.2, 0.1], 24, 40))
    model, manifest = compressed(dense, Architecture("custom", factory), SIZE, policy=Tolerance(0.1), tol=0.1)
    manifest = save(tmp_path / "out.safetensors", model, manifest)
    return dense, model, manifest, factory, tmp_path / "out.safetensors"


def outcomes(path, factory, original=None):
    return {check.name: check.passed for check in verify_artifact(path, arch=factory, original=original)}


def write(path, tensors, manifest):
    path.write_bytes(b"".join(iterate_file(tensors, {"format": "pt", METADATA_KEY: manifest.dumps()})))


def test_a_whole_artifact_passes_every_check(made):
    dense, _, _, factory, path = made
    assert outcomes(path, factory, dense) == dict.fromkeys(("manifest", "digest", "finite", "network", "errors"), True)


@pytest.mark.parametrize(("name", "scheme"), [("standardised", "tucker2"), ("swin v2", "split"), ("grouped", "matrix")])
def test_the_errors_of_every_form_are_measured_again(tmp_path, name, scheme):
    dense, architecture, size = family(name)
    model, manifest = compressed(dense, architecture, size, policy=Tolerance(0.7), scheme=scheme, tol=0.7)
    save(tmp_path / "out.safetensors", model, manifest)
    found = verify_artifact(tmp_path / "out.safetensors", arch=architecture.name, original=dense)
    assert [check.passed for check in found] == [True] * 5
    largest = max(layer.relative_error or 0 for layer in manifest.layers)
    assert found[-1].detail == f"largest {largest:.4f}, guaranteed 0.7"
    assert 0.1 < largest <= 0.7


def test_without_the_original_the_errors_are_not_checked_and_that_is_said(made):
    _, _, _, factory, path = made
    checks = verify_artifact(path, arch=factory)
    assert checks[-1].passed is None
    assert "not at hand" in checks[-1].detail


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_flipped_bit_in_the_tensors_is_caught(made, bit, place):
    _, _, _, factory, path = made
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    position = 8 + length + int(place * (len(content) - 8 - length - 1))
    content[position] ^= 1 << bit
    path.write_bytes(content)
    assert outcomes(path, factory)["digest"] is False


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_caught_even_under_a_digest_of_theirs(made, value):
    _, model, manifest, factory, path = made
    tensors, _ = stored_tensors(model, "float32")
    tensors["6.bias"] = tensors["6.bias"].clone().fill_(value)
    values = Manifest.loads(manifest.dumps(), "").__dict__ | {"tensors_sha256": digest_tensors(tensors)}
    write(path, tensors, Manifest(**values))
    found = outcomes(path, factory)
    assert (found["digest"], found["finite"]) == (True, False)


def with_record(manifest, name, **values):
    layers = tuple(
        type(layer)(**{**layer.__dict__, **values}) if layer.name == name else layer for layer in manifest.layers
    )
    return Manifest(**{**manifest.__dict__, "layers": layers})


@pytest.mark.parametrize("error", [0.0, 0.05, None])
def test_a_changed_record_of_an_error_is_caught_by_the_original(made, error):
    dense, model, manifest, factory, path = made
    tensors, _ = stored_tensors(model, "float32")
    write(path, tensors, with_record(manifest, "4", relative_error=error))
    assert outcomes(path, factory)["digest"] is True
    assert outcomes(path, factory, dense)["errors"] is False


def test_another_original_is_caught(made):
    _, _, _, factory, path = made
    other = tiny_mlp(seed=1)
    check = verify_artifact(path, arch=factory, original=other)[-1]
    assert check.passed is False
    assert "`4`" in check.detail


def test_an_error_beyond_the_guarantee_is_caught(made):
    dense, model, manifest, factory, path = made
    tensors, _ = stored_tensors(model, "float32")
    recipe = {**manifest.recipe, "guaranteed_tol": 0.01}
    write(path, tensors, Manifest(**{**manifest.__dict__, "recipe": recipe}))
    assert outcomes(path, factory, dense)["errors"] is False


def test_after_fine_tuning_no_bound_is_claimed(made):
    dense, model, manifest, factory, path = made
    tensors, _ = stored_tensors(model, "float32")
    write(path, tensors, Manifest(**{**manifest.__dict__, "recipe": {**manifest.recipe, "guaranteed_tol": None}}))
    check = verify_artifact(path, arch=factory, original=dense)[-1]
    assert check.passed is True
    assert "no bound is claimed" in check.detail


def test_a_file_that_cannot_be_read_at_all_is_an_error(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError):
        verify_artifact(tmp_path / "a.safetensors")


def test_a_manifest_that_was_changed_is_found(made):
    _, _, _, factory, path = made
    content = path.read_bytes()
    assert content.count(b'\\"mean\\":[0.25,') == 1
    path.write_bytes(content.replace(b'\\"mean\\":[0.25,', b'\\"mean\\":[0.75,'))
    assert outcomes(path, factory)["manifest"] is False
