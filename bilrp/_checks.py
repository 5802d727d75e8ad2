"""What several rooms ask of their arguments; imports no other room."""

from __future__ import annotations

from typing import Any


def is_whole(value: Any, low: int = 1, high: int | None = None) -> bool:
    """Whether this is an int, and no bool, from low to high."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
    return whole and (high is None or value <= high)


def check_whole(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """ValueError, by the argument's name, unless it is a whole number from low to high."""
    if not is_whole(value, low, high):
        accepted = f">= {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {accepted}, got {value!r}")
