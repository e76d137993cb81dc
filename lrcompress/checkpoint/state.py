"""Finds the state dict in what a file holds, and what the file says of its architecture."""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrcompress.checkpoint.read import SAVE_HINT
from lrcompress.errors import CheckpointError
from lrcompress.models.preprocessing import CROPS, INTERPOLATIONS

# timm's order: averaged weights before raw ones.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint.

    Attributes:
        tensors: by name, in the file's order.
        wrapper: the key under which they were found, "" if the file holds them bare.
        architecture: the name the file gives, if it gives one.
        arguments: model arguments the file gives.
        preprocessing: input size and statistics the file gives.
    """

    tensors: Mapping[str, Tensor]
    wrapper: str
    architecture: str | None
    arguments: Mapping[str, Any]
    preprocessing: Mapping[str, Any]


def find_state_dict(content: Any, path: str, *, wrapper: str | None = None) -> StateDict:
    """Returns the state dict in the content of a checkpoint file.

    Args:
        content: what `read_checkpoint` returned.
        path: the file's name, for messages.
        wrapper: the key to take it from; None looks in timm's order.

    Raises:
        CheckpointError: if there is none.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"`{path}` holds a {type(content).__name__}, not a state dict", hint=SAVE_HINT)
    inner = {str(key): value for key, value in content.items() if _is_state_dict(value)}
    if wrapper is not None:
        if wrapper not in inner:
            raise CheckpointError(
                f"`{path}` has no state dict under `{wrapper}`, only under: {', '.join(inner) or 'none'}",
                hint="check --weights-key",
            )
        chosen = wrapper
    else:
        chosen = next((key for key in WRAPPERS if key in inner), "")
    tensors = inner[chosen] if chosen else content
    if not _is_state_dict(tensors):
        found = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
        hint = f"--weights-key {next(iter(inner))}" if inner else SAVE_HINT
        raise CheckpointError(f"`{path}` holds no state dict; its keys are: {found}", hint=hint)
    architecture, arguments, preprocessing = _metadata(content) if chosen else (None, {}, {})
    named = {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}
    named.pop("n_averaged", None)  # the step counter of torch's AveragedModel, not a weight
    return StateDict(named, chosen, architecture, arguments, preprocessing)


def prefix_variants(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields (removed prefix, tensors): first as they are, then with one more wrapper's prefix stripped each time."""
    removed, current = "", dict(tensors)
    yield removed, current
    while current and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in current)), None)):
        removed += prefix
        current = {key.removeprefix(prefix): value for key, value in current.items()}
        yield removed, current


def read_preprocessing(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns what is input size and statistics among the values of a training script or a configuration.

    Scripts leave them empty (timm's `--interpolation ''`) or call other things by these names.
    """
    found: dict[str, Any] = {}
    for key, smallest in (("input_size", 1), ("mean", -math.inf), ("std", math.ulp(0.0))):
        value = values.get(key)
        if not isinstance(value, (list, tuple)) or not value:
            continue
        if all(isinstance(x, (int, float)) and math.isfinite(x) and x >= smallest for x in value):
            found[key] = tuple(value)
    if len(found.get("input_size", (0, 0, 0))) != 3:
        del found["input_size"]
    if isinstance(values.get("crop_pct"), (int, float)) and CROPS[0] <= values["crop_pct"] <= CROPS[1]:
        found["crop_pct"] = float(values["crop_pct"])
    if values.get("interpolation") in INTERPOLATIONS:
        found["interpolation"] = values["interpolation"]
    return found


def check_finite(tensors: Mapping[str, Tensor], path: str) -> None:
    """Raises `CheckpointError` if a tensor holds NaN or infinite values."""
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise CheckpointError(
            f"`{path}` has NaN or infinite values in `{bad[0]}`{more}",
            hint="take an earlier checkpoint of the training run",
        )


def _is_state_dict(value: Any) -> bool:
    """Whether the value is a flat mapping of names to tensors, with at most a few other entries (`_extra_state`)."""
    if not isinstance(value, Mapping) or not value:
        return False
    tensors = sum(isinstance(item, Tensor) for item in value.values())
    nested = any(isinstance(item, Mapping) for item in value.values())
    return tensors > 0 and not nested and all(isinstance(key, str) for key in value) and 2 * tensors > len(value)


def _metadata(content: Mapping[Any, Any]) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    args = content.get("args")
    values: dict[str, Any] = vars(args) if isinstance(args, argparse.Namespace) else {}
    if isinstance(args, Mapping):
        values = {str(key): value for key, value in args.items()}
    names = (content.get("arch"), values.get("model"), values.get("arch"))
    name = next((name for name in names if isinstance(name, str) and name), None)
    given = values.get("model_kwargs")
    arguments = dict(given) if isinstance(given, Mapping) else {}
    for key in ("num_classes", "in_chans"):
        if isinstance(values.get(key), int):
            arguments.setdefault(key, values[key])
    if isinstance(values.get("img_size"), int) and not values.get("input_size"):
        values = values | {"input_size": (arguments.get("in_chans", 3), values["img_size"], values["img_size"])}
    return name, arguments, read_preprocessing(values)
