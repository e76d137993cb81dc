"""Spectral norms of layers as the linear operators they are on inputs of their real size."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import EvaluationError
from lrcompress.measure.size import run_without_values
from lrcompress.nn import LowRankLayer, expose_, is_weight_layer, plain_layer, twin

# Without a batch: (features,) or (channels, *size).
Size = tuple[int, ...]
TOLERANCE = 1e-6
MOST_ITERATIONS = 1000
STARTS = 2


@dataclass(frozen=True)
class OperatorNorm:
    """What power iteration found of a spectral norm ‖A‖₂.

    Attributes:
        value: a lower bound of it: the length of what A makes of some vector of length one.
        converged: whether the last step changed it by no more than the tolerance: where singular values lie close to
            each other at the top, it may still be some ten-thousandths too small.
        iterations: how many steps there were, each one application of A and one of Aᵀ to a batch of two.
        input_size: of what A takes.
    """

    value: float
    converged: bool
    iterations: int
    input_size: Size

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        values = {"norm": self.value, "converged": self.converged, "iterations": self.iterations}
        return values | {"input_size": list(self.input_size)}


def operator_norm(
    operator: Callable[[Tensor], Tensor],
    input_size: Size,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    most_iterations: int = MOST_ITERATIONS,
) -> OperatorNorm:
    """Returns the spectral norm of a linear map of float64 tensors, by power iteration on AᵀA.

    Aᵀ is the vector-Jacobian product of the map, so that any stride, padding, dilation or grouping is as it is applied.
    Two orthonormal vectors are iterated together, and the estimate is the norm of A on the plane they span, which no
    step makes smaller. One alone rests too early where singular values lie close together at the top, as long as its
    share of the largest is small.

    Args:
        operator: A, on batches: without a bias, and with finite weights.
        input_size: of what it takes, without the batch.
        seed: of the start, normal values.
        tolerance: relative change of the estimate in a step at which it ends.
        most_iterations: after which it ends in any case.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STARTS, *input_size, generator=generator, dtype=torch.float64)
    value = 0.0
    for iteration in range(1, most_iterations + 1):
        basis = torch.linalg.qr(x.flatten(1).T).Q.T  # of as many vectors as there are features, if these are fewer
        with torch.enable_grad():
            x = basis.reshape(-1, *input_size).requires_grad_()
            y = operator(x)
        (x,) = torch.autograd.grad(y, x, y.detach())
        outputs = y.detach().flatten(1)
        before, value = value, float(torch.linalg.eigvalsh(outputs @ outputs.T)[-1].clamp_min(0).sqrt())
        if abs(value - before) <= tolerance * value:
            return OperatorNorm(value, True, iteration, input_size)
    return OperatorNorm(value, False, most_iterations, input_size)


def linear_part(layer: nn.Module) -> nn.Module:
    """Returns a copy of a layer without its biases, in float64 on the processor: of a low-rank one all that it does."""
    part = copy.deepcopy(layer).to("cpu", torch.float64).requires_grad_(False)
    for module in part.modules():
        if isinstance(module._parameters.get("bias"), nn.Parameter):
            module.register_parameter("bias", None)
    return part


def measure_operator_norms(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, OperatorNorm]:
    """Returns the norms of all linear layers and convolutions, low-rank ones as one each, by name.

    Those that the forward pass calls, and that compute what is known of their class; where a convolution is called
    with inputs of several sizes the largest norm counts. Modules that read the weights of their layers are looked at
    as their stand-ins, see `lrcompress.nn.expose_`. On the processor: the model stays as it is.

    Args:
        model: takes normalised images.
        input_size: (channels, height, width) of these images.
        seed: of the start of every iteration.
        on_progress: called with (layers done, layers in all).

    Raises:
        EvaluationError: if weights are not finite.
    """
    layers, sizes = _find_layers(model, input_size)
    norms: dict[str, OperatorNorm] = {}
    for done, (name, wanted) in enumerate(sizes.items(), start=1):
        operator = linear_part(layers[name])
        if not all(bool(torch.isfinite(parameter).all()) for parameter in operator.parameters()):
            raise EvaluationError(f"the weights of `{name}` are not finite", hint="check the checkpoint")
        found = [operator_norm(operator, size, seed=seed) for size in wanted]
        norms[name] = max(found, key=lambda norm: norm.value)
        on_progress(done, len(sizes))
    return norms


def _find_layers(
    model: nn.Module, input_size: tuple[int, int, int]
) -> tuple[dict[str, nn.Module], dict[str, list[Size]]]:
    """Returns the layers, and the distinct sizes of the inputs of those that are called, in the order of the calls."""
    exposed = expose_(twin(model))
    layers = _linear_layers(exposed)
    try:
        return layers, _find_sizes(exposed, layers, input_size)
    except Exception:  # a network that asks of an attention what its stand-in has not: without stand-ins, then
        layers = _linear_layers(model)
        return layers, _find_sizes(model, layers, input_size)


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns what is linear but for its bias, by name; not what is a part of a low-rank layer."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLayer):
            found[name] = module
        elif is_weight_layer(module) and not _is_inside(name, found):
            layer = plain_layer(module)
            found |= {} if layer is None else {name: layer}
    return found


def _is_inside(name: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a module of this name is a part of one of the layers."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in layers for end in range(len(parts)))


def _find_sizes(
    model: nn.Module, layers: Mapping[str, nn.Module], input_size: tuple[int, int, int]
) -> dict[str, list[Size]]:
    def run(network: nn.Module, image: Tensor) -> dict[str, list[Size]]:
        sizes: dict[str, list[Size]] = {}
        names = {network.get_submodule(name): name for name in layers}

        def record(module: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
            x = next(iter((*arguments, *named.values())), None)
            if isinstance(x, Tensor):
                size = tuple(x.shape[-1 - len(getattr(module, "kernel_size", ())) :])
                known = sizes.setdefault(names[module], [])
                known += [] if size in known else [size]

        handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in names]
        try:
            network(image)
        finally:
            for handle in handles:
                handle.remove()
        return sizes

    return run_without_values(model, input_size, run)
