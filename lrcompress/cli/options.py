"""Options that several verbs share, and how their texts become values."""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.checkpoint import LoadOptions
    from lrcompress.robustness import Evaluation

ArtifactArgument = Annotated[Path, typer.Argument(help="A file that `lrcompress compress` wrote.", metavar="FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with train/ and test/ or val/ class folders, folder of idx files (MNIST, Fashion-MNIST), "
        "torch/NAME, hfds/NAME, or samples/imagenet, cifar10, cifar100, mnist, fashionMNIST (20 images each).",
    ),
]
SamplesOption = Annotated[int | None, typer.Option(min=1, help="Use at most this many images, drawn at random.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or cuda:1 and so on.")]
FactoryOption = Annotated[
    str | None, typer.Option("--arch", help="For your own network: file.py:factory or package.module:factory.")
]
BaselineOption = Annotated[
    str | None,
    typer.Option(help="The original checkpoint; without it the recorded one is used if it is still there."),
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        help="timm or torchvision name, torchvision/NAME, or your own: file.py:factory, package.module:factory. "
        "Without it the file's own word or its tensors decide.",
    ),
]
ArchArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arch-arg", metavar="KEY=VALUE", help="Argument of the architecture, in_chans=1 for example; may be repeated."
    ),
]
StrictArchOption = Annotated[
    bool, typer.Option("--strict-arch", help="Refuse to choose between architectures with the same tensors.")
]
MatchByOrderOption = Annotated[
    bool,
    typer.Option("--match-by-order", help="Give the tensors to the architecture in their order, whatever their names."),
]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option("--weights-key", help="Key of the state dict in the file; otherwise timm's order of wrappers."),
]
InputSizeOption = Annotated[str | None, typer.Option(metavar="C,H,W", help="Size of the network's input.")]
MeanOption = Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean the network's input is normalised with.")]
StdOption = Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation of the normalisation.")]


def load_options(
    *,
    arch: str | None,
    arch_arg: Sequence[str] | None,
    strict_arch: bool,
    match_by_order: bool,
    weights_key: str | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
) -> "LoadOptions":
    """Returns how a checkpoint is to be read.

    Raises:
        OptionError: if a text cannot be understood.
    """
    from lrcompress.checkpoint import LoadOptions

    preprocessing: dict[str, Any] = {}
    if input_size is not None:
        preprocessing["input_size"] = _input_size(input_size)
    if mean is not None:
        preprocessing["mean"] = _numbers(mean, "--mean")
    if std is not None:
        preprocessing["std"] = _numbers(std, "--std")
        if min(preprocessing["std"]) <= 0:
            raise OptionError(f"--std takes positive numbers, got `{std}`", hint="--std 0.229,0.224,0.225")
    return LoadOptions(
        arch=arch,
        arch_arguments=parse_arguments(arch_arg or ()),
        strict_arch=strict_arch,
        match_by_order=match_by_order,
        weights_key=weights_key,
        preprocessing=preprocessing,
    )


def parse_arguments(texts: Sequence[str]) -> Mapping[str, Any]:
    """Returns the arguments in `KEY=VALUE` texts; values are read as Python literals, otherwise as text.

    >>> parse_arguments(["in_chans=1", "channels=(8, 16)", "act_layer=gelu"])
    {'in_chans': 1, 'channels': [8, 16], 'act_layer': 'gelu'}
    """
    arguments = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise OptionError(f"--arch-arg takes KEY=VALUE, got `{text}`", hint="--arch-arg in_chans=1")
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            literal = value
        # JSON knows no tuples, and the artifact must read back what was used.
        arguments[key] = list(literal) if isinstance(literal, tuple) else literal
    return arguments


def check_device(device: str) -> None:
    """Raises `OptionError` if the device does not exist here."""
    import torch

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise OptionError(f"--device must be cpu, cuda or cuda:N, got `{device}`", hint="--device cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"no device `{device}` here: {str(error).splitlines()[0]}", hint="--device cpu") from error


def _input_size(text: str) -> tuple[int, ...]:
    values = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if len(values) != 3 or min(values) < 1:
        raise OptionError(f"--input-size takes 3 positive numbers, got `{text}`", hint="--input-size 3,224,224")
    return values


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        raise OptionError(f"{option} takes numbers separated by commas, got `{text}`", hint=f"{option} 0.5,0.5,0.5")
    return values


def evaluation_rows(evaluation: "Evaluation") -> tuple[list[str], list[list[str]]]:
    """Returns the columns and rows of the table of an evaluation: shares with their intervals, models side by side."""
    from lrcompress.report import radius
    from lrcompress.robustness.evaluation import share

    def cell(bits: tuple[bool, ...]) -> str:
        values = share(bits)
        low, high = values["interval"]
        return f"{100 * values['accuracy']:.2f} % [{100 * low:.1f}, {100 * high:.1f}]"

    titles = {"baseline": "uncompressed", "compressed": "compressed"}
    columns = ["attack", "ε", *(titles[model.role] for model in evaluation.models)]
    rows = [["none (clean)", "0", *(cell(model.clean) for model in evaluation.models)]]
    for index, outcome in enumerate(evaluation.models[0].attacks):
        for position, eps in enumerate(outcome.eps):
            cells = [cell(model.attacks[index].robust[position]) for model in evaluation.models]
            name = "worst case" if outcome.attack == "worst" else outcome.attack
            rows.append([name, radius(eps, evaluation.norm), *cells])
    return columns, rows
