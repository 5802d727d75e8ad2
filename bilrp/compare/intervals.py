"""Intervals: how far a number over pairs would vary over other pairs of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A number and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor | float] = torch.mean,
    *,
    seed: int,
    groups: Tensor | None = None,
    samples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """A statistic over pairs, and how far it would vary over other pairs of the same kind.

    The pairs are drawn anew, with replacement, and the statistic computed of each draw; the
    interval holds the middle part of the results (percentile bootstrap).

    Parameters
    ----------
    values : Tensor (N,) or (N, ...)
        One entry a pair. Methods that are compared belong in one tensor, so that each draw has the
        same pairs for all of them.
    statistic : callable
        Takes a draw, shaped like `values`, and returns one number. Default: the mean.
    seed : int
        Of the draws.
    groups : Tensor (N,) of int, optional
        Which entries belong together (pairs of one photo, networks of one seed): groups are drawn
        then, for such entries are no independent evidence.
    samples : int
        Number of draws.
    level : float
        Share of the draws within the interval.

    Raises
    ------
    ValueError
        For fewer than two entries or groups, values that are not finite, or numbers out of range.

    Source
    ------
    Efron and Tibshirani (1993), chapter 13.
    """
    values = torch.as_tensor(values)
    ids = torch.arange(len(values)) if groups is None else torch.as_tensor(groups).cpu()
    if values.dim() == 0 or ids.shape != values.shape[:1]:
        raise ValueError(
            f"groups must name one group for each of the entries, got {tuple(ids.shape)} for "
            f"values of shape {tuple(values.shape)}"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the values hold NaN or infinity; say what such a pair counts for")
    members = [(ids == g).nonzero()[:, 0] for g in ids.unique()]
    if len(members) < 2:
        raise ValueError(
            f"{len(members)} entry or group has no spread; an interval needs at least 2"
        )
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples={samples!r} must be positive and level={level!r} within 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(members), (samples, len(members)), generator=generator)
    found = []
    for draw in draws:
        rows = draw if groups is None else torch.cat([members[int(k)] for k in draw])
        found.append(float(statistic(values[rows.to(values.device)])))
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.tensor(found, dtype=torch.float64).quantile(edges).tolist()
    return Interval(float(statistic(values)), low, high)


def sharing_interval(
    values: Tensor, members: Sequence[Sequence[int]], level: float = 0.95
) -> Interval:
    """The mean over pairs that share photos, and how far it would vary over other photos.

    Two pairs with a photo in common are no independent evidence, and no division into groups
    separates them. So the variance of the mean counts all products of their deviations,
    sum over d, d' that share a member of (v_d - mean) (v_d' - mean) / N^2, times N / (N - 1); it is
    never taken smaller than that of independent pairs.

    Parameters
    ----------
    values : Tensor (N,)
        One entry a pair.
    members : N sequences of int
        What each pair is made of, such as the numbers of its photos.
    level : float
        Coverage of the interval, by the normal distribution.

    Raises
    ------
    ValueError
        For fewer than two pairs, other numbers of members, or values that are not finite.

    Source
    ------
    Aronow, Samii and Assenova (2015), "Cluster-robust variance estimation for dyadic data".
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2 or len(members) != len(values):
        raise ValueError(
            f"an interval needs two pairs or more, each with its members; got values of shape "
            f"{tuple(values.shape)} and {len(members)} members"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the values hold NaN or infinity; say what such a pair counts for")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be within 0 and 1")
    count, mean = len(values), float(values.mean())
    away = values - mean
    shared = torch.tensor([[bool(set(a) & set(b)) for b in members] for a in members])
    shared.fill_diagonal_(True)
    variance = max(float(away @ shared.double() @ away), float(away @ away))
    spread = (variance / (count * (count - 1))) ** 0.5
    reach = NormalDist().inv_cdf((1 + level) / 2) * spread
    return Interval(mean, mean - reach, mean + reach)
