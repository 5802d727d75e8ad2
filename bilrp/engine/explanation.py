"""The similarity of two inputs, shared out among the pairs of their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

    def plot(
        self,
        x: Tensor | None = None,
        x2: Tensor | None = None,
        tokens: tuple[Sequence[str], Sequence[str]] | None = None,
        **options: Any,
    ) -> Axes:
        """Draw both images with arcs between their patches, or the tokens of both as a heat table.

        Parameters
        ----------
        x, x2 : Tensor (3, H, W) or (1, 3, H, W), optional
            Pixels in [0, 1]; see `bilrp.plot.arcs`.
        tokens : (sequence of str, sequence of str), optional
            What the owners of x and of x' are called, in place of images; see `bilrp.plot.table`.
        **options
            Of the function that draws.

        Raises
        ------
        ValueError
            If neither images nor tokens are given, or they do not fit.
        """
        from bilrp.show.plot import arcs, table

        if self._shows_tokens(x, x2, tokens):
            assert tokens is not None
            first, second = tokens
            return table(self, first, second, **options)
        assert x is not None
        assert x2 is not None
        return arcs(self, x, x2, **options)

    def explore(
        self,
        x: Tensor | None = None,
        x2: Tensor | None = None,
        similarity: Callable[[Any, Any], float] | None = None,
        names: tuple[str, str] | None = None,
        alt: str | None = None,
        tokens: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> Explorer:
        """Both inputs, to point at: shows the partners of a patch or of a token.

        Images, see `bilrp.Explorer`; or `tokens`, what the owners of x and of x' are called, see
        `bilrp.TextExplorer`.

        Raises
        ------
        ValueError
            If neither images nor tokens are given, or they do not fit.
        """
        from bilrp.show.explorer import Explorer
        from bilrp.show.text import TextExplorer

        named: dict[str, Any] = {} if names is None else {"names": names}
        if self._shows_tokens(x, x2, tokens):
            assert tokens is not None
            first, second = tokens
            return TextExplorer(self, first, second, similarity, alt=alt, **named)
        assert x is not None
        assert x2 is not None
        return Explorer(self, x, x2, similarity, alt=alt, **named)

    def _shows_tokens(self, x: Any, x2: Any, tokens: Any) -> bool:
        given = [v is not None for v in (x, x2)]
        if tokens is None and all(given):
            return False
        if tokens is not None and not any(given) and len(tokens) == 2:
            return True
        raise ValueError(
            "give two images, or for text tokens=(tokens of x, tokens of x'): how its owners are "
            "called"
        )
