"""What a fine-tuning run tells: while it goes on, per epoch, and at its end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lrcompress.dlrt.optimizer import Dlrt
from lrcompress.linalg import conditioning_penalty, core_condition_number, core_spectrum


@dataclass(frozen=True)
class TrainingProgress:
    """What a progress bar shows after each step, and once more after each evaluation (`epoch_ended`).

    Attributes:
        step: steps that are done.
        steps: of the whole run.
        epoch: counted from 1; 0 before the first step.
        epochs: of the whole run.
        loss: of the last step, or the mean of the epoch that ended; None before the first step.
        held_out_accuracy: after the last epoch, in [0, 1].
        held_out_robust_accuracy: likewise, on images perturbed by the training's own adversary; None without one.
        mean_rank: over the layers; of Tucker-2 the smaller rank counts.
        parameters: of the whole model as it would be shipped.
        epoch_ended: whether an epoch has just been evaluated.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float | None
    held_out_accuracy: float
    held_out_robust_accuracy: float | None
    mean_rank: float
    parameters: int
    epoch_ended: bool = False


@dataclass(frozen=True)
class CoreRecord:
    """A layer's core after an epoch, truncated unless the epoch ended directly after an augmentation.

    Attributes:
        kappa: σ₁/σ_r, the largest of its groups; None if σ_r is zero.
        sigma_max: σ₁.
        norm: ‖S‖_F.
        penalty: R(S), or R/α² where that is what is penalised.
        beta: its weight in the loss.
    """

    kappa: float | None
    sigma_max: float
    norm: float
    penalty: float
    beta: float


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training log.

    Attributes:
        epoch: counted from 1; 0 is the state before fine-tuning.
        loss: mean training loss without the penalty, NaN-free; None for epoch 0.
        held_out_accuracy: on the images held out from training, in [0, 1].
        held_out_robust_accuracy: on some of them perturbed by the training's own adversary; None without one.
        ranks: by layer.
        parameters: of the whole model as it would be shipped.
        frozen: whether ranks and bases were final, so that this state could be chosen.
        cores: by layer.
    """

    epoch: int
    loss: float | None
    held_out_accuracy: float
    held_out_robust_accuracy: float | None
    ranks: Mapping[str, tuple[int, ...]]
    parameters: int
    frozen: bool
    cores: Mapping[str, CoreRecord] = field(default_factory=dict)

    def score(self) -> float:
        """Returns what the best state is chosen by: the robust accuracy where there is one."""
        return self.held_out_accuracy if self.held_out_robust_accuracy is None else self.held_out_robust_accuracy

    def largest_kappa(self) -> tuple[str, float | None]:
        """Returns the layer with the largest κ, and that κ, None if its σ_r is zero; ("", 1.0) without cores."""
        kappas = {name: math.inf if core.kappa is None else core.kappa for name, core in self.cores.items()}
        name = max(kappas, key=kappas.__getitem__, default="")
        kappa = kappas.get(name, 1.0)
        return name, kappa if math.isfinite(kappa) else None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON types."""
        return asdict(self) | {"ranks": {name: list(ranks) for name, ranks in self.ranks.items()}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "EpochRecord":
        """Returns the record that `to_json` described."""
        ranks = {name: tuple(ranks) for name, ranks in record["ranks"].items()}
        cores = {name: CoreRecord(**core) for name, core in record["cores"].items()}
        return cls(**{**record, "ranks": ranks, "cores": cores})


@dataclass(frozen=True)
class FineTuning:
    """The result of a fine-tuning run.

    Attributes:
        log: one record per epoch, the state before fine-tuning first.
        chosen_epoch: the epoch whose state the model now has; 0 if the start was better than all that training made.
        held_out_images: number of images the choice was made on.
        attacked_images: how many of them were perturbed; 0 without adversarial training.
        penalty: "scale-free" or "paper", as resolved.
        reference: held-out accuracy of the uncompressed model; None unless a largest drop was asked for.
        reached: whether the accuracy that was asked for was kept on the held-out images; None if none was.
        warnings: what makes the run doubtful, in sentences.
        ended_by: "--patience" or "--time-limit" if there was less training than asked for, else "".
    """

    log: tuple[EpochRecord, ...]
    chosen_epoch: int
    held_out_images: int
    attacked_images: int
    penalty: str
    reference: float | None = None
    reached: bool | None = None
    warnings: tuple[str, ...] = ()
    ended_by: str = ""

    def chosen(self) -> EpochRecord:
        """Returns the record of the chosen epoch."""
        return next(record for record in self.log if record.epoch == self.chosen_epoch)


def describe_cores(dlrt: Dlrt) -> dict[str, CoreRecord]:
    """Returns what is logged of every core; between truncations of its augmented form."""
    records = {}
    for name, layer in dlrt.layers.items():
        core = layer.conditioned(layer.S.detach())
        sigma = core_spectrum(core)
        kappa = core_condition_number(core)
        scale_free = dlrt.regulariser.scale_free
        records[name] = CoreRecord(
            kappa=kappa if kappa < float("inf") else None,
            sigma_max=float(sigma[0]),
            norm=float(sigma.square().sum().sqrt()),
            penalty=float(conditioning_penalty(core, scale_free=scale_free)),
            beta=dlrt.regulariser.betas[name],
        )
    return records
