"""The fine-tuning loop: DLRT cycles, then a last phase with frozen bases; the best state on held-out images stays."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.data import ImageSet, count_training_batches, iterate_training_batches, shard_images, split_held_out
from lrcompress.dlrt.diagnosis import find_not_finite
from lrcompress.dlrt.distributed import total, world
from lrcompress.dlrt.log import EpochRecord, FineTuning, TrainingProgress, describe_cores
from lrcompress.dlrt.losses import Objective
from lrcompress.dlrt.optimizer import Dlrt
from lrcompress.dlrt.ranks import Circumstances
from lrcompress.dlrt.settings import TrainingOptions
from lrcompress.dlrt.sync_norm import synchronised_batch_norms
from lrcompress.dlrt.target import DropTarget
from lrcompress.errors import DataError, EvaluationError, OptionError, TrainingError
from lrcompress.measure import eval_mode, measure_accuracy
from lrcompress.nn import count_shipped_parameters

ROBUST_IMAGES = 1000  # held-out images that are attacked after each epoch of adversarial training
State = dict[str, Any]


def fine_tune_(
    model: nn.Module,
    images: ImageSet,
    options: TrainingOptions,
    *,
    dense: nn.Module | None = None,
    circumstances: Circumstances | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
    save: Callable[[State], None] = lambda state: None,
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
        save: is given the state of the run from time to time, and when it is stopped. A run that is resumed from it
            ends with the same bytes as one that was never interrupted.
        resume: a state that was saved.
        is_stopped: asked after each step.

    Raises:
        OptionError: if there is nobody to distil from or to compare with.
        TrainingError: if the loss or a gradient is not finite, or the run was stopped.
        DataError: if there are too few images for one batch, or labels that the model does not have.
    """
    rest, held_out = split_held_out(images, fraction=options.held_out, seed=options.seed)
    if count_training_batches(len(rest), batch_size=options.batch_size, processes=world()[1]) == 0:
        raise DataError(f"{len(images)} training images are too few", hint="fine-tuning needs thousands of images")
    if dense is None and (options.distill > 0 or options.max_drop is not None):
        what, name = ("distillation", "distill=0") if options.distill > 0 else ("a largest drop", "max_drop=None")
        raise OptionError(f"{what} needs the uncompressed model", hint=f"pass dense=, or {name}")
    device = next(model.parameters()).device
    # Dropout and its like draw from the global generators: seeded for each step, and afterwards as they were before.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        synchronised_batch_norms(model),
    ):
        run = _Run(model, rest, held_out, options, dense, circumstances, on_progress)
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
    ) -> None:
        self.images, self.options, self.on_progress = images, options, on_progress
        self.held_out_images = len(held_out)
        self.held_out = shard_images(held_out, *world())
        self.device = next(model.parameters()).device
        self.model = model.to(memory_format=torch.channels_last)
        if dense is not None:
            dense.to(memory_format=torch.channels_last)
        self.dlrt = Dlrt(model, options.dlrt, circumstances=circumstances)
        adversary = options.adversary()
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
        self.adversary = adversary
        self.target = None
        if options.max_drop is not None and dense is not None:
            self.target = DropTarget(self._accuracy(dense), options.max_drop, self.dlrt.ranks.smallest_fraction())
        self.steps_per_epoch = count_training_batches(len(images), batch_size=options.batch_size, processes=world()[1])
        self.steps = options.count_steps(self.steps_per_epoch)
        frozen_steps = max(1, round(options.frozen_fraction * self.steps))
        self.frozen_from = self.steps - frozen_steps
        self.step, self.epoch, self.batch = 0, 1, 0
        self.losses: list[float] = []
        self.log: list[EpochRecord] = []
        self.parameters = count_shipped_parameters(model)
        self.best: dict[str, Any] = {}
        self.best_epoch, self.best_score, self.waited = 0, -1.0, 0
        self.elapsed, self.started = 0.0, time.monotonic()

    def run(self, save: Callable[[State], None], resume: State | None, is_stopped: Callable[[], bool]) -> FineTuning:
        if resume is None:
            self._evaluate_(epoch=0, loss=None)
        else:
            self._restore_(resume)
        saved = time.monotonic()
        over = self._is_over()
        # A run that was stopped in its very last step still has an epoch to end.
        while not over or self.batch > 0:
            for pixels, labels in [] if over else self._batches():
                self.losses.append(self._train_step_(pixels, labels))
                self.step, self.batch = self.step + 1, self.batch + 1
                self._report(self.losses[-1])
                stopped = bool(total(float(is_stopped()), self.device))
                if stopped or time.monotonic() - saved >= self.options.save_seconds:
                    save(self.state())
                    saved = time.monotonic()
                if stopped:
                    raise TrainingError(
                        f"stopped in step {self.step} of {self.steps}", hint="--resume goes on from here"
                    )
                if over := self._is_over():
                    break
            self._end_epoch_()
            over = self._is_over()
        self.model.load_state_dict(self.best)
        self.model.eval()
        penalty = "scale-free" if self.dlrt.regulariser.scale_free else "paper"
        reached = self.target.reached(self.best_score) if self.target is not None else None
        return FineTuning(tuple(self.log), self.best_epoch, self.held_out_images, penalty, reached)

    def state(self) -> State:
        """Returns all that a later run needs to go on from here, as tensors and JSON types."""
        return {
            "model": self.model.state_dict(),
            "dlrt": self.dlrt.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "waited": self.waited,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "losses": list(self.losses),
            "parameters": self.parameters,
            "log": [record.to_json() for record in self.log],
            "fraction": None if self.target is None else self.target.fraction,
            "elapsed": self._elapsed(),
        }

    def _restore_(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.dlrt.load_state_dict(state["dlrt"])
        self.best, self.best_epoch, self.best_score = state["best"], state["best_epoch"], state["best_score"]
        self.waited, self.step, self.epoch, self.batch = (state[key] for key in ("waited", "step", "epoch", "batch"))
        self.losses, self.elapsed = list(state["losses"]), state["elapsed"]
        self.log = [EpochRecord.from_json(record) for record in state["log"]]
        if self.target is not None and state["fraction"] is not None:
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
            classes=self._count_classes() if self.options.augmentation.mixes else None,
            workers=self.options.workers,
            shard=world(),
            first_batch=self.batch,
        )

    def _count_classes(self) -> int:
        with torch.no_grad(), eval_mode(self.model):
            return self.model(self.images.dataset[0][0][None].to(self.device)).shape[1]

    def _train_step_(self, pixels: Tensor, labels: Tensor) -> float:
        """Takes one step on this process's part of a batch and returns its loss, averaged over all processes."""
        if not self.dlrt.frozen and self._position() >= self.frozen_from:
            self._freeze_()
        # Of the step alone, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed(self.options.seed * 1_000_003 + self.step * world()[1] + world()[0])
        self.model.train()
        for group in self.dlrt.inner.param_groups:
            group["lr"] = self.options.dlrt.lr * self._lr_factor(self._position())
        pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device)
        whole = total(len(pixels), self.device) / world()[1]
        self.dlrt.zero_grad()
        mean = 0.0
        # As many on all processes, and no part of one image: batch norm cannot train on it.
        parts = max(1, min(self.options.accumulate, int(whole) // 2))
        for number, (some, wanted) in enumerate(
            zip(pixels.tensor_split(parts), labels.tensor_split(parts), strict=True)
        ):
            loss = self.objective(some, wanted, seed=self.options.seed + self.step * parts + number)
            # Before it is used: the bases and the optimiser's state must not be made of it.
            if not math.isfinite(value := total(float(loss.detach()), self.device)):
                raise self._diverged(f"the loss is {value}", some)
            (loss * (len(some) / whole)).backward()
            mean += float(loss.detach()) * len(some) / whole
        penalty = self.dlrt.penalty()
        if penalty.requires_grad:
            penalty.backward()
        try:
            self.dlrt.step()
        except TrainingError as error:
            raise TrainingError(f"{error.message} in step {self.step + 1} of {self.steps}", hint=error.hint) from error
        if self.dlrt.position == 0:
            self.parameters = count_shipped_parameters(self.model)
        return total(mean, self.device) / world()[1]

    def _diverged(self, what: str, pixels: Tensor | None = None) -> TrainingError:
        where = "" if pixels is None else find_not_finite(self.model, pixels)
        return TrainingError(f"{what}{where} in step {self.step + 1} of {self.steps}", hint="lower --lr or --beta")

    def _freeze_(self) -> None:
        self.dlrt.freeze_()
        self.parameters, self.waited = count_shipped_parameters(self.model), 0

    def _end_epoch_(self) -> None:
        loss = sum(self.losses) / len(self.losses)
        if self._is_over() and not self.dlrt.frozen:
            self._freeze_()
        epoch = self.epoch
        self._evaluate_(epoch=epoch, loss=loss)
        self.epoch, self.batch, self.losses = self.epoch + 1, 0, []
        self._report(loss, epoch=epoch, epoch_ended=True)

    def _evaluate_(self, *, epoch: int, loss: float | None) -> None:
        try:
            accuracy = self._accuracy(self.model)
            robust = None if self.adversary is None else self._robust_accuracy()
        except EvaluationError as error:  # the last step of an epoch may have made the weights infinite
            raise self._diverged("the network's answers are not finite") from error
        frozen = self.dlrt.frozen and self.step > 0
        cores = describe_cores(self.dlrt)
        self.log.append(
            EpochRecord(epoch, loss, accuracy, robust, self.dlrt.current_ranks(), self.parameters, frozen, cores)
        )
        score = accuracy if robust is None else robust
        self.waited = 0 if score > max((r.score() for r in self.log[:-1]), default=-1.0) else self.waited + 1
        # Not >: of equals the later state is taken, it has seen more.
        if frozen and score >= self.best_score:
            self.best = copy.deepcopy(self.model.state_dict())
            self.best_epoch, self.best_score = epoch, score
        if self.options.patience is not None and self.waited >= self.options.patience and not self.dlrt.frozen:
            self._freeze_()
        if self.target is not None and not self.dlrt.frozen and epoch > 0:
            self.dlrt.ranks.policy = self.target.after(accuracy, self.parameters / self.dlrt.ranks.whole.parameters)

    def _accuracy(self, model: nn.Module) -> float:
        right = measure_accuracy(model, self.held_out) * len(self.held_out) if len(self.held_out) else 0.0
        return round(total(right, self.device)) / self.held_out_images

    def _robust_accuracy(self) -> float:
        """Returns the share of right answers on perturbed held-out images: the training's own adversary, no more."""
        assert self.adversary is not None  # asked by whoever calls
        count, right = min(ROBUST_IMAGES, len(self.held_out)), 0.0
        if count:
            right = count * self.adversary.accuracy(self.model, self.held_out, count=count, seed=self.options.seed)
        return round(total(right, self.device)) / round(total(count, self.device))

    def _is_over(self) -> bool:
        waited = self.options.patience is not None and self.dlrt.frozen and self.waited >= self.options.patience
        return self._position() >= self.steps or (waited and self.batch == 0)

    def _position(self) -> float:
        """Returns how far the run is in steps; a time limit may be further on than the steps that were made."""
        limit = self.options.time_limit
        if limit is None:
            return self.step
        return max(self.step, self.steps * min(1.0, total(self._elapsed(), self.device) / world()[1] / limit))

    def _elapsed(self) -> float:
        return self.elapsed + time.monotonic() - self.started

    def _lr_factor(self, position: float) -> float:
        warm_up = max(1, round(self.options.warm_up * self.steps))
        if position < warm_up:
            return min(1.0, (position + 1) / warm_up)  # with a time limit positions are no whole numbers
        return 0.5 * (1 + math.cos(math.pi * (position - warm_up) / max(1, self.steps - warm_up)))

    def _report(self, loss: float, *, epoch: int | None = None, epoch_ended: bool = False) -> None:
        ranks = [rank for layer in self.dlrt.current_ranks().values() for rank in layer]
        self.on_progress(
            TrainingProgress(
                step=self.step,
                steps=self.steps,
                epoch=epoch or self.epoch,
                epochs=math.ceil(self.steps / self.steps_per_epoch),
                loss=loss,
                held_out_accuracy=self.log[-1].held_out_accuracy,
                mean_rank=sum(ranks) / max(1, len(ranks)),
                parameters=self.parameters,
                epoch_ended=epoch_ended,
            )
        )
