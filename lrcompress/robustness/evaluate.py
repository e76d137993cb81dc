"""The evaluation engine: both models, the same images, worst case per image."""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lrcompress.data import ImageSet, iterate_batches
from lrcompress.errors import EvaluationError
from lrcompress.measure import predict_correct
from lrcompress.robustness.attacks import ATTACKS, AttackSettings
from lrcompress.robustness.checks import find_doubts
from lrcompress.robustness.evaluation import AttackOutcome, Evaluation, ModelOutcome
from lrcompress.robustness.foolbox_adapter import ready_for_attack, run_attack


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate.

    Attributes:
        role: "baseline" or "compressed".
        model: takes images in [0, 1].
        sha256: of its file.
    """

    role: str
    model: nn.Module
    sha256: str


def evaluate_models(
    models: Sequence[EvaluatedModel],
    images: ImageSet,
    settings: AttackSettings,
    *,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """Returns clean and robust accuracy of all models on the same images, with the same seeds.

    Args:
        models: the baseline first, where there is one.
        images: what to evaluate on.
        settings: which attacks.
        on_progress: called with what is being done, images done and images in all.

    Raises:
        DataError: if a label lies outside of the model's classes.
        EvaluationError: if the figures would be void: logits that are not finite or not repeatable, or probabilities
            instead of logits.
    """
    outcomes = []
    for evaluated in models:
        role, model = evaluated.role, evaluated.model
        start = time.perf_counter()
        with ready_for_attack(model):
            _check_model(model, role, images)
            clean = predict_correct(model, images, batch_size=settings.batch_size)
            attacks = _attack(model, role, images, clean, settings, on_progress) if settings.attacks else ()
        outcomes.append(
            ModelOutcome(role, evaluated.sha256, tuple(clean.tolist()), attacks, seconds=time.perf_counter() - start)
        )
    return Evaluation(
        data=images.description,
        images=len(images),
        norm=settings.norm,
        settings=settings.describe(),
        seed=settings.seed,
        models=tuple(outcomes),
        findings=find_doubts(outcomes),
    )


def _check_model(model: nn.Module, role: str, images: ImageSet) -> None:
    """Refuses models whose figures would be void."""
    device = next(model.parameters()).device
    pixels, _ = next(iterate_batches(images, batch_size=8))
    pixels = pixels.to(device)
    with torch.inference_mode():
        logits, again = model(pixels), model(pixels)
    if not torch.isfinite(logits).all():
        raise EvaluationError(f"the {role} model's logits are not finite", hint="check weights and preprocessing")
    if not torch.equal(logits, again):
        raise EvaluationError(
            f"the {role} model answers the same images differently",
            hint="attacks on random models need other methods; remove the randomness",
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise EvaluationError(
            f"the {role} model returns probabilities, whose gradients vanish", hint="remove the softmax at its end"
        )


def _attack(
    model: nn.Module,
    role: str,
    images: ImageSet,
    clean: Bool[Tensor, "n"],
    settings: AttackSettings,
    on_progress: Callable[[str, int, int], None],
) -> tuple[AttackOutcome, ...]:
    """Returns one outcome per attack and their worst case per image."""
    device = next(model.parameters()).device
    tables = {name: torch.zeros(len(settings.eps), len(images), dtype=torch.bool) for name in settings.attacks}
    total, done = len(images) * len(settings.attacks), 0
    for name in settings.attacks:
        first = 0
        for index, (pixels, labels) in enumerate(iterate_batches(images, batch_size=settings.batch_size)):
            span = slice(first, first + len(labels))
            tables[name][:, span] = _attack_batch(
                model, name, pixels.to(device), labels.to(device), clean[span].to(device), settings, index
            )
            first += len(labels)
            done += len(labels)
            on_progress(f"{role}: {ATTACKS[name].title}", done, total)
    worst = torch.stack(list(tables.values())).all(0)
    return tuple(
        AttackOutcome(name, settings.eps, tuple(tuple(row) for row in table.tolist()))
        for name, table in {**tables, "worst": worst}.items()
    )


def _attack_batch(
    model: nn.Module,
    name: str,
    pixels: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    clean: Bool[Tensor, "n"],
    settings: AttackSettings,
    batch: int,
) -> Bool[Tensor, "e n"]:
    """Returns for each radius and image whether the model withstood the attack at that radius and all smaller ones.

    Images that are broken leave the batch: what succeeds within a ball also succeeds within a larger one.
    """
    restarts = settings.restarts if ATTACKS[name].random else 1
    standing = clean.clone()
    rows = []
    for radius, eps in enumerate(settings.eps):
        for restart in range(restarts):
            active = standing.nonzero().flatten()
            if len(active) == 0:
                break
            # The same for both models, different for everything else.
            seed = _seed(settings.seed, name, radius, restart, batch)
            attacked = run_attack(name, model, pixels, labels, active=active, eps=eps, settings=settings, seed=seed)
            with torch.inference_mode():
                logits = model(attacked)
            if not torch.isfinite(logits).all():
                raise EvaluationError("logits under attack are not finite", hint="the model overflows in float32")
            standing[active] = logits.argmax(1) == labels[active]
        rows.append(standing.cpu().clone())
    return torch.stack(rows)


def _seed(*parts: int | str) -> int:
    """Returns a seed that is the same in every process, unlike `hash`."""
    return zlib.crc32(repr(parts).encode())
