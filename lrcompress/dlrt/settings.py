"""The settings of a fine-tuning run."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lrcompress.data import Augmentation
from lrcompress.dlrt.adversary import Adversary, AdversaryKind
from lrcompress.dlrt.options import DlrtOptions, require
from lrcompress.dlrt.target import Annealing
from lrcompress.perturb import Norm
from lrcompress.plan import Budget

ANNEALED = 2 / 3  # of the steps before ranks are frozen


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of a fine-tuning run. They are written into the artifact.

    Attributes:
        dlrt: of the method itself.
        epochs: passes over the training images.
        steps: at most so many steps, whatever the epochs.
        time_limit: at most so many seconds, to which the schedule shrinks; such a run cannot be repeated exactly.
        patience: epochs without a better held-out accuracy after which the ranks are frozen, and then the run ends.
        anneal: with a budget: what the training starts with, as a multiple of it. Ranks come down to the budget in the
            first two thirds of the steps before they are frozen; 1 starts with the budget itself.
        max_drop: points of held-out accuracy that may be lost against the uncompressed model: drives the budget.
        batch_size: images per step, over all processes together.
        accumulate: parts in which a batch is computed, one after the other, to save memory.
        frozen_fraction: the last part of the steps, in which bases and ranks stay as they are.
        warm_up: first part of the steps, in which the learning rate rises; then it falls as a cosine.
        held_out: share of the training images on which the best state is chosen.
        distill: weight in [0, 1] of the distillation loss towards the uncompressed model; the labels get the rest.
        temperature: T of the distillation.
        label_smoothing: share of the labels' weight that is spread over all classes.
        augmentation: of the training images.
        adversarial: trains on perturbed images: "fgsm-rs" or "pgd"; None does not.
        adversarial_eps: radius of the perturbations in pixel units of [0, 1] images.
        adversarial_norm: "linf" or "l2".
        adversarial_steps: of "pgd".
        adversarial_share: part of each batch that is perturbed.
        trades: λ of TRADES; 0 trains on perturbed images alone.
        precision: "float32", or "bfloat16" autocast; the penalty and all decompositions stay in float32 or better.
        workers: processes that read images.
        save_seconds: how often the state of the run is saved.
        seed: of the split, the shuffling and the augmentation.

    Raises:
        OptionError: if a value is out of its range.
    """

    dlrt: DlrtOptions
    epochs: int = 5
    steps: int | None = None
    time_limit: float | None = None
    patience: int | None = None
    anneal: float = 1.0
    max_drop: float | None = None
    batch_size: int = 128
    accumulate: int = 1
    frozen_fraction: float = 0.3
    warm_up: float = 0.05
    held_out: float = 0.1
    distill: float = 0.0
    temperature: float = 3.0
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    adversarial: AdversaryKind | None = None
    adversarial_eps: float = 8 / 255
    adversarial_norm: Norm = "linf"
    adversarial_steps: int = 7
    adversarial_share: float = 1.0
    trades: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: int = 0
    save_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "--epochs", "at least 1", self.epochs)
        require(self.steps is None or self.steps >= 1, "--steps", "at least 1", self.steps)
        require(self.time_limit is None or self.time_limit > 0, "--time-limit", "more than 0", self.time_limit)
        require(self.patience is None or self.patience >= 1, "--patience", "at least 1", self.patience)
        require(math.isfinite(self.anneal) and self.anneal >= 1, "--anneal", "at least 1", self.anneal)
        require(self.max_drop is None or self.max_drop > 0, "--max-drop", "more than 0 points", self.max_drop)
        require(
            self.max_drop is None or isinstance(self.dlrt.policy, Budget),
            "the policy of a training that max_drop drives",
            "a Budget",
            self.dlrt.policy,
            hint="policy=Budget(fraction=0.999)",
        )
        require(self.batch_size >= 2, "--batch-size", "at least 2", self.batch_size)
        require(
            1 <= self.accumulate <= self.batch_size // 2,
            "--accumulate",
            f"1 to half of --batch-size {self.batch_size}",
            self.accumulate,
            hint=f"--accumulate {max(1, self.batch_size // 2)}, or a larger --batch-size",
        )
        require(0 < self.frozen_fraction <= 1, "--frozen-fraction", "in (0, 1]", self.frozen_fraction)
        require(0 <= self.warm_up < 1, "--warm-up", "in [0, 1)", self.warm_up)
        require(0 < self.held_out < 1, "--held-out", "in (0, 1)", self.held_out)
        require(0 <= self.distill <= 1, "--distill", "in [0, 1]", self.distill)
        require(self.temperature > 0, "--temperature", "more than 0", self.temperature)
        require(0 <= self.label_smoothing < 1, "--label-smoothing", "in [0, 1)", self.label_smoothing)
        require(self.adversarial in (None, "fgsm-rs", "pgd"), "--adversarial", "fgsm-rs or pgd", self.adversarial)
        require(self.adversarial_norm in ("linf", "l2"), "--adversarial-norm", "linf or l2", self.adversarial_norm)
        largest = 1 if self.adversarial_norm == "linf" else math.inf
        require(0 < self.adversarial_eps <= largest and math.isfinite(self.adversarial_eps), "--adversarial-eps",
                "in (0, 1], in units of [0, 1] images" if largest == 1 else "more than 0",
                self.adversarial_eps)  # fmt: skip
        require(self.adversarial_steps >= 1, "--adversarial-steps", "at least 1", self.adversarial_steps)
        require(0 < self.adversarial_share <= 1, "--adversarial-share", "in (0, 1]", self.adversarial_share)
        require(self.trades == 0 or self.adversarial is not None, "--trades", "with --adversarial", self.trades,
                hint="--adversarial pgd")  # fmt: skip
        require(self.trades == 0 or self.adversarial_share == 1, "--adversarial-share", "1 with --trades",
                self.adversarial_share)  # fmt: skip
        require(self.trades >= 0 and math.isfinite(self.trades), "--trades", "0 or more", self.trades)
        require(self.precision in ("float32", "bfloat16"), "--precision", "float32 or bfloat16", self.precision)
        require(self.seed >= 0, "--seed", "0 or more", self.seed)
        require(self.workers >= 0, "--workers", "0 or more", self.workers)

    def annealing(self, adaptive_steps: float) -> Annealing | None:
        """Returns what brings the budget down in the steps before ranks are frozen, if there is a budget to come to."""
        if not isinstance(self.dlrt.policy, Budget) or self.max_drop is not None:
            return None
        return Annealing(self.dlrt.policy, self.anneal, ANNEALED * adaptive_steps)

    def adversary(self) -> Adversary | None:
        """Returns what perturbs the training images, if anything does."""
        if self.adversarial is None:
            return None
        return Adversary(
            self.adversarial,
            self.adversarial_eps,
            self.adversarial_norm,
            self.adversarial_steps,
            self.adversarial_share,
            self.precision == "bfloat16",
        )

    def count_steps(self, per_epoch: int) -> int:
        """Returns the number of steps of the whole run."""
        steps = self.epochs * per_epoch
        return steps if self.steps is None else min(steps, self.steps)

    def describe(self) -> dict[str, Any]:
        """Returns the settings as JSON types: what a repetition needs."""
        policy = {} if self.max_drop is None else {"policy": {"name": "max drop", "points": self.max_drop}}
        own = {**vars(self), **self.dlrt.describe(), **policy, "augmentation": asdict(self.augmentation)}
        return {key: value for key, value in own.items() if key not in ("dlrt", "save_seconds", "workers")}
