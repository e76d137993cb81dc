"""The layers that DLRT trains: two orthonormal bases and a core, apart.

Each has the form of one low-rank layer, into which it is folded. U, S and V are tensors of the current ranks, in the
layout of `linalg.Factors`; what they are as kernels the subclasses say, once for the forward pass and for folding.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lrcompress.errors import TrainingError
from lrcompress.linalg import Factors, multiply_core, orthonormal_factors
from lrcompress.nn.geometry import ConvGeometry
from lrcompress.nn.lowrank import LowRankLayer, LowRankLinear, MatrixConv, SpatialConv, TuckerConv
from lrcompress.nn.plain import PlainLayer


class FactoredLayer(nn.Module, ABC):
    """A layer whose weight is the product of `Factors`.

    S is an ordinary trained parameter. U and V are parameters that need a gradient only while it is asked for
    (`ask_for_basis_gradients_`): no optimiser may ever hold them, their columns must stay orthonormal. A change of
    rank keeps the parameter objects, so that an optimiser that holds S goes on holding it.

    Args:
        factors: of the weight.
        bias: None if there is none; copied.
        like: gives the device and the type.
    """

    scheme: ClassVar[str]  # the name of the low-rank form, as plans have it

    def __init__(self, factors: Factors, bias: Tensor | None, *, like: Tensor) -> None:
        super().__init__()
        kind = {"device": like.device, "dtype": like.dtype}
        self.U = nn.Parameter(factors.U.to(**kind).contiguous(), requires_grad=False)
        self.S = nn.Parameter(factors.S.to(**kind).contiguous())
        self.V = nn.Parameter(factors.V.to(**kind).contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.extended = False  # between augmentation and truncation

    @property
    def ranks(self) -> tuple[int, ...]:
        """The current ranks, as plans have them: one, or two where the core has positions."""
        outputs, inputs = self.S.shape[1:3]
        return (outputs,) if self.S.shape[3] == 1 else (outputs, inputs)

    @property
    def weight(self) -> Tensor:
        """The weight of the dense layer it is equal to, for parents that read it beside calling the layer."""
        return self._dense(Factors(self.U, self.S, self.V).product())

    def conditioned(self, core: Float[Tensor, "g r s p"], *, outputs: int | None = None) -> Float[Tensor, "g a b"]:
        """Returns the unfolding of S, or of a block of it, that κ and the regulariser are of.

        The output's; where the output side is whole, the input's: there is no output basis then, and an unfolding
        that is as high as the layer has outputs, but of lower rank by its shape, has no κ.

        Args:
            core: S or a block of it.
            outputs: the output rank that the layer is to have; None if it is that of the core.
        """
        is_whole = core.shape[3] > 1 and (outputs or core.shape[1]) >= self.U.shape[1]
        return (core.transpose(1, 2) if is_whole else core).flatten(2)

    def factors(self) -> Factors:
        """Returns the current factors, detached."""
        return Factors(self.U.detach(), self.S.detach(), self.V.detach())

    @torch.no_grad()
    def set_factors_(self, factors: Factors) -> None:
        """Takes over new factors of any rank and forgets gradients, which have the old shapes."""
        for parameter, value in zip((self.U, self.S, self.V), factors, strict=True):
            parameter.grad = None
            _replace_data_(parameter, value.contiguous())

    def ask_for_basis_gradients_(self, wanted: bool) -> None:
        """Switches the gradients of U and V on or off."""
        self.U.requires_grad_(wanted)
        self.V.requires_grad_(wanted)

    @abstractmethod
    def plain(self) -> PlainLayer:
        """Returns the dense layer it stands in for, without values: what costs depend on."""

    def own_parameters(self) -> int:
        """Returns the number of entries of U, S and V."""
        return self.U.numel() + self.S.numel() + self.V.numel()

    def shipped_parameters(self) -> int:
        """Returns how many of them are left after folding: S goes into U where it is a matrix, or U square."""
        rows, outputs = self.U.shape[1:]
        if self.S.shape[3] == 1:
            return self.U.numel() + self.V.numel()
        return self.S.numel() + self.V.numel() + (self.U.numel() if outputs < rows else 0)

    @torch.no_grad()
    def fold(self) -> LowRankLayer:
        """Returns the layer in the form that is shipped; without a core of its own U S becomes `expand`.

        Raises:
            TrainingError: if the bases are extended: half of their directions are there to be chosen from.
        """
        if self.extended:
            raise TrainingError(
                "a layer is in the middle of a DLRT cycle, its bases are extended",
                hint="call `freeze_()` before `fold_`",
            )
        shipped: Any = self._shipped()
        U, S, V = self.factors()
        shipped.reduce.weight.copy_(self._reduce_kernel(V))
        if hasattr(shipped, "core"):
            shipped.core.weight.copy_(self._core_kernel(S))
            shipped.expand.weight.copy_(self._expand_kernel(U))
        else:
            # In float64, so that folding costs one rounding and not r of them.
            identity = torch.eye(V.shape[2], dtype=torch.float64, device=V.device).expand(len(V), -1, -1)
            product = multiply_core(U.double(), S.double(), identity)
            shipped.expand.weight.copy_(self._folded_kernel(product))
        if self.bias is not None:
            shipped.expand.bias.copy_(self.bias)
        return shipped

    @abstractmethod
    def _shipped(self) -> LowRankLayer:
        """Returns a low-rank layer of this form and these ranks, its values not yet set."""

    @abstractmethod
    def _dense(self, product: Float[Tensor, "g m n p"]) -> Tensor:
        """Returns the product of the factors in the shape of the dense layer's weight."""

    @abstractmethod
    def _reduce_kernel(self, V: Float[Tensor, "g n s"]) -> Tensor:
        """Returns V as the weight of the first layer."""

    @abstractmethod
    def _core_kernel(self, S: Float[Tensor, "g r s p"]) -> Tensor:
        """Returns S as the weight of the layer in between."""

    @abstractmethod
    def _expand_kernel(self, U: Float[Tensor, "g m r"]) -> Tensor:
        """Returns U as the weight of the last layer."""

    def _folded_kernel(self, product: Float[Tensor, "g m s p"]) -> Tensor:
        """Returns U S as the weight of the last of two layers."""
        return self._expand_kernel(product[..., 0])

    def _kind(self) -> dict[str, Any]:
        return {"device": self.S.device, "dtype": self.S.dtype}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        # A state from another moment of the training has other ranks, but nothing else about it differs.
        for name, kept in (("U", (0, 1)), ("S", (0, 3)), ("V", (0, 1))):
            value, parameter = state_dict.get(prefix + name), getattr(self, name)
            if not isinstance(value, Tensor) or value.ndim != parameter.ndim or value.shape == parameter.shape:
                continue
            if all(value.shape[axis] == parameter.shape[axis] for axis in kept):
                parameter.grad = None
                _replace_data_(parameter, parameter.data.new_empty(value.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _replace_data_(parameter: nn.Parameter, value: Tensor) -> None:
    """Gives a parameter a value of any shape."""
    # A graph that still lives, that of the last step's loss, holds the node that collects the parameter's gradient, and
    # this node knows the old shape. Torch makes a new one where the type changes: so it changes, there and back.
    other = torch.float32 if value.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=value.device)
    parameter.data = value


class FactoredLinear(FactoredLayer):
    """A linear layer with weight U S Vᵀ.

    Args:
        low_rank: the layer it is equal to.
    """

    scheme: ClassVar[str] = "matrix"

    def __init__(self, low_rank: LowRankLinear) -> None:
        expand, reduce = low_rank.expand.weight.detach(), low_rank.reduce.weight.detach()
        super().__init__(orthonormal_factors(expand[None], None, reduce.T[None]), low_rank.bias, like=expand)
        self.in_features, self.out_features = low_rank.in_features, low_rank.out_features

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Returns x (U S Vᵀ)ᵀ plus the bias, factor by factor."""
        reduced = F.linear(x, self._reduce_kernel(self.V))
        return F.linear(F.linear(reduced, self._core_kernel(self.S)), self._expand_kernel(self.U), self.bias)

    @override
    def plain(self) -> nn.Linear:
        return nn.Linear(self.V.shape[1], self.U.shape[1], bias=self.bias is not None, device="meta")

    @override
    def _shipped(self) -> LowRankLinear:
        kind = self._kind()
        return LowRankLinear(self.V.shape[1], self.U.shape[1], self.ranks[0], bias=self.bias is not None, **kind)

    @override
    def _dense(self, product: Float[Tensor, "1 m n 1"]) -> Float[Tensor, "m n"]:
        return product[0, :, :, 0]

    @override
    def _reduce_kernel(self, V: Float[Tensor, "1 n s"]) -> Float[Tensor, "s n"]:
        return V[0].T

    @override
    def _core_kernel(self, S: Float[Tensor, "1 r s 1"]) -> Float[Tensor, "r s"]:
        return S[0, :, :, 0]

    @override
    def _expand_kernel(self, U: Float[Tensor, "1 m r"]) -> Float[Tensor, "m r"]:
        return U[0]


class FactoredConv(FactoredLayer):
    """A convolution as three in a row. Subclasses say which of them has the kernel.

    Args:
        low_rank: the layer it is equal to.
        factors: of its weight.
    """

    def __init__(self, low_rank: MatrixConv | SpatialConv | TuckerConv, factors: Factors) -> None:
        super().__init__(factors, low_rank.bias, like=low_rank.reduce.weight)
        self.geometry = ConvGeometry.of(low_rank)
        self.in_channels, self.out_channels, self.groups = low_rank.in_channels, low_rank.out_channels, low_rank.groups
        self.kernel_size, self.stride, self.padding = low_rank.kernel_size, low_rank.stride, low_rank.padding
        self.dilation, self.padding_mode = low_rank.dilation, low_rank.padding_mode
        self.transposed, self.output_padding = low_rank.transposed, low_rank.output_padding
        self._reducing, self._between, self._expanding = self._geometries()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution with the product of the factors plus the bias, factor by factor."""
        reduced = self._reducing.apply(x, self._reduce_kernel(self.V))
        mixed = self._between.apply(reduced, self._core_kernel(self.S))
        return self._expanding.apply(mixed, self._expand_kernel(self.U), self.bias)

    @abstractmethod
    def _geometries(self) -> tuple[ConvGeometry, ConvGeometry, ConvGeometry]:
        """Returns those of the three convolutions."""

    @override
    def plain(self) -> Any:
        bias = self.bias is not None
        return self.geometry.make(self.in_channels, self.out_channels, bias=bias, device="meta")

    def _pointwise(self, matrices: Float[Tensor, "g a b"]) -> Tensor:
        """Returns matrices as the kernel of a 1×1 convolution."""
        return matrices.flatten(0, 1)[(..., *[None] * len(self.kernel_size))]

    def _sizes(self) -> dict[str, Any]:
        return {"geometry": self.geometry, "bias": self.bias is not None, **self._kind()}


class FactoredMatrixConv(FactoredConv):
    """k×k to r channels per group (V), r×r (S), 1×1 to the output channels (U); transposed and grouped ones too."""

    scheme: ClassVar[str] = "matrix"

    def __init__(self, low_rank: MatrixConv) -> None:
        groups = low_rank.groups
        expand = low_rank.expand.weight.detach().flatten(1).unflatten(0, (groups, -1))
        reduce = low_rank.reduce.weight.detach().unflatten(0, (groups, -1))
        # Transposed: group, input, rank, kernel; otherwise group, rank, input, kernel.
        reduce = reduce.transpose(1, 2).flatten(2) if low_rank.transposed else reduce.flatten(2)
        super().__init__(low_rank, orthonormal_factors(expand, None, reduce.mT))

    @override
    def _geometries(self) -> tuple[ConvGeometry, ConvGeometry, ConvGeometry]:
        return self.geometry, self.geometry.unit(), self.geometry.unit()

    @override
    def _shipped(self) -> MatrixConv:
        return MatrixConv(self.in_channels, self.out_channels, self.ranks[0], **self._sizes())

    @override
    def _dense(self, product: Float[Tensor, "g m n 1"]) -> Tensor:
        kernel = product[..., 0].unflatten(2, (-1, *self.kernel_size))  # group, output, input, kernel
        return (kernel.transpose(1, 2) if self.transposed else kernel).flatten(0, 1)

    @override
    def _reduce_kernel(self, V: Float[Tensor, "g n s"]) -> Tensor:
        kernel = V.mT.unflatten(2, (-1, *self.kernel_size))  # group, rank, input, kernel
        return (kernel.transpose(1, 2) if self.transposed else kernel).flatten(0, 1)

    @override
    def _core_kernel(self, S: Float[Tensor, "g r s 1"]) -> Tensor:
        return self._pointwise(S[..., 0])

    @override
    def _expand_kernel(self, U: Float[Tensor, "g m r"]) -> Tensor:
        return self._pointwise(U)


class FactoredSpatialConv(FactoredConv):
    """k×1 to r channels (V), r×r (S), 1×k to the output channels (U)."""

    scheme: ClassVar[str] = "spatial"

    def __init__(self, low_rank: SpatialConv) -> None:
        expand = low_rank.expand.weight.detach().flatten(2).transpose(1, 2).flatten(0, 1)  # output × column, rank
        reduce = low_rank.reduce.weight.detach().flatten(1)  # rank, input × row
        super().__init__(low_rank, orthonormal_factors(expand[None], None, reduce.T[None]))

    @override
    def _geometries(self) -> tuple[ConvGeometry, ConvGeometry, ConvGeometry]:
        axes = len(self.kernel_size)
        return self.geometry.along(range(1)), self.geometry.unit(), self.geometry.along(range(1, axes))

    @override
    def _shipped(self) -> SpatialConv:
        return SpatialConv(self.in_channels, self.out_channels, self.ranks[0], **self._sizes())

    @override
    def _dense(self, product: Float[Tensor, "1 m n 1"]) -> Tensor:
        kernel = product[0, :, :, 0].unflatten(0, (self.out_channels, -1)).unflatten(2, (self.in_channels, -1))
        return kernel.permute(0, 2, 3, 1).flatten(2).unflatten(2, self.kernel_size)  # from output, column, input, row

    @override
    def _reduce_kernel(self, V: Float[Tensor, "1 n s"]) -> Tensor:
        first = (self.kernel_size[0], *[1] * (len(self.kernel_size) - 1))
        return V[0].T.unflatten(1, (-1, *first))

    @override
    def _core_kernel(self, S: Float[Tensor, "1 r s 1"]) -> Tensor:
        return self._pointwise(S[..., 0])

    @override
    def _expand_kernel(self, U: Float[Tensor, "1 m r"]) -> Tensor:
        kernel = U[0].unflatten(0, (self.out_channels, -1)).transpose(1, 2)  # output, rank, column
        return kernel.unflatten(2, (1, *self.kernel_size[1:]))


class FactoredTuckerConv(FactoredConv):
    """1×1 to r_I channels (V), k×k to r_O channels (S), 1×1 to the output channels (U)."""

    scheme: ClassVar[str] = "tucker2"

    def __init__(self, low_rank: TuckerConv) -> None:
        reduce = low_rank.reduce.weight.detach().flatten(1)  # input rank, input
        if hasattr(low_rank, "core"):
            expand, core = low_rank.expand.weight.detach().flatten(1), low_rank.core.weight.detach().flatten(2)
        else:
            core = low_rank.expand.weight.detach().flatten(2)
            expand = torch.eye(low_rank.out_channels, dtype=core.dtype, device=core.device)
        super().__init__(low_rank, orthonormal_factors(expand[None], core[None], reduce.T[None]))

    @override
    def _geometries(self) -> tuple[ConvGeometry, ConvGeometry, ConvGeometry]:
        return self.geometry.unit(), self.geometry, self.geometry.unit()

    @override
    def _shipped(self) -> TuckerConv:
        return TuckerConv(self.in_channels, self.out_channels, self.ranks, **self._sizes())

    @override
    def _dense(self, product: Float[Tensor, "1 m n p"]) -> Tensor:
        return product[0].unflatten(2, self.kernel_size)

    @override
    def _reduce_kernel(self, V: Float[Tensor, "1 n s"]) -> Tensor:
        return self._pointwise(V.mT)

    @override
    def _core_kernel(self, S: Float[Tensor, "1 r s p"]) -> Tensor:
        return S[0].unflatten(2, self.kernel_size)

    @override
    def _expand_kernel(self, U: Float[Tensor, "1 m r"]) -> Tensor:
        return self._pointwise(U)

    @override
    def _folded_kernel(self, product: Float[Tensor, "1 m s p"]) -> Tensor:
        return product[0].unflatten(2, self.kernel_size)


def factored_layers(model: nn.Module) -> dict[str, FactoredLayer]:
    """Returns all layers of the model that DLRT trains, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactoredLayer)}
