"""What every scheme offers: which layers it fits, what ranks cost, what error they leave, and the layer itself."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrcompress.linalg import merge_spectra, singular_values
from lrcompress.nn import LowRankLayer, PlainLayer
from lrcompress.schemes.metric import Metric

LayerT = TypeVar("LayerT", bound=nn.Module)


class Call(NamedTuple):
    """One call of a layer in the forward pass of one image.

    Attributes:
        images: the size of the call's batch; networks fold windows and the like into it.
        input_size: of the axes that the layer works along; (rows,) for a linear layer.
        output_size: of the same axes.
    """

    images: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]


@dataclass(frozen=True)
class Positions:
    """How often a layer's matrices are applied to one image, over all calls.

    Attributes:
        inputs: positions of the input.
        outputs: positions of the output.
        between: positions after the first axis has been convolved and the others have not.
    """

    inputs: int
    outputs: int
    between: int


def count_positions(calls: Sequence[Call]) -> Positions:
    """Returns the positions of all calls together."""
    return Positions(
        sum(call.images * math.prod(call.input_size) for call in calls),
        sum(call.images * math.prod(call.output_size) for call in calls),
        sum(call.images * math.prod((*call.output_size[:1], *call.input_size[1:])) for call in calls),
    )


class Decomposition(ABC):
    """One layer decomposed for all ranks of one scheme at once."""

    @abstractmethod
    def ranks(self) -> Int[Tensor, "k modes"]:
        """Returns the ranks that are worth choosing between, up to full rank."""

    @abstractmethod
    def squared_errors(self, ranks: Int[Tensor, "k modes"]) -> Float[Tensor, "k"]:
        """Returns ‖W − W_r‖²/‖W‖² in float64 of some ranks, in the metric of the decomposition."""

    @abstractmethod
    def dense_spectrum(self) -> Float[Tensor, "k"] | None:
        """Returns what `Scheme.dense_spectrum` does, found in passing; None in the metric of images."""

    @abstractmethod
    def fill_(self, low_rank: Any, ranks: tuple[int, ...]) -> None:
        """Writes the factors of these ranks into a layer that was built for them; its bias is not touched."""

    @abstractmethod
    def keep_(self, largest: Sequence[int]) -> int:
        """Forgets what is needed beyond the given ranks only, and returns how many bytes are still held."""


class Scheme(ABC):
    """A form of low-rank layer. One object per scheme, without state."""

    name: ClassVar[str]
    modes: ClassVar[int | None]  # how many ranks a layer has; None for any number
    needs_input_gram: ClassVar[bool] = False

    @abstractmethod
    def fits(self, layer: PlainLayer, name: str) -> bool:
        """Whether the scheme can be applied to a layer, which the network calls `name`."""

    @abstractmethod
    def largest_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Returns the ranks at which nothing is lost."""

    @abstractmethod
    def decompose(self, layer: PlainLayer, metric: Metric | None = None) -> Decomposition:
        """Returns the decomposition of a layer's weight."""

    @abstractmethod
    def parameters(self, layer: PlainLayer, ranks: Int[Tensor, "k modes"]) -> Int[Tensor, "k"]:
        """Returns how many weights the layer has at some ranks, without its bias."""

    @abstractmethod
    def macs(self, layer: PlainLayer, ranks: Int[Tensor, "k modes"], positions: Positions) -> Int[Tensor, "k"]:
        """Returns the multiply-accumulates for one image at some ranks."""

    @abstractmethod
    def build(self, layer: PlainLayer, ranks: tuple[int, ...]) -> LowRankLayer:
        """Returns a layer of this form on the layer's device and of its type, its values not yet set."""

    @abstractmethod
    def spectrum(self, low_rank: Any) -> Float[Tensor, "k"]:
        """Returns the singular values, in descending order in float64, of the matrix that the scheme truncates."""

    def conditioned_spectrum(self, low_rank: Any, spectrum: Float[Tensor, "n"]) -> Float[Tensor, "k"]:
        """Returns the singular values that κ is of, `FactoredLayer.conditioned` of a shipped layer.

        Args:
            low_rank: the layer.
            spectrum: what `spectrum` returned; these are the same, unless a scheme says otherwise.
        """
        del low_rank
        return spectrum

    @abstractmethod
    def truncated_matrices(self, layer: PlainLayer) -> Sequence[Float[Tensor, "m n"]]:
        """Returns the matrices of a dense layer whose singular values the scheme truncates."""

    def dense_spectrum(self, layer: PlainLayer) -> Float[Tensor, "k"]:
        """Returns the singular values of these matrices together, in descending order in float64."""
        return merge_spectra([singular_values(matrix) for matrix in self.truncated_matrices(layer)])

    def uniform_ranks(self, layer: PlainLayer, rank: int) -> tuple[int, ...]:
        """Returns the same rank in every mode, or the largest that there is."""
        return tuple(min(rank, largest) for largest in self.largest_ranks(layer))


def dense_parameters(layer: PlainLayer) -> int:
    """Returns the number of the layer's weights, without its bias."""
    return layer.weight.numel()


def dense_macs(layer: PlainLayer, positions: Positions) -> int:
    """Returns the multiply-accumulates of the dense layer for one image."""
    if not isinstance(layer, nn.Linear) and layer.transposed:
        return positions.inputs * layer.weight.numel()
    return positions.outputs * layer.weight.numel()


def channels(layer: PlainLayer) -> tuple[int, int, int]:
    """Returns (output channels, input channels, positions in the kernel)."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features, 1
    return layer.out_channels, layer.in_channels, math.prod(layer.kernel_size)


def build_like(layer: PlainLayer, kind: type[LayerT], *args: Any, **kwargs: Any) -> LayerT:
    """Returns a module on the layer's device and of its type, its weights not set: drawing them would take longer.

    Biases are zero.
    """
    built = kind(*args, **kwargs, device="meta", dtype=layer.weight.dtype).to_empty(device=layer.weight.device)
    for parameter in built.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
    return built


def one_mode(count: int) -> Int[Tensor, "k 1"]:
    """Returns the ranks 1 … count of a scheme with one mode."""
    return torch.arange(1, count + 1)[:, None]


def product_spectrum(left: Float[Tensor, "m r"], right: Float[Tensor, "r n"]) -> Float[Tensor, "k"]:
    """Returns the singular values of left·right in float64, from the triangles of both."""
    first = torch.linalg.qr(left.detach().double(), mode="r").R
    second = torch.linalg.qr(right.detach().double().T, mode="r").R
    return torch.linalg.svdvals(first @ second.T)
