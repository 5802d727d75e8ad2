"""Linear maps of relevance: one for each operation, at one input, in both directions.

Every value a of the run carries its parts t = a u, one row an owner. Pushing forward acts on parts,
pulling back on c = R / a; the two are adjoint, <push(t), c> = <t, pull(c)>. At a linear operation
the parts go through the operation itself, so nothing is divided. Only where relevance is shared out
anew, at an activation or by a rule of a single layer, parts are scaled.

Rows stand in a dimension of their own, in front of the value's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from bilrp.engine.rules import Branch
from bilrp.engine.windows import Geometry

RowsFn = Callable[..., Tensor]


@dataclass
class Sink:
    """What an operation itself contributes: a bias, a constant, what a rule keeps.

    Attributes
    ----------
    name : str
        As a person calls it: "features.0" for the bias of this layer, "features.0, epsilon".
    part : Tensor
        Its part of the operation's output, of that shape.
    """

    name: str
    part: Tensor


@dataclass
class Linear:
    """An operation that is linear in the values it is given.

    Attributes
    ----------
    parents : list of int
        Numbers of the values that carry parts into it.
    fn : callable
        For each parent a tensor with one row an owner, to the rows of the output.
    absolute : callable or None
        The same with magnitudes for coefficients; None if no coefficient is negative.
    sinks : list of Sink
    moves : bool
        Whether each output is one input, unchanged, or 0.
    weights : bool
        Whether it is a layer with weights, for the rules.
    affine : Affine or None
        A layer with weights in the form that rules for it alone work on.
    transposed : callable or None
        The adjoint of `fn` (and, given absolute=True, of `absolute`), where it is at hand.
    coefficients : list of float or None
        Of a sum, place by place, of values that have the output's shape.
    winners : Winners or None
        Of a max-pooling of maps.
    """

    parents: list[int]
    fn: RowsFn
    absolute: RowsFn | None = None
    sinks: list[Sink] = field(default_factory=list)
    moves: bool = False
    weights: bool = False
    affine: Affine | None = None
    transposed: Callable[..., list[Tensor]] | None = None
    coefficients: list[float] | None = None
    winners: Winners | None = None

    def magnitudes(self, *rows: Tensor) -> Tensor:
        return (self.absolute or self.fn)(*rows)


@dataclass
class Winners:
    """Where the winners of a max-pooling of maps stand.

    Attributes
    ----------
    index : Tensor (channels, rows, cols) of int
        Place of the winner in its map, flattened.
    geometry : Geometry
    shape : tuple of int
        Of the input, (channels, rows, cols).
    """

    index: Tensor
    geometry: Geometry
    shape: tuple[int, ...]


@dataclass
class Affine:
    """A layer with weights, z = op(a, w) + b, in the form that rules of a single layer work on.

    Attributes
    ----------
    op : callable (rows, w) -> rows
    transposed : callable (rows, w) -> rows
    weight : Tensor
    bias : Tensor or None
        Shaped to add to the output.
    channels : tuple of int
        Shape that a bias vector takes to be added to the output.
    joins : bool
        Whether sums of several terms may be one, with inputs and weights side by side in channels.
    """

    op: Callable[[Tensor, Tensor], Tensor]
    transposed: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    channels: tuple[int, ...]
    geometry: Geometry | None = None  # of a 2-d convolution
    groups: int = 1
    joins: bool = False
    # (windows, w, zeros around them) -> windows, of a 2-d convolution
    framed: Callable[[Tensor, Tensor, tuple[int, int, int, int]], Tensor] | None = None

    def shaped(self, bias: Tensor) -> Tensor:
        return bias.view(self.channels) if bias.dim() == 1 else bias


def adjoint(fn: RowsFn, shapes: Sequence[torch.Size], c: Tensor) -> list[Tensor]:
    """The transpose of a linear function of rows, applied to (rows, *output)."""
    like = [c.new_zeros(len(c), *shape).requires_grad_() for shape in shapes]
    with torch.enable_grad():
        out = fn(*like)
    if not out.requires_grad:
        return [t.detach() for t in like]
    found = torch.autograd.grad(out, like, c.to(out.dtype), allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(like, found, strict=True)]


def channels_last(maps: Tensor) -> Tensor:
    """The same maps (N, C, H, W), on a CPU with channels last in memory.

    Convolutions are twice as fast so, and max-pooling twenty times.
    """
    if maps.device.type != "cpu":
        return maps
    if maps.is_contiguous(memory_format=torch.channels_last):
        _, channels, height, width = maps.shape  # of a single map, the first stride may be anything
        sizes = (height * width * channels, 1, width * channels, channels)
        return maps.as_strided(maps.shape, sizes)
    turned = maps.new_empty(len(maps), *maps.shape[2:], maps.shape[1])
    for whole, one in zip(turned, maps, strict=True):
        whole.flatten(0, 1).copy_(one.flatten(1).T)  # in two dimensions a copy is fast
    return turned.permute(0, 3, 1, 2)


def beside(rows: list[Tensor], dim: int) -> Tensor:
    """Rows side by side; of maps with channels last in memory, such ones."""
    if len(rows) == 1:
        return rows[0]
    if rows[0].dim() == 5:
        turned = [t.movedim(2, -1) for t in rows]
        if all(t.is_contiguous() for t in turned):
            return torch.cat(turned, (0, 1, 4, 2, 3)[dim]).movedim(-1, 2)
    return torch.cat(rows, dim)


def shared_out(target: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """target / z, 0 where z is 0; and the part of the target that this leaves, None if it is 0."""
    f = target / z
    if bool(f.sum().isfinite()):  # nothing is divided by 0: a sum shows it, and is fast
        return f, None
    nobody = z == 0
    lost = torch.where(nobody, target, 0)
    return torch.where(nobody, 0, f), lost if bool((lost != 0).any()) else None


@dataclass
class Term:
    """Part of what a layer under a rule of its own makes of shares: op(v u, w).

    Attributes
    ----------
    factors : list of Tensor or None
        v / a, or v where the rows are shares; None for 1. Several: side by side in channels.
    weight : Tensor
    number : int
        Whose denominators it belongs to.
    """

    factors: list[Tensor | None]
    weight: Tensor
    number: int

    def given(self, rows: Tensor) -> Tensor:
        return beside([rows if v is None else v * rows for v in self.factors], 2)


class Local:
    """A layer with weights under a rule of its own: shares are made anew within the layer.

    t_k = f_k sum over terms op(v u, w), with f = part * value / z, where v u = (v / a) t.

    Parameters
    ----------
    name : str
        Of the layer, for its sinks.
    affine : Affine
    branches : list of Branch
    a : Tensor
        Input of the layer.
    value : Tensor
        What is shared out: the layer's output, or that of the ReLU after it.
    shares : bool
        Whether the rows that come in are shares u instead of parts a u, as they are at the input.
    product : torch.dtype or None
        Number format of the products; None: that of the rows.
    rule : str
        What to call in the ledger what the rule keeps.
    """

    def __init__(
        self,
        name: str,
        affine: Affine,
        branches: list[Branch],
        a: Tensor,
        value: Tensor,
        shares: bool,
        product: torch.dtype | None,
        rule: str,
    ) -> None:
        self.affine, self.product = affine, product
        self.terms: list[Term] = []
        self.scales: list[Tensor] = []
        kept: dict[str, Tensor] = {}

        def keep(what: str, part: Tensor) -> None:
            kept[what] = kept[what] + part if what in kept else part

        for number, branch in enumerate(branches):
            terms = self._joined(branch)
            z = self._denominator(branch, terms)
            stabilised = z + branch.epsilon * z.sign() if branch.epsilon else z
            part = value if branch.where is None else torch.where(branch.where, value, 0)
            part = part if branch.part == 1 else branch.part * part
            f, nothing = shared_out(part, stabilised)
            self.scales.append(f)
            if nothing is not None:
                keep(f"{name}, {rule} of nothing", nothing)
            if affine.bias is not None:
                bias = 0 * f if branch.bias is None else f * affine.shaped(branch.bias)
                keep(name, bias)
            if branch.epsilon:
                keep(f"{name}, epsilon", f * branch.epsilon * z.sign())
            for vs, w in terms:
                if shares or (len(vs) == 1 and vs[0] is a):
                    self.terms.append(Term(list(vs) if shares else [None], w, number))
                    continue
                factors = [None if v is a else torch.where(a == 0, 0, v / a) for v in vs]
                self.terms.append(Term(factors, w, number))
                lost = [torch.where(a == 0, v, 0) for v in vs]
                if any(bool((t != 0).any()) for t in lost):
                    keep(f"{name}, {rule} at zeros", f * self._op(lost, w))
        self.sinks = [Sink(n, part) for n, part in kept.items()]

    def _joined(self, branch: Branch) -> list[tuple[list[Tensor], Tensor]]:
        """The terms of a branch: inputs and weights, as one where that can be."""
        if not self.affine.joins or len(branch.terms) == 1:
            return [([v], w) for v, w in branch.terms]
        return [([v for v, _ in branch.terms], torch.cat([w for _, w in branch.terms], 1))]

    def _op(self, vs: list[Tensor], w: Tensor) -> Tensor:
        return self.affine.op(beside(vs, 1)[None], w)[0]

    def _denominator(self, branch: Branch, terms: list[tuple[list[Tensor], Tensor]]) -> Tensor:
        if branch.z is not None:
            return branch.z
        z = reduce(torch.add, (self._op(vs, w) for vs, w in terms))
        return z if branch.bias is None else z + self.affine.shaped(branch.bias)

    def push(self, rows: Tensor, full: bool = False) -> Tensor:
        """Rows of the output; `full` leaves the products in the format of the rows."""
        total: Tensor | None = None
        op = self.affine.op
        for t in self.terms:
            given = t.given(rows)
            moved = op(given, t.weight) if full else self.times(op, given, t.weight)
            moved = moved.mul_(self.scales[t.number])
            total = moved if total is None else total.add_(moved)
        assert total is not None
        return total

    def pull(self, c: Tensor) -> Tensor:
        total: Tensor | None = None
        for t in self.terms:
            back = self.times(self.affine.transposed, c * self.scales[t.number], t.weight)
            parts = [back] if len(t.factors) == 1 else back.chunk(len(t.factors), 2)
            for v, moved in zip(t.factors, parts, strict=True):
                moved = moved if v is None else moved * v
                total = moved if total is None else total + moved
        assert total is not None
        return total

    def times(self, op: Callable, rows: Tensor, w: Tensor) -> Tensor:
        """op(rows, w) in the number format of the products."""
        if self.product is None:
            return op(rows, w)
        return op(rows.to(self.product), w.to(self.product)).to(rows.dtype)


class End:
    """The end of a segment: parts are scaled so that they make the activation's output.

    t = f_p p + f_m m, where p are the parts before the activation and m those of the same paths
    with magnitudes for coefficients; without gamma t = (out / in) p.

    Parameters
    ----------
    before : Tensor
        The value at the end of the segment, before the activation.
    out : Tensor
        After it; the same where no activation follows.
    zero : Tensor or None
        What the activation makes of 0, if that is not 0 everywhere; it has no owner but a sink.
    gamma : float
    magnitude : Tensor or None
        Sum of m over all owners and sinks; None where there is no m.
    name : str
    biases : (Tensor, Tensor) or None
        p and m of the biases of this segment, where they are to be shared among the others.
    """

    def __init__(
        self,
        before: Tensor,
        out: Tensor,
        zero: Tensor | None,
        gamma: float,
        magnitude: Tensor | None,
        name: str,
        biases: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        target = out if zero is None else out - zero
        self.sinks = [] if zero is None else [Sink(f"{name}, value at 0", zero)]
        self.f_m: Tensor | None = None
        if magnitude is None:
            self.f_p, lost = shared_out(target, before)
        else:
            for_, against = (before + magnitude) / 2, (before - magnitude) / 2
            shared: list[Tensor] = []
            kept = torch.zeros_like(before)
            times_for = 1 + gamma * (before > 0).to(before)
            times_against = 1 + gamma * (before < 0).to(before)
            z = times_for * for_ + times_against * against
            f, lost = shared_out(target, z)
            if biases is not None:
                for n, (side, times) in enumerate(((for_, times_for), (against, times_against))):
                    part = (biases[0] + (1 - 2 * n) * biases[1]) / 2
                    others = side - part
                    # below rounding there is nobody to share with
                    alone = others.abs() <= 1e3 * torch.finfo(side.dtype).eps * magnitude
                    kept += torch.where(alone, f * times * part, 0)
                    shared.append(times * torch.where(alone, 1, side / others))
                times_for, times_against = shared
                self.sinks.append(Sink(f"{name}, biases alone", kept))
            self.f_p, self.f_m = (
                f * (times_for + times_against) / 2,
                f * (times_for - times_against) / 2,
            )
        if lost is not None:  # only where an activation is not continuous at 0
            self.sinks.append(Sink(f"{name}, value at 0", lost))

    def push(self, p: Tensor, m: Tensor | None) -> Tensor:
        out = p * self.f_p
        return out if self.f_m is None or m is None else out.addcmul_(m, self.f_m)

    def pull(self, c: Tensor) -> tuple[Tensor, Tensor | None]:
        return c * self.f_p, None if self.f_m is None else c * self.f_m
