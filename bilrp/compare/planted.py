"""Planted match: one object pasted into two unrelated photos, so that the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp._checks import check_whole


@dataclass(frozen=True, eq=False)
class Planted:
    """Two unrelated photos that have one object in common.

    Parameters
    ----------
    images : (Tensor, Tensor)
        Both (3, H, W), pixels in [0, 1].
    pairs : Tensor of bool (h, w, h, w)
        The true pairs of patches: a part of the object with the same part.
    photos, places : (int, int)
        Which photos, and the first patch of the object in each, counted row by row.
    """

    images: tuple[Tensor, Tensor]
    pairs: Tensor
    photos: tuple[int, int]
    places: tuple[int, int]


def planted_ring(
    photos: Tensor,
    thing: Tensor,
    number: int,
    *,
    seed: int,
    patch: int,
    size: int | None = None,
    contrast: float = 1.0,
) -> list[Planted]:
    """Paste one object into several photos, at places that have nothing to do with each other.

    The images are drawn once and compared in a ring, the first with the second, the second with the
    third, the last with the first: as many pairs as images, or one pair of two.

    Parameters
    ----------
    photos : Tensor (N, 3, H, H)
        Pixels in [0, 1].
    thing : Tensor (3, h, h)
        The object, a square picture; it is resized.
    number : int
        Images, 2 to N, each of another photo.
    seed : int
        Decides photos and places.
    patch : int
        Side of a patch in pixels.
    size : int, optional
        Side of the object in pixels: up to one patch, then it lies in the middle of one, or a
        multiple of the patch. Default: one patch.
    contrast : float
        From 0 to 1: how far the object's pixels are from its mean colour, 1 as they are.

    Raises
    ------
    ValueError
        For sizes that do not fit, or numbers out of range; says what was given.
    """
    check_whole("patch", patch)
    check_whole("number", number, 2, len(photos))
    if not photos.is_floating_point() or not thing.is_floating_point():
        raise ValueError(f"pixels must be floats in [0, 1], got {photos.dtype} and {thing.dtype}")
    side = photos.shape[-1]
    size = patch if size is None else size
    if photos.dim() != 4 or photos.shape[1] != 3 or photos.shape[2] != side or side % patch:
        raise ValueError(
            f"photos must be (N, 3, H, H) with H a multiple of patch={patch}, got "
            f"{tuple(photos.shape)}"
        )
    if thing.dim() != 3 or thing.shape[0] != 3 or thing.shape[1] != thing.shape[2]:
        raise ValueError(f"the object must be (3, h, h), got {tuple(thing.shape)}")
    if not 0 <= contrast <= 1:
        raise ValueError(f"contrast must be 0 to 1, got {contrast!r}")
    if not 1 <= size <= side or (size > patch and size % patch):
        raise ValueError(
            f"size must be at most patch={patch} or a multiple of it, at most {side}; got {size!r}"
        )
    small = F.interpolate(thing[None], (size, size), mode="bilinear", antialias=True)[0]
    mean = small.mean((1, 2), keepdim=True)
    small = (mean + contrast * (small - mean)).clamp(0, 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(photos), generator=generator)[:number].tolist()
    grid, cells = side // patch, -(-size // patch)
    free = grid - cells + 1
    corners = torch.randint(free, (number, 2), generator=generator).tolist()
    margin = (cells * patch - size) // 2
    images = []
    for k, (row, col) in zip(chosen, corners, strict=True):
        image = photos[k].clone()
        top, left = row * patch + margin, col * patch + margin
        image[:, top : top + size, left : left + size] = small
        images.append(image)
    found = []
    for i in range(number if number > 2 else 1):
        j = (i + 1) % number
        pairs = torch.zeros(grid, grid, grid, grid, dtype=torch.bool)
        (r, c), (r2, c2) = corners[i], corners[j]
        for a in range(cells):
            for b in range(cells):
                pairs[r + a, c + b, r2 + a, c2 + b] = True
        places = (r * grid + c, r2 * grid + c2)
        found.append(Planted((images[i], images[j]), pairs, (chosen[i], chosen[j]), places))
    return found
