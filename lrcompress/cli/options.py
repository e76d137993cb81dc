"""Options that several verbs share, and how their texts become values."""

import ast
import copy
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from lrcompress.cli.console import typed_command
from lrcompress.errors import OptionError

if TYPE_CHECKING:
    from lrcompress.checkpoint import LoadOptions
    from lrcompress.pipeline import EvaluateOptions

R = TypeVar("R")
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
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]


def in_panel(title: str, *names: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Shows options of a group under a title of their own in `--help`: those that are named, or all of them."""

    def decorate(group: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(group)
        unknown = set(names) - signature.parameters.keys()
        assert not unknown, f"no such options: {unknown}"
        parameters = [
            _under(parameter, title) if parameter.name in names or not names else parameter
            for parameter in signature.parameters.values()
        ]
        changed: Any = group
        changed.__signature__ = signature.replace(parameters=parameters)
        return group

    return decorate


def _under(parameter: inspect.Parameter, title: str) -> inspect.Parameter:
    kind, *metadata = get_args(parameter.annotation)
    # Copies: other verbs show the same options elsewhere.
    metadata = [copy.copy(option) for option in metadata]
    for option in metadata:
        option.rich_help_panel = title
    return parameter.replace(annotation=Annotated[(kind, *metadata)])


def with_options(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb the options of groups: each parameter that is named here becomes all the options of its group.

    A group is a function whose parameters are options and whose value the verb receives. It is called before the verb.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(verb).parameters.values():
            group = groups.get(parameter.name)
            parameters += [parameter] if group is None else inspect.signature(group).parameters.values()

        @functools.wraps(verb)
        def wrapped(**given: Any) -> None:
            values = {
                name: group(**{option: given.pop(option) for option in inspect.signature(group).parameters})
                for name, group in groups.items()
            }
            verb(**given, **values)

        # What typer reads.
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapped.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return wrapped

    return decorate


@in_panel("Reading the checkpoint")
def load_options(
    arch: Annotated[
        str | None,
        typer.Option(
            help="timm or torchvision name, torchvision/NAME, or your own: file.py:factory, package.module:factory. "
            "Without it the file's own word or its tensors decide.",
        ),
    ] = None,
    arch_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Argument of the architecture, in_chans=1 for example; may be repeated."
        ),
    ] = None,
    strict_arch: Annotated[
        bool, typer.Option("--strict-arch", help="Refuse to choose between architectures with the same tensors.")
    ] = False,
    match_by_order: Annotated[
        bool,
        typer.Option(
            "--match-by-order", help="Give the tensors to the architecture in their order, whatever their names."
        ),
    ] = False,
    weights_key: Annotated[
        str | None, typer.Option(help="Key of the state dict in the file; otherwise timm's order of wrappers.")
    ] = None,
    input_size: Annotated[str | None, typer.Option(metavar="C,H,W", help="Size of the network's input.")] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Mean the network's input is normalised with.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation of the normalisation.")] = None,
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


def evaluate_options(
    data: DataOption = None,
    samples: SamplesOption = None,
    baseline: BaselineOption = None,
    arch: FactoryOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 128,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds after which no further images are begun; they are then taken in random order."),
    ] = None,
) -> "EvaluateOptions":
    """Returns what an artifact is to be evaluated on, without attacks."""
    from lrcompress.pipeline import EvaluateOptions
    from lrcompress.robustness import AttackSettings

    check_device(device)
    if time_limit is not None and not time_limit > 0:
        raise OptionError(f"--time-limit must be more than 0 seconds, got {time_limit:g}", hint="--time-limit 600")
    return EvaluateOptions(
        settings=AttackSettings(batch_size=batch_size, seed=seed),
        data=data,
        samples=samples,
        baseline=baseline,
        arch=arch,
        device=device,
        time_limit=time_limit,
        command=typed_command(),
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


def own_code(factory: str | None) -> Path | None:
    """Returns the file of `file.py:factory`, None for any other spelling."""
    path = Path((factory or "").rpartition(":")[0])
    return path if path.suffix == ".py" else None


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
    values = tuple(whole_number(part) or 0 for part in text.split(","))
    if len(values) != 3 or min(values) < 1:
        raise OptionError(f"--input-size takes 3 positive numbers, got `{text:.80}`", hint="--input-size 3,224,224")
    return values


def whole_number(text: str) -> int | None:
    """Returns the number that a text is, None if it is none, or one that no tensor could have as its size.

    >>> whole_number(" 16"), whole_number("-1"), whole_number("9" * 5000)
    (16, None, None)
    """
    return int(text) if text.strip().isdecimal() and len(text.strip()) < 10 else None


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        raise OptionError(f"{option} takes numbers separated by commas, got `{text}`", hint=f"{option} 0.5,0.5,0.5")
    return values
