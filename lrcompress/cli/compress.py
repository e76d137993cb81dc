"""`lrcompress compress`."""

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
from lrcompress.cli.plan import DEFAULT_TOL, PlanningOptions, planning_options, read_plan
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.checkpoint import LoadOptions
    from lrcompress.dlrt import DlrtOptions

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
@with_options(planning=planning_options, training=training_options, load=load_options)
def compress(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint file, Hugging Face folder, or hub name (timm/NAME, torchvision/NAME).")
    ],
    plan: Annotated[
        Path | None, typer.Option(help="Do what a plan says that `lrcompress plan` wrote, and nothing else.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("out.safetensors"),
    data: DataOption = None,
    samples: SamplesOption = None,
    *,
    planning: PlanningOptions,
    training: dict[str, Any],
    load: "LoadOptions",
    seed: SeedOption = 0,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time both models, which needs both in memory at once.")
    ] = True,
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
      lrcompress compress timm/resnet50.a1_in1k --budget 0.25 --calibrate DIR
      lrcompress compress resnet50.pt --max-drop 0.5 --data DIR --epochs 0
      lrcompress compress resnet50.pt --plan out.plan.json
      lrcompress compress mine.pt --arch net.py:build --arch-arg in_chans=1 --input-size 1,28,28
    """
    from lrcompress.pipeline import CompressOptions
    from lrcompress.pipeline import compress as run

    if data is None and samples is not None:
        raise OptionError("--samples needs images", hint="--data DIR")
    if plan is not None and (option := planning.first_given()):
        raise OptionError(
            f"--plan and {option} exclude each other: a plan leaves nothing to plan",
            hint=f"give {option} when the plan is made, or edit the plan",
        )
    settings = _training_settings(training, planning=planning, plan=plan, data=data, seed=seed)
    chosen = read_plan(plan) if plan is not None else None
    if planning.max_drop is not None and data is None:
        raise OptionError("--max-drop needs images to measure accuracy on", hint="--data DIR --epochs 0")
    check_device(device)
    options = CompressOptions(
        policy=planning.rank_policy(seed) if settings is None and chosen is None else None,
        plan=chosen,
        load=load,
        data=data,
        training=settings,
        samples=samples,
        seed=seed,
        layers=planning.layer_options(),
        calibration=planning.calibration(seed),
        timing=timing,
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


def _training_settings(
    given: dict[str, Any], *, planning: PlanningOptions, plan: Path | None, data: str | None, seed: int
) -> "DlrtOptions | None":
    """Returns the settings of the fine-tuning, None without one; refuses settings that would have no effect."""
    from lrcompress.dlrt import DlrtOptions

    if data is not None and given.get("epochs") != 0:
        without_effect = "--plan" if plan is not None else planning.policy_option()
        if without_effect not in ("", "--tol"):
            raise OptionError(
                f"fine-tuning adapts the ranks to a tolerance, {without_effect} has no effect on it",
                hint="--tol and --max-rank with fine-tuning, or --epochs 0",
            )
        tol = DEFAULT_TOL if planning.tol is None else planning.tol
        defaults = {"tol": tol, "seed": seed, "epochs": DEFAULT_EPOCHS, "distill": DEFAULT_DISTILL}
        return DlrtOptions(**{**defaults, **given})
    without_effect = [name for name in given if name != "epochs" or given[name] > 0]
    if without_effect:
        name = without_effect[0]
        option = "--no-flip" if name == "flip" and not given[name] else f"--{name.replace('_', '-')}"
        raise OptionError(f"{option} needs images to fine-tune on", hint="--data DIR, and not --epochs 0")
    return None
