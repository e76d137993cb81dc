"""The tensors of a model as they are stored: contiguous, each once, in the order of their names."""

import hashlib
import json
import struct
from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
    # Only what is stored: other buffers are made anew on loading, in float32.
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(getattr(torch, dtype)))


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 over names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a safetensors file; the same for the same tensors and metadata.

    safetensors itself writes several metadata keys in random order, so its header is written again, sorted.
    """
    from safetensors.torch import save

    content = save(dict(tensors))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": dict(metadata)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned to eight bytes
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
