"""`lrcompress inspect`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrcompress.cli.console import explain_errors, print_json, print_lines, stderr
from lrcompress.cli.options import JsonOption, load_options, with_options

if TYPE_CHECKING:
    from lrcompress.checkpoint import LoadOptions


@explain_errors
@with_options(options=load_options)
def inspect(
    file: Annotated[
        str,
        typer.Argument(
            help="A compressed file, a checkpoint, a Hugging Face folder, a hub name, or the state of an unfinished "
            "run."
        ),
    ],
    options: "LoadOptions",
    as_json: JsonOption = False,
) -> None:
    """Say what is in a file.

    Of a compressed file or a checkpoint: architecture, sizes, layers, and why layers stay dense. Of a fine-tuning that
    has not ended: how far it is, what it has reached, and how it goes on.

    \b
    Examples:
      lrcompress inspect out.safetensors
      lrcompress inspect resnet50.pt --json
      lrcompress inspect out.unfinished.pt
    """
    from lrcompress.artifact import is_artifact
    from lrcompress.pipeline import describe_unfinished, is_unfinished

    if is_unfinished(Path(file)):
        _tell_unfinished(describe_unfinished(Path(file)), as_json=as_json)
        return
    values = _describe_artifact(Path(file)) if is_artifact(Path(file)) else _describe_checkpoint(file, options)
    if as_json:
        print_json(values)
        return
    architecture = values["architecture"]
    arguments = ", ".join(f"{key}={value}" for key, value in architecture["arguments"].items())
    typer.echo(f"kind: {values['kind']}")
    typer.echo(f"architecture: {architecture['framework']}/{architecture['name']} {arguments}".rstrip())
    typer.echo(f"parameters: {values['parameters']}")
    typer.echo(f"macs: {values['macs']}")
    typer.echo(f"classes: {values['num_classes']}")
    typer.echo(f"input: {'x'.join(map(str, values['preprocessing']['input_size']))}")
    typer.echo("")
    print_lines(
        ("layer", "kind", "weight", "scheme", "ranks", "error", "kappa", "why dense"),
        [_row(layer) for layer in values["layers"]],
    )


def _tell_unfinished(values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(values)
        return
    over = " (the training is over, the result is not written)" if values["training_is_over"] else ""
    typer.echo(f"kind: {values['kind']}")
    typer.echo(f"step: {values['step']} of {values['steps']}{over}")
    typer.echo(f"epoch: {values['epoch']}")
    typer.echo(f"parameters: {values['parameters']}")
    typer.echo(f"command: {values['command']}")
    typer.echo(f"resume: {values['resume']}")
    for warning in values["warnings"]:
        typer.echo(f"warning: {warning}")
    typer.echo("")
    print_lines(("epoch", "loss", "held-out", "robust", "parameters", "frozen"), [_epoch(one) for one in values["log"]])


def _epoch(record: dict[str, Any]) -> list[str]:
    loss, robust = record["loss"], record["held_out_robust_accuracy"]
    return [
        str(record["epoch"]),
        "-" if loss is None else f"{loss:.4f}",
        f"{100 * record['held_out_accuracy']:.2f} %",
        "-" if robust is None else f"{100 * robust:.2f} %",
        str(record["parameters"]),
        "yes" if record["frozen"] else "no",
    ]


def _describe_artifact(path: Path) -> dict[str, Any]:
    from lrcompress.artifact import read_manifest

    manifest = read_manifest(path)
    cost = {"parameters": manifest.compressed.parameters, "macs": manifest.compressed.macs}
    return {"kind": "artifact", **json.loads(manifest.dumps()), **cost}


def _describe_checkpoint(file: str, options: "LoadOptions") -> dict[str, Any]:
    from lrcompress.checkpoint import load_checkpoint
    from lrcompress.measure import count_macs, count_parameters
    from lrcompress.plan import find_layers

    loaded = load_checkpoint(file, options)
    stderr().print(loaded.describe(), markup=False)
    size = loaded.preprocessing.input_size
    return {
        "kind": "checkpoint",
        "architecture": asdict(loaded.architecture),
        "preprocessing": loaded.preprocessing.to_json(),
        "num_classes": loaded.num_classes,
        "dtype": loaded.dtype,
        "source": asdict(loaded.source),
        "parameters": count_parameters(loaded.model),
        "macs": count_macs(loaded.model, size),
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "dense_shape": list(layer.weight_shape),
                "reason": layer.reason,
            }
            for layer in find_layers(loaded.model, size)
        ],
    }


def _row(layer: dict[str, Any]) -> list[str]:
    """Returns the cells of one layer; what it does not have is a dash, so that the columns can be told apart."""
    error, kappa = layer.get("relative_error"), layer.get("kappa")
    return [
        layer["name"],
        layer["kind"],
        "x".join(map(str, layer["dense_shape"])),
        layer.get("scheme", "-"),
        ",".join(map(str, layer.get("ranks", ()))) or "-",
        "-" if error is None else f"{error:.4f}",
        "-" if kappa is None else f"{kappa:.3g}",
        layer.get("reason") or "-",
    ]
