"""Where a network stops being finite."""

import torch
from torch import Tensor, nn

from lrcompress.measure import eval_mode


def find_not_finite(model: nn.Module, pixels: Tensor) -> str:
    """Returns " (first in `name`)" for the first layer of the forward pass that puts out infinities or NaN.

    An empty text if there is none: the logits are finite, what is made of them is not.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, arguments: object, output: object) -> None:
        wrong = isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all()
        if wrong and not found and next(module.children(), None) is None:
            found.append(names.get(id(module), type(module).__name__))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        with torch.no_grad(), eval_mode(model):
            model(pixels)
    finally:
        handle.remove()
    return f" (first in `{found[0]}`)" if found else ""
