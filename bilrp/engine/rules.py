"""LRP rules: how one layer shares the relevance of its outputs among its inputs.

A rule does not propagate anything itself. It turns the activations and parameters of one layer into
the *denominators* z_k and the terms that they are made of; `bilrp.engine.maps` builds from these
the one linear map that both pulling relevance back and pushing ownership forward use.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import CellType, CodeType, FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bilrp.engine.record import Place


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
    part : float
        How much of the relevance this set shares out; the sets of one output make 1 in all.
    """

    terms: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor | None
    where: Tensor | None = None
    z: Tensor | None = None
    epsilon: float = 0.0
    part: float = 1.0


class Rule:
    """Base class of all rules.

    Attributes
    ----------
    applies : str
        "weights" (convolutions, linear layers, batch norm that is not folded) or "products" (gates
        and attention, softmax included).
    """

    applies: ClassVar[str] = "weights"

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

    The stabiliser absorbs a share epsilon / (abs(z_k) + epsilon) of the relevance; it has a row of
    its own in the ledger.

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
    """LRP-gamma: contributions that speak for the output count 1 + gamma times.

    For a layer between two ReLUs this is the paper's rule, rho(w) = w + gamma max(0, w) for weights
    and biases. Where several linear operations lie between one activation and the next (a norm, a
    shortcut, another convolution), gamma is *joint*: it acts on the contributions of whole paths
    through that segment, which is normalised once, at its end, with the gamma of its last layer
    with weights. Contributions with the sign of the segment's output are the ones that are
    enlarged, so abs(z_k) >= abs(pre-activation) always, and for gamma > 0 the magnitudes of the
    contributions add up to at most (2 + gamma) / gamma times abs(z_k).

    Parameters
    ----------
    gamma : float
    biases : str
        "owners": a bias keeps what it contributes, as in the ledger of the paper's rule. "shared":
        a segment's biases hand it on to the other contributions of their sign in that segment.

    Source
    ------
    Eberle et al. (2022), Eq. (2) and (5); Montavon et al. (2019), Section 10.2.3. Joint: this book.

    Raises
    ------
    ValueError
        If gamma is negative or not finite, or biases is another word.
    """

    gamma: float = 0.25
    biases: str = "owners"

    def __post_init__(self) -> None:
        _check_non_negative("gamma", self.gamma)
        if self.biases not in ("owners", "shared"):
            raise ValueError(f'biases must be "owners" or "shared", got {self.biases!r}')

    def branches(self, a, weight, bias, pre, out):
        if self.gamma == 0:
            return LRP0().branches(a, weight, bias, pre, out)

        def enlarge(t: Tensor, sign: int) -> Tensor:
            return t + self.gamma * (t.clamp(min=0) if sign > 0 else t.clamp(max=0))

        def branch(sign: int) -> Branch:
            terms = [(a.clamp(min=0) if signed else a, enlarge(weight, sign))]
            if signed:
                terms.append((a.clamp(max=0), enlarge(weight, -sign)))
            own = None if bias is None else enlarge(bias, sign)
            return Branch(tuple(terms), own, where=out * sign > 0 if both else None)

        signed, both = has_negative(a), has_negative(out)
        return [branch(+1), branch(-1)] if both else [branch(+1)]


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
        # What misses its box by rounding widens it: no contribution may become negative.
        low, high = torch.minimum(low, a), torch.maximum(high, a)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        return [Branch(((a, weight), (-low, up), (-high, down)), None)]


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """LRP-alpha-beta: alpha parts of what is positive, beta = alpha - 1 of what is negative.

    R_j = sum_k (alpha (a_j w_jk)^+ / z_k^+ - beta (a_j w_jk)^- / z_k^-) R_k. Where an output has no
    positive (or no negative) contribution, its part has no owner and stands in the ledger.

    Source
    ------
    Bach et al. (2015), Eq. (60).

    Raises
    ------
    ValueError
        If alpha is less than 1 or not finite.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number >= 1, got {self.alpha}")

    def branches(self, a, weight, bias, pre, out):
        def branch(sign: int, part: float) -> Branch:
            def side(t: Tensor, s: int) -> Tensor:
                return t.clamp(min=0) if s > 0 else t.clamp(max=0)

            terms = [(a.clamp(min=0), side(weight, sign))]
            if has_negative(a):
                terms.append((a.clamp(max=0), side(weight, -sign)))
            own = None if bias is None else side(bias, sign)
            return Branch(tuple(terms), own, part=part)

        found = [branch(+1, self.alpha)]
        return found if self.alpha == 1 else [*found, branch(-1, 1 - self.alpha)]


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """The z^+ rule: shares in proportion to the positive contributions alone; alpha = 1.

    Source
    ------
    Montavon et al. (2017), Section 5.2.
    """

    alpha: float = 1.0


@dataclass(frozen=True)
class WSquare(Rule):
    """The w^2 rule, for inputs without bounds: shares in proportion to the squared weights.

    Source
    ------
    Montavon et al. (2017), Section 5.1.
    """

    def branches(self, a, weight, bias, pre, out):
        return [Branch(((torch.ones_like(a), weight.square()),), None)]


@dataclass(frozen=True)
class Flat(Rule):
    """The flat rule: every input of a neuron gets an equal share, whatever it holds.

    Source
    ------
    Lapuschkin et al. (2019), supplementary note 3.
    """

    def branches(self, a, weight, bias, pre, out):
        return [Branch(((torch.ones_like(a), torch.ones_like(weight)),), None)]


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

    This is what max-pooling does without being told.

    Source
    ------
    Eberle et al. (2022), Eq. (3) and (6): grad a_k is one at the winner, zero elsewhere.
    """


@dataclass(frozen=True)
class CPLRP(Rule):
    """Products: the gate is a number, the other factor takes all. The default.

    In attention the softmax weights are the gate and the values take all. A gate is what comes out
    of softmax, sigmoid, erf or 1 / sqrt; then tanh; in a gated linear unit act(W x) * (V x), as in
    SwiGLU, the activated factor. Weights of a convolution that gates mix are numbers too. Any other
    product of two factors of one kind is refused unless `take` says which of them takes the
    relevance.

    Parameters
    ----------
    take : int or None
        1 for the first factor, 2 for the second, None for the rule of gates.

    Source
    ------
    Ali et al. (2022), "XAI for Transformers"; for LSTM gates Arras et al. (2017). For gated linear
    units a convention of this package; which factor is the gate: Shazeer (2020), "GLU variants".
    """

    take: int | None = None
    applies: ClassVar[str] = "products"

    def __post_init__(self) -> None:
        if self.take not in (None, 1, 2):
            raise ValueError(f"take must be 1, 2 or None, got {self.take!r}")


@dataclass(frozen=True)
class AttnLRP(Rule):
    """Products: half for each factor; softmax by its first-order expansion.

    R_i = x_i (R_i - s_i sum_j R_j) at a softmax s of x; what it does not hand on stands in the
    ledger. Norms stay frozen, as a factor 1 / sqrt or length: the paper's rule for them.

    Source
    ------
    Achtibat et al. (2024), "AttnLRP", Section 3.3.
    """

    applies: ClassVar[str] = "products"


Key = int | range | str | type | Callable[[nn.Module], bool]
Rules = Rule | Mapping[Any, Rule]


class RuleBook:
    """Which rule applies where.

    Parameters
    ----------
    rules : Rule or mapping
        One rule for all layers with weights, or by place (number of a leaf module, from 1, or a
        range of them), by name or name pattern such as "layer4.*", by module type, or by a
        predicate of the module. The first key that fits a call decides.

    Raises
    ------
    TypeError
        If `rules` is neither a Rule nor such a mapping.
    """

    def __init__(self, rules: Rules) -> None:
        if isinstance(rules, Rule):
            self.items: list[tuple[Any, Rule]] = [("*", rules)]
        elif isinstance(rules, Mapping):
            self.items = list(rules.items())
        else:
            raise TypeError(
                "rules must be one Rule for all layers, such as bilrp.Gamma(0.1), or a dict from "
                "layer numbers (int or range, counted from 1), names, types or predicates to "
                f"Rules; got {type(rules).__name__}"
            )
        for key, rule in self.items:
            known = isinstance(key, int | range | str | type) or callable(key)
            if not known or isinstance(key, bool) or not isinstance(rule, Rule):
                raise TypeError(
                    "rules: expected int or range (places), str (name pattern), type or predicate "
                    f"-> Rule, got {key!r} -> {rule!r}"
                )

    def at(self, place: Place, what: str) -> Rule | None:
        """The rule for an operation in a module, None where the operation's own way applies.

        Parameters
        ----------
        what : str
            "weights", "products", or "other": norms, pooling, sums, which only a key that means
            their module in particular reaches.
        """
        for key, rule in self.items:
            wide = isinstance(key, range) or key == "*"
            if rule.applies != ("products" if what == "products" else "weights"):
                continue
            if wide and what == "other":
                continue
            if self.means(key, place):
                return rule
        return None

    def means(self, key: Any, place: Place) -> bool:
        """Whether a key fits the module of a call."""
        return fits(key, place.module, place.name, place.number)

    def check(self, model: nn.Module) -> None:
        """Refuse keys that fit nothing in the model; ranges of numbers may."""
        places = numbered(model)
        number = max(k or 0 for _, _, k in places)
        for key, rule in self.items:
            if isinstance(key, range) or any(fits(key, *place) for place in places):
                continue
            names = ", ".join(repr(n) for _, n, k in places[:60] if k)
            raise ValueError(
                f"rules: {key!r} -> {rule!r} fits no module of the model. Its {number} layers are "
                f"named {names[:400]}{' ...' if len(names) > 400 else ''}"
            )

    def __str__(self) -> str:
        """For comparing and storing: the same for the same rules."""
        return "; ".join(f"{told(key)}: {_described(rule)}" for key, rule in self.items)


def numbered(model: nn.Module) -> list[tuple[nn.Module, str, int | None]]:
    """All modules with their names; leaf modules are numbered from 1 in the order of definition."""
    number, places = 0, []
    for name, m in model.named_modules():
        leaf = next(m.children(), None) is None
        number += leaf
        places.append((m, name, number if leaf else None))
    return places


def fits(key: Any, module: nn.Module, name: str, number: int | None) -> bool:
    """Whether a key of a rules mapping means this module."""
    if isinstance(key, int):
        return number == key
    if isinstance(key, range):
        return number in key if number else False
    if isinstance(key, str):
        return fnmatchcase(name, key)
    if isinstance(key, type):
        return isinstance(module, key)
    return bool(key(module))


def told(key: Any) -> str:
    """A key or a function by its name, and one of Python by what it does."""
    if getattr(key, "__code__", None) is None:
        return getattr(key, "__qualname__", None) or repr(key)
    held = [_told_of_held(v) for v in (*held_by(key), *(key.__defaults__ or ()))]
    return f"{told_of_code(key)} {zlib.crc32(repr(held).encode()):08x}"


def told_of_code(function: FunctionType) -> str:
    """A function by its name and its code: lambdas have one name and do different things."""
    code = function.__code__
    seen = (code.co_code, _constants(code), code.co_names)
    return f"{function.__qualname__} {zlib.crc32(repr(seen).encode()):08x}"


def held_by(function: FunctionType) -> list:
    """What a function closes over, what it calls itself aside."""
    cells = [c for c in function.__closure__ or () if c != CellType()]
    return [c.cell_contents for c in cells if c.cell_contents is not function]


def _told_of_held(v: Any) -> str:
    if isinstance(v, Tensor):
        return f"{tuple(v.shape)} {_numbers(v)}"
    return told(v) if callable(v) and not isinstance(v, nn.Module) else repr(v)


def _constants(code: CodeType) -> list:
    return [(c.co_code, _constants(c)) if isinstance(c, CodeType) else c for c in code.co_consts]


def _described(rule: Rule) -> str:
    if isinstance(rule, ZB):
        return f"ZB({_numbers(rule.low)}, {_numbers(rule.high)})"
    return repr(rule)


def _numbers(t: float | Tensor) -> list:
    return [float(f"{v:.6g}") for v in torch.as_tensor(t).flatten().tolist()]


def rule_for(rules: Rules, number: int) -> Rule | None:
    """Rule of the layer with this number, counted from 1 as in the paper; None if there is none.

    Raises
    ------
    TypeError
        As `RuleBook`.
    """
    for key, rule in RuleBook(rules).items:
        if key == "*" or number == key or (isinstance(key, range) and number in key):
            return rule
    return None


def has_negative(t: Tensor) -> bool:
    """Whether any number is below 0; several times faster than to ask each."""
    return bool(t.clamp(max=0).sum() < 0)


def _check_non_negative(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
