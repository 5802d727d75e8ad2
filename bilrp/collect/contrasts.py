"""Why this and not that: the difference of two explanations that share the query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilrp._names import needs
from bilrp.engine.explanation import Explanation
from bilrp.engine.factors import Factor


@dataclass(frozen=True, eq=False)
class Contrast:
    """The difference of two similarities, by what the query owns of it, exactly.

    Both similarities are sums over what the query's owners own of its features, so on the query
    they can be subtracted: an owner that has the part A_p of the features adds

        c_p = <A_p, features of the hit - features of the other>

    to the difference, for the cosine with the features over their norms. This holds all that a
    patch of the query does, also with what belongs to no patch of the other picture.

    Attributes
    ----------
    hit, other : Explanation
        Of the query, which comes first, with each.
    difference : float
        y(query, hit) - y(query, other).
    on_query : Tensor, the grid of the query
        c_p of each patch of the query, float64.
    owners : dict of str to float
        c of all owners of the query; sums to `difference`. "input" is the sum of `on_query`.
    """

    hit: Explanation
    other: Explanation
    difference: float
    on_query: Tensor
    owners: dict[str, float]

    def plot(self, query: Tensor, hit: Tensor, other: Tensor):
        """Draw hit, query and other: red is what speaks for the hit, blue for the other.

        Parameters
        ----------
        query, hit, other : Tensor (3, H, W)
            Pixels in [0, 1].

        Returns
        -------
        matplotlib Figure
        """
        with needs("plot"):
            from matplotlib.figure import Figure

        from bilrp.show import plot

        fig = Figure(figsize=(7.2, 2.7), layout="constrained")
        axes = fig.subplots(1, 3)
        on_hit, on_other = (plot.share_of_image(e, 1) for e in (self.hit, self.other))
        titles = (
            f"hit: y = {self.hit.similarity:.4g}",
            f"query: difference {self.difference:.3g}",
            f"other: y = {self.other.similarity:.4g}",
        )
        heats = (on_hit, self.on_query, -on_other)
        # The query's differences are much smaller than the parts of either similarity.
        both = max(float(h.abs().max()) for h in (on_hit, on_other)) or 1.0
        own = float(self.on_query.abs().max()) or 1.0
        tops, images = (both, own, both), (hit, query, other)
        for ax, image, h, title, top in zip(axes, images, heats, titles, tops, strict=True):
            plot.tinted(image, h, ax, top)
            ax.set_title(title, fontsize=9)
        return fig


def contrast(query: Factor, hit: Factor, other: Factor, similarity: str = "dot") -> Contrast:
    """Why the query is more similar to the hit than to the other.

    Parameters
    ----------
    query, hit, other : Factor
        Of one model, with one set of rules.
    similarity : str
        "dot" or "cosine".

    Raises
    ------
    ValueError
        For "-l2", whose terms within hit and other belong to no patch of the query; for factors
        that do not go together.
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(
            f'a contrast is drawn for "dot" and "cosine", got {similarity!r}: in a distance, parts '
            "of the difference belong to hit and other alone"
        )
    e, e2 = query.explain(hit, similarity), query.explain(other, similarity)
    toward = _felt(query, hit, similarity) - _felt(query, other, similarity)
    on_query = torch.stack([part.double() @ toward for part in query.dense()])
    biases = (query.absorbed.double() @ toward).tolist()
    owners = [float(on_query.sum()), *biases]
    return Contrast(
        e,
        e2,
        e.similarity - e2.similarity,
        on_query.reshape(query.grid),
        dict(zip(query.owners, owners, strict=True)),
    )


def _felt(query: Factor, partner: Factor, similarity: str) -> Tensor:
    """What the features of the query are multiplied with in their similarity with a partner."""
    features = partner.features.double()
    if similarity == "dot":
        return features
    return features / (_norm(query) * _norm(partner))


def _norm(f: Factor) -> Tensor:
    return (f.features if f.exact is None else f.exact).double().norm()
