"""Numbers about explanations: agreement, sign, and relevance on known correspondences."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of the angle between two explanations of the same pair, in -1..1.

    Raises
    ------
    ValueError
        If the shapes differ or one of them is zero everywhere.
    """
    if first.shape != second.shape:
        raise ValueError(f"cosine needs equal shapes, got {first.shape} and {second.shape}")
    a, b = first.flatten().double(), second.flatten().double()
    norms = float(a.norm() * b.norm())
    if norms == 0:
        raise ValueError("cosine is not defined for an explanation of zeros")
    return float(a @ b) / norms


def acs(explanations: Tensor, truth: Tensor) -> float:
    """Average cosine similarity of explanations with their true ones, in -1..1.

    Parameters
    ----------
    explanations, truth : Tensor (N, ...)
        One explanation a pair, and what it should be up to a positive factor.

    Raises
    ------
    ValueError
        If the shapes differ, there is no pair, values are not finite, or an explanation or a truth
        is zero everywhere: the cosine is not defined there, and leaving such pairs out is for the
        caller to decide.

    Source
    ------
    Eberle et al. (2022), Section 4.
    """
    if explanations.shape != truth.shape:
        raise ValueError(f"acs needs equal shapes, got {explanations.shape} and {truth.shape}")
    if truth.dim() < 2 or len(truth) == 0:
        raise ValueError(f"acs needs at least one pair, as (N, ...); got {tuple(truth.shape)}")
    sides = [t.flatten(1).double() for t in (explanations, truth)]
    if not all(bool(torch.isfinite(t).all()) for t in sides):
        raise ValueError("acs: the explanations or truths hold NaN or infinite values")
    for name, t in zip(("explanations", "truths"), sides, strict=True):
        zero = (t == 0).all(1)
        if bool(zero.any()):
            raise ValueError(
                f"acs is not defined for zeros: {int(zero.sum())} of {len(t)} {name} are zero "
                f"everywhere, the first is number {int(zero.nonzero()[0])}; leave those pairs out"
            )
    a, b = (t / t.norm(dim=1, keepdim=True) for t in sides)
    return float((a * b).sum(1).mean())


def negative_share(relevance: Tensor) -> float:
    """Share of negative scores in the sum of all magnitudes, 0..1 (0 where all is zero)."""
    total = float(relevance.abs().sum())
    return float(relevance.clamp(max=0).abs().sum()) / total if total else 0.0


def correspondence(row: Tensor, col: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """How much of each patch of x reappears in each patch of x'.

    Parameters
    ----------
    row, col : Tensor (H, W)
        Where each pixel of x lies in x', in pixels; NaN where that is unknown or hidden.
    patch : int
        Side of the patches in pixels.
    size : (int, int)
        Height and width of x' in pixels.

    Returns
    -------
    Tensor (H/p, W/p, H'/p, W'/p)
        Shares of the patch's pixels, 0..1. Pixels that fall outside x' or are unknown count for no
        patch.

    Raises
    ------
    ValueError
        If the patch does not divide both images or row and col differ in shape.
    """
    height, width = row.shape
    if row.shape != col.shape or any(n % patch for n in (height, width, *size)):
        raise ValueError(
            f"row {tuple(row.shape)} and col {tuple(col.shape)} must be alike, and patch={patch} "
            f"must divide them and the size {size}"
        )
    known = row.isfinite() & col.isfinite()
    r, c = row.nan_to_num(-1).round().long(), col.nan_to_num(-1).round().long()
    known &= (r >= 0) & (r < size[0]) & (c >= 0) & (c < size[1])
    grid = (height // patch, width // patch, size[0] // patch, size[1] // patch)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    index = ((y // patch * grid[1] + x // patch) * grid[2] + r // patch) * grid[3] + c // patch
    count = torch.bincount(index[known], minlength=grid[0] * grid[1] * grid[2] * grid[3])
    return count.view(grid) / patch**2


def share_on(relevance: Tensor, pairs: Tensor) -> float:
    """Share of the positive relevance that lies on given pairs of patches, 0..1.

    Parameters
    ----------
    relevance : Tensor
    pairs : Tensor of bool
        Of the same shape: the pairs that count.

    Raises
    ------
    ValueError
        If the shapes differ or no relevance is positive.
    """
    if relevance.shape != pairs.shape:
        raise ValueError(f"relevance {relevance.shape} and pairs {pairs.shape} differ in shape")
    positive = relevance.clamp(min=0).double()
    total = float(positive.sum())
    if total == 0:
        raise ValueError("no relevance is positive")
    return float(positive[pairs].sum()) / total
