"""Parameters, bytes and multiply-accumulate operations of a whole model, biases and norms included."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def tensor_bytes(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Returns the bytes of all tensors in the state dict, with floating-point ones stored as `dtype`."""
    return sum(
        value.numel() * (dtype.itemsize if value.is_floating_point() else value.element_size())
        for value in model.state_dict().values()
    )


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Returns the multiply-accumulate operations for one image: half of torch's count of floating-point operations.

    Convolutions, matrix products and attention count; element-wise operations do not.

    Args:
        model: takes images of the given size.
        input_size: (channels, height, width).
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2
