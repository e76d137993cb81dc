"""Which layers of a network hold weight matrices, and which of them may be factorised."""

import difflib
import fnmatch
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lrcompress.errors import OptionError
from lrcompress.measure import run_without_values
from lrcompress.nn import PlainLayer, expose_, is_depthwise, is_weight_layer, plain_layer, twin
from lrcompress.schemes import Call

EXCLUDED = "excluded by the pattern "


@dataclass(frozen=True)
class Candidate:
    """A parameter of two or more dimensions: a layer's weight, or one that a module reads directly.

    Attributes:
        name: of the module in the network; of the parameter if it is not called "weight".
        kind: the module's class.
        weight_shape: the parameter's shape.
        reason: why it stays dense whatever its spectrum, "" if it may be factorised.
        parameters: how many go if the layer is replaced: its weight's, and those of the gain that a weight-standardised
            convolution has beside it.
        layer: the plain layer that the module is equal to, None if there is none.
        calls: of the layer in the forward pass of one image.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    reason: str
    parameters: int
    layer: PlainLayer | None = None
    calls: tuple[Call, ...] = ()


def find_layers(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    include_first: bool = False,
    include_classifier: bool = False,
    exclude: Sequence[str] = (),
) -> list[Candidate]:
    """Returns everything in the network that holds a matrix of weights, in its order.

    Modules that read the weights of their layers are looked at as their stand-ins, which call the layers (see
    `lrcompress.nn.expose_`). Which layers are really called is probed with one image: a parent that reads a layer's
    weight without calling the layer would not notice that it had been replaced.

    Args:
        model: takes normalised images; it is not changed.
        input_size: (channels, height, width).
        include_first: whether the first layer of the forward pass may be factorised.
        include_classifier: whether the last layer of the forward pass may be factorised.
        exclude: patterns of names, as in a shell, of layers that are to stay dense.

    Raises:
        OptionError: if a pattern matches no layer.
    """
    exposed = expose_(twin(model))
    try:
        calls, classifiers = _probe(exposed, input_size)
    except Exception:  # a network that asks of an attention what its stand-in has not: without stand-ins, then
        exposed = twin(model)
        calls, classifiers = _probe(exposed, input_size)
    fixed: dict[str, str] = {}
    if not include_classifier:
        fixed |= dict.fromkeys(classifiers, "the classifier stays dense (--include-classifier)")
    if calls and not include_first:
        fixed[next(iter(calls))] = "the first layer stays dense (--include-first)"
    fixed |= _excluded(exclude, [name for name, module in exposed.named_modules() if is_weight_layer(module)])
    sharers = _names_by_weight(exposed)
    originals = dict(model.named_modules())
    found = []
    for name, module in exposed.named_modules():
        layer = plain_layer(module) if is_weight_layer(module) else None
        own = dict(module.named_parameters(recurse=False))
        for key, parameter in own.items():
            if parameter.ndim < 2:
                continue
            # A stand-in is told by what it stands in for; of the layers within some are its own.
            told = module if is_weight_layer(module) else originals.get(name, module)
            kind, shape = type(told).__name__, tuple(parameter.shape)
            if key == "weight":
                others = [other for other in sharers[id(parameter)] if other != name]
                reason = _structural_reason(name, module, layer, name in calls, others) or fixed.get(name, "")
                count = sum(value.numel() for other, value in own.items() if other != "bias")
                found.append(Candidate(name, kind, shape, reason, count, layer, tuple(calls.get(name, ()))))
            elif layer is None or "weight" not in own:  # otherwise a part of the layer's weight
                path = f"{name}.{key}".lstrip(".")
                reason = f"a parameter that {kind} reads directly"
                found.append(Candidate(path, kind, shape, reason, parameter.numel()))
    return found


def match_layers(pattern: str, names: Collection[str], dense: Mapping[str, str] | None = None) -> list[str]:
    """Returns the names that a pattern matches, as a shell would.

    Args:
        pattern: what the user wrote.
        names: to choose from.
        dense: why other layers stay dense, by name, for the error.

    Raises:
        OptionError: if there are none.
    """
    matched = fnmatch.filter(names, pattern)
    if not matched and (others := fnmatch.filter(dense or (), pattern)):
        reason = (dense or {})[others[0]]
        raise OptionError(
            f"the pattern `{pattern}` matches no layer that could be factorised: `{others[0]}`: {reason}",
            hint=_way_out(reason),
        )
    if not matched:
        near = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
        raise OptionError(
            f"the pattern `{pattern}` matches no layer that could be factorised",
            hint=f"names of layers are {near} for example; `lrcompress plan` lists all"
            if near
            else "`lrcompress plan` lists all layers, and why they stay dense",
        )
    return matched


def _way_out(reason: str) -> str:
    """Returns how a layer that stays dense for a reason could be factorised after all."""
    for option in ("--include-first", "--include-classifier"):
        if option in reason:
            return f"add {option}"
    if reason.startswith(EXCLUDED):
        return f"leave out the exclusion {reason.removeprefix(EXCLUDED)}"
    return "leave the layer out; `lrcompress plan` lists all layers, and why they stay dense"


def _excluded(patterns: Sequence[str], names: list[str]) -> dict[str, str]:
    """Returns a reason for every name that a pattern matches."""
    return {name: f"{EXCLUDED}`{pattern}`" for pattern in patterns for name in match_layers(pattern, names)}


def _structural_reason(
    name: str, module: nn.Module, layer: PlainLayer | None, is_called: bool, sharers: list[str]
) -> str:
    kind = type(module).__name__
    reasons = {
        f"layers of type {kind} are not factorised in this version": not is_weight_layer(module),
        f"{kind} may compute something else with its weight than its base class": layer is None,
        "depthwise convolution": layer is not None and is_depthwise(layer),
        "the network is this one layer": not name,
        "never called by the forward pass: unused, or its weight is read directly by its parent": not is_called,
        f"its weight is shared with `{next(iter(sharers), '')}`": bool(sharers),
        "it has forward hooks": bool(module._forward_hooks or module._forward_pre_hooks),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _names_by_weight(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            names.setdefault(id(parameter), []).append(name)
    return names


def _probe(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[dict[str, list[Call]], list[str]]:
    """Returns the calls of every module with a weight matrix in the order of first call, and the classifiers.

    The classifier is the last one; those just before it that put out logits too are classifiers as well: distilled
    transformers have two.
    """

    def run(network: nn.Module, image: torch.Tensor) -> tuple[dict[str, list[Call]], list[str]]:
        names = {id(module): name for name, module in network.named_modules()}
        calls: dict[str, list[Call]] = {}
        outputs: dict[str, tuple[int, ...]] = {}
        widths: dict[str, int] = {}

        def record(module: nn.Module, arguments: tuple[object, ...], named: dict[str, object], output: object) -> None:
            weight = getattr(module, "weight", None)
            if not isinstance(weight, nn.Parameter) or weight.ndim < 2 or id(module) not in names:
                return
            name = names[id(module)]
            widths.setdefault(name, weight.shape[0])
            calls.setdefault(name, [])
            outputs[name] = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
            x = next(iter((*arguments, *named.values())), None)
            if isinstance(x, torch.Tensor) and isinstance(output, torch.Tensor):
                calls[name].append(_describe_call(module, x, output))

        handle = torch.nn.modules.module.register_module_forward_hook(record, with_kwargs=True)
        try:
            logits = network(image)
        finally:
            handle.remove()
        last, *before = list(reversed(calls)) or [""]
        if widths.get(last) != logits.shape[-1]:
            return calls, list(calls)[-1:]
        return calls, [last, *itertools.takewhile(lambda name: outputs[name] == tuple(logits.shape), before)]

    return run_without_values(model, input_size, run)


def _describe_call(module: nn.Module, x: torch.Tensor, output: torch.Tensor) -> Call:
    kernel_size = getattr(module, "kernel_size", None)
    if not isinstance(kernel_size, tuple):  # a linear layer: its rows
        return Call(x[..., 0].numel(), (), ())
    axes = len(kernel_size)
    return Call(x.shape[0] if x.ndim == axes + 2 else 1, tuple(x.shape[-axes:]), tuple(output.shape[-axes:]))
