"""The images that are kept from training: how many there are, and what a network gets right of them."""

import torch
from torch import nn

from lrcompress.data import ImageSet, count_training_batches, random_subset, shard_images, split_held_out
from lrcompress.dlrt.adversary import Adversary
from lrcompress.dlrt.distributed import total, world
from lrcompress.dlrt.settings import TrainingOptions
from lrcompress.errors import DataError, OptionError
from lrcompress.measure import measure_accuracy

ROBUST_IMAGES = 1000  # held-out images that are attacked after each epoch of adversarial training
# Below these numbers a fine-tuning is doubtful: images in all, to train on, to choose the best state on.
FEW_IMAGES, FEW_TO_TRAIN, FEW_HELD_OUT = 1000, 500, 100


def divide_images(images: ImageSet, options: TrainingOptions) -> tuple[ImageSet, ImageSet]:
    """Returns (what is trained on, what is held out).

    Raises:
        DataError: if there are too few images for one batch.
        OptionError: if there would be enough, were fewer of them held out.
    """
    rest, held_out = split_held_out(images, fraction=options.held_out, seed=options.seed)
    if _count_batches(rest, options) > 0:
        return rest, held_out
    usual, _ = split_held_out(images, fraction=TrainingOptions.held_out, seed=options.seed)
    if _count_batches(usual, options) > 0:
        raise OptionError(
            f"--held-out {options.held_out} leaves {len(rest)} of {len(images):,} training images to train on",
            hint=f"--held-out {TrainingOptions.held_out}",
        )
    raise DataError(f"{len(images)} training images are too few", hint="fine-tuning needs thousands of images")


def doubt_amounts(rest: ImageSet, held_out: ImageSet, options: TrainingOptions) -> str:
    """Returns why there may be too few images to train on or to choose the best state on; "" if there are enough."""
    images = len(rest) + len(held_out)
    if images < FEW_IMAGES:
        return (
            f"{images} training images are few to fine-tune on, and the best state is chosen on {len(held_out)} of "
            "them; thousands are better"
        )
    if len(rest) < FEW_TO_TRAIN:
        return f"--held-out {options.held_out} leaves {len(rest)} of {images:,} training images to train on"
    if len(held_out) < FEW_HELD_OUT:
        return (
            f"--held-out {options.held_out} leaves {len(held_out)} of {images:,} training images to choose the best "
            "state on"
        )
    return ""


class HeldOut:
    """Measures networks on held-out images, of which each process takes a part.

    Args:
        images: all of them.
        adversary: perturbs some of them; None without adversarial training.
        device: where the networks are.
        seed: of the run.
    """

    def __init__(self, images: ImageSet, adversary: Adversary | None, device: torch.device, *, seed: int) -> None:
        attacked = random_subset(images, ROBUST_IMAGES, seed=seed)
        self.adversary, self.device, self.seed = adversary, device, seed
        self.count, self.attacked_count = len(images), len(attacked)
        self.images, self.attacked = shard_images(images, *world()), shard_images(attacked, *world())

    def accuracy(self, model: nn.Module) -> float:
        """Returns the share of right answers, in [0, 1]."""
        right = measure_accuracy(model, self.images) * len(self.images) if len(self.images) else 0.0
        return round(total(right, self.device)) / self.count

    def robust_accuracy(self, model: nn.Module) -> float | None:
        """Returns that on perturbed images, by the training's own adversary and no more; None without one."""
        if self.adversary is None:
            return None
        count, right = len(self.attacked), 0.0
        if count:
            right = count * self.adversary.accuracy(model, self.attacked, seed=self.seed)
        return round(total(right, self.device)) / self.attacked_count


def _count_batches(images: ImageSet, options: TrainingOptions) -> int:
    return count_training_batches(len(images), batch_size=options.batch_size, processes=world()[1])
