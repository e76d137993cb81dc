"""From a hub name to local files: `timm/…` through the Hugging Face hub, `torchvision/…` through its own addresses.

Both use the frameworks' caches, so that what was fetched once works offline.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrcompress.errors import HubError
from lrcompress.models.architecture import nearest_names, parse_name

OFFLINE_HINT = "check the connection, or give a local checkpoint file or Hugging Face folder"


@dataclass(frozen=True)
class HubFile:
    """Weights on the local disk and what the hub says of them.

    Attributes:
        path: the weights, or a folder with config.json beside them.
        architecture: the label of the architecture.
        preprocessing: input size and statistics, where the hub has them apart from a config.json.
    """

    path: Path
    architecture: str
    preprocessing: dict[str, Any]


def is_hub_name(text: str) -> bool:
    """Whether the text is a hub name and not a path."""
    return text.startswith(("timm/", "torchvision/")) and not Path(text).exists()


def fetch(name: str) -> HubFile:
    """Returns the local files of a hub name, after fetching them if the cache lacks them.

    Raises:
        ArchitectureError: if there is no architecture of this name.
        HubError: if there are no weights of this name, or the hub cannot be reached.
    """
    architecture = parse_name(name)
    tag = name.split("/", 1)[1].partition(".")[2]
    if architecture.framework == "timm":
        return _fetch_timm(architecture.name, tag)
    return _fetch_torchvision(architecture.name, tag)


def _fetch_timm(name: str, tag: str) -> HubFile:
    from timm.models import get_pretrained_cfg, list_pretrained

    try:
        config = get_pretrained_cfg(f"{name}.{tag}" if tag else name, allow_unregistered=False)
    except (RuntimeError, KeyError):
        config = None
    if config is None or not (config.hf_hub_id or isinstance(config.url, str)):
        known = list_pretrained(f"{name}.*")
        near = ", ".join(f"timm/{other}" for other in known[:5]) or ", ".join(nearest_names(name))
        raise HubError(f"timm has no weights named `{name}{'.' + tag if tag else ''}`", hint=f"known are: {near}")
    if config.hf_hub_id:
        return HubFile(_fetch_from_hugging_face(config.hf_hub_id), f"timm/{name}", {})
    preprocessing = {key: getattr(config, key) for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
    assert isinstance(config.url, str)  # else there is no such name, see above
    return HubFile(_fetch_address(config.url), f"timm/{name}", preprocessing)


def _fetch_from_hugging_face(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with _quiet_hub():
            config = hf_hub_download(repository, "config.json")
            try:
                hf_hub_download(repository, "model.safetensors")
            except EntryNotFoundError:  # offline too: the cache may hold the other file
                hf_hub_download(repository, "pytorch_model.bin")
    # The hub client raises its own errors and those of whatever HTTP library it uses.
    except Exception as error:
        raise HubError(
            f"cannot fetch `{repository}` from the Hugging Face hub: {_first_line(error)}", hint=OFFLINE_HINT
        ) from error
    return Path(config).parent


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keeps the hub client from logging each retry: what comes of them is told once."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _fetch_torchvision(name: str, tag: str) -> HubFile:
    import torchvision

    weights = torchvision.models.get_model_weights(name)
    members = {member.name: member for member in weights}
    if tag and tag not in members:
        known = ", ".join(f"torchvision/{name}.{member}" for member in members)
        raise HubError(f"torchvision has no weights named `{name}.{tag}`", hint=f"known are: {known}")
    chosen = members[tag] if tag else weights["DEFAULT"]
    transforms = chosen.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    preprocessing = {
        "input_size": (3, crop, crop),
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "crop_pct": crop / resize,
        "interpolation": transforms.interpolation.value,
    }
    return HubFile(_fetch_address(chosen.url), f"torchvision/{name}", preprocessing)


def _fetch_address(url: str) -> Path:
    """Returns the file in torch's own cache, `$TORCH_HOME/hub/checkpoints`."""
    import torch

    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except OSError as error:  # urllib's errors are OSErrors
            raise HubError(f"cannot fetch `{target.name}`: {_first_line(error)}", hint=OFFLINE_HINT) from error
    return target


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
