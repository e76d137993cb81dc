"""`CompressionPlan`: what is to be done with each layer, and why. Frozen, and the same after a trip through JSON."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lrcompress.errors import OptionError
from lrcompress.models import Preprocessing
from lrcompress.schemes import SCHEMES

PLAN_VERSION = 2
DENSE = "dense"


@dataclass(frozen=True)
class Calibration:
    """The images whose activations are the metric of the truncation; they need no labels.

    Attributes:
        data: where they come from, as after `--calibrate`.
        images: how many; None takes 256, or all if there are fewer. In a plan that was made, the number there were.
        seed: of their choice.

    Raises:
        OptionError: if there are none.
        TypeError: if a value is of another type, or the seed is negative.
    """

    data: str
    images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        types = type(self.data) is str and type(self.images) in (int, type(None)) and type(self.seed) is int
        if not types or not 0 <= self.seed < 2**63:
            raise TypeError(f"a calibration of {self.data!r}, {self.images!r} images and seed {self.seed!r}")
        if self.images is not None and self.images < 1:
            raise OptionError(
                f"calibration takes at least one image, got {self.images}", hint="some hundred are enough"
            )


@dataclass(frozen=True)
class LayerPlan:
    """What is to be done with one layer.

    Attributes:
        name: of the module in the network.
        kind: the module's class, "Linear" or "Conv2d" for example.
        dense_shape: shape of the weight.
        scheme: "matrix", "spatial", "tucker2", "split" (see `lrcompress.schemes`), or "dense".
        ranks: as the scheme takes them; none if it is dense.
        relative_error: predicted ‖W − W_r‖_F/‖W‖_F if it is factorised, in the metric of the calibration where there
            is one.
        parameters: how many weights it will have, without the bias; None if it is dense.
        dense_parameters: how many go if it is replaced, without the bias; None: those of the weight.
        reason: why it stays dense, "" if it does not.
    """

    name: str
    kind: str
    dense_shape: tuple[int, ...]
    scheme: str
    ranks: tuple[int, ...] = ()
    relative_error: float | None = None
    parameters: int | None = None
    dense_parameters: int | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the layer as JSON types."""
        return asdict(self) | {"dense_shape": list(self.dense_shape), "ranks": list(self.ranks)}

    @classmethod
    def from_json(cls, values: Any) -> "LayerPlan":
        """Returns the layer that a plan's JSON describes, which may have been edited.

        Raises:
            OptionError: if a value is missing, of another type, or unknown.
            TypeError, ValueError: if a value that is not to be edited has another type.
        """
        _check_keys(values, ("name",), "a layer")
        name = str(values["name"])
        _check_keys(values, LAYER_KEYS, f"`{name}`")
        scheme, ranks = values["scheme"], values["ranks"]
        if scheme != DENSE and scheme not in SCHEMES:
            known = ", ".join((*SCHEMES, DENSE))
            raise OptionError(f"`{name}` has the scheme {scheme!r}, known are {known}", hint='"scheme": "matrix"')
        if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks):  # True is an int too
            raise OptionError(
                f"`{name}` has the ranks {ranks!r}, which is no list of whole numbers", hint='"ranks": [20]'
            )
        error, shape = values["relative_error"], values["dense_shape"]
        whole = (*shape, *(values[key] for key in ("parameters", "dense_parameters") if values[key] is not None))
        if not all(type(number) is int and number > 0 for number in whole) or type(error) not in (
            int,
            float,
            type(None),
        ):
            raise TypeError(f"`{name}` has something else than numbers for its shape, its error, or its parameters")
        return cls(
            name=name,
            kind=str(values["kind"]),
            dense_shape=tuple(shape),
            scheme=scheme,
            ranks=tuple(ranks) if scheme != DENSE else (),
            relative_error=None if error is None else float(error),
            parameters=values["parameters"],
            dense_parameters=values["dense_parameters"],
            reason=str(values["reason"]),
        )


LAYER_KEYS = tuple(field.name for field in fields(LayerPlan))


@dataclass(frozen=True)
class LayerRecord:
    """What became of one layer: goes into the artifact and the report.

    Attributes:
        name: of the module in the network.
        kind: the module's class in the uncompressed network.
        dense_shape: shape of the uncompressed weight.
        scheme: "matrix", "spatial", "tucker2", "split" or "dense".
        ranks: as the scheme takes them; none if it is dense.
        parameters: number of shipped weights, without the bias, if it is factorised.
        relative_error: ‖W − W_r‖_F/‖W‖_F of the shipped factors against the uncompressed weight. After fine-tuning a
            distance that was travelled, not a bound that holds.
        sigma_max: σ₁ of the shipped matrix, that which the scheme truncates.
        sigma_min: its smallest singular value that is not zero by construction.
        kappa: σ₁/σ_r, a diagnostic.
        stable_rank: ‖W‖_F²/σ₁² of the shipped matrix.
        norm: ‖W‖_F of the shipped matrix.
        dense_norm: ‖W‖_F of the uncompressed weight.
        start_kappa: κ before fine-tuning, after truncation.
        reason: why it stayed dense, "" if it did not.
    """

    name: str
    kind: str
    dense_shape: tuple[int, ...]
    scheme: str
    ranks: tuple[int, ...] = ()
    parameters: int | None = None
    relative_error: float | None = None
    sigma_max: float | None = None
    sigma_min: float | None = None
    kappa: float | None = None
    stable_rank: float | None = None
    norm: float | None = None
    dense_norm: float | None = None
    start_kappa: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON types, without what does not apply."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, "", ())}
        lists = {"ranks": list(self.ranks)} if self.ranks else {}
        return values | {"dense_shape": list(self.dense_shape)} | lists

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "LayerRecord":
        """Returns the record that `to_json` wrote, in this version or the first one, which had a single rank."""
        known = {key: value for key, value in values.items() if key != "rank"}
        shape, ranks = tuple(values["dense_shape"]), tuple(values.get("ranks", ()))
        if "rank" in values:
            ranks = (values["rank"],)
            known["parameters"] = values["rank"] * (shape[0] + math.prod(shape[1:]))
        if not isinstance(values["scheme"], str) or not all(type(rank) is int for rank in ranks):
            raise TypeError(f"`{values['name']}` has the scheme {values['scheme']!r} with the ranks {list(ranks)}")
        return cls(**{**known, "dense_shape": shape, "ranks": ranks})


@dataclass(frozen=True)
class CompressionPlan:
    """What is to be done with every layer of a network that holds a weight matrix.

    Attributes:
        policy: how the ranks were chosen: its name and its parameters.
        layers: in the network's order.
        source_sha256: hash of the checkpoint it was made for, "" if it was made for a network in memory.
        calibration: the images whose activations the errors are measured with; None measures the weights alone.
        preprocessing: what the network expects of an image; None leaves that to the checkpoint, as plans do that were
            written before they knew.
    """

    policy: Mapping[str, Any]
    layers: tuple[LayerPlan, ...]
    source_sha256: str = ""
    calibration: Calibration | None = None
    preprocessing: Preprocessing | None = None

    def factorized(self) -> dict[str, LayerPlan]:
        """Returns the layers that are to be factorised, by name."""
        return {layer.name: layer for layer in self.layers if layer.scheme != DENSE}

    def removed_parameters(self) -> int:
        """Returns how many parameters fewer the network will have."""
        return sum(
            (layer.dense_parameters or math.prod(layer.dense_shape)) - (layer.parameters or 0)
            for layer in self.factorized().values()
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON types."""
        layers = [layer.to_json() for layer in self.layers]
        return {
            "version": PLAN_VERSION,
            "policy": dict(self.policy),
            "layers": layers,
            "source_sha256": self.source_sha256,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, values: Any) -> "CompressionPlan":
        """Returns the plan that `to_json` wrote.

        Raises:
            OptionError: if it is none, or was written by another version.
        """
        version = values.get("version") if isinstance(values, Mapping) else None
        if version != PLAN_VERSION:
            raise OptionError(
                f"the plan has version {version}, this program reads {PLAN_VERSION}", hint="make the plan again"
            )
        try:
            _check_keys(values, ("policy", "layers", "source_sha256", "calibration"), "it")
            layers = tuple(map(LayerPlan.from_json, values["layers"]))
            calibration = None if values["calibration"] is None else Calibration(**values["calibration"])
            known = values.get("preprocessing")
            preprocessing = None if known is None else Preprocessing.from_json(known)
            return cls(dict(values["policy"]), layers, str(values["source_sha256"]), calibration, preprocessing)
        except KeyError as error:
            raise OptionError(f"the plan is damaged: no key {error}", hint="make the plan again") from error
        except (TypeError, ValueError) as error:
            hint = error.hint if isinstance(error, OptionError) else "make the plan again"
            raise OptionError(f"the plan is damaged: {error}", hint=hint) from error


def _check_keys(values: Any, keys: Iterable[str], what: str) -> None:
    """Raises `OptionError` if a part of a plan is no table, or lacks a key."""
    if not isinstance(values, Mapping):
        raise OptionError(f"{what} is {values!r}, no table of keys", hint="make the plan again")
    if missing := [key for key in keys if key not in values]:
        raise OptionError(f"{what} has no key `{missing[0]}`", hint="put it back, or make the plan again")
