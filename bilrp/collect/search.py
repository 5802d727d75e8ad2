"""The most similar of a collection: exactly, by blocks; or nearly, by faiss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp._checks import check_whole, is_whole
from bilrp._names import needs
from bilrp.collect.store import Store

SIMILARITIES = ("dot", "cosine", "-l2")
BLOCK = 4096  # rows compared at once where all features are in memory


@dataclass(frozen=True, eq=False)
class Hits:
    """The most similar of a collection, best first.

    Attributes
    ----------
    indices : Tensor (Q, k) of int64
    scores : Tensor (Q, k), float32
        Similarities; of approximate searches, what these make of them.
    """

    indices: Tensor
    scores: Tensor


def similarities(query: Tensor, features: Tensor, similarity: str = "dot") -> Tensor:
    """Similarities of Q queries (Q, D) and N inputs (N, D): (Q, N).

    Parameters
    ----------
    query, features : Tensor
    similarity : str
        "dot"; "cosine", 0 where a vector is 0; "-l2", minus the squared distance, from the
        differences themselves: by the dot product, what is near would cancel.

    Raises
    ------
    ValueError
        For another name, or features of different length.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
    _refuse_other_length(query, features.shape[-1])
    if similarity == "cosine":
        return of_length_one(query) @ of_length_one(features).T
    if similarity == "-l2":
        return -(torch.cdist(query, features, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
    return query @ features.T


def _refuse_other_length(query: Tensor, size: int) -> None:
    if query.shape[-1] != size:
        raise ValueError(
            f"the query has {query.shape[-1]} features, the collection {size}: they must come from "
            "one model, and from inputs of one size"
        )


def refuse_query(query: Tensor, size: int) -> None:
    """ValueError for a query that is not finite or has not so many features."""
    _refuse_other_length(query, size)
    if not bool(torch.isfinite(query).all()):
        raise ValueError("the query holds NaN or infinite features: nothing is nearest to it")


def refuse_spoiled(features: Tensor) -> None:
    """ValueError for rows (N, D) that are not finite."""
    spoiled = (~torch.isfinite(features)).any(1).nonzero()[:, 0].tolist()
    if spoiled:
        raise ValueError(
            f"the features of {len(spoiled)} inputs, the first of them {spoiled[0]}, hold NaN or "
            "infinity: leave these out"
        )


def of_length_one(rows: Tensor) -> Tensor:
    """Rows (N, D) over their norms, however small; a row of 0 stays."""
    # scaled by a power of two, which rounds nothing: squares of what is tiny would be 0
    most = -int(math.log2(torch.finfo(rows.dtype).tiny))
    exponent = torch.frexp(rows.abs().amax(1, keepdim=True)).exponent.clamp(-most, most)
    return F.normalize(torch.ldexp(rows, -exponent.to(rows.dtype)), dim=1)


@torch.no_grad()
def nearest(
    collection: Store | Tensor,
    query: Tensor,
    k: int = 5,
    similarity: str = "dot",
    without: Iterable[int] = (),
) -> Hits:
    """The k most similar inputs, exactly.

    Parameters
    ----------
    collection : Store or Tensor (N, D)
    query : Tensor (D,) or (Q, D)
        Features, such as `store.query(x)`.
    k : int
        At most as many as there are.
    similarity : str
        See `similarities`.
    without : iterable of int
        Inputs that shall not be returned, such as the query itself.

    Returns
    -------
    Hits
        Scores are rounded to float32, so inputs that are equally similar but for rounding may come
        in either order; of equal scores the first input comes first. Inputs that could not be used
        never come.

    Raises
    ------
    ValueError
        If k is not 1 to the number of inputs, for another similarity, features of another length,
        numbers that are not finite, or a number in `without` that no input has.
    StoreError
        If the store is not complete, or damaged.
    """
    query = query[None] if query.dim() == 1 else query
    if not bool(torch.isfinite(query).all()):
        raise ValueError("the query holds NaN or infinite features: nothing is nearest to it")
    left_out = _numbers(without, len(collection))
    if isinstance(collection, Store):
        blocks, left_out = collection.blocks(), left_out | set(collection.bad)
    else:
        parts = collection.split(BLOCK)
        blocks = ((n * BLOCK, part) for n, part in enumerate(parts))
    most = len(collection) - len(left_out)
    if not is_whole(k, 1, most):
        raise ValueError(f"k must be from 1 to the {most} inputs that can be found, got {k!r}")
    scores = query.new_empty(len(query), 0, dtype=torch.float32)
    indices = torch.empty(len(query), 0, dtype=torch.int64)
    for first, block in blocks:
        found = similarities(query.float(), block.float(), similarity)
        spoiled = (~torch.isfinite(found)).any(0).nonzero()[:, 0].tolist()
        spoiled = [first + i for i in spoiled if first + i not in left_out]
        if spoiled:
            raise ValueError(
                f"the similarities with input {spoiled[0]} are not finite: its features are NaN, "
                "infinite or too large for float32; mend them, or name it in `without`"
            )
        numbers = torch.arange(first, first + len(block))
        hidden = [i - first for i in left_out if first <= i < first + len(block)]
        found[:, hidden] = -torch.inf
        scores = torch.cat([scores, found], 1)
        indices = torch.cat([indices, numbers.expand(len(query), -1)], 1)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        scores, indices = scores.gather(1, best), indices.gather(1, best)
    return Hits(indices, scores)


def _numbers(without: Iterable[int], count: int) -> set[int]:
    """Numbers of inputs as Python's: a tensor equals no key of a set but itself."""
    given = (i.item() if isinstance(i, Tensor) and i.dim() == 0 else i for i in without)
    return {check_whole("each number in `without`", i, 0, count - 1) for i in given}


def recall(found: Tensor, true: Tensor) -> float:
    """Share of the true hits (Q, k) that are among the found ones (Q, any number)."""
    if found.dim() != 2 or true.dim() != 2 or len(found) != len(true):
        raise ValueError(
            f"give hits of the same queries: {tuple(found.shape)}, {tuple(true.shape)}"
        )
    return float((true[:, :, None] == found[:, None]).any(2).float().mean())


class FaissIndex:
    """An index of faiss over features, for approximate search.

    Parameters
    ----------
    features : Tensor (N, D) or Store
    similarity : str
        Fixed here: what the index is built for.
    kind : str
        A description for `faiss.index_factory`: "HNSW32" is a graph of neighbours, "RR256,LSH" sign
        codes of 256 bits, "IVF64,Flat" lists around 64 centres, "Flat" exact. Scores of sign codes
        are minus Hamming distances.

    Raises
    ------
    ValueError
        For another similarity, or features that are not finite.
    """

    def __init__(
        self, features: Tensor | Store, similarity: str = "cosine", kind: str = "HNSW32"
    ) -> None:
        with needs("collect"):
            import faiss

        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
        self.similarity = similarity
        self.numbers = None
        if isinstance(features, Store):
            self.numbers = features.good.nonzero()[:, 0]
            features = features.features()[self.numbers]
        refuse_spoiled(features)
        self.distances = similarity == "-l2" or "LSH" in kind
        metric = faiss.METRIC_L2 if self.distances else faiss.METRIC_INNER_PRODUCT
        self.index = faiss.index_factory(features.shape[1], kind, metric)
        values = self._prepared(features)
        self.index.train(values)
        self.index.add(values)

    def _prepared(self, features: Tensor):
        features = of_length_one(features) if self.similarity == "cosine" else features
        return features.float().contiguous().numpy()

    def nearest(self, query: Tensor, k: int = 5) -> Hits:
        """Nearly the k most similar; -1 where faiss found fewer.

        Raises
        ------
        ValueError
            If k is no whole number >= 1, or the query is not finite or of another length.
        """
        k = check_whole("k", k)
        refuse_query(query, self.index.d)
        query = query[None] if query.dim() == 1 else query
        scores, indices = map(torch.from_numpy, self.index.search(self._prepared(query), k))
        if self.numbers is not None:
            indices = torch.where(indices >= 0, self.numbers[indices.clamp(min=0)], -1)
        return Hits(indices, -scores if self.distances else scores)
