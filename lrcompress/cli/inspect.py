"""`lrcompress inspect`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lrcompress.cli.console import explain_errors, print_json, print_table, stderr
from lrcompress.cli.options import (
    ArchArgOption,
    ArchOption,
    InputSizeOption,
    JsonOption,
    MatchByOrderOption,
    MeanOption,
    StdOption,
    StrictArchOption,
    WeightsKeyOption,
    load_options,
)


@explain_errors
def inspect(
    file: Annotated[str, typer.Argument(help="A compressed file, a checkpoint, a Hugging Face folder or a hub name.")],
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    strict_arch: StrictArchOption = False,
    match_by_order: MatchByOrderOption = False,
    weights_key: WeightsKeyOption = None,
    input_size: InputSizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a file.

    Of a compressed file or a checkpoint: architecture, sizes, layers, and why layers stay dense.

    \b
    Examples:
      lrcompress inspect out.safetensors
      lrcompress inspect resnet50.pt --json
    """
    from lrcompress.artifact import is_artifact

    if is_artifact(Path(file)):
        _inspect_artifact(Path(file), as_json)
        return
    options = load_options(
        arch=arch,
        arch_arg=arch_arg,
        strict_arch=strict_arch,
        match_by_order=match_by_order,
        weights_key=weights_key,
        input_size=input_size,
        mean=mean,
        std=std,
    )
    from lrcompress.checkpoint import load_checkpoint
    from lrcompress.measure import count_macs, count_parameters
    from lrcompress.pipeline import describe_choice
    from lrcompress.plan import find_layers

    loaded = load_checkpoint(file, options)
    size = loaded.preprocessing.input_size
    layers: list[dict[str, Any]] = [
        {
            "name": layer.name,
            "kind": type(layer.module).__name__,
            "dense_shape": list(layer.weight_shape),
            "reason": layer.reason,
        }
        for layer in find_layers(loaded.model, size)
    ]
    stderr().print(describe_choice(loaded), markup=False)
    rows = [
        [x["name"], x["kind"], "×".join(map(str, x["dense_shape"])), x["reason"] or "may be factorised"] for x in layers
    ]
    print_table("layers with a weight matrix", ["layer", "kind", "weight", ""], rows)
    _print(
        {
            "kind": "checkpoint",
            "architecture": asdict(loaded.architecture),
            "preprocessing": loaded.preprocessing.to_json(),
            "num_classes": loaded.num_classes,
            "dtype": loaded.dtype,
            "source": asdict(loaded.source),
            "parameters": count_parameters(loaded.model),
            "macs": count_macs(loaded.model, size),
            "layers": layers,
        },
        as_json,
    )


def _inspect_artifact(path: Path, as_json: bool) -> None:
    import json

    from lrcompress.artifact import read_manifest

    manifest = read_manifest(path)
    rows = [
        [
            layer.name,
            layer.kind,
            "×".join(map(str, layer.dense_shape)),
            "" if layer.rank is None else str(layer.rank),
            "" if layer.relative_error is None else f"{layer.relative_error:.4f}",
            "" if layer.kappa is None else f"{layer.kappa:.3g}",
            layer.reason,
        ]
        for layer in manifest.layers
    ]
    columns = ["layer", "kind", "weight", "rank", "relative error", "κ", "why dense"]
    print_table(f"{path}: {manifest.architecture.label}", columns, rows)
    _print(
        {
            "kind": "artifact",
            **json.loads(manifest.dumps()),
            "parameters": manifest.compressed.parameters,
            "macs": manifest.compressed.macs,
        },
        as_json,
    )


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(values)
        return
    arguments = ", ".join(f"{key}={value}" for key, value in values["architecture"]["arguments"].items())
    typer.echo(f"kind: {values['kind']}")
    typer.echo(
        f"architecture: {values['architecture']['framework']}/{values['architecture']['name']} {arguments}".rstrip()
    )
    typer.echo(f"parameters: {values['parameters']}")
    typer.echo(f"macs: {values['macs']}")
    typer.echo(f"classes: {values['num_classes']}")
    typer.echo(f"input: {'x'.join(map(str, values['preprocessing']['input_size']))}")
