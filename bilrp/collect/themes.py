"""Themes: what kinds of reasons make the pairs of a collection similar.

As SpRAy does for explanations of single predictions (Lapuschkin et al. 2019), the explanations of
many pairs are brought into one frame and clustered. The frame of SpRAy is the picture, which asks
for things to stand where they stood. Here it is the feature space: for each pair, which features
do its strong pairs of patches share? That does not depend on where the patches lie or how many
there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp._checks import check_whole
from bilrp._names import needs
from bilrp.collect.search import nearest, of_length_one, refuse_spoiled
from bilrp.collect.store import Store
from bilrp.engine.factors import Factor

HALF = 0.5  # of the positive relevance: the patches that carry it are what a pair is about


@dataclass(frozen=True, eq=False)
class Theme:
    """Pairs that are similar for like reasons.

    Attributes
    ----------
    pairs : list of (int, int)
        Of the inputs, most typical first.
    tightness : float
        Mean cosine of their signatures with the theme's mean.
    patches : float
        Median share of the patches, of both inputs, that carry half of the positive relevance:
        small where a detail is the reason.
    """

    pairs: list[tuple[int, int]]
    tightness: float
    patches: float


def neighbours(store: Store, similarity: str = "cosine", k: int = 1) -> list[tuple[int, int]]:
    """Each input that could be used, with the k most similar others; no pair twice.

    Raises
    ------
    ValueError
        If k is not 1 to the number of others.
    """
    others_of_each = len(store) - len(store.bad) - 1
    if not 1 <= k <= others_of_each:
        raise ValueError(
            f"k must be from 1 to the {others_of_each} other inputs that each can have as "
            f"neighbours, got {k!r}"
        )
    found = []
    for first, block in store.blocks():
        hits = nearest(store, block, k + 1, similarity).indices.tolist()
        for i, best in enumerate(hits, start=first):
            others = [j for j in best if j != i][:k]  # a copy may come before the input itself
            found += [(min(i, j), max(i, j)) for j in others if i not in store.bad]
    return sorted(set(found))


def signature(first: Factor, second: Factor) -> Tensor:
    """Which features the strong pairs of patches of two inputs share, (channels,), of length 1.

    s_k = sum_pp' max(R_pp', 0) A_pk A'_p'k, the parts of the similarity by feature, weighted by the
    positive relevance of the pair of patches they come from. Features at several places (C, H, W)
    are summed over the places.
    """
    a, b = first.dense(), second.dense()
    weight = (a @ b.T).clamp(min=0)
    shared = (a * (weight @ b)).sum(0)
    if len(first.feature_shape) == 3:
        shared = shared.view(first.feature_shape[0], -1).sum(1)
    return of_length_one(shared[None])[0]


def strong_patches(first: Factor, second: Factor) -> tuple[Tensor, Tensor]:
    """On both sides, the fewest patches that take part in half of the positive relevance.

    Returns
    -------
    (Tensor, Tensor)
        bool, (patches,).
    """
    positive = (first.dense() @ second.dense().T).clamp(min=0)
    sides = []
    for share in (positive.sum(1), positive.sum(0)):
        order = share.argsort(descending=True, stable=True)
        before = share[order].cumsum(0) - share[order]
        mask = torch.zeros(len(share), dtype=torch.bool)
        mask[order[before < HALF * share.sum()]] = True
        sides.append(mask)
    return sides[0], sides[1]


def cluster(signatures: Tensor, count: int | None = None, seed: int = 0) -> Tensor:
    """Cluster rows by their cosine: spectral clustering on a graph of nearest neighbours.

    Rows that do fall into clusters are parted alike in any order. Of rows that do not, some
    partition is found all the same, and another one if they come in another order: shuffle them
    and look whether it stays.

    Parameters
    ----------
    signatures : Tensor (N, D)
    count : int, optional
        Number of clusters. Default: where the eigenvalues of the graph's Laplacian have their
        largest gap, 2 to 8.
    seed : int

    Returns
    -------
    Tensor (N,) of int64

    Raises
    ------
    ValueError
        For fewer than four rows, rows that are not finite, or a count that is not 1 to N.
    """
    with needs("collect"):
        from sklearn.cluster import KMeans

    n = len(signatures)
    if n < 4:
        raise ValueError(f"{n} rows are too few to cluster: give four or more")
    count = None if count is None else check_whole("count", count, 1, n)
    refuse_spoiled(signatures)
    rows = F.normalize(signatures.double(), dim=1)
    near = min(n - 1, max(3, round(n**0.5)))
    likeness = rows @ rows.T
    likeness.fill_diagonal_(-torch.inf)
    graph = torch.zeros(n, n, dtype=torch.float64)
    best = likeness.topk(near, 1)
    graph.scatter_(1, best.indices, best.values.clamp(min=0))
    graph = (graph + graph.T) / 2
    scale = graph.sum(1).clamp(min=1e-12).rsqrt()
    values, vectors = torch.linalg.eigh(torch.eye(n) - scale[:, None] * graph * scale)
    if count is None:
        most = min(8, n - 1)
        count = 2 + int((values[2 : most + 1] - values[1:most]).argmax())
    frame = F.normalize(vectors[:, :count], dim=1)
    labels = KMeans(count, n_init=10, random_state=seed).fit_predict(frame.numpy())
    return torch.from_numpy(labels).long()


def find_themes(
    store: Store,
    pairs: Sequence[tuple[int, int]] | None = None,
    count: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[Theme]:
    """What kinds of reasons there are, the one with the fewest patches first.

    Parameters
    ----------
    store : Store
        With factors, or with model and inputs to make them.
    pairs : sequence of (int, int), optional
        Default: `neighbours(store)`.
    count : int, optional
        Number of themes; see `cluster`.
    seed : int
        Of the clustering.
    progress : bool
        Whether a bar shows how many pairs are explained; it needs tqdm.

    Raises
    ------
    ValueError
        For fewer than four pairs, or a count that is not 1 to their number.
    """
    pairs = neighbours(store) if pairs is None else list(pairs)
    if len(pairs) < 4:  # before all are explained
        raise ValueError(f"{len(pairs)} pairs are too few to group: give four or more")
    count = None if count is None else check_whole("count", count, 1, len(pairs))
    kept: dict[int, Factor] = {}  # of the pairs at hand; pairs are sorted by their first input
    rows, sizes = [], []
    for i, j in _with_bar(pairs) if progress else pairs:
        for n in (i, j):
            if n not in kept:
                kept[n] = store.factor(n)
        rows.append(signature(kept[i], kept[j]))
        masks = strong_patches(kept[i], kept[j])
        sizes.append(sum(float(m.float().mean()) for m in masks) / 2)
        while len(kept) > 64:
            kept.pop(next(iter(kept)))
    signatures = torch.stack(rows)
    return grouped(pairs, signatures, sizes, cluster(signatures, count, seed))


def _with_bar(pairs: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    with needs("vgg"):
        from tqdm import tqdm
    return tqdm(pairs, desc="explaining", unit="pair")


def grouped(
    pairs: Sequence[tuple[int, int]], signatures: Tensor, sizes: Sequence[float], labels: Tensor
) -> list[Theme]:
    """Themes from the clusters of pairs.

    Parameters
    ----------
    pairs : sequence of (int, int)
    signatures : Tensor (pairs, channels)
        Of length 1, as `signature` makes them.
    sizes : sequence of float
        Share of the patches that carry half of the positive relevance, for each pair.
    labels : Tensor (pairs,) of int
        See `cluster`.
    """
    found = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        mean = F.normalize(signatures[members].mean(0), dim=0)
        cosine = signatures[members] @ mean
        order = cosine.argsort(descending=True, stable=True)
        found.append(
            Theme(
                pairs=[pairs[int(members[n])] for n in order],
                tightness=float(cosine.mean()),
                patches=median(sizes[int(n)] for n in members),
            )
        )
    return sorted(found, key=lambda theme: theme.patches)
