"""Batch norms that see the whole batch when several processes share it.

torch's `SyncBatchNorm` refuses the processor, and changes the classes of modules; this one changes neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor, nn

from lrcompress.dlrt.distributed import world
from lrcompress.errors import OptionError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def synchronised_batch_norms(model: nn.Module) -> Iterator[None]:
    """Lets all batch norms of a model use the statistics of all processes' images for a while; alone, does nothing.

    Raises:
        OptionError: if the model has a batch norm whose forward pass is its own.
    """
    norms: list[Any] = []
    if world()[1] > 1:
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if type(norm) not in BATCH_NORMS and not hasattr(norm, "act"):
            raise OptionError(
                f"{type(norm).__name__} cannot be trained by several processes", hint="train it in one process"
            )
    try:
        for norm in norms:
            norm.forward = partial(_forward, norm)
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _forward(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:
        mean, variance = norm.running_mean, norm.running_var
        y = F.batch_norm(x, mean, variance, norm.weight, norm.bias, mean is None, 0.0, norm.eps)
    else:
        y = _normalise(norm, x)
    # timm's batch norm with an activation.
    return norm.act(norm.drop(y)) if hasattr(norm, "act") else y


def _normalise(norm: Any, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        values = x.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        dist.all_reduce(count)
        mean = _sum(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = _sum(centred.square().sum(axes)) / count
        if norm.track_running_stats:
            with torch.no_grad():
                norm.num_batches_tracked += 1
                momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
                norm.running_mean.lerp_(mean, momentum)
                norm.running_var.lerp_(variance * count / (count - 1), momentum)
        y = centred * (variance + norm.eps).rsqrt().view(shape)
        if norm.affine:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def _sum(values: Tensor) -> Tensor:
    """Returns the sum over all processes, differentiably."""
    return torch.distributed.nn.functional.all_reduce(values)
