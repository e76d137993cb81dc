"""The settings of DLRT itself, whatever the training loop around it does."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lrcompress.dlrt.moments import Moments
from lrcompress.errors import OptionError
from lrcompress.plan import RankPolicy

PENALTIES, CORES, UNFOLDINGS = ("auto", "scale-free", "paper"), ("retained", "augmented"), ("output", "both")

LEARNING_RATES = {"adamw": 1e-3, "sgd": 1e-2}


@dataclass(frozen=True)
class DlrtOptions:
    """Settings of the cycle, of the optimiser and of the conditioning penalty. They are written into the artifact.

    Attributes:
        policy: chooses the ranks of all layers at every truncation: `Tolerance(0.1)`, `Budget(fraction=0.05)`, ….
        coefficient_steps: s*, optimiser steps per cycle on the augmented cores.
        every_gradient: whether the batch that extends the bases also moves the weights, by one more optimiser step
            before the bases are extended; the published cycle throws this gradient away.
        optimizer: "adamw", or "sgd" with Nesterov momentum.
        lr: learning rate; None is 0.001 of AdamW and 0.01 of SGD.
        momentum: of SGD.
        weight_decay: of cores and dense weights; never of bases, biases and norms.
        clip_norm: largest norm of the gradient of all trained parameters; None does not clip.
        moments: how the optimiser's second moment follows a change of basis: transported with the median of the old
            entries as a floor ("floor"), as the authors do ("transport"), or forgotten with the first ("reset").
        beta: β, the weight of the conditioning penalty; 0 switches it off. With `max_kappa` the weight it starts with.
        penalty: "scale-free" (R/α², for networks with normalisation layers, which do not feel the scale of S),
            "paper" (R), or "auto" (scale-free where the network has a normalisation layer).
        penalty_core: whether the penalty is of the "retained" core or of the "augmented" one, as in the paper.
        penalty_unfolding: of a Tucker-2 core, the "output" unfolding or "both".
        max_kappa: κ that no core is to exceed: every layer has a β of its own, which rises while it does.
        min_rank: smallest rank of a layer.
        max_rank: largest rank of a layer; None allows all ranks that remove parameters.
        round_ranks: ranks are multiples of this.

    Raises:
        OptionError: if a value is out of its range.
    """

    policy: RankPolicy
    coefficient_steps: int = 10
    every_gradient: bool = True
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    moments: Moments = "floor"
    beta: float = 0.0
    penalty: Literal["auto", "scale-free", "paper"] = "auto"
    penalty_core: Literal["retained", "augmented"] = "retained"
    penalty_unfolding: Literal["output", "both"] = "output"
    max_kappa: float | None = None
    min_rank: int = 1
    max_rank: int | None = None
    round_ranks: int = 1

    def __post_init__(self) -> None:
        require(self.coefficient_steps >= 1, "--coefficient-steps", "at least 1", self.coefficient_steps)
        require(self.optimizer in ("adamw", "sgd"), "--optimizer", "adamw or sgd", self.optimizer)
        if self.lr is None:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        require(math.isfinite(self.peak_lr) and self.peak_lr > 0, "--lr", "more than 0", self.lr)
        require(0 <= self.momentum < 1, "--momentum", "in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "--weight-decay", "0 or more", self.weight_decay)
        require(self.clip_norm is None or self.clip_norm > 0, "--clip-norm", "more than 0", self.clip_norm)
        require(self.moments in ("floor", "transport", "reset"), "--moments", "floor, transport, reset", self.moments)
        require(math.isfinite(self.beta) and self.beta >= 0, "--beta", "0 or more", self.beta)
        require(self.penalty in PENALTIES, "--penalty", ", ".join(PENALTIES), self.penalty)
        require(self.penalty_core in CORES, "--penalty-core", " or ".join(CORES), self.penalty_core)
        require(self.penalty_unfolding in UNFOLDINGS, "--penalty-unfolding", " or ".join(UNFOLDINGS),
                self.penalty_unfolding)  # fmt: skip
        require(self.max_kappa is None or self.max_kappa > 1, "--max-kappa", "more than 1", self.max_kappa)
        require(self.min_rank >= 1, "--min-rank", "at least 1", self.min_rank)
        require(self.max_rank is None or self.max_rank >= self.min_rank, "--max-rank", ">= --min-rank", self.max_rank)
        require(self.round_ranks >= 1, "--round-ranks", "at least 1", self.round_ranks)

    @property
    def peak_lr(self) -> float:
        """The learning rate, given or the optimiser's own."""
        assert self.lr is not None  # set when the options are made
        return self.lr

    def describe(self) -> dict[str, Any]:
        """Returns the settings as JSON types."""
        return {**vars(self), "policy": self.policy.describe()}


# A value of each option that is allowed, for the hint; those that also depend on others have hints of their own.
EXAMPLES = {
    "--coefficient-steps": 10, "--optimizer": "adamw", "--lr": 0.001, "--momentum": 0.9, "--weight-decay": 0.0001,
    "--clip-norm": 1, "--moments": "floor", "--beta": 0.01, "--penalty": "auto", "--penalty-core": "retained",
    "--penalty-unfolding": "output", "--max-kappa": 10, "--min-rank": 1, "--max-rank": 64, "--round-ranks": 8,
    "--epochs": 5, "--steps": 1000, "--time-limit": 600, "--patience": 3, "--anneal": 2, "--max-drop": 0.5,
    "--batch-size": 128, "--accumulate": 2, "--frozen-fraction": 0.3, "--warm-up": 0.05, "--held-out": 0.1,
    "--distill": 0.9, "--temperature": 3, "--label-smoothing": 0.1, "--adversarial": "fgsm-rs",
    "--adversarial-norm": "linf", "--adversarial-eps": "8/255", "--adversarial-steps": 7, "--adversarial-share": 1,
    "--trades": 6, "--precision": "bfloat16", "--workers": 2, "--seed": 0,
}  # fmt: skip


def require(condition: bool, option: str, allowed: str, value: object, *, hint: str | None = None) -> None:
    """Raises an `OptionError` unless the condition holds; without a hint it shows a value that is allowed."""
    if not condition:
        raise OptionError(f"{option} must be {allowed}, got {value}", hint=hint or f"{option} {EXAMPLES[option]}")
