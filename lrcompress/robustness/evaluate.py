"""The evaluation engine: all models on the same images, block by block, worst case per image."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from lrcompress.data import ImageSet, iterate_batches, slice_images
from lrcompress.errors import EvaluationError, OptionError
from lrcompress.robustness.attacks import AttackSettings, find_attack
from lrcompress.robustness.block_run import BlockRun, Progress
from lrcompress.robustness.blocks import Block, BlockOutcome, EvaluatedModel
from lrcompress.robustness.evaluation import Evaluation
from lrcompress.robustness.grid import choose_eps
from lrcompress.robustness.paper import PAPER_EPS, describe_paper
from lrcompress.robustness.probes import check_model
from lrcompress.robustness.summary import summarise

# Batches that are held in memory at once, so that what leaves a batch can be replaced (Note [Streaming]).
BLOCK = 4
TRIED = 256  # images among which radii are tried on


@dataclass(frozen=True)
class Work:
    """Which part of an evaluation is to be done here, and what becomes of it.

    Attributes:
        finished: blocks that are done already, of these images: see `of_these_images`.
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
    size = block_size(settings)
    missing = work.missing(-(-len(images) // size))
    with ExitStack() as stack:
        for evaluated in models:
            stack.enter_context(ready_for_attack(evaluated.model))
        classes = _check(models, images, settings)
        settings = _with_radii(models[0].model, images, settings)
        progress = Progress(models, settings, sum(_images_in(number, size, images) for number in missing), on_progress)
        started, outcomes = time.monotonic(), list[BlockOutcome]()
        for number in missing:
            if outcomes and work.time_limit is not None and time.monotonic() - started > work.time_limit:
                break
            block = _load(images, number, size, next(models[0].model.parameters()).device)
            outcomes.append(BlockRun(models, block, settings, progress).run())
            work.on_block(outcomes[-1])
    by_number = {one.number: one for one in [*work.finished, *work.gather(outcomes)]}
    outcomes = [by_number[number] for number in sorted(by_number)]
    told = settings.describe() | describe_paper(settings.of_paper(), {one.role: one.model for one in models})
    shas = {one.role: one.sha256 for one in models}
    return summarise(shas, outcomes, images, settings, classes=classes, told=told)


def block_size(settings: AttackSettings) -> int:
    """Returns how many images are finished, and kept, at a time."""
    return BLOCK * settings.batch_size


def of_these_images(outcomes: Iterable[BlockOutcome], images: ImageSet, settings: AttackSettings) -> list[BlockOutcome]:
    """Returns the outcomes of blocks that consist of these images and labels still."""
    size, cpu = block_size(settings), torch.device("cpu")
    return [
        one
        for one in outcomes
        if _images_in(one.number, size, images) > 0 and _load(images, one.number, size, cpu).hashes() == one.hashes
    ]


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
    pixels = next(iterate_batches(slice_images(images, range(1)), batch_size=1))[0].numel()
    whole = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[settings.norm]
    if settings.eps and max(settings.eps) >= whole and len(settings.of_paper()) < len(settings.attacks):
        raise OptionError(
            f"--eps {max(settings.eps):g} in {settings.norm} is no less than what lies between black and white images "
            f"of this size, {whole:.4g}",
            hint="radii are in units of images in [0, 1]",
        )
    for name in settings.attacks:
        if count < find_attack(name).classes:
            raise OptionError(
                f"{name} needs {find_attack(name).classes} classes, the models have {count}", hint="--attack apgd-ce"
            )
    return count


def _with_radii(model: nn.Module, images: ImageSet, settings: AttackSettings) -> AttackSettings:
    if not settings.attacks or settings.eps:
        return settings
    if len(settings.of_paper()) == len(settings.attacks):
        return replace(settings, eps=PAPER_EPS)
    few = slice_images(images, range(min(TRIED, len(images))))
    block = _load(few, 0, TRIED, next(model.parameters()).device)
    return replace(settings, eps=choose_eps(model, block.pixels, block.labels, settings), eps_by_trial=True)


def _images_in(number: int, size: int, images: ImageSet) -> int:
    return min(size, len(images) - number * size)


def _load(images: ImageSet, number: int, size: int, device: torch.device) -> Block:
    first = number * size
    part = slice_images(images, range(first, min(first + size, len(images))))
    pixels, labels = next(iterate_batches(part, batch_size=size))
    pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
    return Block(number, first, pixels, labels.to(device))
