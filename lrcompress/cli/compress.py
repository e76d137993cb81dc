"""`lrcompress compress`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrcompress.cli.console import explain_errors, explained_errors, follow_progress, print_json, stderr, typed_command
from lrcompress.cli.gates import GivenGates, end_with_gates, gate_options, judge_report
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
from lrcompress.cli.plan import read_plan
from lrcompress.cli.planning_options import PlanningOptions, planning_options
from lrcompress.cli.training_options import GivenTraining, training_options
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.checkpoint import LoadOptions


@explain_errors
@with_options(planning=planning_options, training=training_options, load=load_options, gates=gate_options)
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
    training: GivenTraining,
    load: "LoadOptions",
    gates: GivenGates,
    seed: SeedOption = 0,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time both models, which needs both in memory at once.")
    ] = True,
    device: DeviceOption = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a fine-tuning that did not end, if there is one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint smaller, with a report.

    Writes OUTPUT.safetensors, OUTPUT.report.json and OUTPUT.report.html.

    Without data each layer is cut to the smallest rank whose relative error is at most --tol: a guarantee. Instead of a
    tolerance --energy, --rank, or a budget may be given, which is divided among the layers for the smallest error. With
    data the low-rank network is fine-tuned, and its ranks go on adapting to the tolerance or the budget, or to what
    --max-drop says may be lost. A fine-tuning that was stopped goes on with --resume; torchrun spreads it over several
    processes.

    \b
    Examples:
      lrcompress compress resnet50.pt --tol 0.1
      lrcompress compress resnet50.pt --tol 0.1 --data DIR --epochs 5 --beta 0.05 -o small.safetensors
      lrcompress compress resnet50.pt --budget 0.1 --data DIR --resume
      lrcompress compress resnet50.pt --max-drop 0.5 --data DIR --epochs 20
      lrcompress compress resnet50.pt --budget 0.1 --data DIR --adversarial fgsm-rs --adversarial-eps 4/255
      torchrun --nproc-per-node 2 -m lrcompress compress resnet50.pt --budget 0.1 --data DIR --device cuda
      lrcompress compress timm/resnet50.a1_in1k --tol 0.2 --data samples/imagenet --epochs 0
      lrcompress compress timm/resnet50.a1_in1k --budget 0.25
      lrcompress compress timm/resnet50.a1_in1k --budget 0.25 --calibrate DIR
      lrcompress compress resnet50.pt --max-drop 0.5 --data DIR --epochs 0
      lrcompress compress resnet50.pt --plan out.plan.json
      lrcompress compress resnet50.pt --tol 0.2 --data DIR --epochs 0 --fail-if 'clean.drop > 1.0'
      lrcompress compress mine.pt --arch net.py:build --arch-arg in_chans=1 --input-size 1,28,28
    """
    from lrcompress.pipeline import CompressOptions, joined_processes
    from lrcompress.pipeline import compress as run

    if data is None and samples is not None:
        raise OptionError("--samples needs images", hint="--data DIR")
    if plan is not None and (option := planning.first_given()):
        raise OptionError(
            f"--plan and {option} exclude each other: a plan leaves nothing to plan",
            hint=f"give {option} when the plan is made, or edit the plan",
        )
    chosen = read_plan(plan) if plan is not None else None
    gate_policy = gates.policy_of_run(None)
    policy = planning.rank_policy(seed)
    settings = None
    if plan is not None:
        training.refuse_with_plan()
    else:
        settings = training.settings(
            data=data,
            policy=planning.training_policy(),
            max_drop=planning.max_drop,
            round_ranks=planning.round_ranks,
            seed=seed,
        )
    if planning.max_drop is not None and data is None:
        raise OptionError("--max-drop needs images to measure accuracy on", hint="--data DIR")
    check_device(device)
    calibration = planning.calibration(seed, training_data=data if settings is not None else None)
    options = CompressOptions(
        policy=policy if settings is None and chosen is None else None,
        plan=chosen,
        load=load,
        data=data,
        training=settings,
        samples=samples,
        seed=seed,
        layers=planning.layer_options(),
        calibration=calibration,
        timing=timing,
        device=device,
        overwrite=overwrite,
        resume=resume,
        read_files=tuple(path for path in (plan, planning.overrides) if path is not None),
        command=typed_command(),
    )
    # Of joined processes one has the error, whichever it is.
    with explained_errors(), joined_processes(device) as own_device, follow_progress() as observer:
        report = run(checkpoint, output, replace(options, device=own_device), observer=observer)
    if not report:
        return  # one of several processes, and not the one that writes
    for sentence in report["verdict"]:
        stderr().print(sentence, markup=False)
    report = judge_report(report, gate_policy, output)
    if as_json:
        print_json(report)
    else:
        typer.echo(str(output))
    end_with_gates(report["gates"])
