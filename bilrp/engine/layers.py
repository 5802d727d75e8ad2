"""From the layers of a model to linear relevance maps.

Under a rule, one layer at one input is ONE linear map B on relevance. A `RelevanceMap` holds it and
offers both directions: `pull` (relevance back to the inputs, Eq. 5 and 6 of Eberle et al. 2022) and
`push` (ownership forward to the outputs), which is the adjoint: <u, B R> = <push(u), R>.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from bilrp.engine.alive import Alive, push_alive
from bilrp.engine.rules import LRP0, Branch, Rule
from bilrp.engine.windows import Geometry, Span, cut


@dataclass(frozen=True)
class Step:
    """One layer of a flattened model; a ReLU that follows a weighted layer is part of it."""

    name: str  # as in model.named_modules(), such as "0" or "features.3"
    number: int  # place in the flattened model, counted from 1 as in the paper
    module: nn.Module
    weight: Tensor | None = None
    bias: Tensor | None = None
    relu: bool = False

    def __str__(self) -> str:
        return f"layer {self.number} ({type(self.module).__name__}, named {self.name!r})"


class RelevanceMap:
    """Linear relevance map of one layer at one input. Base class: relevance passes unchanged.

    Attributes
    ----------
    step : Step
    output : Tensor (N, ...)
        The layer's activations at this input.
    absorbed : Tensor (N, ...) or None
        Share of each output's relevance that stays in the layer (bias and stabiliser); None for a
        layer that has neither.
    """

    absorbed: Tensor | None = None
    geometry: Geometry | None = Geometry()  # None: only whole maps, no windows

    def __init__(self, step: Step, output: Tensor) -> None:
        self.step, self.output = step, output

    def pull(self, relevance: Tensor) -> Tensor:
        """Relevance of the inputs, (N, ...), from that of the outputs, (N, ...)."""
        return relevance

    def push(self, u: Tensor) -> Tensor:
        """Owner's shares of the outputs, (N, ...), from those of the inputs, (N, ...)."""
        return u

    def push_alive(self, owned: Alive) -> Alive | Tensor:
        """`push` for shares of the living neurons alone."""
        return self.push(owned.dense())

    def push_window(self, u: Tensor, rows: Span, cols: Span) -> tuple[Tensor, Span, Span]:
        """`push` for owners that live in windows: u is (patches, channels, rows, cols)."""
        return u, rows, cols

    def prune(self, live: Tensor) -> Tensor:
        """Forget outputs that no relevance reaches; returns which inputs it can reach."""
        return live


class Weighted(RelevanceMap):
    """A layer z = op(a, w) + b that is linear in a: Linear, Conv2d, BatchNorm, average pooling.

    Parameters
    ----------
    op : callable (v, w) -> Tensor
        The linear operation.
    transposed : callable (r, w) -> Tensor
        Its transpose in v.
    product : torch.dtype or None
        Number format of the products, such as torch.bfloat16; the shares in between stay in the
        format of the activations.
    """

    def __init__(
        self,
        step: Step,
        a: Tensor,
        rule: Rule,
        op: Callable[[Tensor, Tensor], Tensor],
        transposed: Callable[[Tensor, Tensor], Tensor],
        product: torch.dtype | None = None,
    ) -> None:
        pre = op(a, step.weight)
        if step.bias is not None:
            pre = pre + _per_channel(step.bias, pre)
        out = pre.clamp(min=0) if step.relu else pre
        super().__init__(step, out)
        self.a, self.op, self.transposed, self.product = a, op, transposed, product
        self.geometry = None
        branches = rule.branches(a, step.weight, step.bias, pre, out)
        self.branches = [(b.terms, self._inverse(b)) for b in branches]
        if step.bias is not None or any(b.epsilon for b in branches):
            self.absorbed = sum(
                self._kept(b) * inverse
                for b, (_, inverse) in zip(branches, self.branches, strict=True)
            )

    def _denominator(self, branch: Branch) -> Tensor:
        if branch.z is not None:
            return branch.z
        z = sum(self.op(a, w) for a, w in branch.terms)
        return z if branch.bias is None else z + _per_channel(branch.bias, z)

    def _inverse(self, branch: Branch) -> Tensor:
        """1 / z_k, and 0 where no relevance ever arrives: at dead outputs."""
        z = self._denominator(branch)
        z = z + branch.epsilon * z.sign()
        used = self.output != 0 if branch.where is None else branch.where
        inverse = torch.where(used, 1 / z, 0)
        return inverse.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    def _kept(self, branch: Branch) -> Tensor:
        kept = torch.zeros_like(self.output)
        if branch.bias is not None:
            kept = kept + _per_channel(branch.bias, kept)
        if branch.epsilon:
            kept = kept + branch.epsilon * self._denominator(branch).sign()
        return kept

    def pull(self, relevance: Tensor) -> Tensor:
        total = 0
        for terms, inverse in self.branches:
            share = self._cast(relevance * inverse)
            for a, w in terms:
                total = total + a * self.transposed(share, self._cast(w)).to(a.dtype)
        return total

    def push(self, u: Tensor) -> Tensor:
        total = 0
        for terms, inverse in self.branches:
            for a, w in terms:
                total = total + inverse * self.op(self._cast(a * u), self._cast(w)).to(a.dtype)
        return total

    def prune(self, live: Tensor) -> Tensor:
        self.branches = [(terms, inverse * live) for terms, inverse in self.branches]
        if self.absorbed is not None:
            self.absorbed = self.absorbed * live
        return torch.ones_like(self.a, dtype=torch.bool)

    def _cast(self, t: Tensor) -> Tensor:
        return t if self.product is None else t.to(self.product)


class Convolution(Weighted):
    """Conv2d: also pushes windows, and on a CPU multiplies only living inputs and outputs."""

    def __init__(self, step: Step, a: Tensor, rule: Rule, product: torch.dtype | None) -> None:
        conv = step.module
        options = dict(stride=conv.stride, dilation=conv.dilation, groups=conv.groups)

        def op(v: Tensor, w: Tensor, padding: tuple[int, int] | int = conv.padding) -> Tensor:
            return F.conv2d(v, w, padding=padding, **options)

        def transposed(r: Tensor, w: Tensor) -> Tensor:
            shape = (r.shape[0], *a.shape[1:])
            return conv2d_input(shape, w, r, padding=conv.padding, **options)

        super().__init__(step, a, rule, op, transposed, product)
        self.geometry = Geometry.of(conv)

    def push_alive(self, owned: Alive) -> Alive | Tensor:
        if not self.saves_by_alive(owned.rows.shape[1]):
            return super().push_alive(owned)
        ((a, w),), inverse = self.branches[0]
        # Small products gain nothing from a smaller format.
        return push_alive(owned, a[0], w, inverse[0], self.geometry)

    def push_window(self, u: Tensor, rows: Span, cols: Span) -> tuple[Tensor, Span, Span]:
        out_rows, (top, bottom) = rows.through(self.geometry, 0)
        out_cols, (left, right) = cols.through(self.geometry, 1)
        total = 0
        for terms, inverse in self.branches:
            for a, w in terms:
                v = F.pad(cut(a[0], rows, cols) * u, (left, right, top, bottom))
                v = self.op(self._cast(v), self._cast(w), padding=0).to(u.dtype)
                total = total + v.mul_(cut(inverse[0], out_rows, out_cols))
        return total, out_rows, out_cols

    def alive_cost(self, owners: int) -> float:
        """Estimated multiply-adds of `push_alive`; a copied number counts as 50 of them."""
        if not self._alive_applies():
            return float("inf")
        ((a, w),), inverse = self.branches[0]
        inputs = float((a != 0).double().mean()) * w[0].numel()
        outputs = float((inverse != 0).double().mean()) * w.shape[0]
        places = inverse.shape[-2] * inverse.shape[-1]
        return places * inputs * (outputs * owners + 50 * (owners + w.shape[0]))

    def saves_by_alive(self, owners: int) -> bool:
        """Whether skipping dead inputs and outputs is cheaper than whole-map products."""
        return (
            self.alive_cost(owners) < owners * self.output[0, 0].numel() * self.step.weight.numel()
        )

    def _alive_applies(self) -> bool:
        # On a GPU one large product beats many small ones, so it is left to dense maps there.
        one_term = len(self.branches) == 1 and len(self.branches[0][0]) == 1
        return (
            one_term
            and self.a.device.type == "cpu"
            and self.a.shape[0] == 1
            and self.step.module.groups == 1
        )


class Winner(RelevanceMap):
    """Max-pooling, winner takes all: push is a gather at the winners, pull a scatter to them."""

    def __init__(self, step: Step, a: Tensor) -> None:
        pool = step.module
        output, self.index = F.max_pool2d(
            a,
            pool.kernel_size,
            pool.stride,
            pool.padding,
            pool.dilation,
            ceil_mode=pool.ceil_mode,
            return_indices=True,
        )
        super().__init__(step, output)
        self.shape = a.shape[1:]
        self.geometry = Geometry.of(pool)

    def pull(self, relevance: Tensor) -> Tensor:
        index = self.index.expand(relevance.shape[0], -1, -1, -1).flatten(2)
        out = relevance.new_zeros(relevance.shape[0], self.shape[0], self.shape[1] * self.shape[2])
        return out.scatter_add_(2, index, relevance.flatten(2)).unflatten(2, self.shape[1:])

    def push(self, u: Tensor) -> Tensor:
        index = self.index.expand(u.shape[0], -1, -1, -1)
        return u.flatten(2).gather(2, index.flatten(2)).unflatten(2, index.shape[2:])

    def push_alive(self, owned: Alive) -> Alive:
        where = owned.where.flatten(1).gather(1, self.index[0].flatten(1))
        return Alive(owned.rows, where.view(self.index.shape[1:]))

    def push_window(self, u: Tensor, rows: Span, cols: Span) -> tuple[Tensor, Span, Span]:
        out_rows, (top, bottom) = rows.through(self.geometry, 0)
        out_cols, (left, right) = cols.through(self.geometry, 1)
        u = F.pad(u, (left, right, top, bottom))
        width = u.shape[3]
        # Where a winner stands within its own pooling field does not depend on the window.
        row = self.index[0].div(self.shape[2], rounding_mode="floor")
        down = row - self._field_starts(0)[:, None]
        across = self.index[0] - row * self.shape[2] - self._field_starts(1)
        corner = torch.arange(out_rows.size, device=u.device)[:, None] * width
        corner = corner * self.geometry.stride[0]
        corner = corner + torch.arange(out_cols.size, device=u.device) * self.geometry.stride[1]
        index = cut(down * width + across, out_rows, out_cols).add_(corner)
        flat, index = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (u, index))
        out = flat.gather(1, index).unflatten(1, (out_rows.size, out_cols.size))
        return out.permute(0, 3, 1, 2), out_rows, out_cols

    def _field_starts(self, axis: int) -> Tensor:
        n = torch.arange(self.index.shape[2 + axis], device=self.index.device)
        return n * self.geometry.stride[axis] - self.geometry.padding[axis]

    def prune(self, live: Tensor) -> Tensor:
        live_in = torch.zeros(live.shape[0], *self.shape, dtype=torch.bool, device=live.device)
        live_in.flatten(2).scatter_reduce_(2, self.index.flatten(2), live.flatten(2), "amax")
        return live_in


class Reshape(RelevanceMap):
    """Flatten: the same numbers in another shape."""

    geometry = None

    def __init__(self, step: Step, a: Tensor) -> None:
        super().__init__(step, step.module(a))
        self.shape = a.shape[1:]

    def pull(self, relevance: Tensor) -> Tensor:
        return relevance.reshape(relevance.shape[0], *self.shape)

    def push_alive(self, owned: Alive) -> Alive:
        return Alive(owned.rows, owned.where.reshape(self.output.shape[1:]))

    def push(self, u: Tensor) -> Tensor:
        return u.reshape(u.shape[0], *self.output.shape[1:])

    def prune(self, live: Tensor) -> Tensor:
        return self.pull(live)


Builder = Callable[[Step, Tensor, Rule | None, torch.dtype | None], RelevanceMap]
_BUILDERS: dict[type[nn.Module], Builder] = {}


def register(*types: type[nn.Module]) -> Callable[[Builder], Builder]:
    """Register the relevance map of a layer type, for `bilrp.explain` and `bilrp.lrp`.

    The decorated function takes (step, a, rule, product): the `Step`, the input activations
    (N, ...), the rule given for this layer (None where none was given) and the number format for
    products (None: that of `a`). It returns a `RelevanceMap`.

    Examples
    --------
    >>> @bilrp.register(MyShift)
    ... def my_shift(step, a, rule, product):
    ...     return MyShiftMap(step, a)
    """

    def add(builder: Builder) -> Builder:
        for t in types:
            _BUILDERS[t] = builder
        return builder

    return add


@register(nn.Linear)
def _linear(step: Step, a: Tensor, rule: Rule, product: torch.dtype | None) -> RelevanceMap:
    return Weighted(step, a, rule, lambda v, w: v @ w.T, lambda r, w: r @ w, product)


@register(nn.Conv2d)
def _conv(step: Step, a: Tensor, rule: Rule, product: torch.dtype | None) -> RelevanceMap:
    conv = step.module
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise NotImplementedError(
            f"{step}: padding={conv.padding!r} with padding_mode={conv.padding_mode!r} has no "
            "relevance map; use numeric zero padding, or bilrp.register a map of your own."
        )
    return Convolution(step, a, rule, product)


@register(nn.BatchNorm1d, nn.BatchNorm2d)
def _affine(step: Step, a: Tensor, rule: Rule, product: torch.dtype | None) -> RelevanceMap:
    def op(v: Tensor, w: Tensor) -> Tensor:
        return v * _per_channel(w, v)

    return Weighted(step, a, rule, op, op, product)


@register(nn.AvgPool2d, nn.AdaptiveAvgPool2d)
def _average(step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None) -> RelevanceMap:
    # Proportional to a_j grad a_k, Eq. (6): LRP-0 of a layer whose weights are the averages.
    def transposed(r: Tensor, _: Tensor) -> Tensor:
        like = r.new_zeros(r.shape[0], *a.shape[1:])
        return torch.func.vjp(step.module, like)[1](r)[0]

    return Weighted(step, a, LRP0(), lambda v, _: step.module(v), transposed)


@register(nn.MaxPool2d)
def _max_pool(
    step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None
) -> RelevanceMap:
    return Winner(step, a)


@register(nn.ReLU)
def _relu(step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None) -> RelevanceMap:
    return RelevanceMap(step, a.clamp(min=0))


@register(nn.Flatten)
def _flatten(step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None) -> RelevanceMap:
    return Reshape(step, a)


def _per_channel(v: Tensor, like: Tensor) -> Tensor:
    """A vector over channels (dimension 1), shaped to combine with activations."""
    return v.view(-1, *[1] * (like.dim() - 2))
