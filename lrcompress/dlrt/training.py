"""The fine-tuning loop: DLRT cycles, then a last phase with frozen bases; the best state on held-out images stays."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.data import ImageSet, iterate_batches, random_crop_and_flip, split_held_out
from lrcompress.dlrt.cycle import augment_, largest_rank, truncate_
from lrcompress.dlrt.options import DlrtOptions
from lrcompress.dlrt.step import truncate
from lrcompress.errors import DataError, EvaluationError, OptionError, TrainingError
from lrcompress.linalg import conditioning_penalty
from lrcompress.measure import measure_accuracy
from lrcompress.nn import count_shipped_parameters, factored_layers

# In the names of normalisation layers and of weight-standardised convolutions, torch's and timm's.
NORMALIZATION = ("norm", "stdconv")
TEMPERATURE = 3.0  # of distillation
WARM_UP = 0.05  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class TrainingProgress:
    """What a progress bar shows after each step, and once more after each epoch's evaluation (`epoch_ended`)."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    held_out_accuracy: float
    mean_rank: float
    parameters: int
    epoch_ended: bool = False


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training log.

    Attributes:
        epoch: counted from 1; 0 is the state before fine-tuning.
        loss: mean training loss without the penalty, NaN-free; None for epoch 0.
        held_out_accuracy: on the images held out from training, in [0, 1].
        ranks: by layer.
        parameters: of the whole model as it would be shipped.
        frozen: whether ranks and bases were final, so that this state could be chosen.
    """

    epoch: int
    loss: float | None
    held_out_accuracy: float
    ranks: Mapping[str, int]
    parameters: int
    frozen: bool


@dataclass(frozen=True)
class FineTuning:
    """The result of a fine-tuning run.

    Attributes:
        log: one record per epoch, the state before fine-tuning first.
        chosen_epoch: the epoch whose state the model now has.
        held_out_images: number of images the choice was made on.
        penalty: "scale-free" or "paper", as resolved.
    """

    log: tuple[EpochRecord, ...]
    chosen_epoch: int
    held_out_images: int
    penalty: str


def fine_tune_(
    model: nn.Module,
    images: ImageSet,
    options: DlrtOptions,
    *,
    teacher: nn.Module | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> FineTuning:
    """Fine-tunes the factored layers of the model by DLRT and everything dense along with them.

    Args:
        model: takes images in [0, 1]; its factored layers are trained in U, S, V, all else as it is.
        images: training images; a part of them is held out to choose the best state.
        options: the settings.
        teacher: the uncompressed model in eval mode, taking images in [0, 1]; needed if `options.distill` is positive.
        on_progress: called after each step.

    Raises:
        OptionError: if there is nobody to distil from.
        TrainingError: if the loss becomes NaN or infinite.
        DataError: if there are too few images for one batch.
    """
    rest, held_out = split_held_out(images, fraction=options.held_out, seed=options.seed)
    if len(rest) < 2:
        raise DataError(f"{len(images)} training images are too few", hint="fine-tuning needs thousands of images")
    if options.distill > 0 and teacher is None:
        raise OptionError("distillation needs the uncompressed model", hint="pass teacher=, or distill=0")
    device = next(model.parameters()).device
    # Dropout and its like draw from the global generators: seeded for the run, and afterwards as they were before.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        return _Run(model, rest, held_out, options, teacher, on_progress).run()


class _Run:
    """The state of one fine-tuning run."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        held_out: ImageSet,
        options: DlrtOptions,
        teacher: nn.Module | None,
        on_progress: Callable[[TrainingProgress], None],
    ) -> None:
        self.model, self.images, self.held_out, self.options = model, images, held_out, options
        self.teacher = teacher if options.distill > 0 else None
        self.on_progress = on_progress
        self.layers = factored_layers(model)
        self.device = next(model.parameters()).device
        self.scale_free = _is_scale_free(model, options)
        single = len(images) % options.batch_size == 1  # left out by iterate_batches
        self.steps_per_epoch = math.ceil(len(images) / options.batch_size) - single
        self.steps = options.epochs * self.steps_per_epoch
        frozen_steps = max(1, round(options.frozen_fraction * self.steps))
        self.frozen_from = self.steps - frozen_steps if self.layers else 0
        self.step, self.position = 0, 0
        self.retained: dict[str, int] = {}
        self.log: list[EpochRecord] = []
        self.parameters = count_shipped_parameters(model)
        self.best: dict[str, Any] = {}
        self.best_epoch, self.best_accuracy = 0, -1.0

    def run(self) -> FineTuning:
        model = self.model.to(memory_format=torch.channels_last)
        if self.teacher is not None:
            self.teacher.to(memory_format=torch.channels_last)
        self._enforce_rank_bounds_()
        self.optimizer = _make_optimizer(model, self.options)
        self._evaluate(epoch=0, loss=None)
        for epoch in range(1, self.options.epochs + 1):
            loss = self._train_epoch(epoch)
            self._evaluate(epoch=epoch, loss=loss)
            self._report(epoch, loss, epoch_ended=True)
        model.load_state_dict(self.best)
        model.eval()
        penalty = "scale-free" if self.scale_free else "paper"
        return FineTuning(tuple(self.log), self.best_epoch, len(self.held_out), penalty)

    def _train_epoch(self, epoch: int) -> float:
        """Trains on every image once and returns the mean loss."""
        self.model.train()
        generator = torch.Generator().manual_seed(self.options.seed * 100_003 + epoch)
        losses = []
        shuffle_seed = self.options.seed * 100_003 + epoch
        batches = iterate_batches(self.images, batch_size=self.options.batch_size, shuffle_seed=shuffle_seed)
        for pixels, labels in batches:
            pixels = random_crop_and_flip(
                pixels, padding=self.options.crop, flip=self.options.flip, generator=generator
            )
            pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
            try:
                loss = self._train_step_(pixels, labels.to(self.device))
            # Decompositions refuse NaN, which gradients may hold under a finite loss. A LinAlgError is a RuntimeError.
            except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
                raise self._diverged("a gradient or a core is not finite") from error
            losses.append(loss)
            self.step += 1
            self._report(epoch, loss)
        return sum(losses) / len(losses)

    def _train_step_(self, pixels: Tensor, labels: Tensor) -> float:
        if self.step == self.frozen_from:
            self._end_cycle_()
        frozen = self.step >= self.frozen_from
        if self.position == 0 and not frozen:
            loss = self._basis_step_(pixels, labels)
        else:
            loss = self._coefficient_step_(pixels, labels)
        if not frozen:
            self.position += 1
            if self.position > self.options.coefficient_steps:
                self._end_cycle_()
        return loss

    def _basis_step_(self, pixels: Tensor, labels: Tensor) -> float:
        """Takes the gradients of U and V on one batch and extends the bases by them; no weight changes."""
        for layer in self.layers.values():
            layer.ask_for_basis_gradients_(True)
        loss = self._loss(pixels, labels)
        bases = [basis for layer in self.layers.values() for basis in (layer.U, layer.V)]
        # Only the bases: the gradients of everything else would be thrown away.
        gradients = torch.autograd.grad(loss, bases, allow_unused=True)
        for basis, gradient in zip(bases, gradients, strict=True):
            basis.grad = gradient
        for layer in self.layers.values():
            layer.ask_for_basis_gradients_(False)
        self.retained = {name: layer.rank for name, layer in self.layers.items()}
        augment_(self.layers, self.optimizer)
        return float(loss.detach())

    def _coefficient_step_(self, pixels: Tensor, labels: Tensor) -> float:
        """Takes one optimiser step on the cores and on everything dense, with the penalty in the loss."""
        loss = self._loss(pixels, labels)
        total = loss + self.options.beta * self._penalty() if self.options.beta > 0 and self.layers else loss
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * self._lr_factor(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
            logits = self.model(pixels)
            if isinstance(logits, tuple):  # with auxiliary classifiers, which inference does not use
                logits = logits[0]
            with torch.no_grad():
                wanted = None if self.teacher is None else self.teacher(pixels)
        loss = F.cross_entropy(logits.float(), labels)
        if wanted is not None:
            loss = torch.lerp(loss, distillation_loss(logits.float(), wanted.float()), self.options.distill)
        # Before it is used: the bases and the optimiser's state must not be made of it.
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {float(loss.detach())}")
        return loss

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(f"{what} in step {self.step + 1} of {self.steps}", hint="lower --lr or --beta")

    def _penalty(self) -> Tensor:
        """Returns the sum of the conditioning penalties of the retained cores.

        The rows and columns that augmentation has just added are left out: they are near zero, and punishing them
        would push against the very truncation that follows.
        """
        terms = []
        for name, layer in self.layers.items():
            kept = self.retained.get(name, layer.rank)
            terms.append(conditioning_penalty(layer.S[:kept, :kept], scale_free=self.scale_free))
        return torch.stack(terms).sum()

    def _end_cycle_(self) -> None:
        """Truncates if bases are augmented; afterwards every core is diagonal and of its allowed rank."""
        if self.position > 0:
            truncate_(self.layers, self.optimizer, self.options)
        self.position, self.retained = 0, {}
        self.parameters = count_shipped_parameters(self.model)

    def _enforce_rank_bounds_(self) -> None:
        options = self.options
        for layer in self.layers.values():
            largest = largest_rank(layer, options)
            if layer.rank > largest:
                factors, _ = truncate(layer.factors(), tol=options.tol, min_rank=options.min_rank, max_rank=largest)
                layer.set_factors_(factors)
        self.parameters = count_shipped_parameters(self.model)

    def _evaluate(self, *, epoch: int, loss: float | None) -> None:
        try:
            accuracy = measure_accuracy(self.model, self.held_out)
        except EvaluationError as error:  # the last step of an epoch may have made the weights infinite
            raise self._diverged("the network's answers are not finite") from error
        frozen = self.step > self.frozen_from
        self.log.append(EpochRecord(epoch, loss, accuracy, self._ranks(), self.parameters, frozen))
        # Not >: of equals the later state is taken, it has seen more.
        if frozen and accuracy >= self.best_accuracy:
            self.best = copy.deepcopy(self.model.state_dict())
            self.best_epoch, self.best_accuracy = epoch, accuracy

    def _ranks(self) -> dict[str, int]:
        """Returns the ranks as of the last truncation: between truncations the bases are up to twice as wide."""
        return {name: self.retained.get(name, layer.rank) for name, layer in self.layers.items()}

    def _lr_factor(self, step: int) -> float:
        warm_up = max(1, round(WARM_UP * self.steps))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.steps - warm_up)))

    def _report(self, epoch: int, loss: float, *, epoch_ended: bool = False) -> None:
        ranks = list(self._ranks().values())
        self.on_progress(
            TrainingProgress(
                step=self.step,
                steps=self.steps,
                epoch=epoch,
                epochs=self.options.epochs,
                loss=loss,
                held_out_accuracy=self.log[-1].held_out_accuracy,
                mean_rank=sum(ranks) / max(1, len(ranks)),
                parameters=self.parameters,
                epoch_ended=epoch_ended,
            )
        )


def distillation_loss(
    logits: Float[Tensor, "n classes"], wanted: Float[Tensor, "n classes"], *, temperature: float = TEMPERATURE
) -> Float[Tensor, ""]:
    """Returns T²·KL(teacher ‖ student) of the softened distributions, averaged over the images.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2; T² keeps the gradient's size independent of T.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(wanted / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _is_scale_free(model: nn.Module, options: DlrtOptions) -> bool:
    if options.penalty == "auto":
        return any(word in type(module).__name__.lower() for module in model.modules() for word in NORMALIZATION)
    return options.penalty == "scale-free"


def _make_optimizer(model: nn.Module, options: DlrtOptions) -> torch.optim.AdamW:
    """Returns AdamW over cores and dense parameters. The bases are not in it: decay would break their columns."""
    bases = {id(basis) for layer in factored_layers(model).values() for basis in (layer.U, layer.V)}
    trained = [p for p in model.parameters() if id(p) not in bases and p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr)
