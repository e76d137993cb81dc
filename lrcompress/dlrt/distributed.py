"""Several processes that train one model: averages, and agreement. Alone, all of it does nothing.

Every process keeps the same factors. Gradients are averaged in the factored space, where they are small; bases, cores
and ranks after a decomposition come from process 0, so that no process drifts by the rounding of another machine.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Returns (the number of this process, the number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by their averages over the processes; one that a process has not is zero there.

    Which layers a batch reaches may depend on its images: what one process alone has reached all of them step on.
    """
    _, count = world()
    if count == 1:
        return
    parameters = list(parameters)
    reached = torch.tensor([parameter.grad is not None for parameter in parameters], device=parameters[0].device)
    dist.all_reduce(reached := reached.to(torch.int32))
    shared = [parameter for parameter, times in zip(parameters, reached.tolist(), strict=True) if times]
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in shared]
    _in_one_piece_(gradients, lambda flat: dist.all_reduce(flat.div_(count)))
    for parameter, gradient in zip(shared, gradients, strict=True):
        parameter.grad = gradient


def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors by those of process 0, whose shapes they must have."""
    if world()[1] > 1:
        _in_one_piece_(tensors, lambda flat: dist.broadcast(flat, 0))


def _in_one_piece_(tensors: Iterable[Tensor], change_: Callable[[Tensor], object]) -> None:
    """Changes many tensors at once, those of one type in one call."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for some in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        change_(flat)
        for tensor, values in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(values.view_as(tensor))


def agree(value: T) -> T:
    """Returns process 0's value, of any kind that can be pickled."""
    if world()[1] == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def total(value: float, device: torch.device) -> float:
    """Returns the sum of all processes' values."""
    if world()[1] == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(box)
    return float(box)
