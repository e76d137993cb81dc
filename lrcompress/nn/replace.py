"""Replacing a module inside of a model."""

from torch import nn


def replace_module_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the submodule called `name` and takes over its training flag.

    Raises:
        AttributeError: if the model has no submodule of that name.
    """
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    module.train(parent.get_submodule(child).training)
    setattr(parent, child, module)
