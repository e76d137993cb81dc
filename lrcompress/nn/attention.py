"""Stand-ins for attention modules that read the weights of their linear layers instead of calling the layers.

A layer that nobody calls cannot be replaced by two. These modules compute the same and call their layers: tensors keep
their names, but for `nn.MultiheadAttention`, whose `in_proj_weight` becomes `in_proj.weight`.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrcompress.nn.replace import replace_module_


class CalledMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with equal widths of query, key and value, whose projections are called.

    Args:
        attention: what it stands in for; its parameters are taken over.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        assert attention.in_proj_weight is not None  # see `can_stand_in`
        self.in_proj = nn.Linear(self.embed_dim, 3 * self.embed_dim, device="meta")
        self.in_proj.weight = attention.in_proj_weight
        self.in_proj.bias = attention.in_proj_bias
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim, device="meta")
        self.out_proj.weight, self.out_proj.bias = attention.out_proj.weight, attention.out_proj.bias
        # `nn.TransformerEncoderLayer` looks at it before it takes its fast path, which calls no layer.
        self._qkv_same_embed_dim = False
        self.train(attention.training)

    @property
    def in_proj_weight(self) -> Float[Tensor, "m n"]:
        """The weight of the projection, for parents that read it."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The bias of the projection, if there is one."""
        return self.in_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (the attended values, the attention's weights or None), as `nn.MultiheadAttention` does."""
        is_batched = query.ndim == 3
        projected = self._project(query, key, value)
        if not is_batched:
            projected = [x.unsqueeze(0) for x in projected]
        elif not self.batch_first:
            projected = [x.transpose(0, 1) for x in projected]
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        mask = _merge_masks(attn_mask, key_padding_mask, len(q), q.dtype)
        weights = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            logits = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = F.dropout((logits if mask is None else logits + mask).softmax(-1), dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batched else weights.squeeze(0)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        attended = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not is_batched:
            return attended.squeeze(0), weights
        return (attended if self.batch_first else attended.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        if query is key and key is value:
            return self.in_proj(query).chunk(3, dim=-1)
        # Each with its own third: three calls of the whole layer would cost three times as much.
        weights = self.in_proj.weight.chunk(3)
        biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.chunk(3)
        return [F.linear(x, W, b) for x, W, b in zip((query, key, value), weights, biases, strict=True)]


def _merge_masks(
    mask: Tensor | None, padding: Tensor | None, images: int, dtype: torch.dtype
) -> Float[Tensor, "..."] | None:
    """Returns what is added to the logits (image, head, query, key), None if nothing is.

    Args:
        mask: (query, key), or one for each image and head in turn; True or −∞ where nobody may look.
        padding: (image, key), or (key) for a single image.
        images: how many.
        dtype: of the logits.
    """
    merged = None
    if mask is not None:
        merged = _additive(mask, dtype)
        merged = merged.unflatten(0, (images, -1)) if merged.ndim == 3 else merged
    if padding is not None:
        hidden = _additive(padding if padding.ndim == 2 else padding[None], dtype)[:, None, None]
        merged = hidden if merged is None else merged + hidden
    return merged


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


class CalledWindowAttention(nn.Module):
    """torchvision's shifted-window attention of Swin, first and second version, whose projections are called.

    Args:
        attention: what it stands in for; its parameters, buffers and children are taken over.

    Source: Liu et al. 2021 (arXiv 2103.14030) and 2022 (arXiv 2111.09883); torchvision's `shifted_window_attention`.
    """

    qkv: Any
    proj: Any
    logit_scale: Tensor
    cpb_mlp: Any
    relative_coords_table: Tensor
    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        for name, buffer in attention.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, value in (*attention.named_parameters(recurse=False), *attention.named_children()):
            setattr(self, name, value)
        self.window_size, self.shift_size = list(attention.window_size), list(attention.shift_size)
        self.num_heads = attention.num_heads
        self.attention_dropout, self.dropout = attention.attention_dropout, attention.dropout
        self.is_second_version = "logit_scale" in dict(attention.named_parameters(recurse=False))
        if self.is_second_version and self.qkv.bias is not None:
            self.qkv = _without_key_bias(self.qkv)
        self.train(attention.training)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Returns the attended image."""
        _, height, width, _ = x.shape
        (rows, columns), bias = self.window_size, self._relative_position_bias()
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        grid = (x.shape[1] // rows, x.shape[2] // columns)
        # A window as large as the image has nowhere to shift to.
        shift = [0 if count <= 1 else step for count, step in zip(grid, self.shift_size, strict=True)]
        x = torch.roll(x, (-shift[0], -shift[1]), dims=(1, 2))
        windows = x.unflatten(1, (grid[0], rows)).unflatten(3, (grid[1], columns)).transpose(2, 3)
        attended = self._attend(windows.flatten(3, 4).flatten(0, 2), bias, self._mask(x, grid, shift))
        attended = F.dropout(self.proj(attended), self.dropout, self.training)
        x = attended.unflatten(0, (-1, *grid)).unflatten(3, (rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return torch.roll(x, (shift[0], shift[1]), dims=(1, 2))[:, :height, :width].contiguous()

    def _attend(self, windows: Float[Tensor, "n t c"], bias: Tensor, mask: Tensor | None) -> Float[Tensor, "n t c"]:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(windows).chunk(3, -1))
        if self.is_second_version:
            scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
            attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
        else:
            attention = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        attention = attention + bias
        if mask is not None:
            attention = (attention.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        attention = F.dropout(attention.softmax(-1), self.attention_dropout, self.training)
        return (attention @ v).transpose(1, 2).flatten(2)

    def _mask(self, x: Tensor, grid: tuple[int, int], shift: list[int]) -> Tensor | None:
        """Returns −100 between the pixels of a window that the shift has brought together from two sides."""
        if sum(shift) == 0:
            return None
        sides = []
        for length, window, step in zip(x.shape[1:3], self.window_size, shift, strict=True):
            position = torch.arange(length, device=x.device)
            # As torchvision counts: with no shift along an axis all of it but the first part is the last one.
            sides.append((position >= length - window).long() + (position >= (length - step if step else 0)).long())
        regions = 3 * sides[0][:, None] + sides[1]
        regions = (
            regions.unflatten(0, (grid[0], -1)).unflatten(2, (grid[1], -1)).transpose(1, 2).reshape(math.prod(grid), -1)
        )
        return torch.where(regions[:, None] == regions[:, :, None], 0.0, -100.0).to(x.dtype)

    def _relative_position_bias(self) -> Tensor:
        if self.is_second_version:
            table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        else:
            table = self.relative_position_bias_table
        count = math.prod(self.window_size)
        bias = table[self.relative_position_index].view(count, count, -1).permute(2, 0, 1).unsqueeze(0)
        return 16 * bias.sigmoid() if self.is_second_version else bias.contiguous()


def can_stand_in(module: nn.Module) -> bool:
    """Whether there is a stand-in for the module that calls the layers whose weights the module reads."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return False
    if isinstance(module, nn.MultiheadAttention):
        plain = module.bias_k is None and module.bias_v is None and not module.add_zero_attn
        return type(module) is nn.MultiheadAttention and module.in_proj_weight is not None and plain
    return _is_window_attention(module) or _reads_qkv(module)


def expose_(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """Puts stand-ins into a model that call the layers whose weights are read otherwise, and returns the model.

    Args:
        model: changed in place; tensors are kept.
        names: of the modules to replace; None replaces all that can be.
    """
    for name, module in list(model.named_modules()):
        if (names is not None and name not in names) or not name or not can_stand_in(module):
            continue
        if isinstance(module, nn.MultiheadAttention):
            replace_module_(model, name, CalledMultiheadAttention(module))
        elif _is_window_attention(module):
            replace_module_(model, name, CalledWindowAttention(module))
        else:
            # timm's BEiT, EVA and Swin v2 have a switch: the layer is called, and the bias added to its output.
            setattr(module, "qkv_bias_separate", True)  # noqa: B010  # modules have any attribute
    return model


def parents_to_expose(model: nn.Module, layers: Iterable[str]) -> set[str]:
    """Returns the names of the modules that need a stand-in so that the named layers are called.

    Args:
        model: the network as its framework builds it.
        layers: names of layers, as they are after `expose_`.
    """
    modules = dict(model.named_modules())
    parents = {name.rpartition(".")[0] for name in layers}
    return {name for name in parents if name in modules and can_stand_in(modules[name])}


def _reads_qkv(module: nn.Module) -> bool:
    return getattr(module, "qkv_bias_separate", None) is False and getattr(module, "q_bias", None) is not None


def _is_window_attention(module: nn.Module) -> bool:
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return name.removesuffix("V2") == "torchvision.models.swin_transformer.ShiftedWindowAttention"


def _without_key_bias(qkv: nn.Linear) -> nn.Linear:
    """Returns the layer with the middle third of its bias zero: the second Swin sets it so in each forward pass."""
    layer = nn.Linear(qkv.in_features, qkv.out_features, device="meta")
    bias = qkv.bias.detach().clone()
    bias[qkv.in_features : 2 * qkv.in_features] = 0
    layer.weight, layer.bias = qkv.weight, nn.Parameter(bias)
    return layer
