"""Every form of low-rank layer in the place of every layer that it fits: cases that several tests share."""

from typing import Any

from networks import ALL_LAYERS, CONVOLUTIONS, LINEAR_LAYERS, OTHER_AXES, SAME_CONVOLUTIONS
from torch import nn

from lrcompress.nn import CONVOLUTIONS as PLAIN_CONVOLUTIONS
from lrcompress.nn import (
    ConvGeometry,
    LowRankLinear,
    MatrixConv,
    SpatialConv,
    SplitLowRankLinear,
    TuckerConv,
)


def like(dense: Any, kind: Any, ranks: Any, **changes: Any) -> Any:
    """Returns a low-rank layer in the place of a dense one, with random values."""
    factory = {"bias": dense.bias is not None, "dtype": dense.weight.dtype} | changes
    ranks = ranks[0] if kind in (LowRankLinear, MatrixConv, SpatialConv) else ranks
    if isinstance(dense, nn.Linear):
        return kind(dense.in_features, dense.out_features, ranks, **factory)
    return kind(dense.in_channels, dense.out_channels, ranks, geometry=ConvGeometry.of(dense), **factory)


def is_ungrouped(make: Any) -> bool:
    """Whether a plain convolution without groups is made."""
    return isinstance(make(), PLAIN_CONVOLUTIONS) and make().groups == 1


UNGROUPED = {name: make for name, make in (CONVOLUTIONS | SAME_CONVOLUTIONS | OTHER_AXES).items() if is_ungrouped(make)}
SEVERAL_AXES = {name: make for name, make in UNGROUPED.items() if not name.startswith("1d")}
WIDE = {name: make for name, make in UNGROUPED.items() if max(make().kernel_size) > 1}

# (dense layer, low-rank layer) by name.
CASES = {}
for name, make in ALL_LAYERS.items():
    kind, rank = LowRankLinear if name in LINEAR_LAYERS else MatrixConv, 1 if name == "linear, one output" else 2
    CASES[f"matrix, {name}"] = lambda make=make, kind=kind, rank=rank: (make(), like(make(), kind, (rank,)))
for name, make in SEVERAL_AXES.items():
    CASES[f"spatial, {name}"] = lambda make=make: (make(), like(make(), SpatialConv, (3,)))
for name, make in WIDE.items():
    CASES[f"tucker, {name}"] = lambda make=make: (make(), like(make(), TuckerConv, (3, 2)))
    CASES[f"tucker, all outputs, {name}"] = lambda make=make: (
        make(),
        like(make(), TuckerConv, (make().out_channels, 2)),
    )
CASES |= {
    "split": lambda: (nn.Linear(7, 15), like(nn.Linear(7, 15), SplitLowRankLinear, (2, 1, 3))),
    "split, no bias": lambda: (
        nn.Linear(7, 15, bias=False),
        like(nn.Linear(7, 15, bias=False), SplitLowRankLinear, (2, 1, 3)),
    ),
    "split, two parts": lambda: (nn.Linear(4, 6), like(nn.Linear(4, 6), SplitLowRankLinear, [1, 2])),
}
