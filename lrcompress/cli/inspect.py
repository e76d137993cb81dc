"""`lrcompress inspect`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrcompress.cli.console import (
    explain_errors,
    follow_progress,
    print_json,
    print_lines,
    stderr,
    typed_command,
)
from lrcompress.cli.options import BaselineOption, JsonOption, load_options, with_options
from lrcompress.errors import OptionError

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
    operator_norms: Annotated[
        bool,
        typer.Option(
            "--operator-norms",
            help="Measure the spectral norm of each layer as a linear operator on its real input size, by power "
            "iteration: a lower bound. Of a compressed file and its original, whose report they are added to.",
        ),
    ] = False,
    baseline: BaselineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a file.

    Of a compressed file or a checkpoint: architecture, sizes, layers, and why layers stay dense. Of a fine-tuning that
    has not ended: how far it is, what it has reached, and how it goes on; of an evaluation, how far it is. Only
    --operator-norms builds the network of a compressed file, and writes: into its report.

    \b
    Examples:
      lrcompress inspect out.safetensors
      lrcompress inspect resnet50.pt --json
      lrcompress inspect out.unfinished.pt
      lrcompress inspect out.safetensors --operator-norms --baseline resnet50.pt
    """
    from lrcompress.artifact import is_artifact
    from lrcompress.pipeline import describe_journal, describe_unfinished, is_unfinished

    unfinished, compressed = is_unfinished(Path(file)), is_artifact(Path(file))
    if operator_norms and unfinished:
        raise OptionError("an unfinished run has no model to measure yet", hint="let it go on with --resume")
    if baseline is not None and not (operator_norms and compressed):
        raise OptionError("--baseline is for --operator-norms of a compressed file", hint="leave out --baseline")
    if not compressed and (evaluation := describe_journal(Path(file))) is not None:
        _tell_evaluation(evaluation, as_json=as_json)
        return
    if unfinished:
        _tell_unfinished(describe_unfinished(Path(file)), as_json=as_json)
        return
    if compressed:
        values = _describe_artifact(Path(file))
        if operator_norms:
            values["operator_norms"] = _add_norms(Path(file), baseline, options.arch)
    else:
        values = _describe_checkpoint(file, options, operator_norms=operator_norms)
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
    if operator_norms:
        _tell_norms(values["operator_norms"])


def _add_norms(path: Path, baseline: str | None, arch: str | None) -> dict[str, Any]:
    """Adds the operator norms to an artifact's report, and returns them."""
    from lrcompress.pipeline import add_operator_norms
    from lrcompress.report import report_paths

    command = typed_command()
    with follow_progress() as observer:
        report = add_operator_norms(path, baseline=baseline, arch=arch, command=command, observer=observer)
    stderr().print(f"report: {report_paths(path)[1]}", markup=False)
    return {key: value for key, value in report["operator_norms"].items() if key != "command"}


def _tell_norms(values: dict[str, Any]) -> None:
    from lrcompress.report import operator_norm_rows, product_sentence

    columns, rows = operator_norm_rows(values)
    typer.echo("")
    typer.echo("operator norms, lower bounds:")
    print_lines(columns, [[cell.replace("×", "x").replace("–", "-") for cell in row] for row in rows])
    if sentence := product_sentence(values):
        typer.echo(sentence)


def _tell_evaluation(values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(values)
        return
    typer.echo(f"kind: {values['kind']}")
    typer.echo(f"images: {values['images_done']} of {values['images']} finished, by one process")
    typer.echo(f"data: {values['data']}")
    typer.echo(f"attacks: {', '.join(values['settings'].get('attacks', ())) or '-'}, {values['norm']}")
    typer.echo("resume: the same command goes on with it")


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


def _describe_checkpoint(file: str, options: "LoadOptions", *, operator_norms: bool) -> dict[str, Any]:
    from lrcompress.checkpoint import load_checkpoint
    from lrcompress.measure import count_macs, count_parameters
    from lrcompress.pipeline import checkpoint_operator_norms
    from lrcompress.plan import find_layers

    loaded = load_checkpoint(file, options)
    stderr().print(loaded.describe(), markup=False)
    size, norms = loaded.preprocessing.input_size, {}
    if operator_norms:
        with follow_progress() as observer:
            norms = {"operator_norms": checkpoint_operator_norms(loaded, observer=observer)}
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
        **norms,
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
