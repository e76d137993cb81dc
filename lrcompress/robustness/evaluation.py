"""The values an evaluation results in: outcomes image by image."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lrcompress.perturb import Norm
from lrcompress.robustness.statistics import compare_paired, wilson_interval

EVALUATION_VERSION = 1


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack did to one model.

    Attributes:
        attack: its name, or "worst" for the worst case of all attacks per image.
        eps: radii in pixel units, ascending.
        robust: for each radius, for each image, whether the model was right and the attack failed up to that radius.
    """

    attack: str
    eps: tuple[float, ...]
    robust: tuple[tuple[bool, ...], ...]


@dataclass(frozen=True)
class ModelOutcome:
    """What one model did on all images.

    Attributes:
        role: "baseline" (uncompressed) or "compressed".
        sha256: of the model's file.
        clean: for each image, whether the model was right.
        attacks: one outcome per attack, the worst case last.
        seconds: wall time.
    """

    role: str
    sha256: str
    clean: tuple[bool, ...]
    attacks: tuple[AttackOutcome, ...]
    seconds: float

    def outcome(self, attack: str) -> AttackOutcome:
        """Returns the outcome of the attack with this name."""
        return next(outcome for outcome in self.attacks if outcome.attack == attack)


@dataclass(frozen=True)
class Finding:
    """A doubt about the figures, printed beside them.

    Attributes:
        severity: "unreliable" (robustness may be overestimated) or "inconclusive" (too little evidence).
        message: what was found.
    """

    severity: Literal["unreliable", "inconclusive"]
    message: str


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and robustness of one or two models on the same images.

    Attributes:
        data: where the images come from.
        images: number of images.
        norm: of the perturbations.
        settings: of the attacks, as the report shows them.
        seed: of the choice of images and of random starts.
        models: the outcomes, the baseline first where there is one.
        findings: doubts.
    """

    data: str
    images: int
    norm: Norm
    settings: Mapping[str, Any]
    seed: int
    models: tuple[ModelOutcome, ...]
    findings: tuple[Finding, ...]

    def model(self, role: str) -> ModelOutcome | None:
        """Returns the outcome of "baseline" or "compressed", None if that model was not evaluated."""
        return next((model for model in self.models if model.role == role), None)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON types: shares with intervals, flips, and one bit per image."""
        values: dict[str, Any] = {
            "version": EVALUATION_VERSION,
            "data": self.data,
            "images": self.images,
            "norm": self.norm,
            "settings": dict(self.settings),
            "seed": self.seed,
            "interval": "Wilson, 95 %, covers the sampling of images only",
            "findings": [asdict(finding) for finding in self.findings],
            "models": {model.role: _model_json(model) for model in self.models},
        }
        baseline, compressed = self.model("baseline"), self.model("compressed")
        if baseline is not None and compressed is not None:
            values["paired"] = _paired_json(baseline, compressed)
        return values


def share(bits: tuple[bool, ...]) -> dict[str, Any]:
    """Returns the count, the share and its interval for one bit per image."""
    low, high = wilson_interval(sum(bits), len(bits))
    return {"correct": sum(bits), "accuracy": sum(bits) / len(bits), "interval": [low, high]}


def _bits(values: tuple[bool, ...]) -> str:
    return "".join("1" if value else "0" for value in values)


def _model_json(model: ModelOutcome) -> dict[str, Any]:
    return {
        "sha256": model.sha256,
        "seconds": round(model.seconds, 3),
        "clean": share(model.clean) | {"bits": _bits(model.clean)},
        "attacks": {
            outcome.attack: [
                {"eps": eps, **share(bits), "bits": _bits(bits)}
                for eps, bits in zip(outcome.eps, outcome.robust, strict=True)
            ]
            for outcome in model.attacks
        },
    }


def _paired_json(baseline: ModelOutcome, compressed: ModelOutcome) -> dict[str, Any]:
    worst: list[dict[str, Any]] = []
    if baseline.attacks:
        one, other = baseline.outcome("worst"), compressed.outcome("worst")
        worst = [
            {"eps": eps, **asdict(compare_paired(a, b))}
            for eps, a, b in zip(one.eps, one.robust, other.robust, strict=True)
        ]
    return {"clean": asdict(compare_paired(baseline.clean, compressed.clean)), "worst": worst}
