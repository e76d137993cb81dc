"""The network is never used: huggingface_hub is told that it is offline, and torch's download is replaced."""

import json
import logging
import urllib.error

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from lrcompress.errors import ArchitectureError, HubError
from lrcompress.models import fetch, is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, offline."""
    cache = tmp_path / "hf"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty torch cache behind a connection that is down."""

    def no_connection(url, *_, **__):
        raise urllib.error.URLError(f"no route to {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_connection)
    return tmp_path / "torch"


def fill(cache, repository, files):
    """Lays the files out as the hub client does, and returns their folder."""
    root = cache / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_resnet.r160_in1k"])
def test_a_timm_name_is_read_from_the_hugging_face_cache(hub_cache, tmp_path, name):
    model = timm.create_model("test_resnet", pretrained=False)
    save_file(model.state_dict(), tmp_path / "weights")
    config = json.dumps({"architecture": "test_resnet", "num_classes": 1000}).encode()
    files = {"config.json": config, "model.safetensors": (tmp_path / "weights").read_bytes()}
    folder = fill(hub_cache, "timm/test_resnet.r160_in1k", files)
    found = fetch(name)
    assert found.path.resolve() == folder.resolve()
    assert found.architecture == "timm/test_resnet"
    assert found.preprocessing == {}  # config.json has it


def test_a_repository_without_safetensors_is_read_from_the_cache_too(hub_cache):
    folder = fill(hub_cache, "timm/test_vit.r160_in1k", {"config.json": b"{}", "pytorch_model.bin": b"weights"})
    assert fetch("timm/test_vit").path.resolve() == folder.resolve()


@pytest.mark.parametrize("files", [None, {"config.json": b"{}"}, {"model.safetensors": b"weights"}])
def test_what_the_cache_lacks_is_an_explained_error_offline(hub_cache, files):
    if files:
        fill(hub_cache, "timm/test_resnet.r160_in1k", files)
    with pytest.raises(HubError) as refused:
        fetch("timm/test_resnet")
    assert "`timm/test_resnet.r160_in1k`" in refused.value.message
    assert "\n" not in refused.value.message
    assert "local checkpoint" in refused.value.hint


def test_the_retries_of_the_hub_client_are_not_logged(monkeypatch, caplog):
    logger = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)

    def no_connection(repository, file):
        logger.warning("Retrying in 8s")
        raise OSError(f"no {file} of {repository}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_connection)
    with pytest.raises(HubError, match="no config"):
        fetch("timm/test_resnet")
    assert caplog.text == ""
    logger.warning("Retrying in 8s")  # as verbose as before for everybody else
    assert "Retrying" in caplog.text


def test_timm_weights_that_do_not_exist_are_answered_with_those_that_do():
    with pytest.raises(HubError) as refused:
        fetch("timm/test_resnet.a1_in1k")
    assert "`test_resnet.a1_in1k`" in refused.value.message
    assert "timm/test_resnet.r160_in1k" in refused.value.hint


@pytest.mark.parametrize("name", ["timm/resnet5O", "torchvision/resnet5O"])
def test_an_unknown_architecture_is_refused_before_anything_is_fetched(name):
    with pytest.raises(ArchitectureError, match="resnet5O"):
        fetch(name)


@pytest.mark.parametrize(
    ("name", "file", "size", "crop_pct"),
    [
        ("torchvision/squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", 224, 224 / 256),
        ("torchvision/resnet18.IMAGENET1K_V1", "resnet18-f37072fd.pth", 224, 224 / 256),
        ("torchvision/resnet50.IMAGENET1K_V2", "resnet50-11ad3fa6.pth", 224, 224 / 232),
        ("torchvision/inception_v3", "inception_v3_google-0cc3c7bd.pth", 299, 299 / 342),
    ],
)
def test_a_torchvision_name_is_read_from_torchs_cache(torch_home, name, file, size, crop_pct):
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(b"weights")
    found = fetch(name)
    assert found.path == folder / file
    assert found.architecture == name.split(".")[0]
    assert found.preprocessing["input_size"] == (3, size, size)
    assert found.preprocessing["crop_pct"] == pytest.approx(crop_pct)
    assert found.preprocessing["mean"] == (0.485, 0.456, 0.406)
    assert found.preprocessing["interpolation"] == "bilinear"


def test_a_torchvision_file_that_cannot_be_fetched_is_an_explained_error(torch_home):
    with pytest.raises(HubError) as refused:
        fetch("torchvision/squeezenet1_1")
    assert "squeezenet1_1-b8a52dc0.pth" in refused.value.message
    assert "local checkpoint" in refused.value.hint
    assert not list((torch_home / "hub" / "checkpoints").iterdir())


def test_torchvision_weights_that_do_not_exist_are_answered_with_those_that_do():
    with pytest.raises(HubError) as refused:
        fetch("torchvision/resnet50.V3")
    assert "`resnet50.V3`" in refused.value.message
    assert "torchvision/resnet50.IMAGENET1K_V2" in refused.value.hint


def test_a_path_that_exists_is_not_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("timm/resnet18")
    assert is_hub_name("torchvision/resnet18")
    assert not is_hub_name("resnet18.pt")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "resnet18").write_bytes(b"")
    assert not is_hub_name("timm/resnet18")
