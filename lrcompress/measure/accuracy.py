"""Clean accuracy, image by image."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lrcompress.data import ImageSet, iterate_batches
from lrcompress.errors import DataError, EvaluationError
from lrcompress.measure.mode import eval_mode


def predict_correct(model: nn.Module, images: ImageSet, *, batch_size: int = 256) -> Bool[Tensor, "n"]:
    """Returns for each image whether the model's top class is its label.

    Runs in eval mode, on the model's device, in the model's precision, and restores the mode.

    Args:
        model: takes images in [0, 1].
        images: the images.
        batch_size: images at a time.

    Raises:
        DataError: if a label lies outside of the model's classes.
        EvaluationError: if a logit is not finite: comparing with NaN would count as a wrong answer at best.
    """
    device = next(model.parameters()).device
    bits = []
    with torch.inference_mode(), eval_mode(model):
        for pixels, labels in iterate_batches(images, batch_size=batch_size):
            logits = model(pixels.to(device))
            if not torch.isfinite(logits).all():
                raise EvaluationError(
                    "the model's logits are not finite", hint="check the weights and the preprocessing"
                )
            if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
                wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
                raise DataError(
                    f"the images have label {wrong}, the model {logits.shape[1]} classes",
                    hint="give the data set the model was trained on",
                )
            bits.append((logits.argmax(1).cpu() == labels).clone())
    return torch.cat(bits)


def measure_accuracy(model: nn.Module, images: ImageSet, *, batch_size: int = 256) -> float:
    """Returns the share of images whose top class is their label, in [0, 1]."""
    return float(predict_correct(model, images, batch_size=batch_size).double().mean())
