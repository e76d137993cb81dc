"""`lrcompress compress`."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrcompress.cli.console import explain_errors, follow_progress, print_json, stderr, typed_command
from lrcompress.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    SamplesOption,
    SeedOption,
    check_device,
    load_options,
    with_options,
)
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.checkpoint import LoadOptions
    from lrcompress.dlrt import DlrtOptions
    from lrcompress.plan import RankPolicy

DEFAULT_TOL = 0.1
DEFAULT_EPOCHS = 5
DEFAULT_DISTILL = 0.9


class Penalty(str, Enum):
    """What `--penalty` takes."""

    AUTO = "auto"
    SCALE_FREE = "scale-free"
    PAPER = "paper"


class Precision(str, Enum):
    """What `--precision` takes."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def training_options(
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"Passes of fine-tuning over the data (default {DEFAULT_EPOCHS} with --data); 0: none."
        ),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Weight β of the conditioning penalty (default 0).")] = None,
    penalty: Annotated[
        Penalty | None, typer.Option(help="R/α² (scale-free), R (paper), or auto (default): by the network's layers.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of AdamW (default 0.001).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of cores and dense weights (default 0).")] = None,
    coefficient_steps: Annotated[
        int | None, typer.Option(help="Optimiser steps s* per DLRT cycle (default 10).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per training step (default 128).")] = None,
    max_rank: Annotated[int | None, typer.Option(help="Largest rank of a layer while fine-tuning.")] = None,
    frozen_fraction: Annotated[
        float | None, typer.Option(help="Last part of the training in which ranks and bases stay fixed (default 0.3).")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the training images the best state is chosen on (default 0.1).")
    ] = None,
    distill: Annotated[
        float | None,
        typer.Option(
            help="Weight in the loss of distillation from the uncompressed network, 0 to 1 "
            f"(default {DEFAULT_DISTILL})."
        ),
    ] = None,
    crop: Annotated[int | None, typer.Option(help="Random shifts of training images, in pixels (default 2).")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror training images at random (default yes).")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of training (default float32).")] = None,
) -> dict[str, Any]:
    """Returns the settings of the fine-tuning that were given, by their names in `DlrtOptions`."""
    given = {
        "epochs": epochs,
        "beta": beta,
        "penalty": None if penalty is None else penalty.value,
        "lr": lr,
        "weight_decay": weight_decay,
        "coefficient_steps": coefficient_steps,
        "batch_size": batch_size,
        "max_rank": max_rank,
        "frozen_fraction": frozen_fraction,
        "held_out": held_out,
        "distill": distill,
        "crop": crop,
        "flip": flip,
        "precision": None if precision is None else precision.value,
    }
    return {name: value for name, value in given.items() if value is not None}


@explain_errors
@with_options(training=training_options, load=load_options)
def compress(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint file, Hugging Face folder, or hub name (timm/NAME, torchvision/NAME).")
    ],
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("out.safetensors"),
    data: DataOption = None,
    samples: SamplesOption = None,
    *,
    training: dict[str, Any],
    load: "LoadOptions",
    include_first: Annotated[bool, typer.Option("--include-first", help="Factorise the first layer too.")] = False,
    include_classifier: Annotated[
        bool, typer.Option("--include-classifier", help="Factorise the classifier too.")
    ] = False,
    allow_zero_layers: Annotated[
        bool, typer.Option("--allow-zero-layers", help="Leave layers alone whose weights are all zero.")
    ] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint smaller, with a report.

    Writes OUTPUT.safetensors, OUTPUT.report.json and OUTPUT.report.html.

    Without data each layer is cut to the smallest rank whose relative error is at most --tol: a guarantee. With data
    the low-rank network is fine-tuned, its ranks adapting to the same tolerance. Instead of a tolerance, a compression
    without fine-tuning takes --energy, --rank, or a budget, which is divided among the layers for the smallest error.

    \b
    Examples:
      lrcompress compress resnet50.pt --tol 0.1
      lrcompress compress resnet50.pt --tol 0.1 --data DIR --epochs 5 --beta 0.05 -o small.safetensors
      lrcompress compress timm/resnet50.a1_in1k --tol 0.2 --data samples/imagenet --epochs 0
      lrcompress compress timm/resnet50.a1_in1k --budget 0.25
      lrcompress compress mine.pt --arch net.py:build --arch-arg in_chans=1 --input-size 1,28,28
    """
    from lrcompress.pipeline import CompressOptions
    from lrcompress.pipeline import compress as run

    if data is None and samples is not None:
        raise OptionError("--samples needs images", hint="--data DIR")
    policy = _policy(tol=tol, energy=energy, rank=rank, budget=budget, max_params=max_params, max_macs=max_macs)
    settings = _training_settings(training, policy=policy, data=data, seed=seed)
    check_device(device)
    options = CompressOptions(
        policy=policy if settings is None else None,
        load=load,
        data=data,
        training=settings,
        samples=samples,
        seed=seed,
        include_first=include_first,
        include_classifier=include_classifier,
        allow_zero_layers=allow_zero_layers,
        device=device,
        overwrite=overwrite,
        command=typed_command(),
    )
    with follow_progress() as observer:
        report = run(checkpoint, output, options, observer=observer)
    for sentence in report["verdict"]:
        stderr().print(sentence, markup=False)
    if as_json:
        print_json(report)
    else:
        typer.echo(str(output))


def _policy(
    *,
    tol: float | None,
    energy: float | None,
    rank: int | None,
    budget: float | None,
    max_params: int | None,
    max_macs: int | None,
) -> "RankPolicy":
    """Returns the one policy that was asked for, the default tolerance without one."""
    from lrcompress.plan import Budget, Energy, Tolerance, UniformRank

    policies: dict[str, Callable[[], RankPolicy]] = {}
    if tol is not None:
        policies["--tol"] = lambda: Tolerance(tol)
    if energy is not None:
        policies["--energy"] = lambda: Energy(energy)
    if rank is not None:
        policies["--rank"] = lambda: UniformRank(rank)
    if budget is not None:
        policies["--budget"] = lambda: Budget(fraction=budget)
    if max_params is not None:
        policies["--max-params"] = lambda: Budget(parameters=max_params)
    if max_macs is not None:
        policies["--max-macs"] = lambda: Budget(macs=max_macs)
    if len(policies) > 1:
        raise OptionError(f"{' and '.join(policies)} exclude each other", hint="give one of them")
    return next(iter(policies.values()))() if policies else Tolerance(DEFAULT_TOL)


def _training_settings(
    given: dict[str, Any], *, policy: "RankPolicy", data: str | None, seed: int
) -> "DlrtOptions | None":
    """Returns the settings of the fine-tuning, None without one; refuses settings that would have no effect."""
    from lrcompress.dlrt import DlrtOptions
    from lrcompress.plan import Tolerance

    if data is not None and given.get("epochs") != 0:
        if not isinstance(policy, Tolerance):
            raise OptionError(
                f"fine-tuning adapts the ranks to a tolerance, not to a {policy.describe()['name']}",
                hint="--tol and --max-rank with fine-tuning, or --epochs 0",
            )
        defaults = {"tol": policy.tol, "seed": seed, "epochs": DEFAULT_EPOCHS, "distill": DEFAULT_DISTILL}
        return DlrtOptions(**{**defaults, **given})
    without_effect = [name for name in given if name != "epochs" or given[name] > 0]
    if without_effect:
        name = without_effect[0]
        option = "--no-flip" if name == "flip" and not given[name] else f"--{name.replace('_', '-')}"
        raise OptionError(f"{option} needs images to fine-tune on", hint="--data DIR, and not --epochs 0")
    return None
