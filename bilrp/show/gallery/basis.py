"""Short rows of coordinates that stand for the long rows of factors: all inputs' joint basis."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # rows of a product at a time
TRIES = 3  # at rounding more finely, before more directions are taken
ROOM = 0.25  # of the error that is allowed: what rounding needs
MORE = 200  # directions that are looked at beyond those that are kept

# For each place of the features' map, the rows that are not zero there, and what they hold.
Rows = list[tuple[np.ndarray, np.ndarray]]


def rows_by_place(values: Tensor, absorbed: Tensor, channels: int) -> Rows:
    """A factor without its zeros: the cone of a patch reaches few places of a lower layer's map.

    Parameters
    ----------
    values : Tensor (patches, channels * places)
        A factor, as `Factor.dense` gives it.
    absorbed : Tensor (sinks, channels * places)
        What biases and other sinks own. They become one row, the last.
    channels : int
    """
    both = torch.cat([values, absorbed.sum(0, keepdim=True, dtype=torch.float64).to(values)])
    both = both.unflatten(1, (channels, -1)).permute(2, 0, 1).contiguous()
    found = []
    for here in both:
        rows = here.any(1).nonzero()[:, 0]
        found.append((rows.numpy(), here[rows].numpy()))
    return found


def gram(inputs: Sequence[Rows], counts: Sequence[int]) -> Tensor:
    """Products of all rows of all inputs with each other, in float32; counts: rows of each."""
    starts = np.cumsum([0, *counts])
    n = int(starts[-1])
    total = torch.zeros(n, n)
    for places in zip(*inputs, strict=True):
        at = np.concatenate(
            [start + rows for start, (rows, _) in zip(starts, places, strict=False)]
        )
        a = torch.from_numpy(np.concatenate([values for _, values in places]))
        if len(at) < n:
            row = torch.from_numpy(at)
            total[row[:, None], row] += a @ a.T
        else:  # nothing to pick, and half of it is enough
            for k in range(0, n, BLOCK):
                total[k : k + BLOCK, k:].addmm_(a[k : k + BLOCK], a[k:].T)
    return total.triu() + total.triu(1).T


@dataclass(frozen=True)
class Stored:
    """Short rows that stand for long ones: their products are nearly the same.

    Attributes
    ----------
    codes : list of ndarray of int16 (rows of an input, width)
    steps : ndarray of float32 (width,)
        By which the codes of a direction are multiplied.
    scales : ndarray of float32 (inputs,)
        By which all rows of an input are multiplied.
    owners : ndarray of float64 (2 inputs, 2 inputs)
        Exact products of the sums that the ledger is made of: of the patches of each input, then of
        its biases.
    met : ndarray of bool (patches, patches), or None
        Pairs of patches that some feature sees both of, where all inputs have the same grid; the
        scores of all others are zero, exactly, and need not be computed.
    errors : ndarray of float64 (inputs, inputs)
        Norm of the error of the scores of each pair, over the norm of the scores.
    """

    codes: list[np.ndarray]
    steps: np.ndarray
    scales: np.ndarray
    owners: np.ndarray
    met: np.ndarray | None
    errors: np.ndarray

    @property
    def width(self) -> int:
        return len(self.steps)

    def rows(self, k: int) -> Tensor:
        """The coordinates of an input's patches and, last, its biases, as the browser has them."""
        return torch.from_numpy(self.codes[k] * self.steps * self.scales[k])


def store(products: Tensor, counts: Sequence[int], width: int, most: float) -> Stored:
    """Coordinates of all rows in a basis that the inputs have in common, as whole numbers.

    Parameters
    ----------
    products : Tensor (rows, rows)
        As `gram` makes it.
    counts : sequence of int
        Rows of each input, its biases the last.
    width : int
        Directions to begin with; where these do not suffice, more are taken.
    most : float
        Error that no pair of inputs may exceed: norm of the error of all its scores, over the norm
        of the scores.

    Raises
    ------
    ValueError
        If that error cannot be reached, or two inputs have no scores to compare it with.

    Notes
    -----
    The directions are the principal axes of all rows, each input scaled so that the scores of all
    pairs have about the same norm, since errors are judged relative to that. An error
    e of one input along an axis meets the coordinates of the other: in the squares of the scores it
    counts as lambda e^2, with lambda their variance. For a given number of bits that sum is least
    where lambda e^2 is the same along all axes, so the steps are as 1 / sqrt(lambda): strong
    directions are stored finely, and the codes of weak ones are small and take few bits.
    """
    starts = np.cumsum([0, *counts])
    patches = [slice(a, b - 1) for a, b in itertools.pairwise(starts)]
    sizes = _sizes(products, patches)
    each = sizes.repeat_interleave(torch.tensor(counts))
    scaled, met = products / (each[:, None] * each), _met(products, counts)
    norms = torch.tensor([[float(scaled[p, q].norm()) for q in patches] for p in patches])
    if not (norms > 0).all() or not norms.isfinite().all():
        raise ValueError("the scores of some pair are all zero, or not finite")
    width = min(width, len(scaled))
    while True:
        axes = _coordinates(scaled, width)
        cut = _errors(scaled, axes, patches, met) / norms  # by directions that are left out
        part = 0.97 * _room(cut, norms, most)
        for _ in range(TRIES if part else 0):
            codes, steps = _rounded(axes, part * float(norms.min()), counts, met)
            errors = _errors(scaled, codes * steps, patches, met) / norms
            if errors.max() <= most:
                return Stored(
                    codes=[c.to(torch.int16).numpy() for c in codes.split(list(counts))],
                    steps=steps.numpy(),
                    scales=sizes.numpy(),
                    owners=_owners(products, patches),
                    met=None if met is None else met.numpy(),
                    errors=errors.numpy(),
                )
            part *= 0.8
        if width == len(scaled):
            worst = (errors if part else cut).max()
            raise ValueError(f"no pair may be off by more than {most}; one is by {worst:.4f}")
        width = min(len(scaled), width + width // 8 + 1)


def _room(cut: Tensor, norms: Tensor, most: float) -> float:
    """What rounding may add to the error of the pair with the least scores, 0 where too little.

    It adds about the same norm to the scores of each pair, and squares of errors add up.
    """
    left = (most**2 - cut.square()).clamp(min=0).sqrt() * norms / norms.min()
    room = float(left.min())
    return room if room > ROOM * most else 0.0


def _rounded(
    axes: Tensor, most: float, counts: Sequence[int], met: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Whole numbers and their steps, so that rounding adds about `most` to the norm of the scores.

    Rounding adds 2 lambda step^2 / 12 to the square of a score for each axis.
    """
    ends = np.cumsum(counts) - 1
    variance = axes[np.setdiff1d(np.arange(len(axes)), ends)].square().mean(0)
    scores = max(counts) ** 2 * (1.0 if met is None else float(met.float().mean()))
    steps = most / (scores * axes.shape[1] / 6 * variance.clamp(min=1e-12)).sqrt()
    steps = torch.maximum(steps, axes.abs().amax(0) / np.iinfo(np.int16).max)
    codes = (axes / steps).round()
    used = (codes != 0).any(0)
    return codes[:, used], steps[used]


def _errors(products: Tensor, rows: Tensor, patches: Sequence[slice], met: Tensor | None) -> Tensor:
    """Norms of the errors of the scores of all pairs, if rows stand for those of `products`.

    Where no feature sees both patches, the score is known to be zero and is not computed.
    """
    norms = torch.zeros(len(patches), len(patches))
    for i, p in enumerate(patches):
        first = p.start
        error = torch.addmm(products[p, first:], rows[p], rows[first:].T, beta=-1)
        for j, q in enumerate(patches[i:], i):
            block = error[:, q.start - first : q.stop - first]
            norms[i, j] = norms[j, i] = (block if met is None else block * met).norm()
    return norms


def _sizes(products: Tensor, patches: Sequence[slice]) -> Tensor:
    """Sizes of the inputs, s: the norm of the scores of a pair is about s_i s_j (least squares)."""
    logs = torch.tensor([[float(products[p, q].norm()) for q in patches] for p in patches]).log()
    n = len(patches)
    if n < 3:
        return (logs.diagonal() / 2).exp()
    sums = logs.sum(1) - logs.diagonal()  # of the pairs with others
    return ((sums - sums.sum() / (2 * (n - 1))) / (n - 2)).exp()


def _coordinates(products: Tensor, width: int) -> Tensor:
    """Rows (rows, width) whose products come near to these, on their principal axes."""
    if width + MORE >= len(products):
        values, vectors = torch.linalg.eigh(products)
        return (vectors * values.clamp(min=0).sqrt()).flip(1)[:, :width]
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(products), width + MORE, generator=generator)
    basis = torch.linalg.qr(products @ basis)[0]  # Halko et al. (2011), one round
    seen = products @ basis
    small = basis.T @ seen
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    return seen @ vectors / values.clamp(min=float(values[0]) * 1e-7).sqrt()


def _met(products: Tensor, counts: Sequence[int]) -> Tensor | None:
    """Which pairs of patches have a product that is not zero, in any pair of inputs."""
    if len(set(counts)) > 1:
        return None
    n = counts[0]
    blocks = products.unflatten(0, (-1, n)).unflatten(2, (-1, n))[:, : n - 1, :, : n - 1]
    return torch.stack([(row != 0).any(1) for row in blocks]).any(0)


def _owners(products: Tensor, patches: Sequence[slice]) -> np.ndarray:
    """Exact products of the sums of patches and of the biases of all inputs."""
    cells = [*patches, *(slice(p.stop, p.stop + 1) for p in patches)]
    sums = [[float(products[a, b].sum(dtype=torch.float64)) for b in cells] for a in cells]
    return np.array(sums)
