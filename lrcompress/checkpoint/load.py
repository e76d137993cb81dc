"""The first stage: from a file, folder or hub name to a `LoadedModel`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrcompress.checkpoint.choose import Choice, choose_architecture
from lrcompress.checkpoint.match import describe_mismatch, match_by_order, matches
from lrcompress.checkpoint.options import LoadOptions
from lrcompress.checkpoint.read import file_sha256, read_checkpoint, read_config
from lrcompress.checkpoint.state import StateDict, check_finite, find_state_dict, read_preprocessing
from lrcompress.errors import ArchitectureError, CheckpointError, OptionError
from lrcompress.measure import run_without_values
from lrcompress.models import (
    Architecture,
    Preprocessing,
    assign_tensors_,
    build_model,
    default_preprocessing,
    fetch,
    is_hub_name,
)


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

    def describe(self) -> str:
        """Returns one line on what was taken out of the checkpoint, and between which candidates."""
        source, where = self.source, []
        if source.wrapper:
            where.append(f"weights under `{source.wrapper}`")
        if source.prefix:
            where.append(f"prefix `{source.prefix}` stripped")
        if source.match != "by name":
            where.append(f"matched {source.match}")
        where.append(f"{self.num_classes} classes")
        choice = f"{self.architecture.label} (by {source.chosen_by}; {', '.join(where)})"
        others = [name for name in source.candidates if name != self.architecture.label]
        if others:
            choice += f"; {', '.join(others)} have the same tensors: --arch chooses"
        return f"{choice}; {self.preprocessing.describe()}"


def load_checkpoint(source: str | Path, options: LoadOptions | None = None) -> LoadedModel:
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
        OptionError: if mean or std of the options have neither one value nor one per channel.
    """
    source, options = os.fspath(source), options or LoadOptions()
    file, state = _read(source, options)
    check_finite(state.tensors, source)
    choice = choose_architecture(state, options, file, source)
    _check_arguments(choice.architecture)
    model = build_model(choice.architecture, without_weights=True)
    tensors = match_by_order(model, choice.tensors, source) if options.match_by_order else choice.tensors
    _fill_(model, tensors, choice)
    preprocessing = default_preprocessing(choice.architecture, model)
    preprocessing = preprocessing.updated("the checkpoint", state.preprocessing)
    preprocessing = preprocessing.updated("the command line", options.preprocessing)
    channels = _in_chans(choice, preprocessing)
    _check_statistics(options.preprocessing, channels)
    preprocessing = preprocessing.for_channels(channels)
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


def _check_statistics(given: Mapping[str, Any], channels: int) -> None:
    """Raises `OptionError` for statistics of the user's that are not those of the network's channels."""
    for name in ("mean", "std"):
        count = len(given.get(name) or (0.0,))
        if count not in (1, channels):
            wanted = "one value" if channels == 1 else f"one value, or {channels}"
            raise OptionError(
                f"--{name} has {count} values, the network takes images of {channels} channel{'s' * (channels > 1)}",
                hint=f"--{name} with {wanted}",
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
    if path.is_dir():
        path, config = _weights_in(path), read_config(path)
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


def source_files(source: str) -> list[Path]:
    """Returns the local files that a checkpoint is read from; none for a hub name, whose files are the cache's.

    Raises:
        CheckpointError: if there are none.
    """
    if is_hub_name(source):
        return []
    weights, path = find_weights(source), Path(source).expanduser()
    return [weights, path / "config.json"] if path.is_dir() else [weights]


def _weights_in(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"`{folder}` is a folder without config.json", hint="give a checkpoint file or a Hugging Face model folder"
        )
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


def _fill_(model: nn.Module, tensors: Mapping[str, Tensor], choice: Choice) -> None:
    if not matches(model, tensors):
        raise ArchitectureError(
            f"the checkpoint does not fit `{choice.architecture.label}`: {describe_mismatch(model, tensors)}",
            hint="check --arch and --arch-arg KEY=VALUE",
        )
    expected = model.state_dict()
    complete = {key: tensors.get(key, value) for key, value in expected.items()}
    # The file's tensors become the model's: a safetensors file is mapped into memory, and not copied.
    assign_tensors_(model, complete)
    model.float().eval()


def _count_classes(architecture: Architecture, model: nn.Module, preprocessing: Preprocessing) -> int:
    """Returns the number of logits for one image; fails where the network takes anything else than a batch of them."""
    size = preprocessing.input_size
    try:
        logits = run_without_values(model, size, lambda network, image: network(image))
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


def _in_chans(choice: Choice, preprocessing: Preprocessing) -> int:
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
