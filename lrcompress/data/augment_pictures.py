"""timm's random resized crop and RandAugment, for pictures and for tensors."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lrcompress.data.augment import Augmentation
from lrcompress.data.pictures import Mode
from lrcompress.errors import OptionError

# timm's colour of what a rotation or a shift brings in.
GREY: dict[Mode, Any] = {"RGB": (128, 128, 128), "L": 128}


class PictureAugmentation:
    """From a picture to a tensor of the network's size: a random resized crop, then RandAugment.

    Draws from the global generators of Python and numpy, as timm does: seed them before.

    Args:
        augmentation: its `crop_scale` and `randaugment`.
        size: (height, width) of the network's input; without `crop_scale`, pictures have this size already.
        mode: PIL's mode of the pictures.
    """

    def __init__(self, augmentation: Augmentation, *, size: tuple[int, int], mode: Mode) -> None:
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.transforms import RandomResizedCropAndInterpolation

        self.steps: list[Any] = []
        if augmentation.crop_scale is not None:
            # The filter is drawn too, as timm's training script does if nothing else is asked for.
            crop = RandomResizedCropAndInterpolation(size, scale=augmentation.crop_scale, interpolation="random")
            self.steps.append(crop)
        if augmentation.randaugment is not None:
            settings = {"translate_const": int(min(size) * 0.45), "img_mean": GREY[mode]}
            randaugment = rand_augment_transform(augmentation.randaugment, settings)
            for operation in randaugment.ops:
                if operation.name.startswith("Posterize"):
                    operation.level_fn = _at_least_one_bit(operation.level_fn)
            self.steps.append(randaugment)

    def __call__(self, image: Image.Image) -> Float[Tensor, "c h w"]:
        """Returns the changed picture's pixels in [0, 1]."""
        from torchvision.transforms.functional import to_tensor

        for step in self.steps:
            image = step(image)
        return to_tensor(image)


def _at_least_one_bit(bits_of_level: Any) -> Callable[[float, dict[str, Any]], tuple[int]]:
    """Returns timm's rule of how many bits posterising keeps, but for 0 bits, which Pillow 13 refuses."""

    def bits(level: float, settings: dict[str, Any]) -> tuple[int]:
        return (max(1, bits_of_level(level, settings)[0]),)

    return bits


def to_picture(image: Float[Tensor, "c h w"]) -> Image.Image:
    """Returns an image in [0, 1] as a PIL image, rounded to bytes: an image that came from bytes is not changed."""
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image(image.mul(255).round().to(torch.uint8))


def mode_of_channels(channels: int) -> Mode:
    """Returns PIL's mode of images of so many channels.

    Raises:
        OptionError: if PIL has none.
    """
    modes: dict[int, Mode] = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise OptionError(
            f"--randaugment and --crop-scale take images of 1 or 3 channels, these have {channels}",
            hint="leave them out; shifts, mirroring and mixup work for any number of channels",
        )
    return modes[channels]
