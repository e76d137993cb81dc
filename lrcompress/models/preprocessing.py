"""What a network expects of an image."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lrcompress.errors import OptionError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # as timm calls them
CROPS = (0.01, 2.0)
VALUES = ("input_size", "mean", "std", "crop_pct", "interpolation")


@dataclass(frozen=True)
class Preprocessing:
    """Size and statistics of a network's input.

    Attributes:
        input_size: (channels, height, width).
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        crop_pct: the part of the shorter side that the centre crop keeps; what is more than 1 is padded.
        interpolation: timm's name of the resampling filter.
        origin: where these values come from, for the reader of a report.

    Raises:
        OptionError: if no image can be brought into this form.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    origin: str

    def __post_init__(self) -> None:
        if min(self.input_size) < 1:
            raise OptionError(f"an input of the size {self.input_size}", hint="--input-size 3,224,224")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.input_size[0] or not all(map(math.isfinite, values)):
                raise OptionError(
                    f"the {name} {values} for {self.input_size[0]} channels", hint=f"--{name} 0.5,0.5,0.5"
                )
        if min(self.std) <= 0:
            raise OptionError(f"the std {self.std}, which is not positive", hint="--std 0.5,0.5,0.5")
        if not CROPS[0] <= self.crop_pct <= CROPS[1]:
            raise OptionError(f"a centre crop of {self.crop_pct} of the image", hint='"crop_pct": 0.875')
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise OptionError(f"the interpolation {self.interpolation!r}, known are {known}", hint='"bicubic"')

    def describe(self) -> str:
        """Returns size, normalisation and origin in words."""
        size = "×".join(map(str, self.input_size))
        statistics = f"mean {_join(self.mean)}, std {_join(self.std)}"
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            statistics = "no normalisation"
        return f"input {size}, {statistics} ({self.origin})"

    def to_json(self) -> dict[str, Any]:
        """Returns the values as JSON types."""
        return asdict(self) | {"input_size": list(self.input_size), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Returns the value that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: if a value is missing, of another type, or out of range.
        """
        numbers = [*values["input_size"], *values["mean"], *values["std"], values["crop_pct"]]
        if not all(type(number) in (int, float) for number in numbers):
            raise TypeError(f"the preprocessing {dict(values)} holds something else than numbers")
        channels, height, width = values["input_size"]
        if not all(type(number) is int for number in (channels, height, width)):
            raise TypeError(f"an input of the size {values['input_size']}")
        return cls(
            input_size=(channels, height, width),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            crop_pct=float(values["crop_pct"]),
            interpolation=str(values["interpolation"]),
            origin=str(values["origin"]),
        )

    def updated(self, origin: str, values: Mapping[str, Any]) -> "Preprocessing":
        """Returns these values with those of `values` that are known and not empty put in their place.

        Args:
            origin: where the new values come from; what was there before keeps its own origin.
            values: may hold other keys too.
        """
        known = {key: values[key] for key in VALUES if values.get(key) not in (None, "")}
        known |= {key: tuple(value) for key, value in known.items() if isinstance(value, list)}
        if not known:
            return self
        if len(known) < len(VALUES):
            origin = f"{self.origin}; {', '.join(sorted(known))} from {origin}"
        merged = {key: getattr(self, key) for key in VALUES} | known
        channels = merged["input_size"][0]
        merged |= {key: _spread(merged[key], channels) for key in ("mean", "std")}
        return Preprocessing(**merged, origin=origin)

    def for_channels(self, channels: int) -> "Preprocessing":
        """Returns these values for another number of input channels.

        A single value of mean and std is repeated. Otherwise they are averaged over the channels, as is right for
        grey images under weights that were summed over colours.
        """
        size = (channels, *self.input_size[1:])
        return replace(self, input_size=size, mean=_spread(self.mean, channels), std=_spread(self.std, channels))


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _join(values: tuple[float, ...]) -> str:
    """Returns the values in words, one for all channels where they are equal.

    >>> _join((0.5, 0.5, 0.5)), _join((0.485, 0.456, 0.406))
    ('0.5', '0.485, 0.456, 0.406')
    """
    return ", ".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))
