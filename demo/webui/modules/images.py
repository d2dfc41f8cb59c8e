"""Pictures between tensors, PIL and base64."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image


def from_tensor(batch: torch.Tensor) -> list[Image.Image]:
    """Pictures of a (batch, 3, height, width) tensor of values 0..1.

    A NaN becomes black, with numpy's warning "invalid value encountered in cast", as in the real hosts.
    """
    pixels = (batch.detach().cpu().permute(0, 2, 3, 1).float().numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def to_base64(image: Image.Image, infotext: str = "") -> str:
    """The picture as base64 PNG."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    if infotext:
        info.add_text("parameters", infotext)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_base64(text: str) -> Image.Image:
    """The picture of a base64 string, with or without a data URL's head. Raises ValueError when it is none."""
    try:
        return Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[-1])))
    except OSError as error:
        raise ValueError("Invalid encoded image") from error
