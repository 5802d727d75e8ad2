"""Controls: what a share of the relevance would be without the thing that one believes in.

An explanation puts a share of its relevance on pairs of patches that are known to correspond. That
share says little alone. It may come from which patches are salient (the marginals), or from
partners being near each other (the displacements). Each null keeps one of these and forgets which
patch goes with which. All shares and nulls are of the POSITIVE scores: negative ones are set to
zero first, so that nothing is gained by cancellation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bilrp.compare.metrics import share_on


def marginal_null(relevance: Tensor) -> Tensor:
    """The positive scores with the same totals of each patch, and partners chosen blindly.

    ``N_pp' = R_p. R_.p' / R_..`` of the positive scores: what two separate heat maps know.

    Parameters
    ----------
    relevance : Tensor (G, G') or (h, w, h', w')
        Scores of pairs of groups in a row, or of patches on two grids.

    Returns
    -------
    Tensor
        Of the same shape, float64, with the sum of the positive scores.

    Raises
    ------
    ValueError
        For another shape, NaN or infinite scores, or if none is positive.
    """
    table, _ = _table(relevance)
    null = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    return null.view(relevance.shape)


def locality_null(
    relevance: Tensor,
    keep: str = "displacement",
    tolerance: float = 1e-4,
    iterations: int = 20_000,
) -> Tensor:
    """The positive scores with the same marginals and displacements, and nothing else.

    Of all tables with the same total for each patch of x, for each patch of x' and for each
    displacement p' - p, the one of maximal entropy, found by iterative proportional fitting:
    N_pp' = a_p b_p' c_(p' - p). It knows which patches are salient and how far partners lie, but
    not which patch goes with which.

    Parameters
    ----------
    relevance : Tensor (G, G') or (h, w, h', w')
        Scores of pairs of groups in a row, or of patches on two grids.
    keep : str
        "displacement": the vector from p to p', in patches. The strictest null; where everything
        moves alike (a pan) it knows the motion, see `opposite_displacement` for that case.
        "distance": the length of that vector only.
    tolerance : float
        The fit ends when, for each of the three kinds of totals, the deviations add up to less
        than this share of all relevance.
    iterations : int
        Rounds of fitting at most.

    Returns
    -------
    Tensor
        Of the same shape, float64, with the sum of the positive scores.

    Raises
    ------
    ValueError
        As `marginal_null`; for another `keep`, or a tolerance or number of rounds out of range.
    RuntimeError
        If the fit has not ended after all rounds. It says how far it came.

    Notes
    -----
    Of the scores themselves all these totals are known, so such a table exists. With few non-zero
    scores it may be the scores themselves: then a share is *not above* its null, which is what can
    be said of it.

    Source
    ------
    Deming and Stephan (1940) for the fitting; Csiszar (1975) for its limit.
    """
    if keep not in ("displacement", "distance"):
        raise ValueError(f'keep must be "displacement" or "distance", got {keep!r}')
    if not 0 < tolerance < 1 or iterations < 1:
        raise ValueError(
            f"tolerance must lie between 0 and 1 and iterations be at least 1, got {tolerance!r} "
            f"and {iterations!r}"
        )
    target, shape = _table(relevance)
    total = target.sum()
    # Cells of empty rows, columns or displacements are empty in every such table: leave them out.
    classes = _displacements(shape, target.device, keep)
    rows, cols = (target.sum(k) for k in (1, 0))
    moved = torch.bincount(classes.flatten(), target.flatten())
    null = (rows[:, None] > 0) & (cols > 0) & (moved > 0)[classes]
    null = null.to(target)

    def factor(wanted: Tensor, found: Tensor) -> Tensor:
        return torch.where(wanted > 0, wanted / found.clamp(min=1e-300), 0)

    for _ in range(iterations):
        null *= factor(rows, null.sum(1))[:, None]
        null *= factor(cols, null.sum(0))
        found = torch.bincount(classes.flatten(), null.flatten(), len(moved))
        null *= factor(moved, found)[classes]
        # The last totals are exact now; the other two say how far the fit is.
        off = max(
            float((null.sum(1) - rows).abs().sum()),
            float((null.sum(0) - cols).abs().sum()),
        )
        if off < tolerance * float(total):
            return null.view(relevance.shape)
    raise RuntimeError(
        f"the null's totals still deviate by {off / float(total):.1e} after {iterations} rounds, "
        f"more than tolerance={tolerance:g}; allow more rounds or a larger tolerance"
    )


class Displaced(NamedTuple):
    """Shares of the positive relevance on true pairs and on their opposites."""

    true: float
    opposite: float

    @property
    def ratio(self) -> float:
        """True over opposite: 1 where only nearness counts; infinite where nothing is opposite."""
        return self.true / self.opposite if self.opposite else float("inf" if self.true else "nan")


def opposite_displacement(relevance: Tensor, pairs: Tensor) -> Displaced:
    """What lies on true pairs (p, p + d), and what on the pairs displaced the other way (p, p - d).

    Both are equally far apart. So a method that knows only how near patches are gives both the
    same. Left out are true pairs at equal places, and those whose opposite is outside the grid.

    Parameters
    ----------
    relevance : Tensor (G, G) or (h, w, h, w)
        Scores of pairs of groups in a row, or of patches on two equal grids.
    pairs : Tensor of bool
        Of the same shape: the pairs that correspond.

    Returns
    -------
    Displaced
        Shares `true` and `opposite` of all positive relevance, and their `ratio`.

    Raises
    ------
    ValueError
        As `marginal_null`; if the grids or shapes differ, `pairs` holds no bool, or no pair is
        left.
    """
    table, shape = _table(relevance)
    _check_pairs(relevance, pairs)
    if shape[0] != shape[1]:
        raise ValueError(f"both grids must be alike to turn a displacement, got {shape}")
    place = _places(shape[0], table.device)
    p, q = pairs.to(table.device).view_as(table).nonzero().T
    step = place[q] - place[p]
    other = place[p] - step
    size = torch.tensor(shape[0], device=table.device)
    kept = ((other >= 0) & (other < size)).all(1) & (step != 0).any(1)
    if not bool(kept.any()):
        raise ValueError(
            f"of {len(p)} true pairs none has moved and has its opposite within the grid {shape[0]}"
        )
    stride = torch.tensor([shape[0][1], 1], device=table.device)
    opposite = torch.zeros_like(table, dtype=torch.bool)
    opposite[p[kept], (other[kept] * stride).sum(1)] = True
    true = torch.zeros_like(opposite)
    true[p[kept], q[kept]] = True
    return Displaced(*(float(table[mask].sum() / table.sum()) for mask in (true, opposite)))


class ControlledShare(NamedTuple):
    """A share of the positive relevance on given pairs, beside its nulls; all between 0 and 1.

    Attributes
    ----------
    share : float
        Of the explanation.
    area : float
        Of a table that is the same everywhere: the number of given pairs over that of all.
    marginals : float
        Of `marginal_null`.
    locality : float
        Of `locality_null`.
    """

    share: float
    area: float
    marginals: float
    locality: float

    @property
    def above(self) -> float:
        """How far the share lies above the strictest null, as a difference of shares."""
        return self.share - max(self.area, self.marginals, self.locality)

    @staticmethod
    def header(label: str = "", width: int = 24) -> str:
        """The line above the rows."""
        return f"{label:{width}}{'share':>9}{'locality':>10}{'marginals':>11}{'area':>8}"

    def row(self, label: str = "", width: int = 24) -> str:
        """One printed line, in per cent."""
        return (
            f"{label:{width}}{self.share:9.1%}{self.locality:10.1%}{self.marginals:11.1%}"
            f"{self.area:8.1%}"
        )


def controlled_share(
    relevance: Tensor, pairs: Tensor, keep: str = "displacement", tolerance: float = 1e-4
) -> ControlledShare:
    """The share of the positive relevance on given pairs, with the shares that its nulls reach.

    Parameters
    ----------
    relevance : Tensor (G, G') or (h, w, h', w')
        Scores of pairs of groups in a row, or of patches on two grids.
    pairs : Tensor of bool
        Of the same shape: the pairs that count, such as true correspondences.
    keep, tolerance
        What the locality null keeps, and how exactly; see `locality_null`.

    Raises
    ------
    ValueError, RuntimeError
        As `locality_null`; if the shapes differ or `pairs` holds no bool.

    Examples
    --------
    >>> print(ControlledShare.header(), controlled_share(e.relevance, true).row("layer 17"))
    """
    _table(relevance)
    _check_pairs(relevance, pairs)
    nulls = (marginal_null(relevance), locality_null(relevance, keep, tolerance))
    chosen = pairs.to(relevance.device)
    return ControlledShare(
        share_on(relevance, chosen),
        float(pairs.double().mean()),
        *(share_on(null, chosen) for null in nulls),
    )


Grid = tuple[int, int]


def _table(relevance: Tensor) -> tuple[Tensor, tuple[Grid, Grid]]:
    """The positive scores as a matrix in float64, and the grids of both sides."""
    if not isinstance(relevance, Tensor) or relevance.dim() not in (2, 4):
        what = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance).__name__
        raise ValueError(f"scores of pairs are a tensor (G, G') or (h, w, h', w'), got {what}")
    if not bool(torch.isfinite(relevance).all()):
        raise ValueError("the scores hold NaN or infinite values")
    half = relevance.dim() // 2
    first, second = relevance.shape[:half], relevance.shape[half:]
    grids = ((1, *first)[-2:], (1, *second)[-2:])  # a row is a grid of height 1
    table = relevance.detach().double().clamp(min=0).flatten(half).flatten(0, half - 1)
    if not float(table.sum()) > 0:
        raise ValueError("no relevance is positive, so there is nothing to share out")
    return table, grids


def _check_pairs(relevance: Tensor, pairs: Tensor) -> None:
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.bool:
        raise ValueError(
            "pairs must be a tensor of bool, such as correspondence(...) > 0.2; got "
            f"{getattr(pairs, 'dtype', type(pairs).__name__)}"
        )
    if pairs.shape != relevance.shape:
        raise ValueError(
            f"pairs {tuple(pairs.shape)} and relevance {tuple(relevance.shape)} differ in shape"
        )


def _places(grid: Grid, device: torch.device) -> Tensor:
    """Row and column of each patch, (patches, 2)."""
    return torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid))


def _displacements(shape: tuple[Grid, Grid], device: torch.device, keep: str) -> Tensor:
    """The number of the displacement class of each pair, (patches, patches')."""
    first, second = (_places(grid, device) for grid in shape)
    step = second - first[:, None]
    if keep == "distance":
        key = step.square().sum(2)
    else:
        key = step[..., 0] * 2 * (max(shape[0] + shape[1]) + 1) + step[..., 1]
    return key.unique(return_inverse=True)[1]
