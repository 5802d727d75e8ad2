"""Factors: what one input contributes to every explanation it takes part in."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilrp._files import replaced
from bilrp.engine.explanation import Explanation
from bilrp.engine.shadow import exact
from bilrp.engine.windows import Span, place, product_of_windows, sum_of_windows

FORMAT = 1  # of saved factors


@dataclass(frozen=True)
class Identity:
    """What a factor was made with; factors of different make do not go together.

    Attributes
    ----------
    model : str
        Checksum of structure and numbers, see `fingerprint.fingerprint`.
    rules : str
    projection : str
    """

    model: str
    rules: str
    projection: str

    def difference(self, other: Identity, encoders: bool) -> str | None:
        """How two factors of one explanation differ, in words; None if they go together."""
        if self.model != other.model and not encoders:
            return (
                f"their models have other weights or another structure ({self.model}, "
                f"{other.model}); for two encoders use bilrp.explain((f, g), x, x2)"
            )
        if self.rules != other.rules and not encoders:
            return f"their rules are {self.rules} and {other.rules}"
        if self.projection != other.projection:
            return f"their projections are {self.projection} and {other.projection}"
        return None


@dataclass(frozen=True, eq=False)
class Factor:
    """What one input contributes to every explanation it takes part in; made by `bilrp.factor`.

    Attributes
    ----------
    values : Tensor (patches, M) or, in windows, (patches, channels, rows, cols)
        A_pk = a_k u_k^(p), the part of feature k that patch p owns. M is the number of features,
        or of projected dimensions.
    grid : tuple of int
        Patches as the explanation arranges them: (H/p, W/p) or (G,).
    absorbed : Tensor (sinks, M)
        The parts of the features that biases, constants and rules own.
    owners : tuple of str
        "input" and the names of these sinks.
    features : Tensor (M,)
        a_k, the sum of all parts.
    feature_shape : tuple of int
        Shape of the model's output before it was flattened to M numbers.
    spans : tuple of Span or None
        Where the windows lie, for factors that are kept in windows.
    identity : Identity
        Model, rules and projection.
    exact : Tensor (features,) or None
        With a projection, the features themselves.
    """

    values: Tensor
    grid: tuple[int, ...]
    absorbed: Tensor
    owners: tuple[str, ...]
    features: Tensor
    feature_shape: tuple[int, ...]
    spans: tuple[Span, Span] | None = None
    identity: Identity = Identity("", "", "")
    exact: Tensor | None = None

    def goes_with(self, other: Factor) -> bool:
        """Whether the features of both are as many, in maps of one shape."""
        shapes = ([k for k in f.feature_shape if k != 1] for f in (self, other))
        return len(self.features) == len(other.features) and next(shapes) == next(shapes)

    def dense(self) -> Tensor:
        """The factor as one matrix A, (patches, M)."""
        if self.spans is None:
            return self.values
        return place(self.values, *self.spans, self.feature_shape[-2:]).flatten(1)

    def owned(self) -> Tensor:
        """Parts of the features by owner, (owners, M) in float64; the first row is the input's."""
        if self.spans is None:
            whole = self.values.sum(0, dtype=torch.float64)
        else:
            whole = sum_of_windows(self.values, *self.spans, self.feature_shape[-2:]).flatten()
        return torch.cat([whole[None], self.absorbed.double()])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Factor:
        """The same factor on another device or in another floating-point format."""

        def moved(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype)

        return replace(
            self,
            values=moved(self.values),
            absorbed=moved(self.absorbed),
            features=moved(self.features),
            exact=None if self.exact is None else moved(self.exact),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the factor to a file for `bilrp.load`: NumPy arrays and plain text, no pickle.

        Written whole or not at all.
        """
        tensors = {
            n: t.detach().cpu()
            for n in ("values", "absorbed", "features", "exact")
            if (t := getattr(self, n)) is not None
        }
        if bad := [n for n, t in tensors.items() if t.dtype == torch.bfloat16]:
            raise ValueError(f"{bad} are in bfloat16, which NumPy lacks: .to(dtype=torch.float32)")
        spans = self.spans and [[list(s.starts), s.size] for s in self.spans]
        about = {
            "format": FORMAT,
            "grid": self.grid,
            "owners": self.owners,
            "feature_shape": self.feature_shape,
            "spans": spans,
            "identity": vars(self.identity),
        }
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        with replaced(path) as new, open(new, "wb") as file:
            np.savez(file, about=text, **{n: t.numpy() for n, t in tensors.items()})

    def explain(self, other: Factor, similarity: str = "dot") -> Explanation:
        """Explain the similarity with another input: one matrix product.

        Parameters
        ----------
        other : Factor
            Of the same model, rules and projection.
        similarity : str
            "dot", "cosine" or "-l2".

        Raises
        ------
        ValueError
            If the two do not have the same number of features, or were made in different ways:
            says what differs.
        """
        return combined(self, other, similarity, encoders=False)


def load(path: str | os.PathLike) -> Factor:
    """Read a factor that `Factor.save` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no factor, or one of another version of the format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about: dict[str, Any] = json.loads(bytes(file["about"]))
            tensors = {n: torch.from_numpy(file[n]) for n in file.files if n != "about"}
        version = about["format"]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no factor written by Factor.save, or is damaged") from error
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}; this version reads format {FORMAT}")
    spans = about["spans"]
    return Factor(
        grid=tuple(about["grid"]),
        owners=tuple(about["owners"]),
        feature_shape=tuple(about["feature_shape"]),
        spans=spans and tuple(Span(tuple(starts), size) for starts, size in spans),
        identity=Identity(**about["identity"]),
        **tensors,
    )


@exact()
def combined(first: Factor, second: Factor, similarity: str, encoders: bool) -> Explanation:
    """The explanation of a pair from its factors; `encoders` allows two different models."""
    if similarity not in ("dot", "cosine", "-l2"):
        raise ValueError(f'similarity must be "dot", "cosine" or "-l2", got {similarity!r}')
    difference = first.identity.difference(second.identity, encoders)
    if difference:
        raise ValueError(f"the factors are of different models or makes: {difference}")
    formats = first.features.dtype, second.features.dtype
    if formats[0] != formats[1] or first.features.device != second.features.device:
        raise ValueError(
            f"the factors are of {formats[0]} on {first.features.device} and {formats[1]} on "
            f"{second.features.device}: bring one to the other by .to(device, dtype)"
        )
    shapes = first.feature_shape, second.feature_shape
    if not first.goes_with(second):
        raise ValueError(
            f"the two inputs have features of different shapes, {shapes[0]} and {shapes[1]}; the "
            "dot product needs the same on both sides: use images of one size, or end the model "
            "with global pooling"
        )
    one = first.identity.model == second.identity.model
    names, names2, rows, rows2 = rows_of(first, second, one)
    relevance, ledger = _product(first, second), rows @ rows2.T
    y, projected = _similarity(first, second), first.exact is not None
    estimate = _dot(first, second) if projected else None
    made = Explanation(
        relevance=relevance.reshape(*first.grid, *second.grid),
        similarity=y,
        owners=names,
        ledger=ledger,
        owners2=None if one else names2,
        estimate=estimate,
        sides=len(first.grid),
    )
    if similarity != "-l2":  # of a distance, what is near 0 is near
        _warn_of_cancellation(made)
    if similarity == "dot":
        return made
    own, own2 = _similarity(first, first), _similarity(second, second)
    if similarity == "cosine":
        norms = (own * own2) ** 0.5
        if norms == 0:
            raise ValueError("the cosine is not defined: the features of an input are all 0")
        return replace(
            made,
            relevance=made.relevance / norms,
            similarity=y / norms,
            ledger=ledger / norms,
            estimate=None if estimate is None else estimate / norms,
        )
    own_map, own_map2 = (-_product(f, f).reshape(*f.grid, *f.grid) for f in (first, second))
    return replace(
        made,
        relevance=2 * made.relevance,
        similarity=2 * y - own - own2,
        ledger=2 * ledger,
        within=(own_map, own_map2),
        ledger_within=(-(rows @ rows.T), -(rows2 @ rows2.T)),
        estimate=None
        if estimate is None
        else 2 * estimate - _dot(first, first) - _dot(second, second),
    )


def _warn_of_cancellation(e: Explanation) -> None:
    size = max(float(t.abs().sum(dtype=torch.float64)) for t in (e.relevance, e.ledger))
    if size > 1e4 * abs(e.similarity):
        times = f"{size / abs(e.similarity):.1e} times the" if e.similarity else "more than no"
        warnings.warn(
            f"the magnitudes of the explanation add up to {times} similarity: it is mostly "
            "cancellation. Use a larger gamma.",
            UserWarning,
            stacklevel=4,
        )


def rows_of(
    first: Factor, second: Factor, one: bool
) -> tuple[tuple[str, ...], tuple[str, ...], Tensor, Tensor]:
    """Owners of two inputs and their parts of the features; of one model, in one order."""
    if not one:
        return first.owners, second.owners, first.owned(), second.owned()
    # some sinks are there for some inputs only
    names = (*first.owners, *(n for n in second.owners if n not in first.owners))
    return names, names, _at(first, names), _at(second, names)


def _at(f: Factor, names: tuple[str, ...]) -> Tensor:
    """Parts of the features by owner, in the order of these names."""
    owned = f.owned()
    rows = owned.new_zeros(len(names), owned.shape[1])
    rows[[names.index(n) for n in f.owners]] = owned
    return rows


def _dot(first: Factor, second: Factor) -> float:
    return float(first.features.double() @ second.features.double())


def _similarity(first: Factor, second: Factor) -> float:
    if first.exact is None or second.exact is None:
        return _dot(first, second)
    return float(first.exact.double() @ second.exact.double())


def _product(first: Factor, second: Factor) -> Tensor:
    if first.spans and second.spans and first.feature_shape == second.feature_shape:
        return product_of_windows(
            first.values, *first.spans, second.values, *second.spans, first.feature_shape[-1]
        )
    return first.dense() @ second.dense().T
