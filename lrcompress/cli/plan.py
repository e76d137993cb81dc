"""`lrcompress plan`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrcompress.cli.console import explain_errors, follow_progress, print_json, print_table, stderr
from lrcompress.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    SeedOption,
    check_device,
    load_options,
    own_code,
    with_options,
)
from lrcompress.cli.planning_options import PlanningOptions, planning_options
from lrcompress.errors import OptionError
from lrcompress.strict_json import parse_json

if TYPE_CHECKING:
    from lrcompress.checkpoint import LoadOptions
    from lrcompress.plan import CompressionPlan, LayerPlan


@explain_errors
@with_options(planning=planning_options, load=load_options)
def plan(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint file, Hugging Face folder, or hub name (timm/NAME, torchvision/NAME).")
    ],
    planning: PlanningOptions,
    load: "LoadOptions",
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("out.plan.json"),
    data: DataOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose the rank of every layer, and change nothing.

    Prints what would become of each layer, and why, and writes it to a file, which may be edited (a layer's scheme
    and its ranks) and which `lrcompress compress --plan` executes.

    \b
    Examples:
      lrcompress plan resnet50.pt --tol 0.1
      lrcompress plan resnet50.pt --budget 0.25 -o quarter.plan.json
      lrcompress plan resnet50.pt --budget 0.25 --calibrate DIR --exclude 'layer4.*'
      lrcompress plan resnet50.pt --max-drop 0.5 --data DIR --calibrate DIR
      lrcompress plan resnet50.pt --tol 0.3 --scheme tucker2 --overrides mine.toml
      lrcompress compress resnet50.pt --plan quarter.plan.json
    """
    from lrcompress.artifact import check_outputs, write_atomically
    from lrcompress.checkpoint import load_checkpoint, source_files
    from lrcompress.measure import count_parameters
    from lrcompress.pipeline import MaxDrop, plan_loaded

    policy = planning.rank_policy(seed)
    if isinstance(policy, MaxDrop):
        policy.check_data(data)
    elif data is not None:
        raise OptionError("a plan needs images for --max-drop only", hint="--calibrate DIR plans for their activations")
    check_device(device)
    check_outputs(
        [output], overwrite=overwrite, inputs=[planning.overrides, own_code(load.arch), *source_files(checkpoint)]
    )
    loaded = load_checkpoint(checkpoint, load)
    stderr().print(loaded.describe(), markup=False)
    with follow_progress() as observer:
        made, _ = plan_loaded(
            loaded,
            policy,
            planning.layer_options(),
            calibration=planning.calibration(seed),
            data=data,
            device=device,
            observer=observer,
        )
    _print_layers(made)
    before = count_parameters(loaded.model)
    after = before - made.removed_parameters()
    stderr().print(
        f"{len(made.factorized())} of {len(made.layers)} layers would be factorised: {before:,} → {after:,} parameters "
        f"({100 * (1 - after / before):.1f} % fewer)",
        markup=False,
    )
    write_atomically(output, (json.dumps(made.to_json(), indent=1, sort_keys=True) + "\n").encode())
    if as_json:
        print_json(made.to_json())
    else:
        typer.echo(str(output))


def read_plan(path: Path) -> "CompressionPlan":
    """Returns the plan in a file.

    Raises:
        OptionError: if there is none.
    """
    from lrcompress.plan import CompressionPlan

    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"no plan in `{path}`: {reason}", hint="lrcompress plan CHECKPOINT writes one") from error
    return CompressionPlan.from_json(values)


def _print_layers(plan: "CompressionPlan") -> None:
    """Prints what would be factorised, and which layers would stay dense for which reason."""
    if factorised := list(map(_row, plan.factorized().values())):
        print_table("would be factorised", ("layer", "kind", "weight", "scheme", "ranks", "error"), factorised)
    names: dict[str, list[str]] = {}
    for layer in plan.layers:
        if layer.reason:
            names.setdefault(layer.reason, []).append(layer.name)
    if names:
        rows = [(", ".join(listed), reason) for reason, listed in names.items()]
        print_table("would stay dense", ("layers", "why"), rows, texts=(0, 1))


def _row(layer: "LayerPlan") -> list[str]:
    ranks, error = ", ".join(map(str, layer.ranks)), layer.relative_error
    shape = "×".join(map(str, layer.dense_shape))
    return [layer.name, layer.kind, shape, layer.scheme, ranks, "" if error is None else f"{error:.4f}"]
