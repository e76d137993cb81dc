"""The options of fine-tuning."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrcompress.cli.options import in_panel
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.dlrt import TrainingOptions
    from lrcompress.plan import RankPolicy

DEFAULT_EPOCHS = 5
DEFAULT_DISTILL = 0.9
# Where an option's name is not that of the setting.
AUGMENTATION = {"crop", "flip", "crop_scale", "randaugment", "mixup", "cutmix"}
METHOD = {
    "coefficient_steps",
    "every_gradient",
    "optimizer",
    "lr",
    "momentum",
    "weight_decay",
    "clip_norm",
    "moments",
    "beta",
    "penalty",
    "penalty_core",
    "penalty_unfolding",
    "max_kappa",
    "min_rank",
    "max_rank",
}


# Options that do nothing without another one, or with another value of it; without a value any will do.
NEEDS: dict[str, tuple[str, Any]] = {
    "momentum": ("optimizer", "sgd"),
    "adversarial_eps": ("adversarial", None),
    "adversarial_norm": ("adversarial", None),
    "adversarial_steps": ("adversarial", "pgd"),
    "adversarial_share": ("adversarial", None),
    "trades": ("adversarial", None),
    "penalty": ("beta", None),
    "penalty_core": ("beta", None),
    "penalty_unfolding": ("beta", None),
}
# Options that do nothing with another one, or with a value of it.
IDLE_WITH: tuple[tuple[str, str, Any], ...] = (
    ("label_smoothing", "distill", 1.0),
    ("temperature", "distill", 0.0),
    ("crop", "crop_scale", None),
)


class Penalty(str, Enum):
    """What `--penalty` takes."""

    AUTO = "auto"
    SCALE_FREE = "scale-free"
    PAPER = "paper"


class PenaltyCore(str, Enum):
    """What `--penalty-core` takes."""

    RETAINED = "retained"
    AUGMENTED = "augmented"


class PenaltyUnfolding(str, Enum):
    """What `--penalty-unfolding` takes."""

    OUTPUT = "output"
    BOTH = "both"


class Optimizer(str, Enum):
    """What `--optimizer` takes."""

    ADAMW = "adamw"
    SGD = "sgd"


class Moments(str, Enum):
    """What `--moments` takes."""

    FLOOR = "floor"
    TRANSPORT = "transport"
    RESET = "reset"


class Precision(str, Enum):
    """What `--precision` takes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Adversarial(str, Enum):
    """What `--adversarial` takes."""

    FGSM_RS = "fgsm-rs"
    PGD = "pgd"


class Norm(str, Enum):
    """What `--adversarial-norm` takes."""

    LINF = "linf"
    L2 = "l2"


@dataclass(frozen=True)
class GivenTraining:
    """The options of fine-tuning that were given, by the names of the settings."""

    values: dict[str, Any]

    def settings(
        self, *, data: str | None, policy: "RankPolicy", max_drop: float | None, round_ranks: int, seed: int
    ) -> "TrainingOptions | None":
        """Returns the settings of the fine-tuning, None without one; refuses settings that would have no effect."""
        from lrcompress.data import Augmentation
        from lrcompress.dlrt import DlrtOptions, TrainingOptions
        from lrcompress.plan import Budget

        given = dict(self.values)
        if data is None or given.get("epochs") == 0:
            self._refuse(data)
            return None
        self._check_needs()
        if given.get("moments") in ("floor", "transport") and given.get("optimizer") == "sgd":
            raise OptionError(
                f"--moments {given['moments']} is about the second moment, which sgd has not",
                hint="--moments reset, or leave it out",
            )
        if "anneal" in given and (max_drop is not None or not isinstance(policy, Budget)):
            raise OptionError("--anneal needs a budget to come down to", hint="--budget 0.1 --anneal 2")
        own = {name: given.pop(name) for name in METHOD & given.keys()}
        augmentation = {name: given.pop(name) for name in AUGMENTATION & given.keys()}
        defaults = {"epochs": DEFAULT_EPOCHS, "distill": DEFAULT_DISTILL, "max_drop": max_drop, "seed": seed}
        return TrainingOptions(
            DlrtOptions(policy, round_ranks=round_ranks, **own),
            augmentation=Augmentation(**augmentation),
            **{**defaults, **given},
        )

    def _check_needs(self) -> None:
        for name, (other, value) in NEEDS.items():
            has = self.values.get(other)
            if other == "beta" and not has:
                has = self.values.get("max_kappa")  # drives a weight of its own
            if name in self.values and (has is None or value not in (None, has)):
                wanted = _option(other) + (f" {value}" if value else "")
                raise OptionError(
                    f"{_option(name)} does nothing without {wanted}", hint=f"add {wanted}, or leave it out"
                )
        for name, other, value in IDLE_WITH:
            if name in self.values and other in self.values and value in (None, self.values[other]):
                beside = _option(other) + ("" if value is None else f" {value}")
                raise OptionError(f"{_option(name)} does nothing with {beside}", hint=f"leave out {_option(name)}")

    def refuse_with_plan(self) -> None:
        """Raises an error if any was given: a plan is executed without fine-tuning."""
        given = [name for name in self.values if name != "epochs" or self.values[name] > 0]
        if given:
            raise OptionError(
                f"a plan is executed without fine-tuning, {self._spelled(given[0])} has no effect on it",
                hint="leave out --plan and give what it was made with, or leave out the options of fine-tuning",
            )

    def _refuse(self, data: str | None) -> None:
        without_effect = [name for name in self.values if name != "epochs" or self.values[name] > 0]
        if not without_effect:
            return
        option = self._spelled(without_effect[0])
        if data is None:
            raise OptionError(f"{option} needs images to fine-tune on", hint="--data DIR")
        raise OptionError(f"{option} does nothing with --epochs 0", hint=f"leave out {option}, or --epochs 0")

    def _spelled(self, name: str) -> str:
        negated = name in ("flip", "every_gradient") and not self.values[name]
        return _option(f"no_{name}" if negated else name)


@in_panel(
    "Fine-tuning (with --data)",
    "epochs",
    "steps",
    "time_limit",
    "patience",
    "anneal",
    "lr",
    "optimizer",
    "momentum",
    "weight_decay",
    "clip_norm",
    "batch_size",
    "accumulate",
    "precision",
    "distill",
    "temperature",
    "label_smoothing",
    "held_out",
    "workers",
    "frozen_fraction",
    "warm_up",
)
@in_panel("Augmentation", "crop", "flip", "crop_scale", "randaugment", "mixup", "cutmix")
@in_panel(
    "Low-rank training",
    "coefficient_steps",
    "every_gradient",
    "moments",
    "min_rank",
    "max_rank",
    "beta",
    "penalty",
    "penalty_core",
    "penalty_unfolding",
    "max_kappa",
)
@in_panel(
    "Adversarial training", "adversarial", "adversarial_eps", "adversarial_norm", "adversarial_steps",
    "adversarial_share", "trades",
)  # fmt: skip
def training_options(
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"Passes of fine-tuning over the data (default {DEFAULT_EPOCHS} with --data); 0: none."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="At most so many training steps.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Train at most so long; the schedule shrinks to it.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without a better held-out accuracy that end a phase of the training.")
    ] = None,
    anneal: Annotated[
        float | None, typer.Option(help="Times the budget that training starts with and comes down from (default 1).")
    ] = None,
    optimizer: Annotated[Optimizer | None, typer.Option(help="adamw (default) or sgd.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate (default 0.001, of sgd 0.01).")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of --optimizer sgd (default 0.9).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of cores and dense weights (default 0).")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per training step (default 128).")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts in which a batch is computed, to save memory (default 1).")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of training (default float32).")] = None,
    distill: Annotated[
        float | None,
        typer.Option(
            help="Weight in the loss of distillation from the uncompressed network, 0 to 1 "
            f"(default {DEFAULT_DISTILL})."
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the distillation (default 3).")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of a label's weight that all classes get (default 0).")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the training images the best state is chosen on (default 0.1).")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="Random shifts of training images, in pixels (default 2).")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror training images at random (default yes).")
    ] = None,
    crop_scale: Annotated[
        str | None,
        typer.Option(metavar="MIN,MAX", help="Random crops of this share of the image, 0.35,1 say, instead of shifts."),
    ] = None,
    randaugment: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="timm's RandAugment, rand-m9-mstd0.5-inc1 for example.")
    ] = None,
    mixup: Annotated[float | None, typer.Option(help="α of mixup (default 0: none).")] = None,
    cutmix: Annotated[float | None, typer.Option(help="α of CutMix (default 0: none).")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images (default 0: the main one).")] = None,
    coefficient_steps: Annotated[
        int | None, typer.Option(help="Optimiser steps s* per DLRT cycle (default 10).")
    ] = None,
    every_gradient: Annotated[
        bool | None,
        typer.Option(
            "--every-gradient/--no-every-gradient",
            help="Let the batch that extends the bases move the weights too (default yes); the paper's cycle does not.",
        ),
    ] = None,
    moments: Annotated[
        Moments | None, typer.Option(help="How Adam's second moment follows the bases (default floor).")
    ] = None,
    frozen_fraction: Annotated[
        float | None, typer.Option(help="Last part of the training in which ranks and bases stay fixed (default 0.3).")
    ] = None,
    warm_up: Annotated[
        float | None, typer.Option(help="First part of the training in which the learning rate rises (default 0.05).")
    ] = None,
    min_rank: Annotated[int | None, typer.Option(help="Smallest rank of a layer while fine-tuning.")] = None,
    max_rank: Annotated[int | None, typer.Option(help="Largest rank of a layer while fine-tuning.")] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Weight β of the conditioning penalty (default 0); with --max-kappa its first value."),
    ] = None,
    penalty: Annotated[
        Penalty | None, typer.Option(help="R/α² (scale-free), R (paper), or auto (default): by the network's layers.")
    ] = None,
    penalty_core: Annotated[
        PenaltyCore | None, typer.Option(help="Penalise the retained core (default) or the augmented one (the paper).")
    ] = None,
    penalty_unfolding: Annotated[
        PenaltyUnfolding | None, typer.Option(help="Of Tucker-2 cores: the output unfolding (default) or both.")
    ] = None,
    max_kappa: Annotated[
        float | None, typer.Option(help="Condition number no core should exceed; drives a β for each layer.")
    ] = None,
    adversarial: Annotated[
        Adversarial | None, typer.Option(help="Train on perturbed images: fgsm-rs (one step) or pgd.")
    ] = None,
    adversarial_eps: Annotated[
        str | None, typer.Option(metavar="EPS", help="Radius of the perturbations (default 8/255).")
    ] = None,
    adversarial_norm: Annotated[Norm | None, typer.Option(help="linf (default) or l2.")] = None,
    adversarial_steps: Annotated[int | None, typer.Option(help="Steps of --adversarial pgd (default 7).")] = None,
    adversarial_share: Annotated[
        float | None, typer.Option(help="Part of each batch that is perturbed (default 1).")
    ] = None,
    trades: Annotated[
        float | None, typer.Option(help="λ of the TRADES loss; 0 (default) trains on the perturbed images alone.")
    ] = None,
) -> GivenTraining:
    """Returns the settings of the fine-tuning that were given, by their names in the options of the API."""
    given = {name: value.value if isinstance(value, Enum) else value for name, value in locals().items()}
    if crop_scale is not None:
        given["crop_scale"] = _range(crop_scale)
    if adversarial_eps is not None:
        from lrcompress.robustness import parse_eps

        radius, *others = parse_eps([adversarial_eps], given["adversarial_norm"] or "linf", option="--adversarial-eps")
        if others:
            raise OptionError(
                f"--adversarial-eps is one radius, got `{adversarial_eps}`", hint="--adversarial-eps 8/255"
            )
        given["adversarial_eps"] = radius
    return GivenTraining({name: value for name, value in given.items() if value is not None})


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise OptionError(f"--crop-scale takes two numbers, got `{text}`", hint="--crop-scale 0.35,1") from error
    return low, high
