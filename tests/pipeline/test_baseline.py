from dataclasses import replace
from pathlib import Path

import pytest
import torch
from workshop import make_network

from lrcompress.artifact import read_manifest
from lrcompress.errors import CheckpointError, OptionError
from lrcompress.pipeline import find_baseline

ARCH = "net.py:build"
ARTIFACT = Path("out.safetensors")


def never(*args, **kwargs):
    raise AssertionError(f"called with {args}")


def test_a_changed_baseline_is_not_taken(shop):
    torch.save(make_network(seed=1).state_dict(), shop / "w.pt")
    found, reason = find_baseline(ARTIFACT, read_manifest(ARTIFACT), arch=ARCH)
    assert found is None
    assert "SHA-256 differs" in reason
    with pytest.raises(OptionError, match="SHA-256 differs"):
        find_baseline(ARTIFACT, read_manifest(ARTIFACT), arch=ARCH, explicit="w.pt")


def test_a_damaged_baseline_is_not_taken_and_the_difference_told(shop):
    (shop / "w.pt").write_bytes(b"")
    assert "SHA-256 differs" in find_baseline(ARTIFACT, read_manifest(ARTIFACT), arch=ARCH)[1]


def test_a_baseline_that_was_renamed_is_found_where_the_user_says(shop):
    (shop / "w.pt").rename(shop / "renamed.pt")
    found, _ = find_baseline(ARTIFACT, read_manifest(ARTIFACT), arch=ARCH, explicit="renamed.pt")
    assert torch.equal(found.model[3].weight, make_network()[3].weight)
    with pytest.raises(CheckpointError):
        find_baseline(ARTIFACT, read_manifest(ARTIFACT), arch=ARCH, explicit="w.pt")


# The last two only look like hub names once they are joined with a folder.
@pytest.mark.parametrize(
    "recorded",
    [
        "timm/resnet18.a1_in1k",
        "torchvision/resnet18.IMAGENET1K_V1",
        "./timm/resnet18.a1_in1k",
        ".//torchvision/resnet18",
    ],
)
def test_an_artifact_cannot_make_its_reader_fetch_a_baseline(shop, monkeypatch, recorded):
    monkeypatch.setattr("lrcompress.checkpoint.load.fetch", never)
    manifest = read_manifest(ARTIFACT)
    manifest = replace(manifest, source={**manifest.source, "path": recorded})
    found, reason = find_baseline(ARTIFACT, manifest, arch=ARCH)
    assert found is None
    assert "--baseline" in reason
