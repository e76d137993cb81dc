"""How steep a model is at the clean images: diagnostics, which certify nothing."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.perturb import Norm
from lrcompress.robustness.blocks import KnownBlock
from lrcompress.robustness.iterated import Passes

# A perturbation of size ε in a norm changes a linear function by at most ε times the dual norm of its gradient.
DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": torch.inf}


def measure_gradients(
    model: nn.Module, known: KnownBlock, norm: Norm, *, batch_size: int, passes: Passes
) -> tuple[Float[Tensor, "n"], Float[Tensor, "k"]]:
    """Returns the dual norms of the loss's gradient, and first-order margins of the images that the model knows.

    The margin is the lead of the right logit over the next one, divided by the dual norm of its gradient: where a
    linear network would change its answer; infinite without a gradient.
    """
    norms, margins = [], []
    for part in torch.arange(len(known.block.labels), device=known.block.labels.device).split(batch_size):
        pixels = known.block.pixels[part].detach().requires_grad_(True)
        labels = known.block.labels[part]
        with torch.enable_grad():
            logits = model(pixels)
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            right = logits.gather(1, labels[:, None])[:, 0]
            lead = right - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            (of_loss,) = torch.autograd.grad(loss, pixels, retain_graph=True)
            (of_lead,) = torch.autograd.grad(lead.sum(), pixels)
        passes.forward += len(part)
        passes.backward += 2 * len(part)
        norms.append(_sizes(of_loss, norm))
        size, clean = _sizes(of_lead, norm), known.clean[part]
        margins.append(torch.where(size > 0, lead.detach() / size, torch.inf)[clean])
    return torch.cat(norms), torch.cat(margins)


def _sizes(gradients: Tensor, norm: Norm) -> Float[Tensor, "n"]:
    return torch.linalg.vector_norm(gradients.flatten(1), ord=DUAL[norm], dim=1)
