"""The plain layer that a module is equal to: what is factorised, whatever class of layer the network uses.

Subclasses of `nn.Linear` and of the convolutions may compute something else with their weight. Known ones are
translated; of others only those are taken for plain that change nothing in the forward pass.
"""

import math
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.nn.geometry import CONVOLUTIONS, TRANSPOSED, ConvGeometry, Convolution, SameConv2d

PlainLayer = nn.Linear | Convolution

# By name, because timm belongs to `models`. The value says how the layer differs from torch's.
_SUBCLASSES = {
    "timm.layers.linear.Linear": "plain",
    "timm.layers.conv2d_same.Conv2dSame": "same padding",
    "timm.layers.std_conv.StdConv2d": "standardised",
    "timm.layers.std_conv.StdConv2dSame": "standardised",
    "timm.layers.std_conv.ScaledStdConv2d": "standardised",
    "timm.layers.std_conv.ScaledStdConv2dSame": "standardised",
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": "plain",
}


def is_plain(module: nn.Module) -> TypeGuard[PlainLayer]:
    """Whether the module is exactly one of torch's layers, or a `SameConv2d`, and computes what they do."""
    return not _is_patched(module) and type(module) in (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, SameConv2d)


def is_weight_layer(module: nn.Module) -> bool:
    """Whether the module is a linear layer or a convolution, of whatever subclass."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))


def plain_layer(module: nn.Module) -> PlainLayer | None:
    """Returns a plain layer that computes what the module does, None if there is none.

    A plain module is returned itself; of a weight-standardised convolution the standardised weight is taken. The
    layer shares its tensors with the module where it can.
    """
    if is_plain(module):
        return module
    known = None if _is_patched(module) else _SUBCLASSES.get(_name(module))
    if known in ("standardised", "same padding"):
        assert isinstance(module, nn.Conv2d)  # all of them are
        return _plain_convolution(module, _standardised_weight(module) if known == "standardised" else module.weight)
    if isinstance(module, nn.Linear) and (known or _computes_like(module, nn.Linear)):
        return _shared(nn.Linear(module.in_features, module.out_features, device="meta"), module.weight, module.bias)
    for base in CONVOLUTIONS:
        if isinstance(module, base) and _computes_like(module, base):
            return _plain_convolution(module, module.weight)
    return None


def weight_matrices(layer: PlainLayer, weight: Tensor | None = None) -> Float[Tensor, "g m n"]:
    """Returns the weight as one matrix per group: m output channels, n input channels times kernel positions.

    Args:
        layer: the layer.
        weight: of the layer's shape, instead of its own.
    """
    values = layer.weight.detach() if weight is None else weight
    if isinstance(layer, nn.Linear):
        return values.unsqueeze(0)
    if layer.transposed:
        grouped = values.unflatten(0, (layer.groups, -1))  # group, input, output, kernel
        return grouped.transpose(1, 2).flatten(2)
    return values.unflatten(0, (layer.groups, -1)).flatten(2)


def weight_from_matrices(layer: PlainLayer, matrices: Float[Tensor, "g m n"]) -> Tensor:
    """Returns the weight whose matrices are these: the inverse of `weight_matrices`."""
    if not isinstance(layer, nn.Linear) and layer.transposed:
        taps = math.prod(layer.kernel_size)
        return matrices.unflatten(2, (-1, taps)).transpose(1, 2).reshape(layer.weight.shape)
    return matrices.reshape(layer.weight.shape)


def is_depthwise(layer: PlainLayer) -> bool:
    """Whether every input channel is filtered on its own."""
    return not isinstance(layer, nn.Linear) and layer.groups > 1 and layer.groups == layer.in_channels


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_patched(module: nn.Module) -> bool:
    """Whether somebody has given this very object a forward pass of its own."""
    return not vars(module).keys().isdisjoint(("forward", "_conv_forward", "__call__"))


def _computes_like(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a subclass leaves the forward pass, the weight and all attributes as its base has them.

    What it has beside them its parent may ask for, and a low-rank layer has not.
    """
    kind: Any = type(module)
    if _is_patched(module):
        return False
    same = set(dict(module.named_parameters())) <= {"weight", "bias"} and all(
        getattr(kind, method, None) is getattr(base, method, None)
        for method in ("forward", "__call__", "_conv_forward", "weight", "bias")
    )
    plain = nn.Linear(1, 1) if base is nn.Linear else base(1, 1, 1)
    return same and vars(module).keys() <= vars(plain).keys() and not dict(module.named_buffers())


def _plain_convolution(module: Any, weight: Tensor) -> Convolution:
    geometry = ConvGeometry.of(module)
    dynamic = _SUBCLASSES.get(_name(module)) == "same padding" or getattr(module, "same_pad", False)
    if dynamic:
        kind: Any = SameConv2d
        made = kind(
            module.in_channels,
            module.out_channels,
            geometry.kernel_size,
            stride=geometry.stride,
            dilation=geometry.dilation,
            groups=geometry.groups,
            device="meta",
        )
    else:
        made = geometry.make(module.in_channels, module.out_channels, bias=True, device="meta")
    return _shared(made, weight, module.bias)


def _shared(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = bias
    return layer.eval()


def _standardised_weight(module: Any) -> Tensor:
    """Returns the weight that timm's weight-standardised convolutions apply.

    Source: Qiao et al. 2019 (arXiv 1903.10520), and Brock et al. 2021 (arXiv 2101.08692) for the scaled one.
    """
    scale = (module.gain * module.scale).flatten() if hasattr(module, "gain") else None
    with torch.no_grad():
        flat = module.weight.reshape(1, module.out_channels, -1)
        standardised = F.batch_norm(flat, None, None, weight=scale, training=True, momentum=0.0, eps=module.eps)
        return standardised.reshape_as(module.weight)
