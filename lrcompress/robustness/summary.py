"""From the outcomes of all blocks to an evaluation."""

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lrcompress.data import ImageSet
from lrcompress.robustness.attacks import AttackSettings
from lrcompress.robustness.blocks import BlockOutcome, ModelBlock
from lrcompress.robustness.checks import find_doubts
from lrcompress.robustness.evaluation import (
    AttackOutcome,
    Distances,
    Evaluation,
    Finding,
    ModelOutcome,
    Steepness,
    Transfer,
)

Rows = tuple[tuple[bool, ...], ...]


def summarise(
    shas: Mapping[str, str],
    outcomes: Sequence[BlockOutcome],
    images: ImageSet,
    settings: AttackSettings,
    *,
    classes: int,
    told: Mapping[str, Any],
) -> Evaluation:
    """Returns the evaluation that blocks add up to.

    Args:
        shas: of the models' files by role, the baseline first.
        outcomes: of blocks, in the order of the images.
        images: all that were asked for.
        settings: of the attacks, radii among them.
        classes: of the models.
        told: the settings as the report shows them.
    """
    models = [_model(role, sha256, [one.models[role] for one in outcomes], settings) for role, sha256 in shas.items()]
    labels = tuple(label for one in outcomes for label in one.labels)
    transferred = {
        pair: _joined([one.transferred[pair] for one in outcomes])
        for pair in (outcomes[0].transferred if outcomes else ())
    }
    doubts = find_doubts(models, classes=classes, norm=settings.norm, transferred=transferred)
    return Evaluation(
        data=images.description,
        images=len(labels),
        norm=settings.norm,
        settings=told,
        seed=settings.seed,
        models=tuple(models),
        findings=(*doubts, *(Finding(**doubt) for one in outcomes for doubt in one.doubts)),
        labels=labels,
        class_names=images.class_names,
        images_sha256=hashlib.sha256("".join(one for part in outcomes for one in part.hashes).encode()).hexdigest(),
        images_asked=len(images) if len(labels) < len(images) else None,
        transfer=_transfer(transferred, models, settings),
        examples=tuple(shown for one in outcomes for shown in one.examples),
        smoothing=settings.smoothing,
    )


def _model(role: str, sha256: str, parts: Sequence[ModelBlock], settings: AttackSettings) -> ModelOutcome:
    attacks = []
    for name in settings.attacks:
        distances = None
        if name in parts[0].distances:
            distances = Distances(settings.norm, tuple(one for part in parts for one in part.distances[name]))
        attacks.append(AttackOutcome(name, settings.eps, _joined([part.robust[name] for part in parts]), distances))
    of_paper = settings.of_paper()  # whose balls are others
    if counted := [one for one in attacks if one.attack not in of_paper]:
        rows = zip(*(one.robust for one in counted), strict=True)
        worst = tuple(tuple(all(bits) for bits in zip(*level, strict=True)) for level in rows)
        attacks.append(AttackOutcome("worst", settings.eps, worst))
    norms = [one for part in parts for one in part.gradient_norms]
    margins = [one for part in parts for one in part.margins]
    return ModelOutcome(
        role,
        sha256,
        tuple(bit for part in parts for bit in part.clean),
        tuple(attacks),
        seconds=sum(part.seconds for part in parts),
        forward_passes=sum(part.forward_passes for part in parts),
        backward_passes=sum(part.backward_passes for part in parts),
        silent={
            name: sum(part.silent.get(name, 0) for part in parts)
            for name in settings.attacks
            if any(name in part.silent for part in parts)
        },
        corrupted={name: _joined([part.corrupted[name] for part in parts]) for name in parts[0].corrupted},
        certified=tuple(one for part in parts for one in part.certified),
        steepness=Steepness(statistics.median(norms), _median_or_none(margins)) if norms else None,
    )


def _median_or_none(values: Sequence[float]) -> float | None:
    """Returns the median; None without values, or where it is not finite, as JSON knows no infinity."""
    if not values:
        return None
    median = statistics.median(values)
    return median if math.isfinite(median) else None


def _joined(parts: Sequence[Sequence[Sequence[bool]]]) -> Rows:
    """Returns rows of bits whose pieces stand one after the other."""
    return tuple(tuple(bit for piece in row for bit in piece) for row in zip(*parts, strict=True))


def _transfer(
    transferred: Mapping[str, Rows], models: Sequence[ModelOutcome], settings: AttackSettings
) -> Transfer | None:
    """Returns shares at the radius where the first model's own images leave it nearest to half of its answers.

    Of the images that all models know: the others are not attacked, or lost without an attack.
    """
    attack = settings.transferred()
    known = [image for image, bits in enumerate(zip(*(model.clean for model in models), strict=True)) if all(bits)]
    if not transferred or attack is None or not known:
        return None

    def share(rows: Rows, radius: int) -> float:
        return sum(rows[radius][image] for image in known) / len(known)

    own = next(rows for pair, rows in transferred.items() if pair.partition("→")[0] == pair.partition("→")[2])
    radius = min(range(len(own)), key=lambda index: abs(share(own, index) - 0.5))
    shares = {pair: share(rows, radius) for pair, rows in transferred.items()}
    return Transfer(attack, settings.eps[radius], len(known), shares)
