"""What the layers of a network put out for real images: the metric that an activation-aware truncation is best in."""

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.errors import EvaluationError
from lrcompress.linalg import damped_output_gram
from lrcompress.nn import dense_matrix, is_matrix_layer

# Images and weights count alike. Chosen between 1e-4 and 10 by the accuracy of VGG11-BN on 4,000 training images of
# Fashion-MNIST; without the weights' share a small sample says too much, without the sample's it is a plain SVD.
DAMPING = 1.0


def output_grams(
    model: nn.Module, layers: Collection[str], batches: Iterable[Float[Tensor, "b c h w"]]
) -> dict[str, Float[Tensor, "m m"]]:
    """Returns W (C + λI) Wᵀ of each layer, where C is the second moment of its inputs for the given images.

    The rank-r matrix that changes a layer's outputs least is U_r U_rᵀ W with the leading eigenvectors U_r of this
    matrix, which for λ = 0 is the sum of y yᵀ over the layer's outputs y = W x. So the inputs of convolutions need
    not be unfolded, nothing is inverted, and a C that is singular does no harm. For λ see `damped_output_gram`.

    Args:
        model: the dense network; put into eval mode for as long as this takes.
        layers: names of the matrix layers that are wanted.
        batches: of images as the model takes them.

    Raises:
        EvaluationError: if an output is not finite.

    Source: the truncation in the metric of the inputs is that of ASVD (arXiv 2312.05821) and SVD-LLM (2403.07378).
    """
    sums: dict[str, Tensor] = {}

    def record(name: str, layer: nn.Module, output: Any) -> None:
        assert is_matrix_layer(layer)  # as the caller promises
        rows = (output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output).flatten(0, -2)
        rows = (rows if layer.bias is None else rows - layer.bias).float()
        gram = (rows.T @ rows).double()
        if not torch.isfinite(gram).all():
            raise EvaluationError(
                f"the outputs of `{name}` are not finite", hint="check the weights and the preprocessing"
            )
        sums[name] = sums[name] + gram if name in sums else gram

    was_training = model.training
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        for name in layers:
            handle = model.get_submodule(name).register_forward_hook(
                lambda module, _, output, name=name: record(name, module, output)
            )
            stack.callback(handle.remove)
        model.eval()
        with torch.no_grad():
            for images in batches:
                model(images)
    grams = {}
    for name, gram in sums.items():
        layer = model.get_submodule(name)
        assert is_matrix_layer(layer)
        grams[name] = damped_output_gram(gram, dense_matrix(layer), damping=DAMPING).cpu()
    return grams
