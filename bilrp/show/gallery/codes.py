"""Whole numbers as short text, for scripts that a page loads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ESCAPE = 24  # zeros that announce a number of 16 bits instead of a quotient


def expected(codes: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """How large codes are, by direction and by row of each input, as int8 logarithms to 2^(1/8).

    The mean size of a code of row p along direction m: 2^((row[p] + direction[m]) / 8) / 1.4.
    """
    sizes = [np.abs(c).astype(np.float64) for c in codes]
    means = np.concatenate(sizes).mean(0)

    def logarithm(values: np.ndarray) -> np.ndarray:
        return np.clip(np.round(8 * np.log2(np.maximum(values, 1e-4))), -127, 127).astype(np.int8)

    return logarithm(1.4 * means), [logarithm(s.sum(1) / max(means.sum(), 1e-9)) for s in sizes]


def rice(codes: np.ndarray, rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Codes as bits, (bits,) of 0 and 1: Rice's code, its parameter from what `expected` says.

    A code c becomes u = 2c - 1 or -2c; u becomes u >> k zeros, a one, and the lowest k bits of u,
    the lowest first; k = max(0, (row + direction + 4) >> 3). Row by row.
    """
    c = codes.astype(np.int64).ravel()
    u = np.where(c > 0, 2 * c - 1, -2 * c)
    k = np.maximum(0, (rows[:, None].astype(int) + directions + 4) >> 3).ravel()
    quotient = np.minimum(u >> k, ESCAPE)
    low = np.where(quotient == ESCAPE, 16, k)
    ends = np.cumsum(quotient + 1 + low)
    bits = np.zeros(ends[-1], np.uint8)
    first = ends - low
    bits[first - 1] = 1
    for b in range(int(low.max())):
        here = low > b
        bits[first[here] + b] = (u[here] >> b) & 1
    return bits


def text_of(bits: np.ndarray) -> str:
    """Bits as text: 13 of them, the lowest first, as two of the 91 characters # to ~ without \\."""
    padded = np.pad(bits, (0, -len(bits) % 13)).reshape(-1, 13).astype(np.int64)
    words = padded @ (1 << np.arange(13))
    digits = np.stack([words // 91, words % 91], 1).ravel() + 35
    return (digits + (digits >= 92)).astype(np.uint8).tobytes().decode("ascii")
