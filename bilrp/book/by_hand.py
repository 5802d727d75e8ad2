"""What checks the numbers that a reader has worked out by hand, without telling the right ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def agree(given: object, right: ArrayLike, what: str, within: float = 0.01) -> None:
    """Accept the numbers that were given, or say which answer is not right yet.

    The message does not hold the right numbers: who reads it should work on.

    Parameters
    ----------
    given : numbers, or Tensor, of any shape
        An answer. Dots in place of a number are an answer that is still missing.
    right : numbers, or Tensor, of the same shape
        What a check computes on its own.
    what : str
        The name of the answer.
    within : float
        The largest error of a number, relative to the largest right one: 0.01 lets readers round.

    Raises
    ------
    AssertionError
        If a number is missing, if there are too many or too few, or if one is wrong.
    """
    expected = np.asarray(right, dtype=float)
    try:
        numbers = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        raise AssertionError(f"{what}: a number is missing, or is none") from None
    if numbers.shape != expected.shape:
        size = " x ".join(map(str, expected.shape)) or "one"
        raise AssertionError(f"{what}: asked for {size}, got {numbers.size} numbers")
    wrong = ~(np.abs(numbers - expected) <= within * np.abs(expected).max())
    if wrong.any():
        raise AssertionError(f"{what}: {wrong.sum()} of {wrong.size} not right yet")
