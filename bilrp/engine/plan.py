"""From a recorded run to its steps: what relevance reaches, which map stands where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bilrp.engine.kinds import (
    PRODUCTS,
    WINNERS,
    Activation,
    Made,
    ModuleCall,
    Tokens,
    made_of,
    refusal,
    weighted,
)
from bilrp.engine.maps import Affine, End, Linear, Local, Sink
from bilrp.engine.modules import Opaque
from bilrp.engine.record import Place, Value
from bilrp.engine.rules import LRP0, Gamma, Pass, Rule, WinnerTakeAll, has_negative
from bilrp.engine.run import Run


@dataclass
class Stage:
    """One value that relevance reaches, and how its parts are made of those of its parents.

    Attributes
    ----------
    number : int
    parents : list of int
    linear : Linear or None
        The operation, where parts go through it; None for `end`, `local`, tokens and the input.
    local : Local, Opaque or None
    end : End or None
        Of an activation, or of a layer with the rule `Pass`.
    tokens : bool
        Whether this is an embedding of whole numbers.
    pair : bool
        Whether the rows are (p, m): a value inside a segment with gamma.
    shares : bool
        Whether the rows are shares u rather than parts a u: the input and what is only moved.
    closes : bool
        Whether the segments that come in end before it, as with the rules `Pass` and `LRP0`.
    sinks : list of Sink
    """

    number: int
    parents: list[int]
    linear: Linear | None = None
    local: Local | Opaque | None = None
    end: End | None = None
    tokens: bool = False
    pair: bool = False
    shares: bool = False
    closes: bool = False
    sinks: list[Sink] = field(default_factory=list)


@dataclass
class Segment:
    """Where a value stands within the segment that its last activation began."""

    layer: int = -1  # number of the last layer with weights, -1 before any
    rule: Gamma | None = None
    inside: bool = False  # False where a segment begins

    def gamma(self) -> float:
        return self.rule.gamma if self.rule else 0.0

    def joint(self) -> bool:
        return self.rule is not None and (self.rule.gamma > 0 or self.rule.biases == "shared")


class Plan:
    """The steps of a run under rules.

    Attributes
    ----------
    steps : list of Step
        In the order of the run; the first is the input.
    closing : dict of int to End
        How segments end that no activation ends, by the value they end with.
    """

    def __init__(self, run: Run, output: int, product: torch.dtype | None) -> None:
        self.run, self.output, self.product = run, output, product
        self.shared = self._shared_biases()
        self.called = [v.place for v in run.values]
        self.made: dict[int, Made | None] = {}
        self.rule: dict[int, Rule | None] = {}
        self._reach()
        self._prune()
        self._fold_batch_norms()
        self._rules()
        self.segment: dict[int, Segment] = {}
        for n in self._in_order():
            self.segment[n] = self._segment(n)
        self.fused = self._fusable()
        self.pair = self._pairs()
        self.magnitude: dict[int, Tensor] = {}
        self.biases: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        self.closing: dict[int, End] = {}
        self.shares: dict[int, bool] = {}
        self.steps = [self._step(n) for n in self._in_order() if n not in self.fused]
        self._close_all([output])

    def _shared_biases(self) -> bool:
        modes = {r.biases for _, r in self.run.book.items if isinstance(r, Gamma)}
        if len(modes) > 1:
            raise ValueError("all Gamma rules must do the same with biases: owners, or shared")
        return modes == {"shared"}

    # --- which values, which rules ---------------------------------------------------------------

    def _in_order(self) -> list[int]:
        return sorted(self.made)

    def _linear(self, n: int) -> Linear:
        made = self.made[n]
        assert isinstance(made, Linear)
        return made

    def _affine(self, n: int) -> Affine:
        affine = self._linear(n).affine
        assert affine is not None
        return affine

    def parents(self, n: int) -> list[int]:
        made = self.made[n]
        return made.parents if isinstance(made, Linear) else [made.parent] if made else []

    def _reach(self) -> None:
        """The map of every value that relevance can come to, from the features down."""
        for value in self.run.values:
            value.data = finite(value.data)
        waiting = {self.output}
        while waiting:
            n = max(waiting)
            waiting.discard(n)
            if n == 0:
                self.made[0] = None
                continue
            made = made_of(self.run.values[n], self.run)
            self.made[n] = made
            if isinstance(made, Linear):
                made.sinks = [Sink(s.name, finite(s.part)) for s in made.sinks]
            waiting.update(self.parents(n))
            if isinstance(self.made[n], Tokens) and self.parents(n) != [0]:
                raise refusal(self.run.values[n], "embeds numbers that are not the input itself")
        if 0 not in self.made:
            raise NotImplementedError("no relevance can reach the input through known operations")
        if not self.run.data(0).is_floating_point() and any(
            0 in self.parents(n) and not isinstance(m, Tokens) for n, m in self.made.items() if n
        ):
            raise NotImplementedError(
                "the input holds whole numbers, which can only be explained through an embedding"
            )

    def _prune(self) -> None:
        """Registered maps forget what no relevance of the features can reach."""
        live = {self.output: self.run.data(self.output) != 0}
        readers, used = self._readers(), self._uses()
        for n in reversed(self._in_order()):
            made = self.made[n]
            if isinstance(made, ModuleCall):
                data = self.run.data(n)
                alone = n in live and used[n] == 1 and readers[n] <= 1
                if alone:  # what is forgotten is no part of the value any more
                    data = self.run.values[n].data = torch.where(live[n], data, 0)
                live[made.parent] = made.map.prune(data != 0)

    def _readers(self) -> Counter:
        """How many calls of the run read each value, for whatever purpose."""
        return Counter(n for v in self.run.values for n in set(v.inputs))

    def _uses(self) -> Counter:
        """How many maps, and the features, each value carries relevance to."""
        used = Counter(n for m in self.made if m for n in set(self.parents(m)))
        used[self.output] += 1
        return used

    def _fold_batch_norms(self) -> None:
        """A batch norm joins the layer before it where that has no other reader."""
        readers, used = self._readers(), self._uses()
        for n in self._in_order():
            norm, value = self.made[n], self.run.values[n]
            if value.name != "batch_norm" or not isinstance(norm, Linear):
                continue
            before = norm.parents[0]
            layer = self.made[before]
            if not isinstance(layer, Linear) or layer.affine is None or used[before] > 1:
                continue
            made_by = self.run.values[before]
            own = self.run.book.at(value.place, "other")  # a rule that means this norm
            if own is not None and own is not self.run.book.at(made_by.place, "weights"):
                continue
            if not made_by.name.startswith(("conv", "linear")) or readers[before] > 1:
                continue
            inner, outer = layer.affine, self._affine(n)
            axis = 1 if "transpose" in made_by.name else 0
            scale = outer.weight
            shape = [1] * inner.weight.dim()
            shape[axis] = -1
            if "transpose" in made_by.name and made_by.data.shape[1] != inner.weight.shape[1]:
                continue  # grouped
            if made_by.name == "linear" and made_by.data.dim() != 2:
                continue
            bias = outer.bias
            if inner.bias is not None:
                moved = outer.op(inner.bias, scale)
                bias = moved if bias is None else bias + moved
            affine = replace(inner, weight=inner.weight * scale.view(shape), bias=bias)
            self.made[n] = weighted(layer.parents[0], affine, made_by.place.label)
            self.run.values[n] = replace(value, place=made_by.place)
            del self.made[before]

    def _rules(self) -> None:
        for n in self._in_order():
            made = self.made[n]
            if not isinstance(made, Linear):
                continue
            value = self.run.values[n]
            rule = self.run.book.at(value.place, "weights" if made.weights else "other")
            if made.weights and rule is None:
                number = value.place.number or repr(value.place.name)
                raise NotImplementedError(
                    f"{value.place} has weights but no rule. Give it one, for example "
                    f"rules={{{number}: bilrp.Gamma(0.1), ...}}, or one rule for all layers."
                )
            if isinstance(rule, WinnerTakeAll) and made.weights:
                raise TypeError(
                    f"WinnerTakeAll() does not apply to {value.place}, a layer with weights; "
                    "use Gamma, Epsilon, ..."
                )
            if not made.weights and not isinstance(rule, Pass | LRP0):
                rule = None  # it is for weights; Gamma acts where the segment ends
            if isinstance(rule, Pass) and value.data.shape != self.run.data(made.parents[0]).shape:
                raise ValueError(
                    f"{value.place}: Pass needs a layer that keeps the shape, but this one turns "
                    f"{tuple(self.run.data(made.parents[0]).shape)} into {tuple(value.data.shape)}"
                )
            self.rule[n] = rule
        self._refuse_rules_without_effect()

    def _refuse_rules_without_effect(self) -> None:
        """A key that means modules in particular, and none that its rule can do anything for."""
        for key, rule in self.run.book.items:
            if isinstance(key, range) or key == "*":
                continue
            if not any(self.run.book.means(key, place) for place in self.called[1:]):
                raise ValueError(
                    f"rules: {key!r} -> {rule!r} means a module that is never called for this "
                    "input. One whose weights another module uses, such as out_proj of "
                    "nn.MultiheadAttention, has the rule of that module."
                )
            meant = [n for n in self._in_order() if n and self.run.book.means(key, self._place(n))]
            if meant and not any(self._hears(n, rule) for n in meant):
                raise ValueError(
                    f"rules: {key!r} -> {rule!r} means {self._place(meant[0])}, where it changes "
                    f"nothing: the rule is for {_for(rule)}"
                )

    def _place(self, n: int) -> Place:
        return self.run.values[n].place

    def _hears(self, n: int, rule: Rule) -> bool:
        """Whether a rule can change what a call does."""
        made, value = self.made[n], self.run.values[n]
        if rule.applies == "products":
            return value.name == "softmax" or (value.name in PRODUCTS and len(value.inputs) > 1)
        if isinstance(made, ModuleCall):
            return True
        if not isinstance(made, Linear):
            return False
        if isinstance(rule, WinnerTakeAll):
            return value.name in WINNERS
        return made.weights or isinstance(rule, Pass | LRP0)

    # --- segments --------------------------------------------------------------------------------

    def _segment(self, n: int) -> Segment:
        if self._ends(n):
            return Segment()
        made, rule = self._linear(n), self.rule[n]
        if made.weights:
            assert rule is None or isinstance(rule, Gamma)
            return Segment(n, rule, True)
        last = max((self.segment[p] for p in made.parents), key=lambda s: s.layer)
        return Segment(last.layer, last.rule, True)

    def _ends(self, n: int) -> bool:
        """Whether the segments that come into this step end there."""
        made, rule = self.made[n], self.rule.get(n)
        return not isinstance(made, Linear) or (rule is not None and not isinstance(rule, Gamma))

    def _fusable(self) -> dict[int, int]:
        """Layers with weights that are one step with the ReLU after them, and that ReLU.

        So nothing is divided for neurons that the ReLU silences.
        """
        used, found = self._uses(), {}
        for n in self._in_order():
            made = self.made[n]
            if not isinstance(made, Activation) or made.zero is not None:
                continue
            w = made.parent
            layer, rule = self.made[w], self.rule.get(w)
            if not isinstance(layer, Linear) or layer.affine is None or used[w] > 1:
                continue
            if rule is None or isinstance(rule, Pass) or has_negative(self.run.data(n)):
                continue
            if isinstance(rule, Gamma | LRP0):  # in a segment, not for their layer alone
                parent = layer.parents[0]
                joined = self.segment[parent].inside and not self._plain(parent)
                if self.shared or joined or has_negative(self.run.data(parent)):
                    continue
            found[w] = n
        return found

    def _plain(self, n: int) -> bool:
        """Whether m = sign(a) p all the way from where the segment began."""
        made = self.made[n]
        if not self.segment[n].inside:
            return True
        if not isinstance(made, Linear) or made.weights or made.absolute is not None or made.sinks:
            return False
        if not all(self._plain(p) for p in made.parents):
            return False
        return made.moves or all(not has_negative(self.run.data(p)) for p in made.parents)

    def _pairs(self) -> dict[int, bool]:
        """Values whose rows are (p, m): a gamma waits where their segment ends."""
        needed: dict[int, bool] = {}
        readers: dict[int, list[int]] = {n: [] for n in self.made}
        for n in self.made:
            for p in self.parents(n) if n else ():
                readers[p].append(n)
        for n in reversed(self._in_order()):
            ends = n == self.output or any(self._ends(c) for c in readers[n])
            needed[n] = (ends and self.segment[n].joint()) or any(
                needed[c] for c in readers[n] if not self._ends(c)
            )
        return {
            n: needed[n] and self.segment[n].inside and n not in self.fused and not self._plain(n)
            for n in self.made
        }

    # --- steps -----------------------------------------------------------------------------------

    def _step(self, n: int) -> Stage:
        step = self._made_step(n)
        self.shares[n] = step.shares
        return step

    def _made_step(self, n: int) -> Stage:
        made = self.made[n]
        if n == 0:
            return Stage(0, [], shares=True)
        if isinstance(made, Tokens):
            return Stage(n, [made.parent], tokens=True, shares=True)
        value = self.run.values[n]
        if isinstance(made, ModuleCall):
            self._close_all([made.parent])
            a = self.run.data(made.parent)
            opaque = Opaque(made.map, a, value.data, self.shares[made.parent])
            return Stage(n, [made.parent], local=opaque, sinks=opaque.sinks)
        if isinstance(made, Activation):
            if made.parent in self.fused:
                return self._fused_step(made.parent, n)
            end = self._end(made.parent, value.data, made.zero, value)
            return Stage(n, [made.parent], end=end, sinks=end.sinks)
        return self._linear_step(n, value)

    def _linear_step(self, n: int, value: Value) -> Stage:
        made, rule = self._linear(n), self.rule[n]
        if isinstance(rule, Pass):
            parent = made.parents[0]
            end = End(self.run.data(parent), value.data, None, 0.0, None, value.place.name)
            self._close_all([parent])
            return Stage(n, [parent], end=end, closes=True, sinks=end.sinks)
        if rule is not None and not isinstance(rule, Gamma | LRP0):
            return self._local_step(n, made.parents[0], rule, value.data, value.data)
        if isinstance(rule, LRP0):
            self._close_all(made.parents)
            return Stage(n, made.parents, linear=made, closes=True, sinks=made.sinks)
        shares = made.moves and len(made.parents) == 1 and self.shares[made.parents[0]]
        if shares and not made.sinks:
            return Stage(n, made.parents, linear=made, shares=True)
        if not self.pair[n]:
            sinks = made.sinks
            if any(p in self.biases for p in made.parents):  # from here on they are owners
                own = self._own_biases(made, torch.zeros_like(self.run.data(n)))
                sinks = [Sink(name, p) for name, (p, _) in own.items()]
            return Stage(n, made.parents, linear=made, sinks=sinks)
        self._measure(n, made)
        sinks = [] if self.shared else made.sinks
        return Stage(n, made.parents, linear=made, pair=True, sinks=sinks)

    def _fused_step(self, layer: int, n: int) -> Stage:
        rule = self.rule[layer]
        return self._local_step(
            n, self._linear(layer).parents[0], rule, self.run.data(layer), self.run.data(n), layer
        )

    def _local_step(
        self, n, parent, rule, pre: Tensor, out: Tensor, layer: int | None = None
    ) -> Stage:
        layer = n if layer is None else layer
        affine = self._affine(layer)
        name = self.run.values[layer].place.label
        a = self.run.data(parent)
        self._close_all([parent])
        bias = affine.bias
        branches = rule.branches(a, affine.weight, bias, pre, out)
        local = Local(
            name, affine, branches, a, out, self.shares[parent], self.product, _named(rule)
        )
        return Stage(n, [parent], local=local, sinks=local.sinks)

    def _measure(self, n: int, made: Linear) -> None:
        """Sums of all magnitudes at a value, and what biases of its segment alone contribute."""
        given = [self._magnitude(p) for p in made.parents]
        parts = [s.part for s in made.sinks]
        zero = torch.zeros_like(self.run.data(n))
        total = sum((t.abs() for t in parts), zero)
        self.magnitude[n] = made.magnitudes(*(g[None] for g in given))[0] + total
        if self.shared:
            self.biases[n] = self._own_biases(made, zero)

    def _own_biases(self, made: Linear, zero: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """By name, what each bias of this segment makes of a value: p and m, as of an owner."""
        below = [self.biases.get(p, {}) for p in made.parents]
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name in dict.fromkeys(name for b in below for name in b):
            none = (torch.zeros_like(self.run.data(p)) for p in made.parents)
            own = [b.get(name, (z, z)) for b, z in zip(below, none, strict=True)]
            p = made.fn(*(t[None] for t, _ in own))[0]
            found[name] = p, made.magnitudes(*(t[None] for _, t in own))[0]
        for sink in made.sinks:
            p, m = found.get(sink.name, (zero, zero))
            found[sink.name] = p + sink.part, m + sink.part.abs()
        return found

    def _magnitude(self, n: int) -> Tensor:
        return self.magnitude[n] if n in self.magnitude else self.run.data(n).abs()

    def _end(self, n: int, out: Tensor, zero: Tensor | None, value: Value) -> End:
        name = value.place.name or value.name
        if not self.pair[n]:
            # without gamma, or nothing but moves since the last activation
            return End(self.run.data(n), out, zero, 0.0, None, name)
        own = self.biases.get(n, {})
        if not self.segment[n].joint():  # for others that read it, parts come as pairs
            end = End(self.run.data(n), out, zero, 0.0, None, name)
            end.sinks += [Sink(bias, p * end.f_p) for bias, (p, _) in own.items()]
            return end
        gamma, shared = self.segment[n].gamma(), together(own)
        return End(self.run.data(n), out, zero, gamma, self.magnitude[n], name, shared)

    def _close(self, n: int) -> None:
        if n not in self.closing:
            self.closing[n] = self._end(n, self.run.data(n), None, self.run.values[n])

    def _close_all(self, numbers: list[int]) -> None:
        for n in numbers:
            if self.pair[n]:
                self._close(n)


def together(biases: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """p and m of all biases of a segment together; None if there is none."""
    if not biases:
        return None
    p, m = zip(*biases.values(), strict=True)
    return sum(p[1:], p[0]), sum(m[1:], m[0])


def _for(rule: Rule) -> str:
    if rule.applies == "products":
        return "products of two values and softmax"
    if isinstance(rule, Pass | LRP0):
        return "layers, norms, sums and pooling"
    return "max-pooling" if isinstance(rule, WinnerTakeAll) else "layers with weights"


def finite(t: Tensor) -> Tensor:
    """A mask of minus infinity as a number that softmax still makes 0 of: it can have parts."""
    if not t.is_floating_point() or bool(t.sum().isfinite()):  # a sum shows it, and is fast
        return t
    return t.clamp(-1e30, 1e30) if bool(t.isinf().any()) else t


def _named(rule: Rule) -> str:
    return {"ZB": "z^B", "WSquare": "w^2", "AlphaBeta": "alpha-beta", "ZPlus": "z^+"}.get(
        type(rule).__name__, type(rule).__name__
    )
