"""Images to look at: original, perturbation, adversarial."""

import base64
import io
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SHOWN = 3


def example(
    index: int, label: int, original: Float[Tensor, "c h w"], moved: Float[Tensor, "c h w"], answers: dict[str, Any]
) -> dict[str, Any]:
    """Returns an image as the report has it: three PNG pictures in base64, and what the models say.

    Args:
        index: number of the image.
        label: its class.
        original: the clean image in [0, 1].
        moved: the adversarial one.
        answers: by role, `predicted` and perhaps `eps`.
    """
    shift = moved - original
    scaled = 0.5 + 0.5 * shift / shift.abs().max().clamp_min(1e-12)
    pictures = {"original": original, "perturbation": scaled, "adversarial": moved}
    return {"index": index, "label": label, **answers, "images": {name: png(one) for name, one in pictures.items()}}


def png(image: Float[Tensor, "c h w"]) -> str:
    """Returns an image in [0, 1] as PNG in base64; of one channel in grey, of more the first three in colour."""
    from PIL import Image

    values = (255 * image[: 3 if len(image) >= 3 else 1].cpu().clamp(0, 1)).round().to(torch.uint8)
    pixels = values.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
