"""Reads the tensors and the metadata out of a file, whatever its format, without executing anything in it."""

import hashlib
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lrcompress.checkpoint.inert import ALLOWED_GLOBALS
from lrcompress.errors import CheckpointError

SAVE_HINT = "save the state dict where the model's code is: torch.save(model.state_dict(), 'weights.pt')"


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hex.

    Raises:
        CheckpointError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with _open(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"cannot read `{path}`: {error.strerror}", hint="check its permissions") from error


def read_checkpoint(path: Path) -> Any:
    """Returns what the file holds: a dict of tensors from safetensors, any nesting of plain values from torch files.

    The format is told by the content, not by the name. Tensors are on the CPU and memory-mapped where possible.

    Raises:
        CheckpointError: if the file is missing, damaged, of no known format, or holds a pickled object.
    """
    if path.is_dir():
        raise CheckpointError(
            f"`{path}` is a folder without config.json", hint="give a checkpoint file or a Hugging Face model folder"
        )
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at `{path}`", hint="give a file, a Hugging Face folder, or a hub name like timm/resnet50"
        )
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"`{path}` is empty", hint="copy or download the file again")
    with _open(path) as file:
        start = file.read(16)
    if zipfile.is_zipfile(path):
        return _read_torch_zip(path)
    if start.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"`{path}` is a torch file that is cut short", hint="copy or download the file again")
    if is_safetensors(path):
        return _read_safetensors(path, size, struct.unpack("<Q", start[:8])[0])
    if start[:1] == b"\x80":
        return _read_torch(path)
    raise CheckpointError(
        f"`{path}` is neither a torch nor a safetensors file",
        hint="give a .pt, .pth, .bin, .ckpt or .safetensors checkpoint",
    )


def is_safetensors(path: Path) -> bool:
    """Whether the content looks like a safetensors file, whatever its name; such a file has lost its tensors' order."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path, size: int, header: int) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if 8 + header > size:
        raise CheckpointError(
            f"`{path}` claims a header of {header} bytes but has {size} bytes", hint="copy or download the file again"
        )
    try:
        with safe_open(path, framework="pt") as file:
            if "lrcompress" in (file.metadata() or {}):
                raise CheckpointError(f"`{path}` is compressed already", hint=f"lrcompress inspect {path}")
        return load_file(path)
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` is a damaged safetensors file: {error}", hint="copy or download the file again"
        ) from error


def _read_torch_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` is a damaged torch file: {error}", hint="copy or download the file again"
        ) from error
    if "constants.pkl" in names:
        raise CheckpointError(
            f"`{path}` is a TorchScript archive, which holds a program",
            hint=SAVE_HINT,
        )
    if "data.pkl" not in names:
        raise CheckpointError(f"`{path}` is a zip archive without a torch checkpoint", hint=SAVE_HINT)
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
    try:
        # Opened here: given a path, torch would go by its name.
        with path.open("rb") as file, torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return torch.load(file, map_location="cpu", weights_only=True)
    # torch.load raises nearly anything on damaged files (EOFError, RuntimeError, UnpicklingError, KeyError, …).
    except Exception as error:
        blocked = _blocked_globals(path, str(error))
        if blocked:
            raise CheckpointError(
                f"`{path}` holds pickled objects, which could run code when read: {', '.join(blocked)}",
                hint=SAVE_HINT,
            ) from error
        raise CheckpointError(
            f"`{path}` is a damaged torch file: {_reason(error)}", hint="copy or download the file again"
        ) from error


def _reason(error: Exception) -> str:
    # torch puts its advice to read the file without precautions before the reason.
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _blocked_globals(path: Path, message: str) -> list[str]:
    """Returns the names of the pickled classes and functions that are not on the allow-list."""
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    # The scan knows zip files only; for legacy files the message of the refusal names the first one.
    except Exception:
        return re.findall(r"GLOBAL ([\w.]+)", message)[:1]


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config.json of a Hugging Face folder.

    Raises:
        CheckpointError: if it is not a JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{folder / 'config.json'}` cannot be read: {error}", hint="get it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"`{folder / 'config.json'}` is not a JSON object", hint="get it again")
    return config
