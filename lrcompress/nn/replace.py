"""Replacing a module inside of a model, and copies of a model to do so in."""

import copy
from typing import Any

from torch import nn


def twin(model: nn.Module) -> nn.Module:
    """Returns a copy of the model's modules that shares all parameters and buffers with it, and so costs no memory."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def replace_module_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the submodule called `name` and takes over its training flag.

    Raises:
        AttributeError: if the model has no submodule of that name.
    """
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    module.train(parent.get_submodule(child).training)
    setattr(parent, child, module)


def meta_twin(model: nn.Module) -> nn.Module:
    """Returns a copy of the model without values: its forward pass finds shapes and calls, and computes nothing."""
    shared: dict[int, Any] = {}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    shared |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, shared)
