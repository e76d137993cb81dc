"""What a network expects of an image."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

VALUES = ("input_size", "mean", "std", "crop_pct", "interpolation")


@dataclass(frozen=True)
class Preprocessing:
    """Size and statistics of a network's input.

    Attributes:
        input_size: (channels, height, width).
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        crop_pct: the part of the shorter side that the centre crop keeps.
        interpolation: timm's name of the resampling filter.
        origin: where these values come from, for the reader of a report.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    origin: str

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
        """Returns the value that `to_json` wrote."""
        channels, height, width = values["input_size"]
        return cls(
            input_size=(int(channels), int(height), int(width)),
            mean=tuple(float(x) for x in values["mean"]),
            std=tuple(float(x) for x in values["std"]),
            crop_pct=float(values["crop_pct"]),
            interpolation=str(values["interpolation"]),
            origin=str(values["origin"]),
        )

    def updated(self, origin: str, values: Mapping[str, Any]) -> "Preprocessing":
        """Returns these values with those of `values` that are known and not None put in their place.

        Args:
            origin: where the new values come from; what was there before keeps its own origin.
            values: may hold other keys too.
        """
        known = {key: values[key] for key in VALUES if values.get(key) is not None}
        known |= {key: tuple(value) for key, value in known.items() if isinstance(value, list)}
        if not known:
            return self
        if len(known) < len(VALUES):
            origin = f"{self.origin}; {', '.join(sorted(known))} from {origin}"
        return replace(self, **known, origin=origin).for_channels(known.get("input_size", self.input_size)[0])

    def for_channels(self, channels: int) -> "Preprocessing":
        """Returns these values for another number of input channels.

        A single value of mean and std is repeated. Otherwise they are averaged over the channels, as is right for
        grey images under weights that were summed over colours.
        """
        mean, std = self.mean, self.std
        if len(mean) != channels:
            mean = (sum(mean) / len(mean),) * channels
        if len(std) != channels:
            std = (sum(std) / len(std),) * channels
        return replace(self, input_size=(channels, *self.input_size[1:]), mean=mean, std=std)


def _join(values: tuple[float, ...]) -> str:
    """Returns the values in words, one for all channels where they are equal.

    >>> _join((0.5, 0.5, 0.5)), _join((0.485, 0.456, 0.406))
    ('0.5', '0.485, 0.456, 0.406')
    """
    return ", ".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))
