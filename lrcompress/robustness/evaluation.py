"""The values an evaluation results in: outcomes image by image."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lrcompress.perturb import Norm
from lrcompress.robustness.corruptions import SEVERITIES
from lrcompress.robustness.smoothing import ALPHA, Smoothing
from lrcompress.robustness.statistics import compare_paired, wilson_interval

EVALUATION_VERSION = 2


@dataclass(frozen=True)
class Distances:
    """Sizes of the smallest perturbations that an attack found.

    Attributes:
        norm: that they are measured in.
        values: one per image, 0 where the model was wrong anyway, None where nothing was found.
    """

    norm: Norm
    values: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the sizes with their quartiles; what was not found is farther than all that was."""
        ordered = sorted(float("inf") if value is None else value for value in self.values)
        quartiles = [_finite(ordered[min(len(ordered) - 1, len(ordered) * part // 4)]) for part in (1, 2, 3)]
        return {
            "norm": self.norm,
            "median": quartiles[1],
            "quartiles": quartiles,
            "found": sum(value is not None for value in self.values),
            "values": list(self.values),
        }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack did to one model.

    Attributes:
        attack: its name, or "worst" for the worst case of all attacks per image but for the paper's.
        eps: radii in pixel units, of the paper's attacks in their own, ascending.
        robust: for each radius, for each image, whether the model was right and the attack failed up to that radius.
        distances: of an attack that looks for the nearest mistake.
    """

    attack: str
    eps: tuple[float, ...]
    robust: tuple[tuple[bool, ...], ...]
    distances: Distances | None = None


@dataclass(frozen=True)
class Steepness:
    """How a model changes around the clean images: diagnostics, which certify nothing.

    Attributes:
        median_norm: of the loss's gradient by the pixels, in the dual norm of the perturbations.
        median_margin: of the first-order distance to the nearest other class, over the images that the model knows.
    """

    median_norm: float
    median_margin: float | None


@dataclass(frozen=True)
class Transfer:
    """What each model does with the images that an attack made against each.

    Attributes:
        attack: its name.
        eps: the radius.
        images: that all models know without an attack.
        accuracy: shares of these by "source→target".
    """

    attack: str
    eps: float
    images: int
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class ModelOutcome:
    """What one model did on all images.

    Attributes:
        role: "baseline" (uncompressed) or "compressed".
        sha256: of the model's file.
        clean: for each image, whether the model was right.
        attacks: one outcome per attack, the worst case last; there is none of the paper's attacks alone.
        seconds: wall time.
        forward_passes: images that were put through the model.
        backward_passes: images whose gradient was computed.
        silent: by attack, images that stood while the gradient was zero in every entry.
        steepness: of the model at the clean images, where an attack followed gradients.
        corrupted: by corruption, for each severity and image, whether the model was right.
        certified: certified ℓ2 radius of each image; None where the smoothed classifier abstains or is wrong.
    """

    role: str
    sha256: str
    clean: tuple[bool, ...]
    attacks: tuple[AttackOutcome, ...]
    seconds: float
    forward_passes: int = 0
    backward_passes: int = 0
    silent: Mapping[str, int] = field(default_factory=dict)
    steepness: Steepness | None = None
    corrupted: Mapping[str, tuple[tuple[bool, ...], ...]] = field(default_factory=dict)
    certified: tuple[float | None, ...] = ()

    def outcome(self, attack: str) -> AttackOutcome:
        """Returns the outcome of the attack with this name."""
        return next(outcome for outcome in self.attacks if outcome.attack == attack)

    def worst_case(self) -> AttackOutcome | None:
        """Returns the worst case of all attacks whose ε is one of pixels; None without such attacks."""
        return next((outcome for outcome in self.attacks if outcome.attack == "worst"), None)


@dataclass(frozen=True)
class Finding:
    """A doubt about the figures, printed beside them.

    Attributes:
        severity: "unreliable" (robustness may be overestimated) or "inconclusive" (too little evidence).
        message: what was found.
        check: the name of the check that found it.
        model: the role of the model it is about, None if it is about all.
    """

    severity: Literal["unreliable", "inconclusive"]
    message: str
    check: str
    model: str | None = None


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
        labels: the images' classes; empty if they are not known.
        class_names: one per class, where the source has names.
        images_sha256: hash of the images as the models saw them, with their labels; "" if it is not known.
        images_asked: how many there were to evaluate on, if time did not suffice for all.
        transfer: of two models, what was made against one shown to the other.
        examples: images to look at.
        smoothing: how the certified classifiers were smoothed.
    """

    data: str
    images: int
    norm: Norm
    settings: Mapping[str, Any]
    seed: int
    models: tuple[ModelOutcome, ...]
    findings: tuple[Finding, ...]
    labels: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    images_sha256: str = ""
    images_asked: int | None = None
    transfer: Transfer | None = None
    examples: tuple[Mapping[str, Any], ...] = ()
    smoothing: Smoothing | None = None

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
            "complete": self.images_asked is None,
            **({"images_sha256": self.images_sha256} if self.images_sha256 else {}),
            **({} if self.images_asked is None else {"images_asked": self.images_asked}),
            "forward_passes": sum(model.forward_passes for model in self.models),
            "backward_passes": sum(model.backward_passes for model in self.models),
            "seconds": round(sum(model.seconds for model in self.models), 3),
            "interval": "Wilson, 95 %, covers the sampling of images only",
            "findings": [asdict(finding) for finding in self.findings],
            "models": {model.role: _model_json(model) for model in self.models},
        }
        if self.labels:
            values["labels"] = list(self.labels)
            values["class_names"] = list(self.class_names) or None
            values["per_class"] = _per_class_json(self.models, self.labels)
        if self.transfer is not None:
            values["transfer"] = asdict(self.transfer)
        steepness = {model.role: asdict(model.steepness) for model in self.models if model.steepness is not None}
        if steepness:
            values["gradients"] = steepness
        if any(model.corrupted for model in self.models):
            values["corruptions"] = _corruptions_json(self.models)
        if self.smoothing is not None:
            values["certified"] = _certified_json(self.models, self.smoothing)
        if self.examples:
            values["examples"] = [dict(one) for one in self.examples]
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
        "forward_passes": model.forward_passes,
        "backward_passes": model.backward_passes,
        "clean": share(model.clean) | {"bits": _bits(model.clean)},
        "attacks": {
            outcome.attack: [
                {"eps": eps, **share(bits), "bits": _bits(bits)}
                for eps, bits in zip(outcome.eps, outcome.robust, strict=True)
            ]
            for outcome in model.attacks
        },
        "distances": {outcome.attack: outcome.distances.to_json() for outcome in model.attacks if outcome.distances},
    }


def _paired_json(baseline: ModelOutcome, compressed: ModelOutcome) -> dict[str, Any]:
    return {
        "clean": compare_paired(baseline.clean, compressed.clean).to_json(),
        "attacks": {
            other.attack: [
                {"eps": eps, **compare_paired(first, second).to_json()}
                for eps, first, second in zip(one.eps, one.robust, other.robust, strict=True)
            ]
            for one, other in zip(baseline.attacks, compressed.attacks, strict=True)
        },
    }


def _corruptions_json(models: tuple[ModelOutcome, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "severities": list(SEVERITIES),
        "models": {
            model.role: {
                name: [
                    {"severity": severity, **share(bits), "bits": _bits(bits)}
                    for severity, bits in zip(SEVERITIES, rows, strict=True)
                ]
                for name, rows in model.corrupted.items()
            }
            for model in models
        },
    }
    if len(models) == 2:
        baseline, compressed = models
        values["paired"] = {
            name: [
                {"severity": severity, **compare_paired(first, second).to_json()}
                for severity, first, second in zip(SEVERITIES, rows, compressed.corrupted[name], strict=True)
            ]
            for name, rows in baseline.corrupted.items()
        }
    return values


def _certified_json(models: tuple[ModelOutcome, ...], smoothing: Smoothing) -> dict[str, Any]:
    def row(model: ModelOutcome, radius: float) -> dict[str, Any]:
        return {"radius": radius, **share(tuple(one is not None and one >= radius for one in model.certified))}

    return {
        "sigma": smoothing.sigma,
        "samples": smoothing.samples,
        "alpha": ALPHA,
        "models": {model.role: [row(model, radius) for radius in smoothing.radii()] for model in models},
    }


def _per_class_json(models: tuple[ModelOutcome, ...], labels: tuple[int, ...]) -> list[dict[str, Any]]:
    """Returns what each model does with the images of each class, clean and in the worst case at each radius."""

    def accuracy(bits: tuple[bool, ...], wanted: int) -> float:
        chosen = [bit for bit, label in zip(bits, labels, strict=True) if label == wanted]
        return sum(chosen) / len(chosen)

    def figures(model: ModelOutcome, wanted: int) -> dict[str, Any]:
        worst = model.worst_case()
        rows = () if worst is None else worst.robust
        return {"clean": accuracy(model.clean, wanted), "worst": [accuracy(bits, wanted) for bits in rows]}

    return [
        {"class": wanted, "images": labels.count(wanted)} | {model.role: figures(model, wanted) for model in models}
        for wanted in sorted(set(labels))
    ]
