"""Tiny low-rank networks and short trainings that the tests of fine-tuning share."""

import io
from dataclasses import fields
from typing import Any

import jaxtyping
import torch
from networks import TensorImages, tiny_cnn, tiny_mlp
from torch import Tensor, nn

from lrcompress.data import Augmentation, ImageSet, split_held_out
from lrcompress.dlrt import DlrtOptions, TrainingOptions
from lrcompress.factorize import factorize_for_training
from lrcompress.plan import Decomposer, Tolerance, TrainingStart, UniformRank, make_plan

METHOD = {field.name for field in fields(DlrtOptions)}
STEPS = 18  # of `options()` on `pattern_images()`


def low_rank_mlp(*, tol: float = 0.3, max_rank: int | None = 6, norm: bool = False) -> nn.Module:
    """Returns `tiny_mlp` with its layers "1" (40×48) and "4" (24×40) as DLRT trains them."""
    model = tiny_mlp(norm=norm)
    plan = make_plan(model, TrainingStart(tol, max_rank=max_rank), input_size=(3, 4, 4), include_first=True)
    return factorize_for_training(model, plan)


def low_rank_cnn() -> nn.Module:
    """Returns `tiny_cnn` with all layers that have a low-rank form in it: batch norm, groups, Tucker-2 or spatial."""
    model = tiny_cnn()
    plan = make_plan(model, TrainingStart(0.3), input_size=(3, 8, 8), include_first=True, include_classifier=True)
    return factorize_for_training(model, plan)


class Attention(nn.Module):
    """Self-attention over the pixels with a fused qkv, and eight features of each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the means of eight stretches of pixels."""
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 8).flatten(1)


# A convolution in the middle, and the scheme it gets.
MIDDLES: dict[str, tuple[Any, str]] = {
    "matrix": (lambda: nn.Conv2d(8, 12, 3, padding=1), "matrix"),
    "spatial": (lambda: nn.Conv2d(8, 12, 3, padding=1), "spatial"),
    "tucker2": (lambda: nn.Conv2d(8, 12, 3, padding=1), "tucker2"),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), "matrix"),
    "transposed": (lambda: nn.ConvTranspose2d(8, 12, 3, padding=1), "matrix"),
    "1d": (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 12, 3), nn.Unflatten(2, (2, -1))), "matrix"),
    "split": (lambda: nn.Conv2d(8, 12, 1), "split"),
}


def any_scheme(case: str, *, rank: int = 3) -> tuple[nn.Module, nn.Module]:
    """Returns a network on 3×8×8 images as it is, and with the scheme of the case, of a rank, as DLRT trains it."""
    make, scheme = MIDDLES[case]
    torch.manual_seed(0)
    head = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), make(), nn.ReLU()]
    model = nn.Sequential(*head, Attention(12), nn.Linear(96, 4)).eval()
    decomposer = Decomposer(wanted=scheme)
    plan = make_plan(model, UniformRank(rank), input_size=(3, 8, 8), decomposer=decomposer)
    return model, factorize_for_training(model, plan, decomposer=decomposer)


def options(**changes: Any) -> TrainingOptions:
    """Returns settings for 160 tiny images: 144 to train on, six steps per epoch; the published cycle.

    Args:
        changes: settings of the loop or of the method; `tol` stands for the policy, `crop` for the augmentation.
    """
    method = {"policy": Tolerance(changes.pop("tol", 0.1)), "every_gradient": False, "lr": 1e-2, "max_rank": 6}
    method["coefficient_steps"] = 2
    augmentation = Augmentation(crop=changes.pop("crop", 0), flip=changes.pop("flip", False))
    loop = {"epochs": 3, "batch_size": 24, "frozen_fraction": 0.4, "augmentation": augmentation}
    for name, value in changes.items():
        (method if name in METHOD else loop)[name] = value
    return TrainingOptions(DlrtOptions(**method), **loop)


def construct(kind: type, *args: Any, **values: Any) -> Any:
    """Constructs options as a user does, without the run-time type checker, which in the tests is there before them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return kind(*args, **values)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def written(state: Any) -> Any:
    """Returns a state as it is when it comes back from a file; what was saved shares its tensors with the run."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def distance_from_orthonormal(basis: Tensor) -> float:
    """Returns the largest entry of UᵀU − I in float64, over all groups."""
    basis = basis.detach().double()
    return float((basis.mT @ basis - torch.eye(basis.shape[-1], dtype=torch.float64)).abs().max())


def held_out_accuracy(model: nn.Module, images: ImageSet, settings: TrainingOptions) -> float:
    """Returns the accuracy on the held-out images, image by image."""
    _, held_out = split_held_out(images, fraction=settings.held_out, seed=settings.seed)
    right = 0
    with torch.no_grad():
        for index in range(len(held_out)):
            pixels, label = held_out.dataset[index]
            right += int(model(pixels[None]).argmax()) == label
    return right / len(held_out)


def batch_of(images: ImageSet, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns the first images of a set, and their labels."""
    assert isinstance(images.dataset, TensorImages)
    return images.dataset.pixels[:count], images.dataset.labels[:count]
