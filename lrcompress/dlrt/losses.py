"""What is minimised: the labels' cross-entropy, distillation, and the losses of adversarial training."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.dlrt.adversary import Adversary
from lrcompress.errors import DataError


def distillation_loss(
    logits: Float[Tensor, "n classes"], wanted: Float[Tensor, "n classes"], *, temperature: float
) -> Float[Tensor, ""]:
    """Returns T²·KL(teacher ‖ student) of the softened distributions, averaged over the images.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2; T² keeps the gradient's size independent of T.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(wanted / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Objective:
    """The loss of a batch, without the conditioning penalty.

    Args:
        model: what is trained.
        teacher: what it is to resemble; None without distillation.
        distill: weight in [0, 1] of the distillation; the labels get the rest.
        temperature: T of the distillation.
        label_smoothing: share of the labels' weight that is spread over all classes.
        adversary: perturbs the images that are trained on; None trains on them as they are.
        trades: λ; positive trains on clean images and adds λ·KL(clean ‖ perturbed).
        bfloat16: whether the forward passes are under autocast.

    Source of the last: Zhang et al. 2019 (arXiv 1901.08573), TRADES; here `trades`, theirs 1/λ.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: nn.Module | None,
        distill: float,
        temperature: float,
        label_smoothing: float,
        adversary: Adversary | None,
        trades: float,
        bfloat16: bool,
    ) -> None:
        self.model, self.teacher = model, teacher if distill > 0 else None
        self.distill, self.temperature, self.label_smoothing = distill, temperature, label_smoothing
        self.adversary, self.trades, self.bfloat16 = adversary, trades, bfloat16

    def __call__(
        self, pixels: Float[Tensor, "n c h w"], labels: Tensor, *, seed: int, place: tuple[int, int] | None = None
    ) -> Float[Tensor, ""]:
        """Returns the mean loss of a batch.

        Args:
            pixels: images in [0, 1].
            labels: class indices, or a distribution over the classes per image.
            seed: of the perturbations' starts.
            place: see `Adversary.perturb`.
        """
        seen = pixels
        if self.adversary is not None and self.trades == 0:
            seen = self.adversary.perturb(self.model, pixels, labels, seed=seed, place=place)
        logits = self._logits(self.model, seen)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self._logits(self.teacher, pixels)
            distilled = distillation_loss(logits, wanted, temperature=self.temperature)
            loss = torch.lerp(loss, distilled, self.distill)
        if self.adversary is not None and self.trades > 0:
            clean = logits.detach()
            perturbed = self.adversary.perturb(self.model, pixels, clean.softmax(1), seed=seed, place=place)
            apart = F.log_softmax(self._logits(self.model, perturbed), dim=1)
            loss = loss + self.trades * F.kl_div(apart, logits.log_softmax(1), reduction="batchmean", log_target=True)
        return loss

    def _logits(self, model: nn.Module, pixels: Tensor) -> Float[Tensor, "n classes"]:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Any = model(pixels)
        if isinstance(logits, tuple):  # with auxiliary classifiers, which inference does not use
            logits = logits[0]
        return logits.float()


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises `DataError` if a label is none of the model's classes; shares of classes are not looked at."""
    if labels.is_floating_point():
        return
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or largest >= classes:
        wrong = smallest if smallest < 0 else largest
        raise DataError(
            f"the training images have label {wrong}, the model {classes} classes",
            hint="give the data set the model was trained on",
        )
