"""Which layers of a network hold weight matrices, and which of them may be factorised."""

import difflib
import fnmatch
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.nn import is_matrix_layer


@dataclass(frozen=True)
class Candidate:
    """A parameter of two or more dimensions: a layer's weight, or one that a module reads directly.

    Attributes:
        name: of the module in the network; of the parameter if it is not called "weight".
        module: the module.
        reason: why it stays dense whatever its spectrum, "" if it may be factorised.
        parameter: the parameter's name in the module.
        positions: how often the weight's matrix is applied to one image; 0 if the layer is not called.
    """

    name: str
    module: nn.Module
    reason: str
    parameter: str = "weight"
    positions: int = 0

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the module's weight."""
        return tuple(self.module.get_parameter(self.parameter).shape)


def find_layers(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    include_first: bool = False,
    include_classifier: bool = False,
    exclude: Sequence[str] = (),
) -> list[Candidate]:
    """Returns everything in the network that holds a matrix of weights, in its order.

    Which modules are really called is probed with one black image: a parent that reads a layer's weight without
    calling the layer would not notice that it had been replaced.

    Args:
        model: takes normalised images.
        input_size: (channels, height, width).
        include_first: whether the first layer of the forward pass may be factorised.
        include_classifier: whether the last layer of the forward pass may be factorised.
        exclude: patterns of names, as in a shell, of layers that are to stay dense.

    Raises:
        OptionError: if a pattern matches no layer.
    """
    calls, classifiers, positions = _called_layers(model, input_size)
    fixed: dict[str, str] = {}
    if not include_classifier:
        fixed |= dict.fromkeys(classifiers, "the classifier stays dense (--include-classifier)")
    if calls and not include_first:
        fixed[calls[0]] = "the first layer stays dense (--include-first)"
    fixed |= _excluded(exclude, [name for name, module in model.named_modules() if is_matrix_layer(module)])
    sharers = _names_by_weight(model)
    found = []
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2:
                continue
            if key != "weight":
                path = f"{name}.{key}".lstrip(".")
                found.append(Candidate(path, module, f"a parameter that {type(module).__name__} reads directly", key))
                continue
            others = [other for other in sharers[id(parameter)] if other != name]
            reason = _structural_reason(name, module, calls, others) or fixed.get(name, "")
            found.append(Candidate(name, module, reason, positions=positions.get(name, 0)))
    return found


def match_layers(pattern: str, names: Collection[str]) -> list[str]:
    """Returns the names that a pattern matches, as a shell would.

    Raises:
        OptionError: if there are none.
    """
    matched = fnmatch.filter(names, pattern)
    if not matched:
        near = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
        raise OptionError(
            f"the pattern `{pattern}` matches no layer that could be factorised",
            hint=f"names of layers are {near} for example; `lrcompress plan` lists all"
            if near
            else "`lrcompress plan` lists all layers, and why they stay dense",
        )
    return matched


def _excluded(patterns: Sequence[str], names: list[str]) -> dict[str, str]:
    """Returns a reason for every name that a pattern matches."""
    return {
        name: f"excluded by the pattern `{pattern}`" for pattern in patterns for name in match_layers(pattern, names)
    }


def _structural_reason(name: str, module: nn.Module, calls: list[str], sharers: list[str]) -> str:
    if not is_matrix_layer(module):
        return _kind_reason(module)
    if not name:
        return "the network is this one layer"
    if name not in calls:
        return "never called by the forward pass: unused, or its weight is read directly by its parent"
    if sharers:
        return f"its weight is shared with `{sharers[0]}`"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks"
    return ""


def _kind_reason(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "depthwise convolution" if module.groups == module.in_channels else f"{module.groups} groups"
    return f"layers of type {kind} are not factorised in this version"


def _names_by_weight(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            names.setdefault(id(parameter), []).append(name)
    return names


def _called_layers(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[list[str], list[str], dict[str, int]]:
    """Returns the modules with a weight matrix that one forward pass calls, the classifiers of them, their positions.

    Names are in the order of first call. Classifiers are the last ones that give as many values as there are logits:
    distilled transformers have two. Positions are how often a matrix is applied to the image, over all calls.
    """
    names = {id(module): name for name, module in model.named_modules()}
    calls: dict[str, int] = {}
    positions: dict[str, int] = {}

    def record(module: nn.Module, _: object, output: object) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim >= 2:
            name = names[id(module)]
            calls.setdefault(name, weight.shape[0])
            if isinstance(output, torch.Tensor):
                positions[name] = positions.get(name, 0) + output.numel() // weight.shape[0]

    handle = torch.nn.modules.module.register_module_forward_hook(record)
    was_training = model.training
    try:
        parameter = next(model.parameters())
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        handle.remove()
        model.train(was_training)
    trailing = itertools.takewhile(lambda name: calls[name] == logits.shape[-1], reversed(calls))
    return list(calls), list(trailing) or list(calls)[-1:], positions
