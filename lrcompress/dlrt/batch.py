"""One step on a batch: in parts, over all processes, through loss, penalty and optimiser."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.dlrt.diagnosis import LOWER, find_not_finite
from lrcompress.dlrt.distributed import total, world
from lrcompress.dlrt.losses import Objective, check_labels
from lrcompress.dlrt.optimizer import Dlrt
from lrcompress.errors import TrainingError


def train_on_batch_(
    model: nn.Module,
    dlrt: Dlrt,
    objective: Objective,
    pixels: Float[Tensor, "n c h w"],
    labels: Tensor,
    *,
    classes: int,
    accumulate: int,
    seed: int,
) -> float:
    """Takes one step on this process's part of a batch and returns its loss, averaged over all processes.

    Args:
        model: what is trained, on its device.
        dlrt: its optimiser.
        objective: the loss.
        pixels: images in [0, 1], on any device.
        labels: class indices, or a distribution over the classes per image.
        classes: of the model.
        accumulate: parts that pass through the network one after the other.
        seed: of all random numbers of this step.

    Raises:
        DataError: for a label that the model does not have.
        TrainingError: if the loss, a gradient or a basis is not finite.
    """
    torch.manual_seed(seed + world()[0])
    check_labels(labels, classes)
    model.train()
    device = next(model.parameters()).device
    pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
    labels = labels.to(device)
    images = round(total(len(pixels), device))
    first, whole = images * world()[0] // world()[1], images / world()[1]
    dlrt.zero_grad()
    mean = 0.0
    # As many on all processes, and no part of one image: batch norm cannot train on it.
    parts = max(1, min(accumulate, int(whole) // 2))
    for some, wanted in zip(pixels.tensor_split(parts), labels.tensor_split(parts), strict=True):
        loss = objective(some, wanted, seed=seed, place=(first, images))
        first += len(some)
        # Before it is used: the bases and the optimiser's state must not be made of it.
        if not math.isfinite(value := total(float(loss.detach()), device)):
            raise TrainingError(f"the loss is {value}{find_not_finite(model, some)}", hint=LOWER)
        (loss * (len(some) / whole)).backward()
        mean += float(loss.detach()) * len(some) / whole
    penalty = dlrt.penalty()
    if penalty.requires_grad:
        penalty.backward()
    dlrt.step()
    return total(mean, device) / world()[1]
