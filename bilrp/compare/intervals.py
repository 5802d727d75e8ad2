"""Intervals: how far a number over pairs would vary over other pairs of the same kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from bilrp._checks import check_whole

_NORMAL = NormalDist()


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
    interval holds the middle part of the results. Of few pairs the draws vary less than other pairs
    would, so the part is larger than `level`, as large as for the mean of normal numbers it must be
    (expanded percentile interval). By simulation a 95 % interval then holds the truth in 95 % of
    cases from eight pairs or groups on, in 91 % for five and in 87 % for four; without, in 82 and
    80 %. That is for normal numbers: of skewed ones (exponential) it holds 89 % for eight.

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
        How often the interval shall hold the truth.

    Raises
    ------
    ValueError
        For fewer than two entries or groups, values that are not finite, or numbers out of range.

    Source
    ------
    Efron and Tibshirani (1993), chapter 13; Hesterberg (2015), "What teachers should know about
    the bootstrap", on expanded percentiles.
    """
    values = torch.as_tensor(values)
    if statistic is torch.mean and not values.is_floating_point():
        values = values.double()  # other statistics may draw numbers of entries
    ids = torch.arange(len(values)) if groups is None else torch.as_tensor(groups).cpu()
    if values.dim() == 0 or ids.shape != values.shape[:1]:
        raise ValueError(
            f"groups must name one group for each of the entries, got {tuple(ids.shape)} for "
            f"values of shape {tuple(values.shape)}"
        )
    _check(values, level)
    members = [(ids == g).nonzero()[:, 0] for g in ids.unique()]
    if len(members) < 2:
        raise ValueError(
            f"{len(members)} entry or group has no spread; an interval needs at least 2"
        )
    check_whole("samples", samples)
    generator = torch.Generator().manual_seed(check_whole("seed", seed, 0))
    draws = torch.randint(len(members), (samples, len(members)), generator=generator)
    found = []
    for draw in draws:
        rows = draw if groups is None else torch.cat([members[int(k)] for k in draw])
        found.append(float(statistic(values[rows.to(values.device)])))
    count = len(members)
    outside = _NORMAL.cdf(-((count / (count - 1)) ** 0.5) * student(level, count - 1))
    edges = torch.tensor([outside, 1 - outside], dtype=torch.float64)
    if not all(map(math.isfinite, found)):
        raise ValueError("the statistic is NaN or infinite for some draws: it has no interval")
    low, high = torch.tensor(found, dtype=torch.float64).quantile(edges).tolist()
    return Interval(float(statistic(values)), low, high)


def sharing_interval(
    values: Tensor, members: Sequence[Sequence[int]], level: float = 0.95
) -> Interval:
    """The mean over pairs that share photos, and how far it would vary over other photos.

    Two pairs with a photo in common are no independent evidence, and no division into groups
    separates them. So the variance of the mean counts all products of their deviations,
    sum over d, d' that share a member of (v_d - mean) (v_d' - mean) / N^2, times N / (N - 1). It
    is never taken smaller than that of independent pairs. As the mean is taken of the same pairs,
    this sum comes out too small where photos matter; it is divided by what it is on average, in
    parts of the truth, where nothing but photos matters.

    Parameters
    ----------
    values : Tensor (N,)
        One entry a pair.
    members : N sequences of int
        What each pair is made of, such as the numbers of its photos.
    level : float
        Coverage of the interval, by Student's distribution with one degree of freedom less than
        there are pairs or photos, whichever are fewer.

    Raises
    ------
    ValueError
        For fewer than two pairs, other numbers of members, values that are not finite, or one
        photo in more than half of the pairs: what it does to them cannot be told.

    Source
    ------
    Aronow, Samii and Assenova (2015), "Cluster-robust variance estimation for dyadic data"; Bell
    and McCaffrey (2002), on making such an estimate unbiased under an assumed covariance.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2 or len(members) != len(values):
        raise ValueError(
            f"an interval needs two pairs or more, each with its members; got values of shape "
            f"{tuple(values.shape)} and {len(members)} members"
        )
    _check(values, level)
    count, mean = len(values), float(values.mean())
    try:
        sets = [{int(m) for m in pair} for pair in members]
    except TypeError as error:
        raise ValueError("members must be the numbers of each pair's photos") from error
    photos = sorted({m for pair in sets for m in pair})
    most = max((sum(m in pair for pair in sets) for m in photos), default=0)
    if not all(sets) or most > max(2, count / 2):
        raise ValueError(
            f"a photo is in {most} of the {count} pairs, or a pair has none: what photos do to the "
            "pairs cannot be told"
        )
    belongs = torch.tensor([[float(m in pair) for m in photos] for pair in sets]).double()
    common = belongs @ belongs.T
    shared = (common > 0).double().fill_diagonal_(1)
    centred = common - common.mean(0) - common.mean(1, keepdim=True) + common.mean()
    expected, truth = float((shared * centred).sum()), float(common.sum()) * (count - 1) / count
    if expected < 1e-9 * truth:
        raise ValueError("all pairs share a photo: what it does to them cannot be told")
    away = values - mean
    variance = max(float(away @ shared @ away) * truth / expected, float(away @ away))
    spread = (variance / (count * (count - 1))) ** 0.5
    reach = student(level, min(count, len(photos)) - 1) * spread
    return Interval(mean, mean - reach, mean + reach)


def student(level: float, freedom: int) -> float:
    """How many standard errors an interval reaches to each side, by Student's distribution.

    Parameters
    ----------
    level : float
    freedom : int
        Degrees of freedom, 1 or more. For 95 % it is right to 0.2 % for three, for 99.9 % to 5 %.

    Raises
    ------
    ValueError
        For a level outside 0..1, or no degree of freedom.

    Source
    ------
    Abramowitz and Stegun (1964), 26.7.5.
    """
    check_whole("freedom", freedom)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be within 0 and 1")
    if freedom == 1:
        return math.tan(math.pi * level / 2)
    if freedom == 2:
        return level * (2 / (1 - level**2)) ** 0.5
    z = _NORMAL.inv_cdf((1 + level) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(t / freedom ** (k + 1) for k, t in enumerate(terms))


def _check(values: Tensor, level: float) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the values hold NaN or infinity; say what such a pair counts for")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be within 0 and 1")
