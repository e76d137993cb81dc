"""AutoAttack by its own package, `pyautoattack`, which is an extra: a second opinion on the project's own attacks.

It seeds the global generator of torch and ends with `sys.settrace(None)`; both are put back.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata, util
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrcompress.errors import EvaluationError, OptionError
from lrcompress.perturb import Norm

PACKAGE = "pyautoattack"
NORMS: dict[Norm, Any] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def require_autoattack() -> str:
    """Returns the version of the package.

    Raises:
        OptionError: if it is not installed.
    """
    if util.find_spec(PACKAGE) is None:
        raise OptionError("AutoAttack is not installed", hint="pip install 'lrcompress[autoattack]'")
    return metadata.version(PACKAGE)


def run_autoattack(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    *,
    eps: float,
    norm: Norm,
    seed: int,
    batch_size: int,
) -> Float[Tensor, "n c h w"]:
    """Returns what AutoAttack's standard version (APGD-CE, targeted APGD, targeted FAB, Square) makes of images.

    Args:
        model: takes images in [0, 1]; in eval mode with frozen parameters.
        images: clean images that the model knows, on its device.
        labels: their classes.
        eps: radius of the ball.
        norm: of the ball.
        seed: of everything random.
        batch_size: images at a time.

    Raises:
        EvaluationError: if the package fails.
    """
    from pyautoattack import AutoAttack

    with _as_before(images.device):
        try:
            attack = AutoAttack(model, norm=NORMS[norm], eps=eps, seed=seed, version="standard", device=images.device)
            attack.verbose = False
            moved, _ = attack.run_standard_evaluation(images.contiguous(), labels, batch_size=batch_size)
        except Exception as error:  # it checks by bare asserts, and more
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EvaluationError(f"AutoAttack failed: {reason}", hint="leave it out") from error
    return moved.detach()


@contextmanager
def _as_before(device: torch.device) -> Iterator[None]:
    """Puts back the global generator and the trace function, and keeps the package's log quiet."""
    trace, log = sys.gettrace(), logging.getLogger("auto-attack")
    level = log.level
    log.setLevel(logging.ERROR)  # its doubts are among the checks of this program
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        log.setLevel(level)
        sys.settrace(trace)
