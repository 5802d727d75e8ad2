"""LRP rules: how one layer shares the relevance of its outputs among its inputs.

A rule does not propagate anything itself. It turns the activations and parameters of one layer into
the *denominators* z_k and the terms that they are made of; `bilrp.layers` builds from these the one
linear map that both pulling relevance back and pushing ownership forward use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """One set of denominators, z_k = sum_t op(a_t, w_t)_k + bias_k, and where it applies.

    Parameters
    ----------
    terms : tuple of (Tensor, Tensor)
        Pairs (a_t, w_t): numerator activations, shaped like the layer's input, and their weights.
    bias : Tensor or None
        What the layer's bias adds to z_k. It is the layer's own share of the relevance.
    where : Tensor of bool or None
        Outputs that use this branch; None means all of them.
    z : Tensor or None
        The denominators, where they are known already (LRP-0 divides by the pre-activation itself,
        and must divide by the very same float).
    epsilon : float
        Stabiliser, added to z_k with the sign of z_k.
    """

    terms: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor | None
    where: Tensor | None = None
    z: Tensor | None = None
    epsilon: float = 0.0


class Rule:
    """Base class of all rules."""

    def branches(
        self, a: Tensor, weight: Tensor, bias: Tensor | None, pre: Tensor, out: Tensor
    ) -> list[Branch]:
        """Denominators of a weighted layer.

        Parameters
        ----------
        a : Tensor (N, ...)
            Input activations a_j.
        weight, bias : Tensor
            Parameters of the layer.
        pre, out : Tensor (N, ...)
            Output before and after the ReLU that follows (equal where none follows).
        """
        raise TypeError(f"{self!r} does not apply to a layer with weights; use Gamma, Epsilon, ...")


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: R_j = sum_k a_j w_jk / (z_k + epsilon sign z_k) R_k.

    The stabiliser absorbs a share epsilon / (abs(z_k) + epsilon) of the relevance; in the ledger
    that share stands with the bias of the same layer.

    Source
    ------
    Bach et al. (2015), Eq. (58); Montavon et al. (2019), Section 10.2.1.

    Raises
    ------
    ValueError
        If epsilon is negative or not finite.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _check_non_negative("epsilon", self.epsilon)

    def branches(self, a, weight, bias, pre, out):
        return [Branch(((a, weight),), bias, z=pre, epsilon=self.epsilon)]


@dataclass(frozen=True)
class LRP0(Rule):
    """LRP-0: R_j = sum_k a_j w_jk / z_k R_k, with z_k = sum_j a_j w_jk + b_k.

    Used in every layer, BiLRP becomes Hessian x Product (Eberle et al. 2022, Proposition 2).

    Source
    ------
    Montavon et al. (2019), Section 10.2.1.
    """

    def branches(self, a, weight, bias, pre, out):
        return [Branch(((a, weight),), bias, z=pre)]


@dataclass(frozen=True)
class Gamma(Rule):
    """LRP-gamma: positive contributions count 1 + gamma times.

    For a_j >= 0 and an output a_k > 0 this is the paper's rule, rho(w) = w + gamma max(0, w) for
    weights and biases. Signed inputs and negative outputs (a last layer without a ReLU) use its
    generalisation: contributions with the sign of the output are the ones that are enlarged. So
    abs(z_k) >= abs(a_k) always, and gamma can only make the division safer.

    Source
    ------
    Eberle et al. (2022), Eq. (2) and (5); Montavon et al. (2019), Section 10.2.3.

    Raises
    ------
    ValueError
        If gamma is negative or not finite.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        _check_non_negative("gamma", self.gamma)

    def branches(self, a, weight, bias, pre, out):
        if self.gamma == 0:
            return LRP0().branches(a, weight, bias, pre, out)

        def enlarge(t: Tensor | None, sign: int) -> Tensor | None:
            if t is None:
                return None
            return t + self.gamma * (t.clamp(min=0) if sign > 0 else t.clamp(max=0))

        def branch(sign: int) -> Branch:
            terms = [(a.clamp(min=0), enlarge(weight, sign))]
            if signed:
                terms.append((a.clamp(max=0), enlarge(weight, -sign)))
            return Branch(tuple(terms), enlarge(bias, sign), where=out * sign > 0)

        signed = bool((a < 0).any())
        return [branch(+1), branch(-1)] if bool((out < 0).any()) else [branch(+1)]


@dataclass(frozen=True, eq=False)
class ZB(Rule):
    """The z^B rule for inputs in a box, such as pixels: l_j <= x_j <= h_j.

    z_k = sum_j x_j w_jk - l_j max(0, w_jk) - h_j min(0, w_jk). The bias cancels,
    b - max(0, b) - min(0, b) = 0, so this layer absorbs nothing.

    Parameters
    ----------
    low, high : float or Tensor
        Bounds of the input, broadcastable to it, such as (3, 1, 1) for three colours.

    Raises
    ------
    ValueError
        If an input lies outside the box, naming the range found; if low > high anywhere.

    Source
    ------
    Montavon et al. (2017), Section 5.3 (deep Taylor decomposition).
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise ValueError(f"ZB: low must not exceed high, got low={self.low}, high={self.high}")

    def branches(self, a, weight, bias, pre, out):
        low, high = (torch.as_tensor(t).to(a).expand_as(a) for t in (self.low, self.high))
        # A resized or re-normalised picture may miss its bounds by rounding; more is a mistake.
        slack = 1e-4 * (high - low)
        if bool(((a < low - slack) | (a > high + slack)).any()):
            raise ValueError(
                f"ZB: the input must lie within [{float(low.min()):.4g}, {float(high.max()):.4g}], "
                f"each channel within its own bounds; found values from {float(a.min()):.4g} to "
                f"{float(a.max()):.4g}. For VGG-16 pass bilrp.normalize(x) with x in [0, 1]."
            )
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        return [Branch(((a, weight), (-low, up), (-high, down)), None)]


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes through unchanged, R_j = R_k. For layers that keep the shape.

    Source
    ------
    Bach et al. (2015), element-wise activations.
    """


@dataclass(frozen=True)
class WinnerTakeAll(Rule):
    """All relevance of a pooled output goes to the input that won: Eq. (6) for max-pooling.

    Source
    ------
    Eberle et al. (2022), Eq. (3) and (6): grad a_k is one at the winner, zero elsewhere.
    """


Rules = Rule | Mapping[int | range, Rule]


def rule_for(rules: Rules, number: int) -> Rule | None:
    """Rule of the layer with this number, counted from 1 as in the paper; None if there is none.

    Raises
    ------
    TypeError
        If `rules` is neither a Rule nor a mapping from numbers or ranges of numbers to Rules.
    """
    if isinstance(rules, Rule):
        return rules
    if not isinstance(rules, Mapping):
        raise TypeError(
            "rules must be one Rule for all layers, such as bilrp.Gamma(0.1), or a dict from layer "
            f"numbers (int or range, counted from 1) to Rules; got {type(rules).__name__}"
        )
    for key, rule in rules.items():
        if not isinstance(key, int | range) or not isinstance(rule, Rule):
            raise TypeError(f"rules: expected int or range -> Rule, got {key!r} -> {rule!r}")
        if number == key or (isinstance(key, range) and number in key):
            return rule
    return None


def _check_non_negative(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
