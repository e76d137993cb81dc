"""The batches of one training epoch: shuffled, augmented, divided among processes, the same however they are made."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrcompress.data.augment import Augmentation, shift_and_mirror
from lrcompress.data.augment_pictures import PictureAugmentation, mode_of_channels, to_picture
from lrcompress.data.images import ImageSet, fetch
from lrcompress.data.mixing import mix_neighbours
from lrcompress.data.pictures import PictureDataset, find_pictures, replace_transform
from lrcompress.data.randomness import EpochDraws, draw_epoch, global_generators_kept, seed_globally_, seed_of
from lrcompress.errors import DataError, LRCompressError, OptionError

Batch = tuple[Float[Tensor, "n c h w"], Int[Tensor, "n"] | Float[Tensor, "n classes"]]


def count_training_batches(count: int, *, batch_size: int, processes: int = 1) -> int:
    """Returns how many batches an epoch of `count` images has.

    A last batch with fewer than two images for each process is left out: batch norm cannot train on one image.
    """
    return count // batch_size + (count % batch_size >= 2 * processes)


def iterate_training_batches(
    images: ImageSet,
    augmentation: Augmentation,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    classes: int | None,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    first_batch: int = 0,
) -> Iterator[Batch]:
    """Yields the batches of one epoch: (images in [0, 1], class indices or, of mixed images, shares of classes).

    What happens to an image depends on the seed, the epoch and its position in the epoch's order only. So the batches
    are the same for any number of workers, from any first batch on, and together for any number of processes. The
    global generators are left alone.

    Args:
        images: the training images; they are not changed, nor is anything they are a part of.
        augmentation: what is done to them.
        batch_size: images per batch of all processes together.
        epoch: at least 0; each has its own order and its own augmentation.
        seed: of the run.
        classes: number of the network's classes, needed for mixing only.
        workers: processes that prepare batches ahead; 0 prepares each when it is asked for.
        shard: (rank, number) of the processes that train together: batch after batch, each gets its contiguous part,
            of sizes that differ by one at most. Images are mixed across the parts' borders.
        first_batch: the batch to begin with; the images before it are not read.

    Raises:
        OptionError: if there are fewer than two images per process in a batch, the number of classes is missing, or
            the images have a number of channels that the augmentation cannot handle.
        DataError: if an image cannot be read, or its label is none of the classes.
    """
    rank, processes = shard
    if not 0 <= rank < processes:
        raise OptionError(f"shard must be (rank, processes) with 0 <= rank < processes, got {shard}")
    if batch_size < 2 * processes:
        raise OptionError(
            f"--batch-size must be at least {2 * processes}, two images for each process, got {batch_size}",
            hint="batch norm cannot train on one image",
        )
    if augmentation.mixes and classes is None:
        raise OptionError("--mixup and --cutmix need the number of classes", hint="pass classes=")
    assert first_batch >= 0
    draws = draw_epoch(len(images), augmentation, seed=seed, epoch=epoch)
    batches = _Batches(images.dataset, augmentation, draws, batch_size, epoch, seed, classes, shard)
    return _deliver(batches, range(first_batch, len(batches)), workers)


def _deliver(batches: "_Batches", numbers: range, workers: int) -> Iterator[Batch]:
    if workers == 0:
        yield from (batches.make(number) for number in numbers)
        return
    with warnings.catch_warnings():
        # More workers than cores are the user's decision. Python warns of forking beside the threads that torch starts.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_the_process_group,
            # One of its own: a loader without one draws from the global generator.
            generator=torch.Generator(),
        )
        loaded = iter(loader)
    for batch in loaded:
        if isinstance(batch, LRCompressError):
            raise batch
        yield batch


@contextmanager
def telling_of_ended_workers() -> Iterator[None]:
    """Raises a `DataError` where a process that reads images has been ended from outside, by the system perhaps.

    Torch tells of it by a signal, in the middle of whatever is being done then.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a process that reads images was ended", hint="fewer --workers need less memory, --workers 0 none"
        ) from error


def _leave_the_process_group(worker: int) -> None:
    """Who asks a whole process group to end, as a terminal and `timeout` do, means the run, which saves its state."""
    del worker
    os.setpgid(0, 0)


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True, eq=False)
class _Batches(Dataset[Any]):
    """The parts of an epoch's batches that one process gets: a function of the batch's number and nothing else."""

    dataset: Dataset[Any]
    augmentation: Augmentation
    draws: EpochDraws
    batch_size: int
    epoch: int
    seed: int
    classes: int | None
    shard: tuple[int, int]

    def __len__(self) -> int:
        return count_training_batches(len(self.draws.order), batch_size=self.batch_size, processes=self.shard[1])

    def __getitem__(self, number: int) -> Batch | LRCompressError:
        """Returns a batch, or the error that occurred: raised in a worker, it would lose its hint."""
        try:
            return self.make(number)
        except LRCompressError as error:
            return error

    def make(self, number: int) -> Batch:
        """Returns this process's part of a batch."""
        start = number * self.batch_size
        size = min(self.batch_size, len(self.draws.order) - start)
        rank, processes = self.shard
        first, last = rank * size // processes, (rank + 1) * size // processes
        if not self.augmentation.mixes:
            return self._load(range(start + first, start + last))
        assert self.classes is not None
        # A neighbour beyond the part's border is loaded too.
        begin, end = first - first % 2, min(size, last + last % 2)
        pixels, labels = self._load(range(start + begin, start + end))
        source = seed_of("batch", seed=self.seed, epoch=self.epoch, number=number)
        pixels, targets = mix_neighbours(pixels, labels, self.augmentation, classes=self.classes, source=source)
        return pixels[first - begin : last - begin], targets[first - begin : last - begin]

    def _load(self, positions: range) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n"]]:
        """Returns the augmented images at these positions of the epoch's order, and their labels."""
        chosen = slice(positions.start, positions.stop)
        indices = self.draws.order[chosen].tolist()
        if self.augmentation.changes_pictures:
            with global_generators_kept():
                pixels, labels = self._change_pictures(indices, positions)
        else:
            pixels, labels = fetch(self.dataset, indices)
        padding = self.augmentation.padding
        if padding > 0 or self.augmentation.flip:
            shifts, mirrored = self.draws.shifts[chosen], self.draws.mirrored[chosen]
            pixels = shift_and_mirror(pixels, padding=padding, shifts=shifts, mirrored=mirrored)
        return pixels, labels

    def _change_pictures(
        self, indices: list[int], positions: range
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n"]]:
        """Returns the images after what PIL does to them, one by one, each from random numbers of its own."""
        pictures = _original_pictures(self.dataset, self.augmentation)
        if pictures is None:
            pixels, labels = fetch(self.dataset, indices)
            mode = mode_of_channels(pixels.shape[1])
            change = PictureAugmentation(self.augmentation, size=(pixels.shape[2], pixels.shape[3]), mode=mode)
            changed = []
            for image, position in zip(pixels, positions, strict=True):
                self._seed_image_(position)
                changed.append(change(to_picture(image)))
            return torch.stack(changed), labels
        change = PictureAugmentation(self.augmentation, size=pictures.size, mode=pictures.mode)
        dataset, items = replace_transform(self.dataset, change), []
        for index, position in zip(indices, positions, strict=True):
            self._seed_image_(position)
            items.append(fetch(dataset, [index]))
        pixels, labels = zip(*items, strict=True)
        return torch.cat(pixels), torch.cat(labels)

    def _seed_image_(self, position: int) -> None:
        seed_globally_(seed_of("image", seed=self.seed, epoch=self.epoch, number=position))


def _original_pictures(dataset: Dataset[Any], augmentation: Augmentation) -> PictureDataset | None:
    """Returns the pictures behind the data set if they are needed at full resolution."""
    # RandAugment alone changes what the network would see: the tensors, made of bytes, give these pictures exactly.
    return find_pictures(dataset) if augmentation.crop_scale is not None else None
