"""What the layers of a network see and put out for real images: the metric that a truncation is best in."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.errors import EvaluationError
from lrcompress.linalg import damped_output_gram
from lrcompress.measure import eval_mode
from lrcompress.nn import CONVOLUTIONS, PlainLayer, SameConv2d, weight_matrices
from lrcompress.nn.geometry import same_widths
from lrcompress.plan.layers import Candidate
from lrcompress.schemes import SCHEMES, Metric

# Images and weights count alike. Chosen between 1e-4 and 10 by the accuracy of VGG11-BN on 4,000 training images of
# Fashion-MNIST; without the weights' share a small sample says too much, without the sample's it is a plain SVD.
DAMPING = 1.0
# Patches are gathered up to this many times the length of one, drawn at random from all positions.
PATCHES_PER_ENTRY = 4
# Longer patches would need a Gram matrix of more than 170 MB in float64: only the outputs are measured there.
LARGEST_PATCH = 4608


# Share of the largest possible output, below which what a kernel puts out for the sample counts as nothing.
BLIND = 1e-6


@dataclass
class _Sums:
    """Running sums over the images of one layer."""

    layer: PlainLayer
    wants_patches: bool
    outputs: Tensor | None = None
    patches: Tensor | None = None
    count: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


def measure_metrics(
    model: nn.Module,
    candidates: Mapping[str, Candidate],
    batches: Iterable[Float[Tensor, "b c h w"]],
    *,
    images: int,
    network: Callable[[Tensor], Any] | None = None,
) -> dict[str, Metric]:
    """Returns the metric of the truncation of each layer: W (C + λI) Wᵀ, and for k×k convolutions C + λI itself.

    C is the second moment of the layer's inputs for the given images. The rank-r matrix that changes a layer's outputs
    least is U_r U_rᵀ W with the leading eigenvectors U_r of W C Wᵀ, which is the sum of y yᵀ over the layer's outputs
    y = W x: nothing is inverted, and a C that is singular does no harm. For λ see `damped_output_gram`.

    Args:
        model: the dense network, exposed (see `lrcompress.nn.expose_`); put into eval mode for as long as this takes.
        candidates: the layers that are wanted, by their names in the model.
        batches: of images as `network` takes them.
        images: how many there will be.
        network: what the images are put into, the model if it is None.

    Raises:
        EvaluationError: if an output is not finite.

    Source: the truncation in the metric of the inputs is that of ASVD (arXiv 2312.05821) and SVD-LLM (2403.07378).
    """
    sums: dict[str, _Sums] = {}
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        for name, candidate in candidates.items():
            assert candidate.layer is not None  # as the caller promises
            sums[name] = _Sums(candidate.layer, _wants_patches(candidate.layer, name))
            handle = model.get_submodule(name).register_forward_hook(
                functools.partial(_record_, sums[name], name, images), with_kwargs=True
            )
            stack.callback(handle.remove)
        with torch.no_grad():
            for batch in batches:
                (network or model)(batch)
    return {name: _metric(one) for name, one in sums.items() if one.outputs is not None}


def _wants_patches(layer: PlainLayer, name: str) -> bool:
    needed = any(scheme.needs_input_gram and scheme.fits(layer, name) for scheme in SCHEMES.values())
    return needed and layer.weight[0].numel() <= LARGEST_PATCH


def _record_(
    sums: _Sums,
    name: str,
    images: int,
    _: nn.Module,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    output: Tensor,
) -> None:
    """A forward hook, but for its first three arguments: adds what a batch does to the sums."""
    layer, x = sums.layer, next(iter((*arguments, *named.values())))
    if isinstance(layer, nn.Linear):
        groups, rows = 1, output.flatten(0, -2)
    else:
        axes = len(layer.kernel_size)
        groups, rows = layer.groups, (output if output.ndim == axes + 2 else output[None]).movedim(1, -1).flatten(0, -2)
    rows = rows.float() if layer.bias is None else (rows - layer.bias.to(rows.device)).float()
    by_group = rows.unflatten(1, (groups, -1)).transpose(0, 1)  # group, position, output
    gram = (by_group.transpose(1, 2) @ by_group).double().cpu()
    if not torch.isfinite(gram).all():
        raise EvaluationError(f"the outputs of `{name}` are not finite", hint="check the weights and the preprocessing")
    sums.outputs = gram if sums.outputs is None else sums.outputs + gram
    if sums.wants_patches:
        assert isinstance(layer, CONVOLUTIONS)  # other layers have no such scheme
        patches = _sample_patches(layer, x if x.ndim == len(layer.kernel_size) + 2 else x[None], sums, images)
        gram = (patches.T @ patches).double().cpu()
        sums.patches = gram if sums.patches is None else sums.patches + gram
        sums.count += len(patches)


def _sample_patches(layer: Any, x: Tensor, sums: _Sums, images: int) -> Float[Tensor, "p d"]:
    """Returns some of the patches that the kernel is applied to, drawn at random, as rows."""
    padded = _pad(layer, x)
    spans = zip(padded.shape[2:], layer.kernel_size, layer.dilation, layer.stride, strict=True)
    counts = [(length - dilation * (kernel - 1) - 1) // stride + 1 for length, kernel, dilation, stride in spans]
    length = layer.weight[0].numel()
    wanted = max(1, math.ceil(PATCHES_PER_ENTRY * length * len(x) / images))
    total = len(x) * math.prod(counts)
    chosen = torch.randperm(total, generator=sums.generator)[:wanted].to(x.device)
    index: list[Tensor] = []
    for axis in reversed(range(len(counts))):
        index.insert(0, chosen % counts[axis])
        chosen = chosen // counts[axis]
    gathered = padded.movedim(1, -1)  # image, position, channel
    taps = (
        torch.cartesian_prod(*(torch.arange(kernel) for kernel in layer.kernel_size)).view(-1, len(counts)).to(x.device)
    )
    places = [
        start[:, None] * layer.stride[axis] + taps[:, axis] * layer.dilation[axis] for axis, start in enumerate(index)
    ]
    values = gathered[(chosen[:, None].expand_as(places[0]), *places)]  # patch, tap, channel
    return values.transpose(1, 2).flatten(1).float()


def _pad(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, SameConv2d) or layer.padding == "same":
        widths = same_widths(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation)
    elif layer.padding == "valid":
        return x
    else:
        widths = [width for axis in reversed(layer.padding) for width in (axis, axis)]
    return F.pad(x, widths, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _metric(sums: _Sums) -> Metric:
    """Returns both moments, damped alike: W (C + λI) Wᵀ of the second is the first, but for the choice of patches."""
    assert sums.outputs is not None
    matrices = weight_matrices(sums.layer).cpu()
    output_gram = torch.stack(
        [damped_output_gram(gram, W, damping=DAMPING) for gram, W in zip(sums.outputs, matrices, strict=True)]
    )
    if sums.patches is None:
        return Metric(output_gram)
    W, C = matrices[0].double(), sums.patches.double()
    trace = (W @ C * W).sum()
    # A kernel may be blind to all these patches, an edge filter to flat ones: what it sees then is rounding.
    blind = BLIND * W.square().sum() * C.trace()
    scale = torch.maximum(trace, blind)
    input_gram = C / torch.where(scale > 0, scale, 1.0)
    input_gram.diagonal().add_(DAMPING / W.square().sum())
    return Metric(output_gram, input_gram.float())
