"""Small networks of every family, and compressed ones with their manifests, for tests of what is written and read."""

import copy
import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torchvision.models import swin_transformer

from lrcompress.artifact import Cost, Manifest, installed_versions, pack_artifact, round_weights_, save_artifact
from lrcompress.factorize import describe_layers, factorize
from lrcompress.models import Architecture, Preprocessing
from lrcompress.plan import Decomposer, RankPolicy, UniformRank, make_plan


def disturbed(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Returns the network in eval mode with no value left that any new network has: zeros, ones, statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Some begin with layers so small that all logits are the bias.
            scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def multihead() -> nn.Module:
    """`nn.MultiheadAttention`, whose projection is a parameter, and another one is read by it."""
    return torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40, num_classes=5
    )


def swin() -> nn.Module:
    """Attention within shifted windows, whose layers' weights are read."""
    return torchvision.models.SwinTransformer(
        patch_size=[2, 2], embed_dim=12, depths=[2, 1], num_heads=[2, 3], window_size=[3, 3], num_classes=5
    )


def swin_v2() -> nn.Module:
    """The second version, which changes a bias in its forward pass."""
    return torchvision.models.SwinTransformer(
        patch_size=[2, 2], embed_dim=12, depths=[2, 1], num_heads=[2, 3], window_size=[3, 3], num_classes=5,
        block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2,
    )  # fmt: skip


def beit() -> nn.Module:
    """A fused projection with a bias for queries and values only."""
    return timm.create_model(
        "beit_base_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=5, init_values=0.5
    )


def standardised() -> nn.Module:
    """Convolutions that standardise their weight, and one that pads by the size of its input."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), StdConv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), ScaledStdConv2d(12, 10, 3),
        nn.BatchNorm2d(10), nn.ReLU(), Conv2dSame(10, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


def grouped() -> nn.Module:
    """Convolutions with groups, without, depthwise, and transposed."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2, stride=2), nn.GELU(),
        nn.ConvTranspose2d(12, 9, 3, stride=2, padding=1, output_padding=1), nn.GELU(),
        nn.Conv2d(9, 9, 3, groups=9), nn.ConvTranspose2d(9, 12, 2, groups=3, bias=False), nn.ReLU(),
        nn.Conv2d(12, 8, (1, 5), padding="same", dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class OneAndThreeAxes(nn.Module):
    """Convolutions along one axis and along three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.line = nn.Conv1d(8, 12, 3, padding=1, stride=2)
        self.space = nn.Conv3d(2, 10, (3, 2, 2), padding=(1, 0, 0))
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = self.line(self.stem(x).relu().flatten(2)).relu()
        return self.head(self.space(x.unflatten(1, (2, 6)).unflatten(3, (-1, 4))).relu().mean((2, 3, 4)))


# The size of the images is not a multiple of a window's.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "multihead attention": (multihead, (3, 16, 16)),
    "swin": (swin, (3, 20, 16)),
    "swin v2": (swin_v2, (3, 20, 16)),
    "beit": (beit, (3, 32, 32)),
    "standardised": (standardised, (3, 15, 15)),
    "grouped": (grouped, (3, 12, 12)),
    "one and three axes": (OneAndThreeAxes, (3, 8, 8)),
}


def family(name: str) -> tuple[nn.Module, Architecture, tuple[int, int, int]]:
    """Returns a disturbed network of a family, its architecture and the size of its images."""
    make, size = FAMILIES[name]
    torch.manual_seed(0)
    return disturbed(make()), Architecture("custom", f"artifacts:{make.__name__}"), size


def compressed(
    model: nn.Module,
    architecture: Architecture,
    input_size: tuple[int, int, int],
    *,
    dtype: str = "float32",
    policy: RankPolicy | None = None,
    scheme: str = "matrix",
    tol: float | None = None,
) -> tuple[nn.Module, Manifest]:
    """Returns the compressed network in memory, which shares nothing with the model, and a manifest for it."""
    decomposer = Decomposer(wanted=scheme)
    plan = make_plan(model, policy or UniformRank(3), input_size=input_size, decomposer=decomposer)
    small = copy.deepcopy(factorize(model, plan, decomposer=decomposer))
    round_weights_(small, dtype)
    channels = input_size[0]
    with torch.no_grad():
        classes = model.eval()(torch.zeros(1, *input_size)).shape[1]
    manifest = Manifest(
        architecture=architecture,
        preprocessing=Preprocessing(
            input_size, (0.25, 0.5, 0.75)[:channels], (0.5, 0.25, 0.125)[:channels], 1.0, "bilinear", "the test"
        ),
        num_classes=classes,
        class_names=(),
        dtype=dtype,
        layers=describe_layers(model, small, plan),
        recipe={"plan": dict(plan.policy), "guaranteed_tol": tol},
        source={
            "path": "w.pt",
            "sha256": "0" * 64,
            "bytes": 100,
            "weight_bytes": 100,
            "match": "by name",
            "wrapper": "",
            "chosen_by": "--arch",
            "candidates": [],
        },
        baseline=Cost(100, 400, 1000),
        compressed=Cost(50, 200, 500),
        shared={},
        tensors_sha256="",
        versions=installed_versions(),
    )
    return small.eval(), manifest


def changed(manifest: Manifest, **values: Any) -> Manifest:
    """Returns the manifest with other values."""
    return dataclasses.replace(manifest, **values)


def save(path: Path, model: nn.Module, manifest: Manifest) -> Manifest:
    """Writes the artifact and returns its final manifest."""
    packed = pack_artifact(model, manifest)
    save_artifact(path, packed)
    return packed.manifest


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool = True) -> None:
    """Changes the manifest of a file by hand; sealed as anybody can who knows the format, with the hash that fits."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["lrcompress"])
    change(manifest)
    if sealed:
        manifest.pop("manifest_sha256")
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        manifest["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"]["lrcompress"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
