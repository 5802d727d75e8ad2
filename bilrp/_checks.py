"""What several rooms ask of their arguments; imports no other room."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def is_whole(value: Any, low: int = 1, high: int | None = None) -> bool:
    """Whether this is a whole number, of Python or NumPy and no bool, from low to high."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return low <= int(value) and (high is None or int(value) <= high)


def check_whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """The whole number from low to high, as Python's; ValueError by the argument's name if none."""
    if not is_whole(value, low, high):
        accepted = f">= {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {accepted}, got {value!r}")
    return int(value)
