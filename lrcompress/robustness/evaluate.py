"""The evaluation engine: all models on the same images, block by block, worst case per image."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.data import ImageSet, iterate_batches, slice_images
from lrcompress.errors import DataError, EvaluationError, OptionError
from lrcompress.robustness.attacking import BlockAttacker
from lrcompress.robustness.attacks import AttackSettings, find_attack
from lrcompress.robustness.blocks import Block, BlockOutcome, KnownBlock, ModelBlock
from lrcompress.robustness.evaluation import Evaluation
from lrcompress.robustness.examples import SHOWN, example
from lrcompress.robustness.gradients import measure_gradients
from lrcompress.robustness.grid import choose_eps
from lrcompress.robustness.iterated import Passes
from lrcompress.robustness.probes import check_model, check_radius_of_zero, probe_attack
from lrcompress.robustness.summary import summarise

# Batches that are held in memory at once, so that what leaves a batch can be replaced (Note [Streaming]).
BLOCK = 4
TRIED = 256  # images among which radii are tried on


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


@dataclass(frozen=True)
class Work:
    """Which part of an evaluation is to be done here, and what becomes of it.

    Attributes:
        finished: blocks that are done already.
        on_block: called with each block that is done.
        process: number of this process.
        processes: that share the blocks.
        gather: returns the blocks of all processes.
        time_limit: in seconds, after which no block is begun; the first one always is.
    """

    finished: Sequence[BlockOutcome] = ()
    on_block: Callable[[BlockOutcome], None] = lambda outcome: None
    process: int = 0
    processes: int = 1
    gather: Callable[[list[BlockOutcome]], list[BlockOutcome]] = lambda outcomes: outcomes
    time_limit: float | None = None

    def missing(self, blocks: int) -> list[int]:
        """Returns the numbers of the blocks that are to be done here."""
        done = {outcome.number for outcome in self.finished}
        return [number for number in range(blocks) if number not in done][self.process :: self.processes]


def evaluate_models(
    models: Sequence[EvaluatedModel],
    images: ImageSet,
    settings: AttackSettings,
    *,
    work: Work | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """Returns clean and robust accuracy of all models on the same images, with the same seeds.

    Args:
        models: the baseline first, where there is one.
        images: what to evaluate on.
        settings: which attacks; without radii they are chosen such that they tell something.
        work: what is done already, or by others.
        on_progress: called with what is being done, images done and images in all.

    Raises:
        DataError: if a label lies outside of the model's classes.
        OptionError: if an attack needs more classes than a model has.
        EvaluationError: if the figures would be void: logits that are not finite or not repeatable, or that depend on
            the batch, probabilities instead of logits, models with different classes.
    """
    work = work or Work()
    size = BLOCK * settings.batch_size
    missing = work.missing(-(-len(images) // size))
    with ExitStack() as stack:
        for evaluated in models:
            stack.enter_context(ready_for_attack(evaluated.model))
        classes = _check(models, images, settings)
        settings = _with_radii(models[0].model, images, settings)
        progress = _Progress(models, settings, sum(_images_in(number, size, images) for number in missing), on_progress)
        started, outcomes = time.monotonic(), list[BlockOutcome]()
        for number in missing:
            if outcomes and work.time_limit is not None and time.monotonic() - started > work.time_limit:
                break
            block = _load(images, number, size, next(models[0].model.parameters()).device)
            outcomes.append(_BlockRun(models, block, settings, progress).run())
            work.on_block(outcomes[-1])
    by_number = {one.number: one for one in [*work.finished, *work.gather(outcomes)]}
    outcomes = [by_number[number] for number in sorted(by_number)]
    return summarise({one.role: one.sha256 for one in models}, outcomes, images, settings, classes=classes)


@contextmanager
def ready_for_attack(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the model in eval mode with frozen parameters, and restores everything afterwards.

    Frozen parameters spare each attack step the weight gradients, a third of its cost; kernels in channels_last, as the
    images are, spare it conversions.
    """
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    turned = [one for one in model.parameters() if one.ndim == 4 and one.is_contiguous()]
    try:
        for parameter in turned:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        model.requires_grad_(False).eval()
        yield model
    finally:
        for parameter in turned:
            parameter.data = parameter.data.contiguous()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        for module, training in modes.items():
            module.training = training


def _check(models: Sequence[EvaluatedModel], images: ImageSet, settings: AttackSettings) -> int:
    """Refuses models whose figures would be void or that cannot be compared, and returns the number of classes."""
    classes = {one.role: check_model(one.model, one.role, images) for one in models}
    if len(set(classes.values())) > 1:
        raise EvaluationError(
            " and ".join(f"the {role} model has {count} classes" for role, count in classes.items()),
            hint="compare a model with the one that it was made from",
        )
    (count,) = set(classes.values())
    for name in settings.attacks:
        if count < find_attack(name).classes:
            raise OptionError(
                f"{name} needs {find_attack(name).classes} classes, the models have {count}", hint="--attack apgd-ce"
            )
    return count


def _with_radii(model: nn.Module, images: ImageSet, settings: AttackSettings) -> AttackSettings:
    if not settings.attacks or settings.eps:
        return settings
    few = slice_images(images, range(min(TRIED, len(images))))
    block = _load(few, 0, TRIED, next(model.parameters()).device)
    return replace(settings, eps=choose_eps(model, block.pixels, block.labels, settings), eps_chosen=True)


def _images_in(number: int, size: int, images: ImageSet) -> int:
    return min(size, len(images) - number * size)


def _load(images: ImageSet, number: int, size: int, device: torch.device) -> Block:
    first = number * size
    part = slice_images(images, range(first, min(first + size, len(images))))
    pixels, labels = next(iterate_batches(part, batch_size=size))
    pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
    return Block(number, first, pixels, labels.to(device))


class _Progress:
    """Counts images of all attacks on all models."""

    def __init__(
        self,
        models: Collection[EvaluatedModel],
        settings: AttackSettings,
        images: int,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.done, self.on_progress = 0, on_progress
        self.total = images * len(models) * max(1, len(settings.attacks))

    def tell(self, what: str, images: int, share: float) -> None:
        """Tells of a share of some images, which are counted once it is 1."""
        self.on_progress(what, self.done + round(share * images), self.total)
        if share == 1:
            self.done += images


@dataclass
class _BlockRun:
    """The evaluation of all models on one block."""

    models: Sequence[EvaluatedModel]
    block: Block
    settings: AttackSettings
    progress: _Progress

    def run(self) -> BlockOutcome:
        outcome = BlockOutcome(self.block.number, self.block.labels.tolist())
        standing: dict[str, Tensor] = {}
        for evaluated in self.models:
            started = time.perf_counter()
            outcome.models[evaluated.role] = part = ModelBlock()
            standing[evaluated.role] = self._run_model(evaluated, part, outcome, standing)
            part.seconds += time.perf_counter() - started
        return outcome

    def _run_model(
        self, evaluated: EvaluatedModel, part: ModelBlock, outcome: BlockOutcome, others: dict[str, Tensor]
    ) -> Tensor:
        """Fills in what one model does, and returns where it withstands all attacks (radii × images)."""
        settings, role, passes = self.settings, evaluated.role, Passes()
        known = _know(evaluated, self.block, settings.batch_size, passes)
        part.clean = known.clean.tolist()
        count = len(part.clean)
        rows = [known.clean.expand(max(1, len(settings.eps)), -1)]
        for name in settings.attacks:
            what = f"{role}: {find_attack(name).title}"
            attacker = BlockAttacker(
                evaluated.model,
                known,
                settings,
                on_moved=lambda attack, radius, moved: self._moved(evaluated, attack, radius, moved, outcome, others),
                on_progress=lambda share, what=what: self.progress.tell(what, count, min(share, 0.999)),
                passes=passes,
            )
            found = attacker.attack(name)
            if settings.eps[0] == 0:
                check_radius_of_zero(known, role, found.robust[0])
            part.robust[name] = found.robust.tolist()
            if found.distances is not None:
                part.distances[name] = [one if one < float("inf") else None for one in found.distances.tolist()]
            if found.silent:
                part.silent[name] = found.silent
            rows.append(found.robust)
            self.progress.tell(what, count, 1)
        worst = torch.stack(rows).all(0)
        if settings.follows_gradients():
            norms, margins = measure_gradients(
                evaluated.model, known, settings.norm, batch_size=settings.batch_size, passes=passes
            )
            part.gradient_norms, part.margins = norms.tolist(), margins.tolist()
            if self.block.number == 0:
                doubts = probe_attack(evaluated.model, role, known, worst, settings, passes)
                outcome.doubts += [asdict(doubt) for doubt in doubts]
        if not settings.attacks:
            self.progress.tell(role, count, 1)
        part.forward_passes, part.backward_passes = passes.forward, passes.backward
        return worst

    def _moved(
        self,
        source: EvaluatedModel,
        attack: str,
        radius: int,
        moved: Tensor,
        outcome: BlockOutcome,
        others: dict[str, Tensor],
    ) -> None:
        """Shows what was made against one model to all, and keeps some of it to look at."""
        if attack != self.settings.transferred():
            return
        answers = {}
        for target in self.models:
            with torch.no_grad():
                answers[target.role] = torch.cat(
                    [target.model(part).argmax(1) for part in moved.split(self.settings.batch_size)]
                )
            if len(self.models) > 1:
                right = (answers[target.role] == self.block.labels).tolist()
                outcome.transferred.setdefault(f"{source.role}→{target.role}", []).append(right)
        if source.role == "compressed" and self.block.number == 0 and len(outcome.examples) < SHOWN:
            self._keep_examples(radius, moved, answers, outcome, others)

    def _keep_examples(
        self,
        radius: int,
        moved: Tensor,
        answers: dict[str, Tensor],
        outcome: BlockOutcome,
        others: dict[str, Tensor],
    ) -> None:
        block, shown = self.block, {one["index"] for one in outcome.examples}
        known = torch.tensor(outcome.models["compressed"].clean, device=block.labels.device)
        lost = known & (answers["compressed"] != block.labels)
        # Those that only the compressed model loses come first.
        first = lost & others["baseline"][radius] if "baseline" in others else lost
        candidates = [*(first & lost).nonzero().flatten().tolist(), *(lost & ~first).nonzero().flatten().tolist()]
        for index in [one for one in candidates if block.first + one not in shown][: SHOWN - len(outcome.examples)]:
            told: dict[str, dict[str, Any]] = {
                role: {"predicted": int(answer[index])} for role, answer in answers.items()
            }
            told["compressed"] |= {"eps": self.settings.eps[radius]}
            label = int(block.labels[index])
            outcome.examples.append(example(block.first + index, label, block.pixels[index], moved[index], told))


def _know(evaluated: EvaluatedModel, block: Block, batch_size: int, passes: Passes) -> KnownBlock:
    """Returns the block with the model's answers to its clean images."""
    with torch.no_grad():
        logits = torch.cat([evaluated.model(part) for part in block.pixels.split(batch_size)])
    passes.forward += len(logits)
    if not torch.isfinite(logits).all():
        raise EvaluationError(
            f"the {evaluated.role} model's logits are not finite", hint="check the weights and the preprocessing"
        )
    lowest, highest = int(block.labels.min()), int(block.labels.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise DataError(
            f"the images have label {lowest if lowest < 0 else highest}, the model {logits.shape[1]} classes",
            hint="give the data set the model was trained on",
        )
    return KnownBlock(block, logits, logits.argmax(1) == block.labels)
