"""The similarity of two inputs, shared out among the pairs of their features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from bilrp.show.explorer import Explorer


@dataclass(frozen=True, eq=False)
class Explanation:
    """The similarity of two inputs, shared out among the pairs of their features.

    Attributes
    ----------
    relevance : Tensor (H/p, W/p, H'/p, W'/p) for images, (G, G') for groups
        R_pp', in units of the similarity. With "-l2", the cross term 2 <phi(x), phi(x')>.
    similarity : float
        y(x, x'), computed from all features also where the explanation is projected.
    owners : tuple of str
        "input", then all other owners of x: layers with a bias by their names, constants, what
        rules keep.
    ledger : Tensor (owners, owners2), float64
        The whole similarity by pairs of owners. It sums to `similarity` (with "-l2", together with
        `ledger_within`; with a projection, to `estimate`), and its first entry is what the inputs
        carry, the sum of `relevance`.
    owners2 : tuple of str or None
        Owners of x' where they are others, as with two encoders; None: the same.
    within : (Tensor, Tensor) or None
        With "-l2", the pairs inside x and inside x': -<phi(x), phi(x)> and -<phi(x'), phi(x')>.
    ledger_within : (Tensor, Tensor) or None
        The ledgers of these.
    estimate : float or None
        With a projection, what it makes of the similarity.
    """

    relevance: Tensor
    similarity: float
    owners: tuple[str, ...]
    ledger: Tensor
    owners2: tuple[str, ...] | None = None
    within: tuple[Tensor, Tensor] | None = None
    ledger_within: tuple[Tensor, Tensor] | None = None
    estimate: float | None = None
    sides: int | None = None  # how many dimensions of `relevance` are of x

    def __repr__(self) -> str:
        share = float(self.ledger[0, 0]) / self.similarity if self.similarity else 0.0
        shape = " x ".join(map(str, self.relevance.shape))
        return f"Explanation({shape}, similarity={self.similarity:.6g}, inputs carry {share:.1%})"

    @property
    def matrix(self) -> Tensor:
        """`relevance` as a matrix (owners of x, owners of x')."""
        half = self.relevance.dim() // 2 if self.sides is None else self.sides
        return self.relevance.flatten(half).flatten(0, half - 1)

    def plot(self, x: Tensor, x2: Tensor, **options):
        """Draw both images with arcs between their patches; see `bilrp.plot.arcs`."""
        from bilrp.show.plot import arcs

        return arcs(self, x, x2, **options)

    def explore(
        self,
        x: Tensor,
        x2: Tensor,
        similarity: Callable[[Tensor, Tensor], float] | None = None,
        names: tuple[str, str] = ("First picture", "Second picture"),
        alt: str | None = None,
    ) -> Explorer:
        """Both images, to point at: shows the partners of a patch; see `bilrp.Explorer`."""
        from bilrp.show.explorer import Explorer

        return Explorer(self, x, x2, similarity, names, alt)
