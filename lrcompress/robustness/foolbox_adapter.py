"""foolbox's attacks behind two functions, with its traps closed.

- `import foolbox` fails where there is no git program unless GIT_PYTHON_REFRESH is set first.
- `device=None` would move the model to cuda:0.
- Bounds are checked by a bare assert, NaN logits count as robust, attacks need gradients of the input only: all of
  that is seen to here and in `evaluate`.
- Its Adam attacks in ℓ1 and ℓ2 ignore Adam, and its default PGD hardly leaves the middle of the ball: PGD is our own.
"""

import ast
import difflib
import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrcompress.errors import EvaluationError, OptionError
from lrcompress.perturb import Norm


def _module() -> Any:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox.attacks

    return foolbox.attacks


@functools.cache
def foolbox_attacks() -> tuple[str, ...]:
    """Returns the names of foolbox's attacks that need nothing but images and labels."""
    module, names = _module(), []
    for name, value in vars(module).items():
        if inspect.isclass(value) and not inspect.isabstract(value) and _is_attack(value) and _norm_of(value):
            required = [
                parameter
                for parameter in inspect.signature(value).parameters.values()
                if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            ]
            names += [] if required else [name]
    return tuple(names)


def _is_attack(value: type) -> bool:
    from foolbox.attacks.base import FixedEpsilonAttack, MinimizationAttack

    return issubclass(value, FixedEpsilonAttack | MinimizationAttack)


def _norm_of(attack_class: Any) -> Norm | None:
    """Returns the norm of an attack that has one from the start."""
    try:
        order = attack_class().distance.p
    except Exception:  # some know it only once they are given an argument
        return None
    norms: dict[float, Norm] = {2: "l2", 1: "l1", float("inf"): "linf"}
    return norms.get(order)


def find_foolbox_attack(class_name: str, texts: str) -> tuple[Norm, dict[str, Any]]:
    """Returns the norm of a class of foolbox, and its options as they were written: `steps=200,gamma=0.1`.

    Raises:
        OptionError: if the class does not have an option, or a value cannot be understood.
    """
    attack_class = getattr(_module(), class_name)
    parameters, options = inspect.signature(attack_class).parameters, dict[str, Any]()
    known = list(parameters)
    for text in filter(None, texts.split(",")):
        key, equals, value = text.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise OptionError(f"{class_name} has no option `{key}`", hint=hint)
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError) as error:
            raise OptionError(
                f"{class_name} takes {key}=VALUE, got `{text if equals else key}`",
                hint=f"--attack {class_name}:{key}=10",
            ) from error
        default = parameters[key].default
        if type(default) is int and default > 0 and not (type(options[key]) is int and options[key] >= 1):
            raise OptionError(
                f"{class_name} takes a whole number of at least 1 as {key}, got `{value}`",
                hint=f"--attack {class_name}:{key}={default}",
            )
    try:
        attack_class(**options)
    except Exception as error:  # foolbox checks by bare asserts, and more
        raise OptionError(f"{class_name} refuses {texts}: {error}", hint="see foolbox's documentation") from error
    norm = _norm_of(attack_class)
    assert norm is not None  # of those that `foolbox_attacks` names
    return norm, options


def is_minimal(class_name: str) -> bool:
    """Whether an attack looks for the smallest perturbation, and not within a ball."""
    from foolbox.attacks.base import MinimizationAttack

    return issubclass(getattr(_module(), class_name), MinimizationAttack)


def run_foolbox(
    class_name: str,
    options: Mapping[str, Any],
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    *,
    eps: float | None,
    seed: int,
) -> Float[Tensor, "n c h w"]:
    """Returns the attacked images.

    Args:
        class_name: of the attack in foolbox.
        options: of the class.
        model: takes images in [0, 1]; in eval mode with frozen parameters.
        images: clean images that the model knows, on its device.
        labels: their classes.
        eps: radius of the ball; None looks for the smallest perturbation.
        seed: of everything random; the global generators are as before afterwards.

    Raises:
        EvaluationError: if foolbox cannot attack this model, or leaves the range of pixels.
    """
    attack = getattr(_module(), class_name)(**options)
    from foolbox.models.pytorch import PyTorchModel

    device = images.device
    wrapped = PyTorchModel(model, bounds=(0.0, 1.0), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        try:
            # The second of three: the images clipped to the ball.
            attacked = attack(wrapped, images, labels, epsilons=eps)[1].detach()
        except Exception as error:  # foolbox raises anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EvaluationError(f"foolbox's {class_name} failed: {reason}", hint="leave it out") from error
    if float(attacked.min()) < 0 or float(attacked.max()) > 1:
        raise EvaluationError(f"{class_name} left the range of pixels", hint="please report this with your versions")
    return attacked
