"""The evaluation engine: both models, the same images, worst case per image."""

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lrcompress.data import ImageSet, iterate_batches
from lrcompress.errors import EvaluationError, OptionError
from lrcompress.measure import predict_correct
from lrcompress.perturb import perturbation_sizes
from lrcompress.robustness.attacks import AttackKind, AttackSettings, find_attack
from lrcompress.robustness.checks import find_doubts
from lrcompress.robustness.evaluation import AttackOutcome, Distances, Evaluation, ModelOutcome
from lrcompress.robustness.foolbox_adapter import is_minimal, run_foolbox
from lrcompress.robustness.iterated import BALL_SLACK, Passes, run_stream

# Batches that are held in memory at once, so that what leaves a batch can be replaced (Note [Streaming]).
BLOCK = 4


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
        OptionError: if an attack needs more classes than a model has.
        EvaluationError: if the figures would be void: logits that are not finite or not repeatable, or probabilities
            instead of logits.
    """
    outcomes, labels = [], list[int]()
    for evaluated in models:
        run = _Run(evaluated, images, settings, on_progress)
        outcomes.append(run.run())
        labels = run.labels
    return Evaluation(
        data=images.description,
        images=len(images),
        norm=settings.norm,
        settings=settings.describe(),
        seed=settings.seed,
        models=tuple(outcomes),
        findings=find_doubts(outcomes),
        labels=tuple(labels),
        class_names=images.class_names,
    )


@contextmanager
def ready_for_attack(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the model in eval mode with frozen parameters, and restores everything afterwards.

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


@dataclass
class _Table:
    """What one attack did, image by image: rows of radii, and distances where they are what it looks for."""

    robust: Bool[Tensor, "e n"]
    distances: Float[Tensor, "n"] | None


@dataclass
class _Run:
    """The evaluation of one model."""

    evaluated: EvaluatedModel
    images: ImageSet
    settings: AttackSettings
    on_progress: Callable[[str, int, int], None]
    passes: Passes = field(default_factory=Passes)
    labels: list[int] = field(default_factory=list)

    def run(self) -> ModelOutcome:
        model, role, settings = self.evaluated.model, self.evaluated.role, self.settings
        start = time.perf_counter()
        with ready_for_attack(model):
            classes = _check_model(model, role, self.images)
            for name in settings.attacks:
                if classes < find_attack(name).classes:
                    least = find_attack(name).classes
                    raise OptionError(
                        f"{name} needs {least} classes, the {role} model has {classes}", hint="--attack apgd-ce"
                    )
            clean = predict_correct(model, self.images, batch_size=settings.batch_size)
            self.passes.forward += len(self.images)
            attacks = self._attack(clean, classes)
        return ModelOutcome(
            role,
            self.evaluated.sha256,
            tuple(clean.tolist()),
            attacks,
            seconds=time.perf_counter() - start,
            forward_passes=self.passes.forward,
            backward_passes=self.passes.backward,
        )

    def _attack(self, clean: Bool[Tensor, "n"], classes: int) -> tuple[AttackOutcome, ...]:
        """Returns one outcome per attack and their worst case per image."""
        settings, count = self.settings, len(self.images)
        tables = {
            name: _Table(torch.zeros(len(settings.eps), count, dtype=torch.bool), _no_distances(name, count))
            for name in settings.attacks
        }
        device = next(self.evaluated.model.parameters()).device
        first = 0
        for pixels, labels in iterate_batches(self.images, batch_size=BLOCK * settings.batch_size):
            self.labels += labels.tolist()
            span = slice(first, first + len(labels))
            block = _Block(pixels.to(device), labels.to(device), clean[span].to(device), first, classes)
            for number, (name, table) in enumerate(tables.items()):
                done = first * len(tables) + number * len(labels)
                table.robust[:, span] = self._attack_block(name, block, table, done)
            first = span.stop
        if not tables:
            return ()
        outcomes = [_outcome(name, settings, table) for name, table in tables.items()]
        worst = torch.stack([table.robust for table in tables.values()]).all(0)
        return (*outcomes, AttackOutcome("worst", settings.eps, _rows(worst)))

    def _attack_block(self, name: str, block: "_Block", table: _Table, done: int) -> Bool[Tensor, "e n"]:
        """Returns for each radius and image whether the model withstood the attack up to that radius.

        Images that are broken leave: what succeeds within a ball also succeeds within a larger one.
        """
        kind, total = find_attack(name), len(self.images) * len(self.settings.attacks)

        def tell(share: float) -> None:
            finished = done + round(share * len(block.labels))
            self.on_progress(f"{self.evaluated.role}: {kind.title}", finished, total)

        if kind.make is not None:
            rows = self._attack_in_balls(name, kind, block, tell)
        elif is_minimal(kind.foolbox[self.settings.norm]):
            rows = self._find_nearest(name, kind, block, table)
        else:
            rows = self._attack_by_foolbox(name, kind, block)
        tell(1.0)
        return rows

    def _attack_in_balls(
        self, name: str, kind: AttackKind, block: "_Block", tell: Callable[[float], None]
    ) -> Bool[Tensor, "e n"]:
        assert kind.make is not None  # as the caller knows
        settings, model = self.settings, self.evaluated.model
        with torch.no_grad():
            logits = torch.cat([model(part) for part in block.pixels.split(settings.batch_size)])
        self.passes.forward += len(block.labels)
        standing, rows = block.clean.clone(), []
        runs = kind.runs(settings, block.classes)
        parts, part = len(settings.eps) * runs, 0
        for radius, eps in enumerate(settings.eps):
            for run in range(runs):
                active = standing.nonzero().flatten()
                if len(active) > 0:
                    finished = len(block.labels) - len(active)

                    def count(images: int, part: int = part) -> None:
                        nonlocal finished
                        finished += images
                        tell((part + finished / len(block.labels)) / parts)

                    outcome = run_stream(
                        model,
                        kind.make(settings, eps, run),
                        block.pixels[active],
                        block.labels[active],
                        logits[active],
                        # The same for both models, different for everything else.
                        _seeds(active + block.first, settings.seed, name, radius, run),
                        batch_size=settings.batch_size,
                        on_finished=count,
                    )
                    standing[active] = ~outcome.broken
                    self.passes.forward += outcome.passes.forward
                    self.passes.backward += outcome.passes.backward
                part += 1
            rows.append(standing.cpu().clone())
        return torch.stack(rows)

    def _attack_by_foolbox(self, name: str, kind: AttackKind, block: "_Block") -> Bool[Tensor, "e n"]:
        standing, rows = block.clean.clone(), []
        for radius, eps in enumerate(self.settings.eps):
            for active in standing.nonzero().flatten().split(self.settings.batch_size):
                moved, sizes = self._foolbox(name, kind, block, active, radius, eps=eps)
                slack = BALL_SLACK * block.pixels[0].numel()
                if float(sizes.max()) > eps * (1 + BALL_SLACK) + slack:
                    raise EvaluationError(
                        f"{name} left its ball: {float(sizes.max()):g} > {eps:g}", hint="leave it out"
                    )
                standing[active] = self._is_right(moved, block.labels[active])
            rows.append(standing.cpu().clone())
        return torch.stack(rows)

    def _find_nearest(self, name: str, kind: AttackKind, block: "_Block", table: _Table) -> Bool[Tensor, "e n"]:
        assert table.distances is not None  # of attacks that look for them
        distances = torch.full((len(block.labels),), torch.inf, device=block.labels.device)
        distances[~block.clean] = 0
        for active in block.clean.nonzero().flatten().split(self.settings.batch_size):
            moved = self._foolbox(name, kind, block, active, 0, eps=None)
            sizes = perturbation_sizes(moved - block.pixels[active], self.settings.norm)
            right = self._is_right(moved, block.labels[active])
            distances[active] = torch.where(right, torch.inf, sizes)
        table.distances[block.first : block.first + len(distances)] = distances.cpu()
        radii = torch.tensor(self.settings.eps)[:, None]
        return (distances.cpu() > radii * (1 + BALL_SLACK)) & block.clean.cpu()

    def _foolbox(
        self, name: str, kind: AttackKind, block: "_Block", active: Int[Tensor, "k"], radius: int, *, eps: float | None
    ) -> Float[Tensor, "k c h w"]:
        seed = zlib.crc32(repr((self.settings.seed, name, radius, block.first + int(active[0]))).encode())
        return run_foolbox(
            kind.foolbox[self.settings.norm],
            kind.options,
            self.evaluated.model,
            block.pixels[active],
            block.labels[active],
            eps=eps,
            seed=seed,
        )

    def _is_right(self, moved: Tensor, labels: Tensor) -> Bool[Tensor, "k"]:
        self.passes.forward += len(moved)
        with torch.no_grad():
            logits = self.evaluated.model(moved)
        if not torch.isfinite(logits).all():
            raise EvaluationError("logits under attack are not finite", hint="the model overflows in float32")
        return logits.argmax(1) == labels


@dataclass(frozen=True)
class _Block:
    """Images that are in memory at once, on the model's device.

    Attributes:
        pixels: the clean images.
        labels: their classes.
        clean: whether the model knows them.
        first: number of the first one in the whole set.
        classes: of the model.
    """

    pixels: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    clean: Bool[Tensor, "n"]
    first: int
    classes: int


def _check_model(model: nn.Module, role: str, images: ImageSet) -> int:
    """Refuses models whose figures would be void, and returns the number of classes."""
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
    return logits.shape[1]


def _no_distances(name: str, count: int) -> Float[Tensor, "n"] | None:
    kind = find_attack(name)
    minimal = kind.make is None and is_minimal(next(iter(kind.foolbox.values())))
    return torch.full((count,), torch.inf) if minimal else None


def _outcome(name: str, settings: AttackSettings, table: _Table) -> AttackOutcome:
    distances = None
    if table.distances is not None:
        found = tuple(value if value < float("inf") else None for value in table.distances.tolist())
        distances = Distances(settings.norm, found)
    return AttackOutcome(name, settings.eps, _rows(table.robust), distances)


def _rows(robust: Bool[Tensor, "e n"]) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(row) for row in robust.tolist())


def _seeds(numbers: Int[Tensor, "n"], *parts: int | str) -> Int[Tensor, "n"]:
    """Returns a seed for each image, the same in every process, unlike `hash`."""
    return (numbers << 32) + zlib.crc32(repr(parts).encode())
