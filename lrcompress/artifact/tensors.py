"""The tensors of a model as they are stored: contiguous, each once, in the order of their names."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import ArtifactError

METADATA_KEY = "lrcompress"


def stored_tensors(model: nn.Module, dtype: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns (tensors to store by name, names of shared tensors with the name they are stored under).

    Args:
        model: its weights already rounded to `dtype`, see `round_weights_`.
        dtype: the floating-point type to store.
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, value in sorted(model.state_dict().items()):
        if value.dtype not in _TYPES:
            raise ArtifactError(
                f"`{name}` is of type {str(value.dtype).removeprefix('torch.')}, which a safetensors file has not",
                hint="store it in another form in the network's state dict",
            )
        place = (value.data_ptr(), tuple(value.shape), tuple(value.stride()))
        if value.numel() > 0 and place in first:
            shared[name] = first[place]
            continue
        first[place] = name
        stored = value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        tensors[name] = stored.detach().cpu().contiguous()
    return tensors, shared


def round_weights_(model: nn.Module, dtype: str) -> None:
    """Rounds all weights and buffers to the type they will be stored in, and keeps them in float32.

    What is measured is then exactly what is shipped.
    """
    if dtype == "float32":
        return
    rounded: dict[int, Tensor] = {}  # by what it was, so that shared tensors stay shared
    for module in model.modules():
        # Only what is stored: other buffers are made anew on loading, in float32.
        stored = module.state_dict(keep_vars=True)
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name not in stored or not value.is_floating_point():
                continue
            # A new tensor: the old one may be the uncompressed network's too.
            if id(value) not in rounded:
                copy = value.detach().to(getattr(torch, dtype)).to(value.dtype)
                is_parameter = isinstance(value, nn.Parameter)
                rounded[id(value)] = nn.Parameter(copy, value.requires_grad) if is_parameter else copy
            setattr(module, name, rounded[id(value)])


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 over names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(_content(value))
    return digest.hexdigest()


def iterate_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yields the bytes of a safetensors file piece by piece; the same for the same tensors and metadata.

    safetensors itself copies all tensors before it writes them, and puts several metadata keys in random order.

    Args:
        tensors: contiguous, on the CPU.
        metadata: of the file.
    """
    # Wide types first, which keeps every tensor aligned to its type.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for name in names:
        value = tensors[name]
        header[name] = {
            "dtype": _TYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [place, place + value.nbytes],
        }
        place += value.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned to eight bytes
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield _content(tensors[name])


def _content(value: Tensor) -> memoryview:
    array: Any = value.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
