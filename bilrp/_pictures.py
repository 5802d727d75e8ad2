"""Pictures as tensors: read as a viewer shows them, cut to a square, resized.

Shared by the book's data and by collections; imports no other room.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp._names import needs


def read(path: Path) -> Tensor:
    """A picture as (1, 3, H, W) float32 in [0, 1], turned as its EXIF says.

    Grey pictures get three equal channels; what is transparent is shown on white.
    """
    with needs("plot"):  # here: weights are fetched where no picture can be read
        from PIL import Image, ImageOps

    with Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
        if "A" in turned.getbands() or "transparency" in turned.info:
            above = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
        pixels = np.asarray(turned.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].contiguous()


def square(x: Tensor) -> Tensor:
    """Centre square of (..., H, W)."""
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def resize(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) to (N, C, size, size), antialiased; bilinear, so that no value leaves [0, 1]."""
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
