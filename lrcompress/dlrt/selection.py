"""The log of a run, and which of its states is kept."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lrcompress.dlrt.diagnosis import is_guessing
from lrcompress.dlrt.held_out import HeldOut
from lrcompress.dlrt.log import EpochRecord
from lrcompress.dlrt.settings import TrainingOptions
from lrcompress.dlrt.start import compare_with_start


class Selection:
    """Keeps the best of the states with final ranks; the one before training too, in case training is for nothing.

    Attributes:
        log: a record of every epoch, the start first.
        best_epoch: whose state is the best one.
        waited: epochs of the same phase since the last better one.

    Args:
        start: the state before training, as its accuracy is measured.
        options: of the run.
        held_out: what states are measured on.
        classes: of the network.
        whole_parameters: of the dense network.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        options: TrainingOptions,
        held_out: HeldOut,
        *,
        classes: int,
        whole_parameters: int,
    ) -> None:
        self.options, self.held_out, self.classes, self.whole_parameters = options, held_out, classes, whole_parameters
        self.start = copy.deepcopy(dict(start))
        self.log: list[EpochRecord] = []
        self.best: Mapping[str, Tensor] = {}
        self.best_epoch, self.best_score, self.waited = 0, -1.0, 0

    def add_(self, record: EpochRecord, model: nn.Module) -> str:
        """Takes in an epoch, and its state if it is the best one so far; returns a warning if the network guesses."""
        # Of the same phase only: larger ranks, and the start, are no measure of what may still come.
        before = [other.score() for other in self.log if other.epoch > 0 and other.frozen == record.frozen]
        self.waited = 0 if record.epoch == 0 or record.score() > max(before, default=-1.0) else self.waited + 1
        self.log.append(record)
        # Not >: of equals the later state is taken, it has seen more.
        if record.frozen and record.score() >= self.best_score:
            self.best = copy.deepcopy(model.state_dict())
            self.best_epoch, self.best_score = record.epoch, record.score()
        return self._doubt()

    def choose_(self) -> tuple[Mapping[str, Tensor], str]:
        """Returns the state to keep, and a warning if training has made it worse than the start."""
        best = self.chosen()
        keep_start, warning = compare_with_start(
            self.log[0],
            best,
            self.options,
            images=self.held_out.count if best.held_out_robust_accuracy is None else self.held_out.attacked_count,
            classes=self.classes,
            whole_parameters=self.whole_parameters,
        )
        if keep_start:
            self.best, self.best_epoch = self.start, 0
        return self.best, warning

    def chosen(self) -> EpochRecord:
        """Returns the record of the best epoch."""
        return next(record for record in self.log if record.epoch == self.best_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns all of it, as tensors and JSON types."""
        return {
            "start": self.start,
            "log": [record.to_json() for record in self.log],
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self.start = state["start"]
        self.log = [EpochRecord.from_json(record) for record in state["log"]]
        self.best, self.best_epoch, self.best_score = state["best"], state["best_epoch"], state["best_score"]
        self.waited = state["waited"]

    def _doubt(self) -> str:
        """Returns a warning, once, of a network that guesses and did not before training."""
        *before, last = (
            is_guessing(one.held_out_accuracy, images=self.held_out.count, classes=self.classes) for one in self.log
        )
        if not before or any(before) or not last:
            return ""
        start, now = (100 * self.log[place].held_out_accuracy for place in (0, -1))
        return (
            f"after epoch {self.log[-1].epoch} {now:.2f} % of {self.held_out.count:,} held-out images are right, about "
            f"as many as guessing among {self.classes} classes; before training {start:.2f} % were: training diverges; "
            "lower --lr, or allow more parameters"
        )
