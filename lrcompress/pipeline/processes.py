"""Several processes for one compression, as `torchrun` starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from lrcompress.errors import OptionError


@contextmanager
def joined_processes(device: str) -> Iterator[str]:
    """Joins the processes that `torchrun` has started for a while, and yields the device of this one.

    Alone it does nothing. With GPUs each process of a machine has one of its own, and they talk by NCCL, else by gloo.

    Raises:
        OptionError: if there are more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.startswith("cuda"):
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= torch.cuda.device_count():
            raise OptionError(
                f"{number + 1} processes on this machine, but {torch.cuda.device_count()} GPUs",
                hint="--nproc-per-node for torchrun at most the number of GPUs",
            )
        torch.cuda.set_device(number)
        device = f"cuda:{number}"
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
