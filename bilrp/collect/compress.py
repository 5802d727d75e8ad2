"""Small factors: half precision, low rank, a common basis; each knows its error.

For factors A and B, and what is kept of them, A + E and B + F, the explanation is off by

    ||(A + E)(B + F)^T - A B^T||  <=  ||E|| ||B||_2 + ||A||_2 ||F|| + ||E|| ||F||

in the Frobenius norm, with the largest singular values ||A||_2 and ||B||_2. All four numbers are
known when a factor is packed, so the bound of any pair is known without the factors themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilrp._checks import is_whole
from bilrp.engine.factors import Factor, Identity
from bilrp.engine.windows import Span

LOST = "packing"  # the owner of what a packed factor leaves out


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions of the feature space that many factors are kept in.

    Attributes
    ----------
    rows : Tensor (rank, M), float32
        Orthonormal.
    """

    rows: Tensor

    @property
    def name(self) -> str:
        """Rank and checksum."""
        digest = hashlib.sha256(self.rows.contiguous().numpy().tobytes()).hexdigest()
        return f"basis {len(self.rows)} ({digest[:12]})"


def common_basis(factors: Iterable[Factor], rank: int) -> Basis:
    """The directions that hold most of some factors, one factor at a time.

    Parameters
    ----------
    factors : iterable of Factor
        A sample of the collection; one is in memory at a time.
    rank : int
        How many directions.

    Raises
    ------
    ValueError
        If rank is not positive, or more than all rows of the factors.

    Notes
    -----
    After each factor the best `rank` directions of those so far and the new rows are kept, each
    with its weight. What is dropped on the way is lost, so the result is near the best basis of all
    rows, not equal to it.
    """
    kept: Tensor | None = None
    for f in factors:
        rows = torch.cat([f.dense(), f.absorbed]).double()
        rows = rows if kept is None else torch.cat([kept, rows])
        kept = _directions(rows, rank, weighted=True)
    if rank < 1 or kept is None or len(kept) < rank:
        raise ValueError(f"rank must be from 1 to the rows of all factors, got {rank}")
    return Basis(torch.nn.functional.normalize(kept, dim=1).float())


def _directions(rows: Tensor, rank: int, weighted: bool = False) -> Tensor:
    """The best `rank` directions of some rows, orthonormal or times their singular values."""
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    sizes = values[-rank:].flip(0).clamp(min=0).sqrt()
    solid = sizes > 1e-7 * sizes[0]
    found = (vectors[:, -rank:].flip(1).T @ rows)[solid]
    return found if weighted else found / sizes[solid, None]


@dataclass(frozen=True, eq=False)
class Packed:
    """A factor as it is kept, and what is known of its error.

    Attributes
    ----------
    arrays : dict of str to ndarray
        The numbers, as they lie on disk.
    about : dict
        What they mean: "kind", "grid", "owners", "feature_shape", "spans", "scales", "error",
        "norm".
    identity : Identity
    basis : Basis or None
        For the kind "basis".
    """

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    identity: Identity
    basis: Basis | None = None

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, np.ndarray],
        about: Mapping[str, Any],
        identity: Identity,
        basis: Basis | None,
    ) -> Packed:
        """Put together what was read from disk."""
        return cls(arrays, about, identity, basis if about["kind"] == "basis" else None)

    @property
    def error(self) -> float:
        """||E||: how far the kept factor is from the factor, in the Frobenius norm."""
        return self.about["error"]

    @property
    def norm(self) -> float:
        """||A||_2: the largest singular value of the factor."""
        return self.about["norm"]

    @property
    def bytes(self) -> int:
        """Of all its numbers, before any lossless compression, a common basis not counted."""
        return sum(values.nbytes for values in self.arrays.values())

    def bound(self, other: Packed) -> float:
        """The most that R of the two can be off, in the Frobenius norm.

        In exact arithmetic; float32 products round besides, by some 1e-6 of the norms.
        """
        return self.error * other.norm + self.norm * other.error + self.error * other.error

    def factor(self) -> Factor:
        """The factor, to explain with; what was left out is an owner of its own in the ledger."""
        about = self.about
        found = {name: self._unpacked(name) for name in self.arrays}
        spans = None
        if about["kind"] in ("exact", "float16"):
            values, absorbed = found["values"], found["absorbed"]
            pairs = about["spans"]
            spans = (_span(pairs[0]), _span(pairs[1])) if pairs else None
        else:
            rows = found["rows"] if self.basis is None else self.basis.rows
            values, absorbed = found["values"] @ rows, found["absorbed"] @ rows
        f = Factor(
            values=values,
            grid=tuple(about["grid"]),
            absorbed=absorbed,
            owners=tuple(about["owners"]),
            features=found["features"],
            feature_shape=tuple(about["feature_shape"]),
            spans=spans,
            identity=self.identity,
        )
        if about["kind"] == "exact":
            return f
        lost = f.features.double() - f.owned().sum(0)
        return replace(
            f,
            absorbed=torch.cat([f.absorbed, lost.to(f.absorbed)[None]]),
            owners=(*f.owners, LOST),
        )

    def _unpacked(self, name: str) -> Tensor:
        values = torch.from_numpy(np.ascontiguousarray(self.arrays[name]))
        scale = self.about["scales"].get(name)
        return values if scale is None else values.float() * scale


def pack(f: Factor, how: str | int | Basis = "exact") -> Packed:
    """Make a factor small.

    Parameters
    ----------
    f : Factor
        Not projected.
    how : "exact", "float16", int or Basis
        As it is; half precision; the best rank of so many, in half precision; the coefficients in
        a common basis, in half precision.

    Returns
    -------
    Packed
        Its `error` is measured on what is kept, rounding included.

    Raises
    ------
    ValueError
        For anything else, a rank below 1, or a basis of another number of features.
    """
    if f.exact is not None:
        raise ValueError("a projected factor is small already: pack the exact one")
    dense = f.dense().double()
    about: dict[str, Any] = {
        "grid": list(f.grid),
        "owners": list(f.owners),
        "feature_shape": list(f.feature_shape),
        "spans": f.spans and [[list(s.starts), s.size] for s in f.spans],
        "norm": float(torch.linalg.eigvalsh(dense @ dense.T)[-1].clamp(min=0).sqrt()),
    }
    tensors = {"values": f.values, "absorbed": f.absorbed}
    basis = how if isinstance(how, Basis) else None
    if how == "exact" or how == "float16":
        about["kind"] = how
    elif basis is not None or is_whole(how):
        about |= {"kind": "rank" if basis is None else "basis", "spans": None}
        rows = how.rows.double() if isinstance(how, Basis) else _directions(dense, int(how))
        if rows.shape[1] != dense.shape[1]:
            raise ValueError(
                f"the basis is of {rows.shape[1]} features, the factor of {dense.shape[1]}"
            )
        tensors = {"values": dense @ rows.T, "absorbed": f.absorbed.double() @ rows.T}
        if basis is None:
            tensors["rows"] = rows
    else:
        raise ValueError(f'how must be "exact", "float16", a rank >= 1 or a Basis, got {how!r}')
    scales: dict[str, float] = {}
    arrays = {"features": f.features.cpu().numpy()}
    for name, t in tensors.items():
        if how == "exact":
            arrays[name] = t.cpu().numpy()
        else:
            most = float(t.abs().max()) if t.numel() else 0.0  # without biases nothing is absorbed
            scales[name] = most / 1024 or 1.0
            arrays[name] = (t / scales[name]).cpu().to(torch.float16).numpy()
    about |= {"scales": scales, "arrays": sorted(arrays), "error": 0.0}
    packed = Packed(arrays, about, f.identity, basis)
    if how != "exact":
        about["error"] = float((packed.factor().dense().double() - dense).norm())
    return packed


def _span(saved: tuple[list[int], int]) -> Span:
    return Span(tuple(saved[0]), saved[1])
