"""The options that choose ranks and layers, of `lrcompress plan` and `lrcompress compress`."""

from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lrcompress.cli.options import in_panel, whole_number
from lrcompress.cli.overrides import Overrides, read_overrides
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.pipeline import LayerOptions, MaxDrop
    from lrcompress.plan import Calibration, RankPolicy

DEFAULT_TOL = 0.1
T = TypeVar("T")


class Scheme(str, Enum):
    """What `--scheme` takes."""

    AUTO = "auto"
    MATRIX = "matrix"
    SPATIAL = "spatial"
    TUCKER2 = "tucker2"
    SPLIT = "split"


@dataclass(frozen=True)
class PlanningOptions:
    """The options that choose ranks and layers, as they were given; None is not given."""

    overrides: Path | None = None
    tol: float | None = None
    energy: float | None = None
    rank: int | None = None
    budget: float | None = None
    max_params: int | None = None
    max_macs: int | None = None
    max_drop: float | None = None
    scheme: str = "auto"
    round_ranks: int = 1
    include_first: bool = False
    include_classifier: bool = False
    exclude: tuple[str, ...] = ()
    layer_ranks: tuple[tuple[str, int], ...] = ()
    layer_schemes: tuple[tuple[str, str], ...] = ()
    calibrate: str | None = None
    calibration_images: int | None = None
    no_calibration: bool = False
    allow_zero_layers: bool = False

    def first_given(self) -> str:
        """Returns the first option that was given, "" without any."""
        names = {"layer_ranks": "layer_rank", "layer_schemes": "layer_scheme"}
        default = PlanningOptions()
        given = [field.name for field in fields(self) if getattr(self, field.name) != getattr(default, field.name)]
        return f"--{names.get(given[0], given[0]).replace('_', '-')}" if given else ""

    def layer_options(self) -> "LayerOptions":
        """Returns which layers are factorised, and how."""
        from lrcompress.pipeline import LayerOptions

        return LayerOptions(
            scheme=self.scheme,
            round_ranks=self.round_ranks,
            include_first=self.include_first,
            include_classifier=self.include_classifier,
            exclude=self.exclude,
            layer_ranks=_last_wins(self.layer_ranks),
            layer_schemes=_last_wins(self.layer_schemes),
            allow_zero_layers=self.allow_zero_layers,
        )

    def policy_option(self) -> str:
        """Returns the one option that chooses the ranks, "" if none was given.

        Raises:
            OptionError: if several were.
        """
        names = ("tol", "energy", "rank", "budget", "max_params", "max_macs", "max_drop")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} exclude each other", hint="give one of them")
        return given[0] if given else ""

    def calibration(self, seed: int, *, training_data: str | None = None) -> "Calibration | None":
        """Returns the images to calibrate with, None without a calibration.

        Args:
            seed: of their choice.
            training_data: what is fine-tuned on, and calibrated with unless other images are given or none are wanted.
        """
        from lrcompress.plan import Calibration

        if self.calibrate is not None and self.no_calibration:
            raise OptionError("--calibrate and --no-calibration exclude each other", hint="give one of them")
        if self.calibrate == "":
            raise OptionError("--calibrate needs a source of images, got an empty name", hint="--calibrate DIR")
        source = None if self.no_calibration else self.calibrate or training_data
        if source is not None:
            return Calibration(source, self.calibration_images, seed)
        if self.calibration_images is not None:
            raise OptionError("--calibration-images needs a source of images", hint="--calibrate DIR")
        return None

    def training_policy(self) -> "RankPolicy":
        """Returns the policy that a fine-tuning goes on with; with a largest drop, the budget that this drives."""
        from lrcompress.pipeline import MaxDrop
        from lrcompress.plan import Budget

        policy = self.rank_policy(seed=0)
        return Budget(fraction=0.999) if isinstance(policy, MaxDrop) else policy

    def rank_policy(self, seed: int) -> "RankPolicy | MaxDrop":
        """Returns the policy that was asked for, the default tolerance without one."""
        from lrcompress.pipeline import MaxDrop
        from lrcompress.plan import Budget, Energy, Tolerance, UniformRank

        match self.policy_option():
            case "--energy":
                return Energy(float(self.energy or 0))
            case "--rank":
                return UniformRank(self.rank or 0)
            case "--budget" | "--max-params" | "--max-macs":
                return Budget(fraction=self.budget, parameters=self.max_params, macs=self.max_macs)
            case "--max-drop":
                return MaxDrop(self.max_drop or 0, seed=seed)
        return Tolerance(DEFAULT_TOL if self.tol is None else self.tol)


@in_panel("Ranks and layers")
def planning_options(
    tol: Annotated[
        float | None,
        typer.Option(help="Relative truncation tolerance τ in (0, 1); larger makes a smaller file (default 0.1)."),
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of each layer's squared norm; 0.99 is --tol 0.1.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="The same rank in every layer, for comparisons.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Keep at most this share of the whole model's parameters, 0.25 for example.")
    ] = None,
    max_params: Annotated[int | None, typer.Option(help="Keep at most so many parameters in all.")] = None,
    max_macs: Annotated[
        int | None, typer.Option(help="Keep at most so many multiply-accumulates per image in all.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Search the smallest model that loses at most so much accuracy on training images of --data.",
        ),
    ] = None,
    scheme: Annotated[
        Scheme,
        typer.Option(
            help="Form of the low-rank layers where it fits, the matrix form elsewhere; auto takes whatever "
            "costs least at equal error."
        ),
    ] = Scheme.AUTO,
    round_ranks: Annotated[
        int,
        typer.Option(
            min=1, max=1024, metavar="N", help="Only ranks that are multiples of N, which some hardware likes."
        ),
    ] = 1,
    include_first: Annotated[bool, typer.Option("--include-first", help="Factorise the first layer too.")] = False,
    include_classifier: Annotated[
        bool, typer.Option("--include-classifier", help="Factorise the classifier too.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers that stay dense, 'layer4.*' for example; may be repeated."),
    ] = None,
    layer_rank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=RANK", help="The rank of some layers, 'layer1.*=16' for example; may be repeated."
        ),
    ] = None,
    layer_scheme: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=SCHEME", help="The scheme of some layers, '*.conv2=tucker2' for example; may be repeated."
        ),
    ] = None,
    overrides: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML or JSON file with exclude (a list of patterns), layer_ranks and layer_schemes (by pattern); "
            "the options above add to it.",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Truncate for the activations of some training images instead of for the weights alone; "
            "takes what --data takes, and any folder of images: labels are not used.",
        ),
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option(min=1, help="How many images to calibrate with (default 256).")
    ] = None,
    no_calibration: Annotated[
        bool,
        typer.Option("--no-calibration", help="Start a fine-tuning from the weights alone, not from activations."),
    ] = False,
    allow_zero_layers: Annotated[
        bool, typer.Option("--allow-zero-layers", help="Leave layers alone whose weights are all zero.")
    ] = False,
) -> PlanningOptions:
    """Returns the options that choose ranks and layers."""
    given = read_overrides(overrides) if overrides is not None else Overrides()
    options = PlanningOptions(
        overrides=overrides,
        tol=tol,
        energy=energy,
        rank=rank,
        budget=budget,
        max_params=max_params,
        max_macs=max_macs,
        max_drop=max_drop,
        scheme=scheme.value,
        round_ranks=round_ranks,
        include_first=include_first,
        include_classifier=include_classifier,
        exclude=(*given.exclude, *(exclude or ())),
        layer_ranks=(*given.layer_ranks, *map(_pattern_and_rank, layer_rank or ())),
        layer_schemes=(*given.layer_schemes, *map(_pattern_and_scheme, layer_scheme or ())),
        calibrate=calibrate,
        calibration_images=calibration_images,
        no_calibration=no_calibration,
        allow_zero_layers=allow_zero_layers,
    )
    # So that a value out of range is told before anything is read.
    options.rank_policy(seed=0)
    options.calibration(seed=0, training_data="")
    options.layer_options()
    return options


def _last_wins(pairs: tuple[tuple[str, T], ...]) -> dict[str, T]:
    """Returns the pairs in the order of their last mention: of several patterns that match the last one holds."""
    ordered: dict[str, T] = {}
    for pattern, value in pairs:
        ordered.pop(pattern, None)
        ordered[pattern] = value
    return ordered


def _pattern_and_rank(text: str) -> tuple[str, int]:
    pattern, _, rank = text.rpartition("=")
    if not pattern or (number := whole_number(rank)) is None:
        raise OptionError(f"--layer-rank takes PATTERN=RANK, got `{text:.80}`", hint="--layer-rank 'layer1.*=16'")
    return pattern, number


def _pattern_and_scheme(text: str) -> tuple[str, str]:
    pattern, _, scheme = text.rpartition("=")
    if not pattern or not scheme.strip():
        raise OptionError(f"--layer-scheme takes PATTERN=SCHEME, got `{text}`", hint="--layer-scheme '*.conv2=tucker2'")
    return pattern, scheme.strip()
