"""The fine-tuning loop: DLRT cycles, then a last phase with frozen bases; the best state on held-out images stays."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.data import ImageSet, count_training_batches, iterate_training_batches
from lrcompress.dlrt.batch import train_on_batch_
from lrcompress.dlrt.diagnosis import LOWER, LossWatch, doubt_lengths, find_not_finite_value
from lrcompress.dlrt.distributed import agree, total, world
from lrcompress.dlrt.held_out import HeldOut, divide_images
from lrcompress.dlrt.log import EpochRecord, FineTuning, TrainingProgress, describe_cores
from lrcompress.dlrt.losses import Objective
from lrcompress.dlrt.optimizer import Dlrt
from lrcompress.dlrt.ranks import Circumstances
from lrcompress.dlrt.schedule import Schedule
from lrcompress.dlrt.selection import Selection
from lrcompress.dlrt.settings import TrainingOptions
from lrcompress.dlrt.sync_norm import synchronised_batch_norms
from lrcompress.dlrt.target import DropTarget
from lrcompress.errors import EvaluationError, OptionError, TrainingError
from lrcompress.measure import eval_mode
from lrcompress.nn import count_shipped_parameters

State = dict[str, Any]


def fine_tune_(
    model: nn.Module,
    images: ImageSet,
    options: TrainingOptions,
    *,
    dense: nn.Module | None = None,
    circumstances: Circumstances | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
    on_warning: Callable[[str], None] = lambda message: None,
    save: Callable[[State], bool | None] = lambda state: None,
    resume: State | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> FineTuning:
    """Fine-tunes the factored layers of the model by DLRT and everything dense along with them.

    Args:
        model: takes images in [0, 1]; its factored layers are trained in U, S, V, all else as it is.
        images: training images; a part of them is held out to choose the best state.
        options: the settings.
        dense: the uncompressed model in eval mode, taking images in [0, 1]; what is distilled from, and what a largest
            drop is measured against.
        circumstances: what ranks are chosen by beside the spectra.
        on_progress: called after each step.
        on_warning: is told, in a sentence, what makes the run doubtful as soon as it is known: a loss that rises, an
            accuracy that is that of guessing, a result that is worse than the start.
        save: is given the state of the run from time to time, when it is stopped, and when it is over; it returns False
            if that could not be kept. The state holds the tensors of the running training, which go on changing: copy
            or write them. A run that is resumed from it ends with the same bytes as one that was never interrupted.
        resume: a state that was saved. Of the model then only the form counts, not its values.
        is_stopped: asked after each step.

    Raises:
        OptionError: if there is nobody to distil from or to compare with.
        TrainingError: if the loss, a gradient, a weight or a statistic is not finite, or the run was stopped.
        DataError: if there are too few images for one batch, or labels that the model does not have.
    """
    rest, held_out = divide_images(images, options)
    if dense is None and (options.distill > 0 or options.max_drop is not None):
        what, name = ("distillation", "distill=0") if options.distill > 0 else ("a largest drop", "max_drop=None")
        raise OptionError(f"{what} needs the uncompressed model", hint=f"pass dense=, or {name}")
    device = next(model.parameters()).device
    # Dropout and its like draw from the global generators: seeded for each step, and afterwards as they were before.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        synchronised_batch_norms(model),
    ):
        reference = None if resume is None else resume["reference"]
        if resume is not None:
            model.load_state_dict(resume["selection"]["start"])
        run = _Run(model, rest, held_out, options, dense, circumstances, on_progress, on_warning, reference)
        return run.run(save, resume, is_stopped)


class _Run:
    """The state of one fine-tuning run."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        held_out: ImageSet,
        options: TrainingOptions,
        dense: nn.Module | None,
        circumstances: Circumstances | None,
        on_progress: Callable[[TrainingProgress], None],
        on_warning: Callable[[str], None],
        reference: float | None,
    ) -> None:
        self.images, self.options, self.on_progress, self.on_warning = images, options, on_progress, on_warning
        self.device = next(model.parameters()).device
        adversary = options.adversary()
        self.held_out = HeldOut(held_out, adversary, self.device, seed=options.seed)
        self.model = model.to(memory_format=torch.channels_last)
        if dense is not None:
            dense.to(memory_format=torch.channels_last)
        self.steps_per_epoch = count_training_batches(len(images), batch_size=options.batch_size, processes=world()[1])
        self.steps = options.count_steps(self.steps_per_epoch)
        self.schedule = Schedule(
            self.steps,
            time_limit=options.time_limit,
            warm_up=options.warm_up,
            frozen_fraction=options.frozen_fraction,
            device=self.device,
        )
        self.annealing = options.annealing(self.schedule.frozen_from)
        policy = options.dlrt.policy if self.annealing is None else self.annealing.policy(0)
        self.dlrt = Dlrt(model, replace(options.dlrt, policy=policy), circumstances=circumstances)
        self.objective = Objective(
            model,
            teacher=dense,
            distill=options.distill,
            temperature=options.temperature,
            label_smoothing=options.label_smoothing,
            adversary=adversary,
            trades=options.trades,
            bfloat16=options.precision == "bfloat16",
        )
        self.target = None
        self.parameters = count_shipped_parameters(model)
        if options.max_drop is not None and dense is not None:
            kept = self.parameters / self.dlrt.ranks.whole.parameters
            self.target = DropTarget(
                reference if reference is not None else self.held_out.accuracy(dense),
                options.max_drop,
                self.dlrt.ranks.smallest_fraction(),
                fraction=min(kept, 0.999),
            )
            self.dlrt.ranks.policy = self.target.policy()
        self.classes = self._count_classes(held_out)
        self.loss_watch, self.warnings = LossWatch(self.classes), list[str]()
        self.selection = Selection(
            model.state_dict(),
            options,
            self.held_out,
            classes=self.classes,
            whole_parameters=self.dlrt.ranks.whole.parameters,
        )
        self.step, self.epoch, self.batch, self.over = 0, 1, 0, False
        self.losses: list[float] = []

    def run(
        self, save: Callable[[State], bool | None], resume: State | None, is_stopped: Callable[[], bool]
    ) -> FineTuning:
        if resume is None:
            for doubt in doubt_lengths(
                len(self.images),
                batch=self.options.batch_size,
                cycle=self.options.dlrt.coefficient_steps + 1 if self.dlrt.layers else 0,
                adaptive=self.schedule.frozen_from,
                steps=self.steps,
            ):
                self._warn_(doubt)
            self._evaluate_(epoch=0, loss=None)
            self._report(None, epoch=0, epoch_ended=True)
        else:
            self._restore_(resume)
        self.schedule.start_(0.0 if resume is None else resume["elapsed"])
        saved = time.monotonic()
        self.over = self.over or self.step >= self.steps or self._is_out_of_patience()
        # A run that was stopped in its very last step still has an epoch to end.
        while not self.over or self.batch > 0:
            for pixels, labels in [] if self.over else self._batches():
                self.losses.append(self._train_step_(pixels, labels))
                self.step, self.batch = self.step + 1, self.batch + 1
                self._report(self.losses[-1])
                self._warn_(self.loss_watch.add(self.losses[-1], step=self.step, steps=self.steps))
                stopped = bool(total(float(is_stopped()), self.device))
                kept = True
                if stopped or time.monotonic() - saved >= self.options.save_seconds:
                    self._check_values()  # before the last good state is replaced
                    kept, saved = save(self.state()) is not False, time.monotonic()
                if stopped:
                    kept = agree(kept)  # by process 0, the only one that saves
                    hint = (
                        "--resume goes on from here" if kept else "--resume goes on from the last state that was saved"
                    )
                    raise TrainingError(f"stopped in step {self.step} of {self.steps}", hint=hint)
                self.over = self.schedule.position(self.step) >= self.steps
                if self.over:
                    break
            self._end_epoch_()
            # Not by the clock: an epoch that it ends has frozen ranks, and is one that can be chosen.
            self.over = self.over or self._is_out_of_patience()
        save(self.state())  # what comes after the training must not be able to lose it
        best, warning = self.selection.choose_()
        self._warn_(warning)
        self.model.load_state_dict(best)
        self.model.eval()
        penalty = "scale-free" if self.dlrt.regulariser.scale_free else "paper"
        chosen = self.selection.chosen()
        attacked = 0 if chosen.held_out_robust_accuracy is None else self.held_out.attacked_count
        return FineTuning(
            tuple(self.selection.log),
            chosen.epoch,
            self.held_out.count,
            attacked,
            penalty,
            reference=None if self.target is None else self.target.reference,
            reached=None if self.target is None else self.target.reached(chosen.held_out_accuracy),
            warnings=tuple(self.warnings),
            ended_by=self._ended_by(),
        )

    def state(self) -> State:
        """Returns all that a later run needs to go on from here, as tensors and JSON types."""
        return {
            "model": self.model.state_dict(),
            "dlrt": self.dlrt.state_dict(),
            "selection": self.selection.state_dict(),
            "step": self.step,
            "steps": self.steps,
            "epoch": self.epoch,
            "batch": self.batch,
            "over": self.over,
            "losses": list(self.losses),
            "loss_watch": self.loss_watch.state_dict(),
            "warnings": list(self.warnings),
            "parameters": self.parameters,
            "fraction": None if self.target is None else self.target.fraction,
            "reference": None if self.target is None else self.target.reference,
            "elapsed": self.schedule.seconds(),
        }

    def _restore_(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.dlrt.load_state_dict(state["dlrt"])
        self.selection.load_state_dict(state["selection"])
        self.step, self.epoch, self.batch, self.over = (state[key] for key in ("step", "epoch", "batch", "over"))
        self.losses, self.warnings = list(state["losses"]), list(state["warnings"])
        self.loss_watch.load_state_dict(state["loss_watch"])
        if self.target is not None:
            self.target.fraction = state["fraction"]
            self.dlrt.ranks.policy = self.target.policy()
        self.parameters = state["parameters"]

    def _batches(self) -> Any:
        return iterate_training_batches(
            self.images,
            self.options.augmentation,
            batch_size=self.options.batch_size,
            epoch=self.epoch,
            seed=self.options.seed,
            classes=self.classes,
            workers=self.options.workers,
            shard=world(),
            first_batch=self.batch,
        )

    def _count_classes(self, images: ImageSet) -> int:
        with torch.no_grad(), eval_mode(self.model):
            return self.model(images.dataset[0][0][None].to(self.device)).shape[1]

    def _train_step_(self, pixels: Tensor, labels: Tensor) -> float:
        """Takes one step on this process's part of a batch and returns its loss, averaged over all processes."""
        position = self.schedule.position(self.step)
        if not self.dlrt.frozen and position >= self.schedule.frozen_from:
            self._freeze_()
        if self.annealing is not None:
            self.dlrt.ranks.policy = self.annealing.policy(position)
        for group in self.dlrt.inner.param_groups:
            group["lr"] = self.options.dlrt.peak_lr * self.schedule.lr_factor(position)
        try:
            loss = train_on_batch_(
                self.model,
                self.dlrt,
                self.objective,
                pixels,
                labels,
                classes=self.classes,
                accumulate=self.options.accumulate,
                # Of the step alone, so that a resumed run draws what an uninterrupted one does.
                seed=(self.options.seed * 1_000_003 + self.step) % 2**62,
            )
        except TrainingError as error:
            raise TrainingError(f"{error.message} in step {self.step + 1} of {self.steps}", hint=error.hint) from error
        if self.dlrt.position == 0:
            self.parameters = count_shipped_parameters(self.model)
        return loss

    def _check_values(self) -> None:
        """Raises an error that names what has overflowed though the loss is finite, as a running variance can."""
        if name := find_not_finite_value(self.model):
            raise TrainingError(
                f"training has diverged: `{name}` is not finite after step {self.step} of {self.steps}",
                hint=LOWER,
            )

    def _warn_(self, message: str) -> None:
        if message:
            self.warnings.append(message)
            self.on_warning(message)

    def _freeze_(self) -> None:
        if self.annealing is not None:  # patience, or a short run, may end it before its time
            self.dlrt.ranks.policy = self.annealing.budget
            self.dlrt.truncate_()
        self.dlrt.freeze_()
        self.parameters, self.selection.waited = count_shipped_parameters(self.model), 0

    def _end_epoch_(self) -> None:
        loss, epoch = sum(self.losses) / len(self.losses), self.epoch
        if self.over and not self.dlrt.frozen:
            self._freeze_()
        # Not directly after augmentation, which has changed no answer and would be lost.
        if not self.dlrt.frozen and self.dlrt.position > 1:
            self.dlrt.truncate_()
            self.parameters = count_shipped_parameters(self.model)
        self._evaluate_(epoch=epoch, loss=loss)
        self.epoch, self.batch, self.losses = self.epoch + 1, 0, []
        self._report(loss, epoch=epoch, epoch_ended=True)

    def _evaluate_(self, *, epoch: int, loss: float | None) -> None:
        self._check_values()
        try:
            accuracy = self.held_out.accuracy(self.model)
            robust = self.held_out.robust_accuracy(self.model)
        except EvaluationError as error:  # the last step of an epoch may have made the weights infinite
            what = f"the network's answers are not finite after step {self.step} of {self.steps}"
            raise TrainingError(what, hint=LOWER) from error
        frozen = self.dlrt.frozen and self.step > 0
        cores = describe_cores(self.dlrt)
        record = EpochRecord(epoch, loss, accuracy, robust, self.dlrt.current_ranks(), self.parameters, frozen, cores)
        self._warn_(self.selection.add_(record, self.model))
        if not self.dlrt.frozen and epoch > 0:
            if self.target is not None:
                kept = self.parameters / self.dlrt.ranks.whole.parameters
                self.dlrt.ranks.policy = self.target.after(accuracy, kept)
            elif self.options.patience is not None and self.selection.waited >= self.options.patience:
                self._freeze_()

    def _is_out_of_patience(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.dlrt.frozen and self.selection.waited >= patience and self.batch == 0

    def _ended_by(self) -> str:
        if self.step >= self.steps:
            return ""
        return "--patience" if self._is_out_of_patience() else "--time-limit"

    def _report(self, loss: float | None, *, epoch: int | None = None, epoch_ended: bool = False) -> None:
        ranks = [min(ranks) for ranks in self.dlrt.current_ranks().values()]
        self.on_progress(
            TrainingProgress(
                step=self.step,
                steps=self.steps,
                epoch=self.epoch if epoch is None else epoch,
                epochs=math.ceil(self.steps / self.steps_per_epoch),
                loss=loss,
                held_out_accuracy=self.selection.log[-1].held_out_accuracy,
                held_out_robust_accuracy=self.selection.log[-1].held_out_robust_accuracy,
                mean_rank=sum(ranks) / max(1, len(ranks)),
                parameters=self.parameters,
                epoch_ended=epoch_ended,
            )
        )
