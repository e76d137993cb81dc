"""The perturbations of adversarial training."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.data import ImageSet, iterate_batches
from lrcompress.measure import eval_mode
from lrcompress.perturb import Norm, ascend, project, random_start

AdversaryKind = Literal["fgsm-rs", "pgd"]
FGSM_STEP = 1.25  # of ε, Wong et al. 2020


@dataclass(frozen=True)
class Adversary:
    """Finds perturbed images on which a model's loss is high, for training: fast, not strong.

    Attributes:
        kind: "fgsm-rs", one step of 1.25 ε from a random start, or "pgd", several of 2.5 ε / steps.
        eps: radius of the ball in pixel units of [0, 1] images.
        norm: of the ball.
        steps: of "pgd".
        share: part of each batch that is perturbed, in (0, 1].
        bfloat16: whether the passes are under autocast.

    Source: Wong, Rice, Kolter 2020 (arXiv 2001.03994); Madry et al. 2018 (arXiv 1706.06083).
    """

    kind: AdversaryKind
    eps: float
    norm: Norm = "linf"
    steps: int = 7
    share: float = 1.0
    bfloat16: bool = False

    def perturb(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Tensor,
        *,
        seed: int,
        place: tuple[int, int] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Returns the images with the first part of the batch perturbed; the model is as it was before.

        The model answers in eval mode: what it would normalise a batch of attacked images by must not be learned.

        Args:
            model: takes images in [0, 1].
            images: a shuffled batch.
            labels: class indices, or a distribution over the classes per image.
            seed: of the starts.
            place: (number of the first image in the whole batch, images in the whole batch), where these images are a
                part of a batch: what happens to an image does not depend on how the batch is divided.
        """
        first, whole = place or (0, len(images))
        count = min(max(0, max(1, round(self.share * whole)) - first), len(images))
        if count == 0:
            return images
        chosen, wanted = images[:count], labels[:count]
        steps = 1 if self.kind == "fgsm-rs" else self.steps
        size = FGSM_STEP * self.eps if self.kind == "fgsm-rs" else 2.5 * self.eps / steps
        generator = torch.Generator().manual_seed(seed)
        moved = random_start(chosen, self.eps, self.norm, generator=generator, place=(first, whole))
        with eval_mode(model):
            for _ in range(steps):
                moved = moved.detach().requires_grad_(True)
                with torch.enable_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16):
                    loss = F.cross_entropy(model(moved).float(), wanted, reduction="sum")
                # The pixels only: the gradients of the weights are not computed.
                (gradient,) = torch.autograd.grad(loss, moved)
                moved = project(ascend(moved.detach(), gradient, size, self.norm), chosen, self.eps, self.norm)
        return torch.cat([moved.detach(), images[count:]])

    def accuracy(self, model: nn.Module, images: ImageSet, *, seed: int) -> float:
        """Returns the share of right answers on perturbed images, in [0, 1].

        Args:
            model: takes images in [0, 1].
            images: labelled images, all of which are perturbed.
            seed: of the starts.
        """
        device = next(model.parameters()).device
        whole, right = replace(self, share=1.0), 0
        for pixels, labels in iterate_batches(images, batch_size=256):
            pixels, labels = pixels.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)
            perturbed = whole.perturb(model, pixels, labels, seed=seed)
            with torch.inference_mode(), eval_mode(model):
                right += int((model(perturbed).argmax(1) == labels).sum())
        return right / len(images)
