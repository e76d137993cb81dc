"""The first stage: from a file, folder or hub name to a `LoadedModel`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.checkpoint.fingerprint import (
    Fingerprint,
    counted_shapes,
    find_architectures,
    find_same_names,
    load_table,
    table_versions,
)
from lrcompress.checkpoint.match import describe_mismatch, match_by_order, matches
from lrcompress.checkpoint.read import file_sha256, is_safetensors, read_checkpoint, read_config
from lrcompress.checkpoint.state import StateDict, check_finite, find_state_dict, prefix_variants, read_preprocessing
from lrcompress.errors import ArchitectureError, CheckpointError
from lrcompress.models import (
    Architecture,
    Preprocessing,
    build_model,
    default_preprocessing,
    fetch,
    is_custom_name,
    is_hub_name,
    nearest_names,
    parse_name,
)


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is to be read where its content leaves a choice.

    Attributes:
        arch: name of the architecture, or factory of one's own; None takes the file's word or the fingerprint.
        arch_arguments: arguments for the architecture's factory, over those that the file gives.
        strict_arch: refuse to choose between several architectures with the same tensors.
        match_by_order: give the tensors to the architecture in their order, whatever they are called.
        weights_key: the key of the state dict inside of the file; None takes timm's order.
        preprocessing: input size and statistics, over those that the file or the framework gives.
    """

    arch: str | None = None
    arch_arguments: Mapping[str, Any] = field(default_factory=dict)
    strict_arch: bool = False
    match_by_order: bool = False
    weights_key: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        path: what the user gave.
        sha256: of the file with the weights.
        bytes: size of the file with the weights.
        weight_bytes: of the tensors in the state dict alone, without optimiser states and the like.
        wrapper: key under which the state dict was found, "" if it lay bare.
        prefix: what was stripped from all tensor names.
        match: "by name" or "by order".
        chosen_by: "--arch", "the file" or "fingerprint".
        candidates: labels of all architectures with the same tensors, the chosen one among them.
    """

    path: str
    sha256: str
    bytes: int
    weight_bytes: int
    wrapper: str
    prefix: str
    match: str
    chosen_by: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A pretrained network and everything known of it.

    Attributes:
        model: in eval mode, in float32, taking normalised images.
        architecture: enough to build it again.
        preprocessing: its input size and statistics.
        num_classes: number of logits.
        dtype: the floating-point type of the file's weights ("float32", "float16", "bfloat16").
        source: where it came from.
    """

    model: nn.Module
    architecture: Architecture
    preprocessing: Preprocessing
    num_classes: int
    dtype: str
    source: Source


@dataclass(frozen=True)
class _Choice:
    """An architecture and the tensors under the names that it uses."""

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    prefix: str
    chosen_by: str
    candidates: tuple[str, ...]


def load_checkpoint(source: str, options: LoadOptions | None = None) -> LoadedModel:
    """Returns the model of a checkpoint file, a Hugging Face folder or a hub name.

    Nothing in the file is executed. Every tensor of the file must find its place and every tensor of the network its
    value; anything else is an error that lists the differences.

    Args:
        source: path or hub name (`timm/resnet50.a1_in1k`, `torchvision/resnet50`).
        options: how to read it where its content leaves a choice.

    Raises:
        CheckpointError: if the file cannot be read or holds unusable values.
        ArchitectureError: if no architecture fits, or the named one does not.
        HubError: if weights cannot be fetched.
    """
    options = options or LoadOptions()
    file, state = _read(source, options)
    check_finite(state.tensors, source)
    choice = (
        _choose_by_order(state, options, file, source) if options.match_by_order else _choose(state, options, source)
    )
    _check_arguments(choice.architecture)
    model = build_model(choice.architecture)
    tensors = match_by_order(model, choice.tensors, source) if options.match_by_order else choice.tensors
    _fill_(model, tensors, choice)
    preprocessing = default_preprocessing(choice.architecture, model)
    preprocessing = preprocessing.updated("the checkpoint", state.preprocessing)
    preprocessing = preprocessing.updated("the command line", options.preprocessing)
    preprocessing = preprocessing.for_channels(_in_chans(choice, preprocessing))
    return LoadedModel(
        model=model,
        architecture=choice.architecture,
        preprocessing=preprocessing,
        num_classes=_count_classes(choice.architecture, model, preprocessing),
        dtype=_float_type(state.tensors),
        source=Source(
            path=source,
            sha256=file_sha256(file),
            bytes=file.stat().st_size,
            wrapper=state.wrapper,
            weight_bytes=sum(value.numel() * value.element_size() for value in state.tensors.values()),
            prefix=choice.prefix,
            match="by order" if options.match_by_order else "by name",
            chosen_by=choice.chosen_by,
            candidates=choice.candidates,
        ),
    )


def _check_arguments(architecture: Architecture) -> None:
    """Raises `ArchitectureError` for arguments that the artifact could not record."""
    try:
        json.dumps(dict(architecture.arguments), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArchitectureError(
            f"an argument of `{architecture.label}` is not plain text, a number or a list of them: {error}",
            hint="give it with --arch-arg KEY=VALUE",
        ) from error


def _read(source: str, options: LoadOptions) -> tuple[Path, StateDict]:
    """Returns the file with the weights and the state dict in it, with what the folder or hub says added."""
    path, said = Path(source).expanduser(), None
    if is_hub_name(source):
        said = fetch(source)
        path = said.path
    config: dict[str, Any] = {}
    if path.is_dir() and (path / "config.json").is_file():
        config = read_config(path)
        path = _weights_in(path)
    state = find_state_dict(read_checkpoint(path), source, wrapper=options.weights_key)
    if config:
        state = _with_config(state, config)
    if said is not None:
        preprocessing = {**state.preprocessing, **said.preprocessing}
        state = StateDict(state.tensors, state.wrapper, said.architecture, state.arguments, preprocessing)
    return path, state


def find_weights(source: str) -> Path:
    """Returns the local file with the weights of a path or hub name, without reading it.

    Raises:
        CheckpointError: if there is none.
        HubError: if it cannot be fetched.
    """
    path = fetch(source).path if is_hub_name(source) else Path(source).expanduser()
    if path.is_dir():
        return _weights_in(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at `{source}`", hint="give a file, a Hugging Face folder, or a hub name")
    return path


def _weights_in(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"`{folder}` has no weights", hint="expected model.safetensors or pytorch_model.bin in it")


def _with_config(state: StateDict, config: Mapping[str, Any]) -> StateDict:
    """Returns the state with the values of a timm config.json."""
    name = config.get("architecture")
    given = config.get("model_args")
    arguments = dict(given) if isinstance(given, Mapping) else {}
    if isinstance(config.get("num_classes"), int):
        arguments["num_classes"] = config["num_classes"]
    pretrained = config.get("pretrained_cfg")
    preprocessing = read_preprocessing({**config, **(pretrained if isinstance(pretrained, Mapping) else {})})
    return StateDict(state.tensors, state.wrapper, name if isinstance(name, str) else None, arguments, preprocessing)


def _choose(state: StateDict, options: LoadOptions, source: str) -> _Choice:
    variants = list(prefix_variants(state.tensors))
    named = options.arch or _name_in_file(state, source)
    if named is not None:
        chosen_by = "--arch" if options.arch else "the file"
        said = state.arguments if _is_same_name(state.architecture, named) else {}
        arguments = {**said, **options.arch_arguments}
        return _choose_named(named, arguments, chosen_by, variants, source)
    for prefix, tensors in variants:
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        if labels := find_architectures(shapes):
            if options.strict_arch and len(labels) > 1:
                raise ArchitectureError(
                    f"`{source}` fits {len(labels)} architectures: {', '.join(labels)}", hint=f"--arch {labels[0]}"
                )
            arguments = load_table()[labels[0]].read_arguments(counted_shapes(shapes))
            architecture = parse_name(labels[0], {**arguments, **options.arch_arguments})
            return _Choice(architecture, tensors, prefix, "fingerprint", tuple(labels))
    raise _no_architecture(variants, source)


def _is_same_name(in_file: str | None, named: str) -> bool:
    """Whether the arguments in a file are meant for the named architecture: a file that names none means any."""
    return in_file is None or in_file.rpartition("/")[2] == named.rpartition("/")[2]


def _name_in_file(state: StateDict, source: str) -> str | None:
    """Returns the architecture the file names; None if it names none: timm's saver may write a class instead."""
    named = state.architecture
    if named is None:
        return None
    if is_custom_name(named):
        # Never followed: a checkpoint must not be able to name code that is then run.
        raise ArchitectureError(
            f"`{source}` says that it is built by `{named}`, code that is not run unasked", hint=f"--arch {named}"
        )
    try:
        parse_name(named)
    except ArchitectureError:
        return None
    return named


def _no_architecture(variants: list[tuple[str, dict[str, Tensor]]], source: str) -> ArchitectureError:
    for _, tensors in variants:
        near = find_same_names({key: tuple(value.shape) for key, value in tensors.items()})
        if near:
            return ArchitectureError(
                f"the tensors in `{source}` have the names of {', '.join(near[:5])}, but other shapes",
                hint=f"--arch {near[0]} lists the differences; model arguments go to --arch-arg KEY=VALUE",
            )
    first = ", ".join(list(variants[-1][1])[:4])
    versions = " and ".join(f"{name} {version}" for name, version in table_versions().items())
    return ArchitectureError(
        f"no architecture of {versions} has the {len(variants[-1][1])} tensors in `{source}` ({first}, …)",
        hint="name it with --arch NAME; renamed ports load with --match-by-order, own networks with file.py:factory",
    )


def _choose_named(
    name: str,
    arguments: Mapping[str, Any],
    chosen_by: str,
    variants: list[tuple[str, dict[str, Tensor]]],
    source: str,
) -> _Choice:
    """Returns the choice for a name; tries torchvision's network of a bare name where timm's does not fit."""
    names = [name]
    if not is_custom_name(name) and "/" not in name:
        names.append(f"torchvision/{name}")
    first: tuple[nn.Module, Architecture] | None = None
    for label in names:
        try:
            plain = parse_name(label)
        except ArchitectureError:
            if first is None and label == names[-1]:
                parse_name(name)  # raises, with the name as the user wrote it
            continue
        for prefix, tensors in variants:
            architecture = Architecture(plain.framework, plain.name, {**_read_arguments(plain, tensors), **arguments})
            model = build_model(architecture)
            if matches(model, tensors):
                return _Choice(architecture, tensors, prefix, chosen_by, _candidates(architecture, tensors))
            first = first or (model, architecture)
    assert first is not None  # names has at least one that parses, or parse_name has raised
    model, architecture = first
    near = ", ".join(find_architectures({k: tuple(v.shape) for k, v in variants[-1][1].items()})[:5])
    raise ArchitectureError(
        f"`{source}` does not fit `{architecture.label}`: {describe_mismatch(model, variants[-1][1])}",
        hint=f"its tensors fit {near}" if near else _hint_for_name(architecture),
    )


def _candidates(architecture: Architecture, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns the labels of all architectures with these tensors, the chosen one first."""
    found = find_architectures({key: tuple(value.shape) for key, value in tensors.items()})
    return (architecture.label, *(label for label in found if label != architecture.label))


def _hint_for_name(architecture: Architecture) -> str:
    if architecture.framework == "custom":
        return "check the factory and --arch-arg KEY=VALUE"
    others = [name for name in nearest_names(architecture.name, 6) if name.split("/")[-1] != architecture.name]
    return f"similar names: {', '.join(others)}; model arguments go to --arch-arg KEY=VALUE"


def _choose_by_order(state: StateDict, options: LoadOptions, file: Path, source: str) -> _Choice:
    name = options.arch or _name_in_file(state, source)
    if name is None:
        raise ArchitectureError(
            "--match-by-order needs to know the architecture", hint="name it with --arch, for example --arch resnet50"
        )
    if is_safetensors(file):
        raise CheckpointError(
            f"`{file}` keeps its tensors in alphabetical order, not in the network's",
            hint="match by order from the original torch file",
        )
    said = state.arguments if _is_same_name(state.architecture, name) else {}
    architecture = parse_name(name, {**said, **options.arch_arguments})
    return _Choice(architecture, state.tensors, "", "--arch" if options.arch else "the file", (architecture.label,))


def _fingerprint_of(architecture: Architecture) -> Fingerprint | None:
    return load_table().get(architecture.label)


def _read_arguments(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    entry = _fingerprint_of(architecture)
    if entry is None:
        return {}
    return entry.read_arguments({key: tuple(value.shape) for key, value in tensors.items()})


def _fill_(model: nn.Module, tensors: Mapping[str, Tensor], choice: _Choice) -> None:
    if not matches(model, tensors):
        raise ArchitectureError(
            f"the checkpoint does not fit `{choice.architecture.label}`: {describe_mismatch(model, tensors)}",
            hint="check --arch and --arch-arg KEY=VALUE",
        )
    expected = model.state_dict()
    complete = {key: tensors.get(key, value) for key, value in expected.items()}
    model.load_state_dict(complete, strict=True)
    model.float().eval()


def _count_classes(architecture: Architecture, model: nn.Module, preprocessing: Preprocessing) -> int:
    """Returns the number of logits for one image; fails where the network takes anything else than a batch of them."""
    size = preprocessing.input_size
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *size))
    # A network's own code may raise anything.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArchitectureError(
            f"`{architecture.label}` does not take a {'x'.join(map(str, size))} image: {reason}",
            hint="give its input size with --input-size C,H,W",
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ArchitectureError(
            f"`{architecture.label}` does not return one row of logits per image",
            hint="only image classifiers are supported",
        )
    return logits.shape[1]


def _in_chans(choice: _Choice, preprocessing: Preprocessing) -> int:
    return int(choice.architecture.arguments.get("in_chans", preprocessing.input_size[0]))


def _float_type(tensors: Mapping[str, Tensor]) -> str:
    """Returns the floating-point type that most of the numbers in the file have."""
    counts: dict[str, int] = {}
    for value in tensors.values():
        if value.is_floating_point():
            name = str(value.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + value.numel()
    largest = max(counts, key=lambda name: counts[name], default="float32")
    return largest if largest in ("float16", "bfloat16") else "float32"
