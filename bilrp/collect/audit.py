"""Audit and repair: how much of a similarity a region carries, and a search without it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bilrp.collect.themes import strong_patches
from bilrp.engine.explanation import Explanation
from bilrp.engine.factors import Factor


def carried_by(e: Explanation, mask: Tensor | None = None, mask2: Tensor | None = None) -> float:
    """Share of a similarity that pairs with regions of both inputs carry.

    Parameters
    ----------
    e : Explanation
    mask, mask2 : Tensor of bool, optional
        Patches of x and of x', in the shape of their grids or flat. Default: all.

    Returns
    -------
    float
        Sum of R over mask x mask2, divided by y. Biases carry a part, too, so all patches of both
        need not have 1.

    Raises
    ------
    ValueError
        For a mask of another shape or not of bool, or a similarity of 0.
    """
    matrix = e.matrix.double()
    if e.similarity == 0:
        raise ValueError("the similarity is 0, which nothing has a share of")
    half = e.relevance.dim() // 2 if e.sides is None else e.sides
    for m, grid in ((mask, e.relevance.shape[:half]), (mask2, e.relevance.shape[half:])):
        if m is None:
            continue
        _refuse_numbers(m)
        if m.shape not in (grid, (grid.numel(),)):
            raise ValueError(
                f"a mask of shape {tuple(m.shape)} for {grid.numel()} patches in a grid of "
                f"{tuple(grid)}: give it this shape, or flat"
            )
    rows = matrix if mask is None else matrix[mask.flatten()]
    part = rows if mask2 is None else rows[:, mask2.flatten()]
    return float(part.sum()) / e.similarity


def _refuse_numbers(mask: Tensor) -> None:
    if mask.dtype != torch.bool:  # numbers would pick patches, not mask them
        raise ValueError(f"a mask must be of bool, got {mask.dtype}: give mask.bool()")


def directions(pairs: Iterable[tuple[Factor, Factor]], rank: int = 1) -> Tensor:
    """The directions in feature space along which a theme's strong patches lie.

    Each input gives one row, what its strong patches own of the features, of length 1; the best
    `rank` directions of these rows, from the origin, are returned.

    Parameters
    ----------
    pairs : iterable of (Factor, Factor)
        Pairs of one theme.
    rank : int

    Returns
    -------
    Tensor (rank, M)
        Orthonormal.

    Raises
    ------
    ValueError
        If there are fewer inputs than directions.
    """
    rows = []
    for first, second in pairs:
        for f, mask in zip((first, second), strong_patches(first, second), strict=True):
            rows.append(f.dense()[mask].sum(0).double())
    if not 1 <= rank <= len(rows):
        raise ValueError(f"rank must be from 1 to the {len(rows)} inputs of the pairs, got {rank}")
    stacked = nn.functional.normalize(torch.stack(rows), dim=1)
    return torch.linalg.svd(stacked, full_matrices=False).Vh[:rank].float()


def project_out(features: Tensor, away: Tensor) -> Tensor:
    """Features (N, M) without their parts along orthonormal directions (rank, M)."""
    return features - (features @ away.T) @ away


def repaired(model: nn.Module, away: Tensor) -> nn.Sequential:
    """The model with directions taken out of its features; it can be stored and explained as any.

    Parameters
    ----------
    model : nn.Module
        Left as it is; its parameters are shared.
    away : Tensor (rank, M)
        Orthonormal, such as from `directions`.

    Raises
    ------
    ValueError
        If it is not.
    """
    unit = torch.eye(len(away)).to(away)
    if away.dim() != 2 or not torch.allclose(away @ away.T, unit, atol=1e-4):
        raise ValueError("`away` must be rows of length 1, each orthogonal to the others")
    size = away.shape[1]
    last = nn.utils.skip_init(nn.Linear, size, size, bias=False).to(away).requires_grad_(False)
    last.weight.copy_(torch.eye(size).to(away) - away.T @ away)
    both = nn.Sequential(model, nn.Flatten(), last)
    for m in (both, both[1], last):  # the model itself stays in its mode
        m.training = model.training
    return both


def covered(image: Tensor, mask: Tensor) -> Tensor:
    """A picture with the patches of a mask painted over in the picture's mean colour.

    Parameters
    ----------
    image : Tensor (3, H, W)
        Pixels in [0, 1].
    mask : Tensor (H/p, W/p) of bool

    Raises
    ------
    ValueError
        For a mask that is not of bool, or no grid of patches of the picture.
    """
    _refuse_numbers(mask)
    height, width = image.shape[-2:]
    grid = tuple(mask.shape)
    if len(grid) != 2 or 0 in grid or height % grid[0] or width % grid[1]:
        raise ValueError(
            f"the mask must be a grid of patches that divides {height} x {width} pixels, got the "
            f"shape {grid}"
        )
    tall, wide = height // grid[0], width // grid[1]
    pixels = mask.repeat_interleave(tall, 0).repeat_interleave(wide, 1).to(image.device)
    return torch.where(pixels, image.mean((-2, -1), keepdim=True), image)
