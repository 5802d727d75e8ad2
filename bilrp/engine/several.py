"""The similarity of several inputs, shared out among tuples of their features.

    y(x_1, ..., x_n) = sum_k prod_i phi_k(x_i),    R_p1...pn = sum_k prod_i a^(i)_k u^(i, p_i)_k

The tensor R has one dimension an input and is never made whole: the factors are kept, and what is
asked for is contracted from them (in the language of tensors, they are a CP decomposition of R).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from bilrp._checks import is_whole
from bilrp.engine.explanation import Explanation
from bilrp.engine.factors import Factor, rows_of
from bilrp.engine.shadow import exact

MOST = 2**27  # scores that one call returns: 1 GB in float64
WHOLE = "all"


class Several:
    """What several inputs have in common, by owners of each; made by `bilrp.several`.

    Every method takes a *choice* of owners for some inputs:

    - "all": the input as a whole, its biases and other sinks included (what is not named);
    - "input": all owners of the input together, without the sinks;
    - ":" : every owner by itself, along dimensions of its own, those of the factor's grid;
    - a number, or (row, column) on a grid: one owner;
    - a list of these: some owners, along a dimension of its own;
    - a mask, bool of the factor's grid: the owners in it together, as one.

    Attributes
    ----------
    factors : tuple of Factor
    similarity : float
        y, from the features; float64.

    Notes
    -----
    Cost: n inputs of P owners and M features. Groups and single owners are summed first, n P M
    additions; each score of k free dimensions then takes k M multiplications, so a marginal costs
    P M, a picture of two inputs P^2 M, all of three P^3 M. In float64; a factor in windows is laid
    out as a matrix (P, M) while a call needs it.
    """

    def __init__(self, factors: Sequence[Factor]) -> None:
        self.factors = tuple(factors)
        features = [f.features.double() for f in self.factors]
        self.similarity = float(reduce(torch.mul, features).sum())

    def __repr__(self) -> str:
        shapes = " x ".join("(" + ", ".join(map(str, f.grid)) + ")" for f in self.factors)
        return f"Several({shapes}, similarity={self.similarity:.6g})"

    def __len__(self) -> int:
        return len(self.factors)

    @exact()
    def relevance(self, *choices: Any) -> Tensor:
        """Scores R of the chosen owners; for ":" and lists along dimensions, in order of inputs.

        Parameters
        ----------
        *choices
            One for each input, in order; missing ones at the end are "all". See above.

        Returns
        -------
        Tensor, float64
            In units of the similarity. Without free dimensions, a single number.

        Raises
        ------
        ValueError
            For choices that do not fit the inputs; if more than 2^27 scores were to be made.

        Examples
        --------
        >>> s.relevance(":")  # by owner of the first input: what all others share with it
        >>> s.relevance(":", "all", ":")  # first and third, given all of the second
        >>> s.relevance([4, 7], mask, (2, 3))
        """
        rows, shapes = [], []
        for number in range(len(self)):
            choice = choices[number] if number < len(choices) else WHOLE
            chosen, shape = self._rows(number, choice)
            rows.append(chosen)
            shapes.append(shape)
        if len(choices) > len(self):
            raise ValueError(f"{len(choices)} choices for {len(self)} inputs")
        sizes = [size for kept in shapes for size in kept]
        if math.prod(sizes) > MOST:
            raise ValueError(
                f"that is {math.prod(sizes):,} scores, {' x '.join(map(str, sizes))}; at most "
                f'{MOST:,} are made at once: choose fewer owners, or "all" for some inputs'
            )
        return _contracted(rows).reshape(sizes)

    @exact()
    def pair(self, i: int, j: int, given: Mapping[int, Any] | None = None) -> Explanation:
        """Two of the inputs explained, the others taken as a whole or as chosen owners.

        R_pp' = sum_k A^(i)_pk A^(j)_p'k w_k with w the product of the others' features. Where these
        are all one, it is the explanation of the two alone.

        Parameters
        ----------
        i, j : int
            Numbers of two inputs, from 0.
        given : mapping from the number of another input to a choice of its owners, optional
            One owner, "input", or a mask. Default: "all" of it.

        Returns
        -------
        Explanation
            Of what the two, and the given owners of the others, contribute to `similarity`.

        Raises
        ------
        ValueError
            For numbers or choices that do not fit.
        """
        for number in (i, j, *(given or {})):
            self._check_number(number)
        if i == j or i in (given or {}) or j in (given or {}):
            raise ValueError(f"the pair must be two inputs of which none is given; got {i}, {j}")
        first, second = self.factors[i], self.factors[j]
        weight = torch.ones_like(first.features, dtype=torch.float64)
        for number in set(range(len(self))) - {i, j}:
            rows, shape = self._rows(number, (given or {}).get(number, WHOLE))
            if shape:
                raise ValueError(f"for a picture of {i} and {j}, input {number} must be summed")
            weight = weight * rows[0]
        one = first.identity.model == second.identity.model
        names, names2, owned, owned2 = rows_of(first, second, one)
        relevance = (first.dense().double() * weight) @ second.dense().double().T
        return Explanation(
            relevance=relevance.reshape(*first.grid, *second.grid),
            similarity=float((first.features.double() * weight) @ second.features.double()),
            owners=names,
            ledger=(owned * weight) @ owned2.T,
            owners2=None if one else names2,
            sides=len(first.grid),
        )

    @exact()
    def carried(self) -> float:
        """What the inputs carry together: the sum of all of R, without the sinks."""
        return float(reduce(torch.mul, [f.owned()[0] for f in self.factors]).sum())

    def _check_number(self, number: int) -> None:
        if not is_whole(number, 0, len(self) - 1):
            raise ValueError(
                f"there is no input {number!r}: they are numbered 0 to {len(self) - 1}"
            )

    def _rows(self, number: int, choice: Any) -> tuple[Tensor, tuple[int, ...]]:
        """The chosen owners' parts of the features, (rows, M), and the dimensions they make."""
        f = self.factors[number]
        if isinstance(choice, str) and choice == WHOLE:
            return f.features.double()[None], ()
        if isinstance(choice, str) and choice == "input":
            return f.owned()[:1], ()
        dense = f.dense()
        if (isinstance(choice, slice) and choice == slice(None)) or choice == ":":
            return dense.double(), f.grid
        if isinstance(choice, Tensor) and choice.dtype == torch.bool:
            if tuple(choice.shape) not in (f.grid, (math.prod(f.grid),)):
                raise ValueError(
                    f"the mask for input {number} is of shape {tuple(choice.shape)}, its owners of "
                    f"{f.grid}"
                )
            return dense[choice.flatten().to(dense.device)].double().sum(0)[None], ()
        some = list(choice) if isinstance(choice, list | range) else [choice]
        at = [self._index(number, owner) for owner in some]
        return dense[at].double(), (len(at),) if isinstance(choice, list | range) else ()

    def _index(self, number: int, owner: Any) -> int:
        grid = self.factors[number].grid
        place = owner if isinstance(owner, tuple) else (owner,)
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in place)
        sizes = grid if len(place) == len(grid) else (math.prod(grid),)
        if not whole or len(place) != len(sizes):
            raise ValueError(
                f'a choice of owners is "all", "input", ":", a number, a place on the grid {grid}, '
                f"a list of these or a mask; got {owner!r} for input {number}"
            )
        index = 0
        for v, size in zip(place, sizes, strict=True):
            if not 0 <= v < size:
                raise ValueError(f"input {number} has no owner {owner!r}: its grid is {grid}")
            index = index * size + v
        return index


def _contracted(rows: list[Tensor]) -> Tensor:
    """sum_k prod_i rows[i][p_i, k] for all tuples of rows; single rows are multiplied first."""
    weight = math.prod(r[0] for r in rows if len(r) == 1)
    free = [r for r in rows if len(r) != 1]
    if not free:
        return torch.as_tensor(weight).sum()
    free[0] = free[0] * weight
    return _product(free)


def _product(rows: list[Tensor]) -> Tensor:
    if len(rows) == 1:
        return rows[0].sum(1)
    if len(rows) == 2:
        return rows[0] @ rows[1].T
    return torch.stack([_product([row * rows[1], *rows[2:]]) for row in rows[0]])


@exact()
def several(factors: Sequence[Factor], encoders: bool = False) -> Several:
    """What two, three or more inputs have in common: y = sum_k prod_i phi_k(x_i).

    Parameters
    ----------
    factors : sequence of Factor
        Two or more, from `bilrp.factor`.
    encoders : bool
        Allow factors of different models (or rules); their features must be equally many.

    Returns
    -------
    Several
        Keeps the factors and contracts from them what is asked for.

    Raises
    ------
    ValueError
        For fewer than two factors, factors of different make or of different numbers of features,
        projected factors (a random projection estimates sums of products of two, not of more), or
        features whose products are too large for float64.

    Notes
    -----
    With three or more inputs y is no inner product. Features of both signs can cancel: two
    negative ones and a positive one speak for. Features that are never negative, as after a ReLU,
    do not; and rules say nothing new, for every input has its own factor as before.

    Examples
    --------
    >>> s = bilrp.several(bilrp.factor(model, [x, x2, x3]))
    >>> s.relevance(":")  # what each patch of x shares with both others
    >>> s.pair(0, 1).plot(x, x2)  # x and x2, seen through all of x3

    Source
    ------
    Eberle et al. (2022), Eq. (5), for n inputs; the factors are a CP decomposition (Kolda and
    Bader 2009, Section 3).
    """
    factors = list(factors)
    if not all(isinstance(f, Factor) for f in factors):
        kinds = sorted({type(f).__name__ for f in factors})
        raise ValueError(f"give factors, from bilrp.factor(model, [x, x2, ...]); got {kinds}")
    if len(factors) < 2:
        raise ValueError(f"give two or more factors, got {len(factors)}")
    for number, f in enumerate(factors):
        if f.exact is not None:
            raise ValueError(
                "projected factors estimate products of two inputs, not of more: make them exact, "
                "without project="
            )
        difference = factors[0].identity.difference(f.identity, encoders)
        if difference:
            hint = difference.replace("bilrp.explain((f, g), x, x2)", "several(..., encoders=True)")
            raise ValueError(f"factors 0 and {number} are of different models or makes: {hint}")
        if not f.goes_with(factors[0]):
            raise ValueError(
                f"inputs 0 and {number} have features of different shapes, "
                f"{factors[0].feature_shape} and {f.feature_shape}: use inputs of one size, or end "
                "the model with global pooling"
            )
        if f.features.device != factors[0].features.device:
            raise ValueError("the factors are on different devices: f.to(device=...)")
    made = Several(factors)
    if not math.isfinite(made.similarity):
        raise ValueError(
            f"the products of {len(factors)} inputs' features are too large for float64; divide "
            "the features by a constant in the model"
        )
    return made
