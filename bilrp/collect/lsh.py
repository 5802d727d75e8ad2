"""One set of hash codes for many similarities: mp-LSH.

The similarity that is asked for is a sum over groups g of features, whose weights and kinds are
chosen when the query comes:

    s(q, x) = sum_g  w_dot <q_g, x_g> + w_cos cos(q_g, x_g) - w_l2 ||q_g - x_g||^2 .

Two of the paper's variants. *Vector augmentation* writes s as one inner product of longer vectors
and hashes those: one code, one Hamming distance, but small weights drown in the code's noise. *Code
concatenation* keeps a code for each group and weighs what the codes say.

Source
------
Pronobis et al. (2018), "Sharing hash codes for multiple purposes"; sign codes: Charikar (2002).
Written from the paper's idea; its third variant, a cover tree over the codes, is not here, so time
grows with N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp._checks import check_whole
from bilrp.collect.search import Hits, refuse_query, refuse_spoiled, similarities


@dataclass(frozen=True)
class Weights:
    """What is asked for in one group of features; all must be >= 0."""

    dot: float = 0.0
    cosine: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= w < math.inf for w in (self.dot, self.cosine, self.l2)):
            raise ValueError(f"weights must be finite and >= 0, got {self}")


def mixed(
    query: Tensor, features: Tensor, groups: Sequence[slice], weights: Sequence[Weights]
) -> Tensor:
    """The similarity that is asked for, from the features themselves: (Q, N).

    Up to float32's rounding; see `similarities` for the three kinds.
    """
    total = query.new_zeros(len(query), len(features))
    for g, w in zip(groups, weights, strict=True):
        q, x = query[:, g], features[:, g]
        for kind, weight in (("dot", w.dot), ("cosine", w.cosine), ("-l2", w.l2)):
            if weight:
                total += weight * similarities(q, x, kind)
    return total


class MultiHash:
    """Codes of a collection, made once; similarity and weights come with the query.

    Parameters
    ----------
    features : Tensor (N, M)
    groups : sequence of slice, optional
        Groups of features; default: one, of all.
    bits : int
        Of all codes of one input together.
    variant : str
        "concatenated" or "augmented".
    seed : int
        Of the random hyperplanes.

    Raises
    ------
    ValueError
        For groups that do not cover the features, fewer bits than groups, another variant, or
        features that are not finite.
    """

    def __init__(
        self,
        features: Tensor,
        groups: Sequence[slice] | None = None,
        bits: int = 256,
        variant: str = "concatenated",
        seed: int = 0,
    ) -> None:
        refuse_spoiled(features)
        self.size = size = features.shape[1]
        self.groups = [slice(0, size)] if groups is None else list(groups)
        covered = [n for g in self.groups for n in range(size)[g]]
        if sorted(covered) != list(range(size)):
            raise ValueError(f"the groups must hold each of the {size} features once")
        if variant not in ("concatenated", "augmented"):
            raise ValueError(f'variant must be "concatenated" or "augmented", got {variant!r}')
        if bits < len(self.groups):
            raise ValueError(f"{bits} bits are too few for {len(self.groups)} groups")
        self.variant, self.bits = variant, bits
        generator = torch.Generator().manual_seed(seed)
        if variant == "augmented":
            # norms of one, for the kinds to be comparable
            self.scale = float(features.norm(dim=1).max()) or 1.0
            long = self._lengthened(features / self.scale)
            self.top = float(long.norm(dim=1).max())
            rest = (self.top**2 - (long**2).sum(1)).clamp(min=0).sqrt()
            self.planes = [torch.randn(long.shape[1] + 1, bits, generator=generator)]
            self.codes = [_signs(torch.cat([long, rest[:, None]], 1), self.planes[0])]
            return
        each = bits // len(self.groups)
        self.planes, self.codes, self.norms = [], [], []
        for g in self.groups:
            x = features[:, g]
            self.planes.append(torch.randn(x.shape[1], each, generator=generator))
            self.codes.append(_signs(x, self.planes[-1]))
            self.norms.append(x.norm(dim=1))

    @property
    def bytes(self) -> int:
        """Of what is kept for one input: codes, and a norm of 4 bytes for each group."""
        norms = 0 if self.variant == "augmented" else 4 * len(self.groups)
        return sum(math.ceil(c.shape[1] / 8) for c in self.codes) + norms

    def scores(self, query: Tensor, weights: Weights | Sequence[Weights]) -> Tensor:
        """Estimates of the similarity that is asked for, (Q, N); "augmented": equal bits.

        Raises
        ------
        ValueError
            If there are not as many weights as groups, or the query is not finite or of another
            length.
        """
        refuse_query(query, self.size)
        weights = [weights] * len(self.groups) if isinstance(weights, Weights) else weights
        if len(weights) != len(self.groups):
            raise ValueError(f"{len(weights)} weights for {len(self.groups)} groups")
        if self.variant == "augmented":
            long = self._asked(query / self.scale, weights)
            code = _signs(F.pad(long, (0, 1)), self.planes[0])
            return _agreement(code, self.codes[0])
        total = query.new_zeros(len(query), len(self.codes[0]))
        for n, (g, w) in enumerate(zip(self.groups, weights, strict=True)):
            q = query[:, g]
            agree = _agreement(_signs(q, self.planes[n]), self.codes[n])
            cosine = torch.cos(math.pi * (1 - agree))
            a, b = q.norm(dim=1)[:, None], self.norms[n]
            dot = a * b * cosine
            total += w.dot * dot + w.cosine * cosine - w.l2 * (a**2 + b**2 - 2 * dot)
        return total

    def nearest(self, query: Tensor, k: int, weights: Weights | Sequence[Weights]) -> Hits:
        """The k most similar by the codes alone (ValueError if k is not 1 to N)."""
        k = check_whole("k", k, 1, len(self.codes[0]))
        found = self.scores(query, weights).sort(dim=1, descending=True, stable=True)
        return Hits(found.indices[:, :k], found.values[:, :k])

    def _lengthened(self, x: Tensor) -> Tensor:
        """Of each group: itself, its direction, its squared norm."""
        parts = []
        for g in self.groups:
            v = x[:, g]
            parts += [v, F.normalize(v, dim=1), (v**2).sum(1, keepdim=True)]
        return torch.cat(parts, 1)

    def _asked(self, q: Tensor, weights: Sequence[Weights]) -> Tensor:
        """What has, with `_lengthened`, the wanted similarity as inner product, but for a constant.

        Weights mean the same as in `mixed`, so those of dot and l2 take back the scale.
        """
        parts = []
        for g, w in zip(self.groups, weights, strict=True):
            v, s = q[:, g], self.scale**2
            parts += [
                s * (w.dot + 2 * w.l2) * v,
                w.cosine * F.normalize(v, dim=1),
                torch.full_like(v[:, :1], -s * w.l2),
            ]
        return torch.cat(parts, 1)


def _signs(x: Tensor, planes: Tensor) -> Tensor:
    return x @ planes > 0


def _agreement(code: Tensor, codes: Tensor) -> Tensor:
    """Share of equal bits, (Q, N)."""
    a, b = (2.0 * c.float() - 1 for c in (code, codes))
    return (a @ b.T / code.shape[1] + 1) / 2
