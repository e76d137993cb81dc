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
    """Returns the foolbox attack of a row of the table.

    An iterated attack starts at its attribute `start`: see Note [Paired random starts].
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox.attacks

    kind = ATTACKS[name]
    attack_class = getattr(foolbox.attacks, kind.foolbox[settings.norm])
    if not kind.iterated:
        return attack_class()

    class PairedStart(attack_class):
        """The attack with a random start that its caller has drawn."""

        start: Tensor

        def draw_start(self, images: Tensor, eps: float) -> Tensor:
            """Returns one random start per image."""
            from eagerpy.astensor import astensor

            return super().get_random_start(astensor(images), eps).raw

        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            """Returns the drawn start, as foolbox asks for it."""
            return type(x0)(self.start)

    return PairedStart(rel_stepsize=relative_stepsize(settings.steps), steps=settings.steps, random_start=True)


# Note [Paired random starts]
# Images that are broken leave the batch, and two models lose different ones. Noise drawn for the images that are left
# would then differ between the models for the same image. So it is drawn for the whole batch, and the rows of the
# images that are left are taken from it: each image meets the same noise and the same random starts in both models.


def run_attack(
    name: str,
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    *,
    active: Int[Tensor, "k"],
    eps: float,
    settings: AttackSettings,
    seed: int,
) -> Float[Tensor, "k c h w"]:
    """Returns the attacked images of `active`, all within ε and in [0, 1].

    Args:
        name: of the attack, from the table.
        model: takes images in [0, 1], inside of `ready_for_attack`.
        images: the clean images of a batch, on the model's device.
        labels: their classes.
        active: which of them to attack.
        eps: the radius in pixel units.
        settings: norm and number of steps.
        seed: of everything random; the global generators are as before afterwards.

    Raises:
        EvaluationError: if the attack left the ball or the range of pixels; the figures would be void.
    """
    from foolbox.models.pytorch import PyTorchModel

    attack, kind, device = make_attack(name, settings), ATTACKS[name], images.device
    wrapped = PyTorchModel(model, bounds=(0.0, 1.0), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        if kind.random and not kind.iterated:
            attacked = attack(wrapped, images, labels, epsilons=eps)[1][active]
        else:
            if kind.iterated:
                attack.start = attack.draw_start(images, eps)[active]
            attacked = attack(wrapped, images[active], labels[active], epsilons=eps)[1]
    attacked = attacked.detach()
    size = float(perturbation_sizes(attacked - images[active], settings.norm).max())
    if size > eps * (1 + BALL_SLACK) + BALL_SLACK or float(attacked.min()) < 0 or float(attacked.max()) > 1:
        raise EvaluationError(f"{name} left its ball: {size:g} > {eps:g}", hint="please report this with your versions")
    return attacked
