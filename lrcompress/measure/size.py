"""Parameters, bytes and multiply-accumulate operations of a whole model, biases and norms included."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.measure.mode import eval_mode
from lrcompress.nn import meta_twin

T = TypeVar("T")


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

    def count(network: nn.Module, image: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            network(image)
        return int(counter.get_total_flops()) // 2

    return run_without_values(model, input_size, count)


def run_without_values(model: nn.Module, input_size: tuple[int, int, int], run: Callable[[nn.Module, Tensor], T]) -> T:
    """Returns what `run` finds in a forward pass of one image, in eval mode and without gradients.

    The pass is made on the meta device: it reads no weight and computes nothing. It also shows every product of an
    attention, where the processor would use a fused kernel that torch's counter does not know. A network whose code
    needs values runs with them.

    Args:
        model: takes images of the given size; not changed.
        input_size: (channels, height, width).
        run: is given the network and the image.
    """
    parameter = next(model.parameters())
    with torch.no_grad():
        try:
            image = torch.zeros(1, *input_size, device="meta", dtype=parameter.dtype)
            return run(meta_twin(model).requires_grad_(False).eval(), image)
        except Exception:  # whatever a network's own code raises without values: with values it is told
            image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
            with eval_mode(model), _without_gradients(model):
                return run(model, image)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Freezes the parameters for a while: torch's counter asks for gradient functions, and there are none."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
