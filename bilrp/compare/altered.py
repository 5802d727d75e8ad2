"""Altered models and images, to see what an explanation owes to the weights and to places."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilrp._checks import is_whole


def randomized(
    model: nn.Module, layers: int | None = None, *, seed: int, how: str = "shuffle"
) -> nn.Module:
    """A copy of a model with random weights: what is left of an explanation owes nothing to them.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    layers : int, optional
        How many layers with parameters to randomise, counted from the top (the last one that the
        model registers); 1, 2, 3, ... is the cascade of the sanity checks. Default: all.
    seed : int
        Of the random numbers.
    how : str
        "shuffle": the entries of each parameter change places, so that their distribution stays.
        "redraw": each layer draws its first weights anew, by its own `reset_parameters`.

    Returns
    -------
    nn.Module
        In the same mode as the model. Buffers (running means and variances) are as in the model
        with "shuffle"; with "redraw" a layer may reset its own.

    Raises
    ------
    ValueError
        For something else than a model, a model without parameters, another `how`, more layers
        than there are, or a layer that cannot be redrawn.

    Source
    ------
    Adebayo et al. (2018), "Sanity checks for saliency maps".
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, got {type(model).__name__}")
    if how not in ("shuffle", "redraw"):
        raise ValueError(f'how must be "shuffle" or "redraw", got {how!r}')
    altered = copy.deepcopy(model)
    holders = [m for m in altered.modules() if next(m.parameters(recurse=False), None) is not None]
    count = len(holders) if layers is None else layers
    if not is_whole(count, 1, len(holders)):
        raise ValueError(
            f"layers must be between 1 and {len(holders)}, the layers with parameters of this "
            f"{type(model).__name__}; got {layers!r}"
        )
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for holder in holders[::-1][:count]:
        if how == "redraw":
            _redraw(holder, int(torch.randint(2**31, (), generator=generator)))
            continue
        for p in holder.parameters(recurse=False):
            if id(p) not in done:  # weights that two layers share are shuffled once
                done.add(id(p))
                order = torch.randperm(p.numel(), generator=generator).to(p.device)
                p.data = p.detach().flatten()[order].view(p.shape)
    return altered


@torch.no_grad()
def recalibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a model whose batch norms have the statistics of these images.

    A network with shuffled weights and the old statistics lets its values die out or explode, which
    is a poor control. With statistics of its own its maps are as large as before.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    images : Tensor (N, ...)
        Inputs of the model, as many as memory allows; at least 2.

    Returns
    -------
    nn.Module
        In eval mode.

    Raises
    ------
    ValueError
        For fewer than 2 images.
    """
    if len(images) < 2:
        raise ValueError(f"statistics need at least 2 images, got {len(images)}")
    altered = copy.deepcopy(model).eval()
    norms = [m for m in altered.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    altered(images)
    for norm, kept in zip(norms, momentum, strict=True):
        norm.momentum = kept
    return altered.eval()


def _redraw(layer: nn.Module, seed: int) -> None:
    reset = getattr(layer, "reset_parameters", None)
    if reset is None:
        raise ValueError(
            f'{type(layer).__name__} has no reset_parameters() to draw anew; use how="shuffle"'
        )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        reset()


class Warped(NamedTuple):
    """A changed image, and where each pixel of the one before lies in it.

    Attributes
    ----------
    image : Tensor (C, H, W) or (1, C, H, W)
        Like the image given.
    row, col : Tensor (H, W)
        Of each pixel of the image before; may be outside. As `bilrp.metrics.correspondence` takes
        them.
    """

    image: Tensor
    row: Tensor
    col: Tensor


def warped(
    image: Tensor,
    *,
    mirror: bool = False,
    rotate: float = 0.0,
    scale: float = 1.0,
    tilt: tuple[float, float] = (0.0, 0.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Warped:
    """An image mirrored, turned, enlarged, tilted or moved, with the map of all its pixels.

    A place is counted from the middle of the image. It is mirrored, then turned and enlarged, then
    tilted (divided by 1 + tilt . place, in half sides of the image), then moved.

    Parameters
    ----------
    image : Tensor (C, H, W) or (1, C, H, W)
        Of any values. What comes from outside is a reflection of the image.
    mirror : bool
        Left and right change places.
    rotate : float
        Counter-clockwise, in degrees.
    scale : float
        Larger than 1 enlarges.
    tilt : (float, float)
        Perspective along rows and columns, as if seen from the side; together below 1.
    shift : (float, float)
        Down and to the right, in pixels.

    Returns
    -------
    Warped

    Raises
    ------
    ValueError
        For another shape or type, or numbers out of range.
    """
    if (
        not isinstance(image, Tensor)
        or image.dim() not in (3, 4)
        or image.shape[:-3] not in ((), (1,))
    ):
        what = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"give one image (C, H, W) or (1, C, H, W), got {what}")
    if not image.is_floating_point():
        raise ValueError(f"an image to be interpolated holds floating-point numbers: {image.dtype}")
    numbers = (rotate, scale, *tilt, *shift)
    if not all(map(math.isfinite, numbers)) or scale <= 0 or sum(map(abs, tilt)) >= 1:
        raise ValueError(
            "rotate, scale, tilt and shift must be finite, scale > 0 and |tilt| together < 1; got "
            f"rotate={rotate!r}, scale={scale!r}, tilt={tilt!r}, shift={shift!r}"
        )
    height, width = image.shape[-2:]
    forward = _homography(mirror, rotate, scale, tilt, shift, (height, width))
    row, col = _moved(forward, height, width)
    back_row, back_col = _moved(torch.linalg.inv(forward), height, width)
    if not bool(torch.isfinite(torch.stack([row, col, back_row, back_col])).all()):
        raise ValueError(
            f"with tilt={tilt!r} and scale={scale!r} a part of the image is behind the viewer; "
            "use less of them"
        )
    grid = torch.stack([(2 * back_col + 1) / width - 1, (2 * back_row + 1) / height - 1], -1)
    batch = image if image.dim() == 4 else image[None]
    exact = torch.float64 if batch.dtype == torch.float64 else torch.float32  # of the places
    out = F.grid_sample(
        batch.to(exact),
        grid[None].to(batch.device, exact),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    return Warped(out.view(image.shape).to(image), row, col)


def _homography(
    mirror: bool,
    rotate: float,
    scale: float,
    tilt: tuple[float, float],
    shift: tuple[float, float],
    size: tuple[int, int],
) -> Tensor:
    """From (column, row, 1), counted from the middle, to the same in the changed image."""
    a = math.radians(rotate)
    # Rows are counted downwards, so that this turns counter-clockwise as one sees it.
    turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]).double()
    flip = torch.tensor([-1.0 if mirror else 1.0, 1.0])
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = scale * turn * flip
    seen_aslant = torch.eye(3, dtype=torch.float64)
    seen_aslant[2, 0], seen_aslant[2, 1] = 2 * tilt[1] / size[1], 2 * tilt[0] / size[0]
    move = torch.eye(3, dtype=torch.float64)
    move[0, 2], move[1, 2] = shift[1], shift[0]
    return move @ seen_aslant @ matrix


def _moved(matrix: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the matrix takes each pixel: rows and columns (H, W), float64."""
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    row, col = torch.meshgrid(*(torch.arange(float(n)) for n in (height, width)), indexing="ij")
    places = torch.stack(
        [col.double() - middle[0], row.double() - middle[1], torch.ones(height, width)]
    )
    x, y, w = torch.einsum("ij,jhw->ihw", matrix, places)
    beyond = w <= 0  # behind the viewer
    x, y = (torch.where(beyond, torch.nan, v / w) for v in (x, y))
    return y + middle[1], x + middle[0]
