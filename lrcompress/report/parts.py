"""What documents are put together from, whatever their language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Span = tuple[float, float]


@dataclass(frozen=True)
class SpectrumChart:
    """Singular values σ_i of one layer against i, both on logarithmic scales.

    Attributes:
        layer: its name.
        spectra: pairs (i, σ_i) by role, "baseline" before "compressed"; a model without them is left out.
        decades: how many powers of ten below the layer's largest value are shown.
    """

    layer: str
    spectra: Mapping[str, Sequence[Sequence[float]]]
    decades: int

    @property
    def summary(self) -> str:
        """Where both spectra begin and end, for those who do not see the drawing."""
        told = "; ".join(
            f"{role}: σ{values[0][0]} = {values[0][1]:.3g} to σ{values[-1][0]} = {values[-1][1]:.3g}"
            for role, values in self.spectra.items()
        )
        return f"Singular values of {self.layer}. {told}."


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: what it shows, and in which units.
        columns: their headings.
        rows: cells; the first one names the row.
        texts: columns of words, which may wrap; all others but the first are figures.
        spans: by column, for each row a part of the line from 0 to 1 to draw beside the text, or None.
        drawings: by column, for each row what to draw beside the text, or None.
        legend: what is drawn; documents without drawings leave it out.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[int] = ()
    spans: Mapping[int, Sequence[Span | None]] = field(default_factory=dict)
    drawings: Mapping[int, Sequence[SpectrumChart | None]] = field(default_factory=dict)
    legend: str = ""


@dataclass(frozen=True)
class Curve:
    """One model's line in a chart: accuracies with their intervals, from left to right.

    Attributes:
        role: "baseline" or "compressed".
        shares: accuracies in [0, 1].
        intervals: lower and upper end of each.
    """

    role: str
    shares: Sequence[float]
    intervals: Sequence[Span]


@dataclass(frozen=True)
class Chart:
    """Accuracy against ε.

    Attributes:
        curves: one per model.
        radii: names of the radii, from left to right, "0" for clean images.
        axis: what the radii are.
        note: what the bands are.
    """

    curves: Sequence[Curve]
    radii: Sequence[str]
    axis: str
    note: str

    @property
    def summary(self) -> str:
        """All figures in one sentence, for those who do not see the drawing."""
        told = "; ".join(
            f"{curve.role}: " + ", ".join(f"{100 * share:.1f} %" for share in curve.shares) for curve in self.curves
        )
        return f"Accuracy at ε = {', '.join(self.radii)}. {told}."


@dataclass(frozen=True)
class Picture:
    """A PNG image in base64, and what it shows."""

    png: str
    alternative: str


@dataclass(frozen=True)
class Example:
    """An image that an attack changed: in words, and as original, perturbation and result."""

    words: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Gallery:
    """Examples with a sentence on all of them."""

    caption: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Note:
    """A sentence. A doubt is set off."""

    text: str
    doubt: bool = False


@dataclass(frozen=True)
class Command:
    """What was typed to get the figures above."""

    text: str


Part = Table | Chart | Gallery | Note | Command


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]
