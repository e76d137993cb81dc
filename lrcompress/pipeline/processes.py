"""Several processes for one compression, as `torchrun` starts them."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from lrcompress.data import ImageSet, count_training_batches
from lrcompress.dlrt import TrainingOptions, divide_images, world
from lrcompress.errors import LRCompressError, OptionError, TrainingError

# What torch says when another process does not answer any more.
LOST_PROCESS = re.compile(r"connection (was )?(closed|reset)|broken pipe|timed ?out|gloo|nccl", re.IGNORECASE)
PATIENCE = timedelta(hours=2)  # for process 0, which plans while the others wait


RESUME = "start all again with --resume, which goes on from the last saved state if there is one"


@contextmanager
def joined_processes(device: str, *, hint: str = RESUME) -> Iterator[str]:
    """Joins the processes that `torchrun` has started for a while, and yields the device of this one.

    Alone it does nothing. With GPUs each process of a machine has one of its own, and they talk by NCCL, else by gloo.

    An error, of one process or of all, is raised in one of them; the others end with exit code 1, without a word.

    Args:
        device: that was asked for.
        hint: how to go on after another process has ended.

    Raises:
        OptionError: if there are more processes than GPUs.
        TrainingError: if another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if dist.is_initialized():  # by whoever calls, who also decides who tells of errors
        with _explained_loss(hint):
            yield device
        return
    if device.startswith("cuda"):
        device = _own_gpu()
    store, rank, size = next(rendezvous("env://"))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed: Any = dist  # torch's own name for the store is not among those that it exports
    joined = distributed.PrefixStore("processes", store)
    dist.init_process_group(backend, store=joined, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        with _explained_loss(hint):
            yield device
    except BaseException as error:
        if _is_first_to_tell(store, rank):
            raise
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()


@contextmanager
def _explained_loss(hint: str) -> Iterator[None]:
    """Turns what this process notices of another one's end into an explained error."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LRCompressError) or not LOST_PROCESS.search(str(error)):
            raise
        raise TrainingError(
            "another process of the run has ended",
            hint=hint,
        ) from error


def check_processes(
    then: int, images: ImageSet, training: TrainingOptions, *, on_notice: Callable[[str], None]
) -> None:
    """Checks whether a run that was started with some number of processes can go on with those that there are.

    Batches are divided among the processes, and the result is the same to rounding. But a last batch of an epoch that
    is too small for all of them is left out, and the steps are then others.

    Args:
        then: the number of processes that the run was started with.
        images: to train on, the held-out ones among them.
        training: the settings.
        on_notice: is told that the bytes will be others.

    Raises:
        OptionError: if the steps would be others.
    """
    now = world()[1]
    if then == now:
        return
    count, batch = len(divide_images(images, training)[0]), training.batch_size
    before, after = (count_training_batches(count, batch_size=batch, processes=number) for number in (then, now))
    if before != after:
        raise OptionError(
            f"the run was started with {_count(then)} and {before} steps per epoch; with {_count(now)} there would be "
            f"{after}, as each process needs two images of every batch",
            hint=f"resume with {then}: torchrun --nproc-per-node {then}",
        )
    on_notice(
        f"the run was started with {_count(then)} and goes on with {_count(now)}: it is the same to rounding only"
    )


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _own_gpu() -> str:
    """Returns the GPU of this process, and makes it torch's current one."""
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    processes = max(number + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if processes > there:
        raise OptionError(
            f"{processes} processes on this machine, but {there} GPUs",
            hint="--nproc-per-node for torchrun at most the number of GPUs",
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def _is_first_to_tell(store: Any, rank: int) -> bool:
    """Whether this process is the first one that has an error to tell."""
    try:
        return store.compare_set("told by", "", str(rank)) == str(rank).encode()
    except RuntimeError:  # process 0, which kept the store, is gone
        return True
