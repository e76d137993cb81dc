"""Mixup and CutMix of neighbours, so that a batch can be cut into parts without changing who is mixed with whom."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrcompress.data.augment import Augmentation
from lrcompress.data.randomness import global_generators_kept, seed_globally_
from lrcompress.errors import DataError


def mix_neighbours(
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    augmentation: Augmentation,
    *,
    classes: int,
    source: np.random.SeedSequence,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"]]:
    """Returns images mixed in pairs, 0 with 1, 2 with 3 and so on, and the classes' shares as targets.

    One share (or one box) is drawn for the whole batch. The last image of an odd number stays as it is.

    Source: Zhang et al. 2018, "mixup", eq. (1), and Yun et al. 2019, "CutMix"; timm's implementation, which mixes a
    batch with its reverse, is given the images in an order in which neighbours meet.

    Args:
        images: a batch in [0, 1].
        labels: class indices.
        augmentation: its `mixup` and `cutmix`, of which one is positive.
        classes: number of classes, the width of the targets.
        source: of the randomness.

    Raises:
        DataError: if a label is not one of the classes.
    """
    from timm.data.mixup import Mixup, mixup_target

    if bool((labels < 0).any()) or bool((labels >= classes).any()):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise DataError(
            f"an image has the label {int(wrong)}, the network has {classes} classes",
            hint="train on images of the network's classes",
        )
    mixup = Mixup(
        mixup_alpha=augmentation.mixup, cutmix_alpha=augmentation.cutmix, label_smoothing=0.0, num_classes=classes
    )
    even = len(labels) // 2 * 2
    meeting = torch.cat([torch.arange(0, even, 2), torch.arange(1, even, 2).flip(0)])
    mixed, targets = images.clone(), mixup_target(labels, classes)
    if even:
        with global_generators_kept():
            seed_globally_(source)
            mixed[meeting], targets[meeting] = mixup(images[meeting], labels[meeting])
    return mixed, targets
