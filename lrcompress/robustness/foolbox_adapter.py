"""foolbox behind one function, with its traps closed.

- `import foolbox` fails where there is no git program unless GIT_PYTHON_REFRESH is set first.
- `device=None` would move the model to cuda:0.
- Bounds are checked by a bare assert, NaN logits count as robust, attacks need gradients of the input only: all of
  that is seen to here and in `evaluate`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrcompress.errors import EvaluationError
from lrcompress.perturb import perturbation_sizes
from lrcompress.robustness.attacks import ATTACKS, AttackSettings, relative_stepsize

# Rounding of x + δ − x in float32.
BALL_SLACK = 1e-6


@contextmanager
def ready_for_attack(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the model in eval mode and float32 with frozen parameters, and restores everything afterwards.

    Frozen parameters spare each attack step the weight gradients, a third of its cost.
    """
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        model.requires_grad_(False).eval()
        yield model
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        for module, training in modes.items():
            module.training = training


def make_attack(name: str, settings: AttackSettings) -> Any:
    """Returns the foolbox attack of a row of the table."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox.attacks

    kind = ATTACKS[name]
    attack_class = getattr(foolbox.attacks, kind.foolbox[settings.norm])
    if not kind.iterated:
        return attack_class()
    return attack_class(rel_stepsize=relative_stepsize(settings.steps), steps=settings.steps, random_start=True)


def run_attack(
    attack: Any,
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    *,
    eps: float,
    settings: AttackSettings,
    seed: int,
) -> Float[Tensor, "n c h w"]:
    """Returns the attacked images, all within ε and in [0, 1].

    Args:
        attack: from `make_attack`.
        model: takes images in [0, 1], inside of `ready_for_attack`.
        images: the clean images, on the model's device.
        labels: their classes.
        eps: the radius in pixel units.
        settings: norm.
        seed: of the random start; the global generators are as before afterwards.

    Raises:
        EvaluationError: if the attack left the ball or the range of pixels; the figures would be void.
    """
    from foolbox.models.pytorch import PyTorchModel

    device = images.device
    wrapped = PyTorchModel(model, bounds=(0.0, 1.0), device=device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        _, attacked, _ = attack(wrapped, images, labels, epsilons=eps)
    attacked = attacked.detach()
    size = float(perturbation_sizes(attacked - images, settings.norm).max())
    if size > eps * (1 + BALL_SLACK) + BALL_SLACK or float(attacked.min()) < 0 or float(attacked.max()) > 1:
        raise EvaluationError(
            f"{type(attack).__name__} left its ball: {size:g} > {eps:g}", hint="please report this with your versions"
        )
    return attacked
