"""Which architecture a set of tensors belongs to: by the user's word, by the file's, or by fingerprint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrcompress.checkpoint.fingerprint import (
    counted_shapes,
    find_architectures,
    find_same_names,
    load_table,
    table_versions,
)
from lrcompress.checkpoint.match import describe_mismatch, matches
from lrcompress.checkpoint.options import LoadOptions
from lrcompress.checkpoint.read import is_safetensors
from lrcompress.checkpoint.state import StateDict, prefix_variants
from lrcompress.errors import ArchitectureError, CheckpointError
from lrcompress.models import Architecture, build_model, is_custom_name, nearest_names, parse_name


@dataclass(frozen=True)
class Choice:
    """An architecture and the tensors under the names that it uses."""

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    prefix: str
    chosen_by: str
    candidates: tuple[str, ...]


def choose_architecture(state: StateDict, options: LoadOptions, file: Path, source: str) -> Choice:
    """Returns the architecture of a state dict, and its tensors under the names the architecture uses.

    Args:
        state: what was found in the file.
        options: what the user says.
        file: the file with the weights.
        source: what the user gave, for messages.

    Raises:
        ArchitectureError: if none fits, the named one does not, or several do and that is not wanted.
        CheckpointError: if the file has lost the order that is needed to match by it.
    """
    return _choose_by_order(state, options, file, source) if options.match_by_order else _choose(state, options, source)


def _choose(state: StateDict, options: LoadOptions, source: str) -> Choice:
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
            return Choice(architecture, tensors, prefix, "fingerprint", tuple(labels))
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
) -> Choice:
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
            model = build_model(architecture, without_weights=True)
            if matches(model, tensors):
                return Choice(architecture, tensors, prefix, chosen_by, _candidates(architecture, tensors))
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


def _choose_by_order(state: StateDict, options: LoadOptions, file: Path, source: str) -> Choice:
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
    return Choice(architecture, state.tensors, "", "--arch" if options.arch else "the file", (architecture.label,))


def _read_arguments(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    entry = load_table().get(architecture.label)
    if entry is None:
        return {}
    return entry.read_arguments({key: tuple(value.shape) for key, value in tensors.items()})
