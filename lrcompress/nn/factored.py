"""The layers that DLRT trains: U, S and V apart."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.linalg import Factors, fold_kernel
from lrcompress.nn.geometry import ConvGeometry
from lrcompress.nn.lowrank import LowRankLinear, MatrixConv


class FactoredLayer(nn.Module, ABC):
    """A layer whose weight is U S Vᵀ, with real tensors of the current rank.

    S is an ordinary trained parameter. U and V are parameters that need a gradient only while it is asked for
    (`ask_for_basis_gradients_`): no optimiser may ever hold them, their columns must stay orthonormal. A change of
    rank keeps the parameter objects, so that an optimiser that holds S goes on holding it.
    """

    bias: nn.Parameter | None

    def __init__(self, dense: nn.Linear | nn.Conv2d, factors: Factors) -> None:
        super().__init__()
        kind = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        self.U = nn.Parameter(factors.U.to(**kind).contiguous(), requires_grad=False)
        self.S = nn.Parameter(factors.S.to(**kind).contiguous())
        self.V = nn.Parameter(factors.V.to(**kind).contiguous(), requires_grad=False)
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())

    @property
    def rank(self) -> int:
        """The current rank r."""
        return self.S.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n) of the weight matrix."""
        return self.U.shape[0], self.V.shape[0]

    def factors(self) -> Factors:
        """Returns the current factors, detached."""
        return Factors(self.U.detach(), self.S.detach(), self.V.detach())

    @torch.no_grad()
    def set_factors_(self, factors: Factors) -> None:
        """Takes over new factors of any rank and forgets gradients, which have the old shapes."""
        for parameter, value in zip((self.U, self.S, self.V), factors, strict=True):
            parameter.grad = None
            parameter.data = value.contiguous()

    def ask_for_basis_gradients_(self, wanted: bool) -> None:
        """Switches the gradients of U and V on or off."""
        self.U.requires_grad_(wanted)
        self.V.requires_grad_(wanted)

    @abstractmethod
    def _shipped(self) -> LowRankLinear | MatrixConv:
        """Returns a two-factor layer of this shape and rank, its values not yet set."""

    @torch.no_grad()
    def fold(self) -> LowRankLinear | MatrixConv:
        """Returns the layer in the form that is shipped: Vᵀ as `reduce`, U S as `expand`."""
        layer = self._shipped()
        U, S, V = self.factors()
        layer.reduce.weight.copy_(V.T.reshape(layer.reduce.weight.shape))
        # In float64, so that folding costs one rounding and not r of them.
        layer.expand.weight.copy_((U.double() @ S.double()).reshape(layer.expand.weight.shape))
        if self.bias is not None and layer.expand.bias is not None:
            layer.expand.bias.copy_(self.bias)
        return layer


class FactoredLinear(FactoredLayer):
    """A linear layer with weight U S Vᵀ.

    Args:
        dense: the layer it stands in for; its bias is copied.
        factors: the factors of its weight.
    """

    @property
    def weight(self) -> Float[Tensor, "m n"]:
        """U S Vᵀ, for parents that read a layer's weight beside calling it."""
        return self.U @ self.S @ self.V.T

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Returns x (U S Vᵀ)ᵀ plus the bias, factor by factor."""
        return F.linear(F.linear(F.linear(x, self.V.T), self.S), self.U, self.bias)

    def _shipped(self) -> LowRankLinear:
        m, n = self.matrix_shape
        kind = {"device": self.S.device, "dtype": self.S.dtype}
        return LowRankLinear(n, m, self.rank, bias=self.bias is not None, **kind)


class FactoredConv2d(FactoredLayer):
    """A convolution with unfolded kernel U S Vᵀ: k×k to r channels (V), r×r (S), 1×1 to the output channels (U).

    Args:
        dense: the ungrouped convolution it stands in for; its geometry and bias are copied.
        factors: the factors of its unfolded kernel.
    """

    def __init__(self, dense: nn.Conv2d, factors: Factors) -> None:
        super().__init__(dense, factors)
        self.geometry = ConvGeometry.of(dense)
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels

    @property
    def weight(self) -> Float[Tensor, "o i kh kw"]:
        """The kernel, for parents that read a layer's weight beside calling it."""
        return fold_kernel(self.U @ self.S @ self.V.T, self.geometry.kernel_size)

    def forward(self, x: Float[Tensor, "*batch i h w"]) -> Float[Tensor, "*batch o oh ow"]:
        """Returns the convolution with the kernel U S Vᵀ plus the bias, factor by factor."""
        reduced = self.geometry.conv2d(x, fold_kernel(self.V.T, self.geometry.kernel_size))
        return F.conv2d(F.conv2d(reduced, self.S[:, :, None, None]), self.U[:, :, None, None], self.bias)

    def _shipped(self) -> MatrixConv:
        return MatrixConv(
            self.in_channels,
            self.out_channels,
            self.rank,
            geometry=self.geometry,
            bias=self.bias is not None,
            device=self.S.device,
            dtype=self.S.dtype,
        )


def factored_layers(model: nn.Module) -> dict[str, FactoredLayer]:
    """Returns all layers of the model that DLRT trains, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactoredLayer)}


def count_shipped_parameters(model: nn.Module) -> int:
    """Returns the number of parameters after folding: S is counted into U, so a factored layer has r(m + n)."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - sum(layer.S.numel() for layer in factored_layers(model).values())
