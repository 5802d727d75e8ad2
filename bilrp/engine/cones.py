"""The lower part of a network on windows: only the receptive cone of each patch is computed.

The steps from the input up that work on maps place by place (convolutions, max-pooling,
activations, sums) run on windows as long as that is cheaper than whole maps. Whole maps of all
patches are put together where the windows end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp.engine.maps import Affine, Local, Winners, beside
from bilrp.engine.owners import Patches
from bilrp.engine.plan import Stage
from bilrp.engine.trace import Trace
from bilrp.engine.windows import Span, cut, cut_times, lattices


@dataclass
class Windows:
    """Parts (or shares) of patches in windows: (patches, channels, rows, cols), p and m."""

    p: Tensor
    m: Tensor | None
    rows: Span
    cols: Span


class Cones:
    """The steps that run on windows, and the way of each patch through them.

    Attributes
    ----------
    inside : set of int
        Numbers of these values; with them, all their parents.
    frontier : list of int
        Those that steps outside, or the features, are made of.
    largest : int
        Most numbers that one patch's windows of one value take.
    """

    def __init__(self, trace: Trace, owners: Patches) -> None:
        self.trace, self.owners = trace, owners
        self.inside: set[int] = set()
        self.stages: list[Stage] = []
        self.stride: dict[int, tuple[int, int]] = {}
        self.spans: dict[int, tuple[Span, Span]] = {}
        self.largest = 1
        count = math.prod(owners.grid)
        for stage in trace.steps:
            g = trace.geometry(stage)
            if g is None or not self.inside.issuperset(stage.parents):
                continue
            if stage.number in trace.closing or g.skips:
                continue
            if not stage.parents:
                rows = cols = Span((0,), owners.patch)
                self.stride[stage.number] = (1, 1)
            else:
                below = [self.spans[n] for n in stage.parents]
                if len({self.stride[n] for n in stage.parents}) > 1:
                    continue
                try:
                    rows, cols = (
                        union([b[axis] for b in below]).through(g, axis)[0] for axis in (0, 1)
                    )
                except ValueError:
                    continue
                old = self.stride[stage.parents[0]]
                self.stride[stage.number] = (old[0] * g.stride[0], old[1] * g.stride[1])
                affine = affine_of(stage)
                if affine is not None:
                    places = trace.data(stage.number)[0, 0].numel()
                    each = affine.weight.numel()
                    whole = min(count * places, trace.living_cost(stage, count) / each)
                    if whole <= count * rows.size * cols.size:
                        continue
            self.spans[stage.number] = rows, cols
            self.inside.add(stage.number)
            self.stages.append(stage)
            numbers = trace.data(stage.number).shape[1] * rows.size * cols.size
            self.largest = max(self.largest, numbers * (2 if stage.pair else 1))
        outside = [s for s in trace.steps if s.number not in self.inside]
        used = {n for s in outside for n in s.parents} | {trace.output}
        self.frontier = sorted(self.inside & used)

    def push(self, chunk: int) -> Iterator[tuple[Tensor, dict[int, Windows]]]:
        """Patches in chunks: their numbers, and their windows of the frontier."""
        patch, (height, width) = self.owners.patch, self.owners.grid
        strides = [math.lcm(*(self.stride[n][axis] for n in self.inside)) for axis in (0, 1)]
        channels = self.trace.input.shape[1]
        for r, c in _rectangles(height, width, patch, strides, chunk):
            u = self.trace.features.new_ones(len(r) * len(c), channels, patch, patch)
            u = u.contiguous(memory_format=torch.channels_last)
            rows, cols = (Span(tuple(k * patch for k in which), patch) for which in (r, c))
            held = {0: Windows(u, None, rows, cols)}
            for stage in self.stages[1:]:
                held[stage.number] = self._pushed(stage, held)
            numbers = torch.tensor(r)[:, None] * width + torch.tensor(c)
            yield numbers.flatten(), {n: held[n] for n in self.frontier}

    def _pushed(self, stage: Stage, held: dict[int, Windows]) -> Windows:
        g = self.trace.geometry(stage)
        assert g is not None
        given = [self._form(n, stage, held[n]) for n in stage.parents]
        if stage.end is not None:
            (w,) = given
            f_p, f_m = stage.end.f_p[0], stage.end.f_m
            p = cut_times(w.p, f_p, w.rows, w.cols)
            if f_m is not None and w.m is not None:
                p = p.add_(cut_times(w.m, f_m[0], w.rows, w.cols))
            return Windows(p, None, w.rows, w.cols)
        if stage.linear is not None and stage.linear.coefficients is not None:
            return _sum(stage.linear.coefficients, given)
        (w,) = given
        rows, (top, bottom) = w.rows.through(g, 0)
        cols, (left, right) = w.cols.through(g, 1)
        frame = (left, right, top, bottom)
        if isinstance(stage.local, Local):
            return Windows(self._local(stage.local, w, rows, cols, frame), None, rows, cols)
        linear = stage.linear
        assert linear is not None
        if linear.winners is not None:
            pool = _pool(linear.winners, w, frame, rows, cols)
            p, m = pool(w.p), None if w.m is None else pool(w.m)
        else:
            affine = linear.affine
            assert affine is not None
            assert affine.framed is not None
            p = affine.framed(w.p, affine.weight, frame)
            m = None if w.m is None else affine.framed(w.m, affine.weight.abs(), frame)
        # Windows reach over the border of the map, where there is nothing.
        ones = torch.ones_like(self.trace.data(stage.number)[0, :1])
        p = cut_times(p, ones, rows, cols)
        return Windows(p, None if m is None else cut_times(m, ones, rows, cols), rows, cols)

    def parts(self, n: int, w: Windows) -> Windows:
        """Windows of a value's parts, also where its rows are shares."""
        if not self.trace.by_number[n].shares:
            return w
        return Windows(cut_times(w.p, self.trace.data(n)[0], w.rows, w.cols), None, w.rows, w.cols)

    def _form(self, n: int, stage: Stage, w: Windows) -> Windows:
        """Windows as a step wants them: shares, parts, or parts with their magnitudes."""
        if not stage.shares and not isinstance(stage.local, Local):
            w = self.parts(n, w)
        wants = stage.pair or (stage.end is not None and stage.end.f_m is not None)
        if wants and w.m is None:
            m = cut_times(w.p, self.trace.data(n)[0].sign(), w.rows, w.cols)
            w = Windows(w.p, m, w.rows, w.cols)
        return w

    def _local(self, local: Local, w: Windows, rows: Span, cols: Span, frame: tuple) -> Tensor:
        total: Tensor | None = None
        framed = local.affine.framed
        assert framed is not None

        def op(windows: Tensor, weight: Tensor) -> Tensor:
            return framed(windows, weight, frame)

        for t in local.terms:
            parts = [w.p if v is None else cut_times(w.p, v[0], w.rows, w.cols) for v in t.factors]
            moved = local.times(op, beside(parts, 1), t.weight)
            cut_times(moved, local.scales[t.number][0], rows, cols, out=moved)
            total = moved if total is None else total.add_(moved)
        assert total is not None
        return total


def _pool(
    winners: Winners, w: Windows, frame: tuple, rows: Span, cols: Span
) -> Callable[[Tensor], Tensor]:
    """Max-pooling of such windows: each output takes what its winner has."""
    g = winners.geometry
    left, right, top, bottom = frame
    if g.kernel == g.stride and g.dilation == (1, 1):
        # No input is in two fields: all but the winners are silenced, and the fields summed.
        won = w.p.new_zeros(winners.shape).flatten(1)
        won = won.scatter_(1, winners.index.flatten(1), 1).view(winners.shape)
        even = top == bottom and left == right
        inside = even and 2 * top <= g.kernel[0] and 2 * left <= g.kernel[1]

        def summed(parts: Tensor) -> Tensor:
            alone = cut_times(parts, won, w.rows, w.cols)
            alone = alone if inside else F.pad(alone, frame)
            around = (top, left) if inside else (0, 0)
            return F.avg_pool2d(alone, g.kernel, padding=around, divisor_override=1)

        return summed
    places = _places(winners, rows, cols, w.p.shape[3] + left + right)
    index = places.permute(0, 2, 3, 1).flatten(1, 2)

    def gathered(parts: Tensor) -> Tensor:
        flat = F.pad(parts, frame).permute(0, 2, 3, 1).flatten(1, 2)
        return flat.gather(1, index).unflatten(1, (rows.size, cols.size)).permute(0, 3, 1, 2)

    return gathered


def _places(winners: Winners, rows: Span, cols: Span, width: int) -> Tensor:
    """Places of the winners within padded windows of this width, (patches, C, rows, cols)."""
    g, index = winners.geometry, winners.index
    # Where a winner stands within its own pooling field does not depend on the window.
    row = index.div(winners.shape[2], rounding_mode="floor")
    n = torch.arange(index.shape[1], device=index.device)
    down = row - (n * g.stride[0] - g.padding[0])[:, None]
    n = torch.arange(index.shape[2], device=index.device)
    across = index - row * winners.shape[2] - (n * g.stride[1] - g.padding[1])
    corner = torch.arange(rows.size, device=index.device)[:, None] * width * g.stride[0]
    corner = corner + torch.arange(cols.size, device=index.device) * g.stride[1]
    return cut(down * width + across, rows, cols) + corner  # cut may share memory


def union(spans: list[Span]) -> Span:
    """The smallest windows that hold these; ValueError if they do not lie alike."""
    if len(spans) == 1:
        return spans[0]
    first = spans[0].starts
    shifts = [{s - f for s, f in zip(span.starts, first, strict=True)} for span in spans]
    if any(len(s) > 1 for s in shifts):
        raise ValueError("windows of two branches lie differently from patch to patch")
    offsets = [s.pop() for s in shifts]
    start = min(offsets)
    end = max(o + span.size for o, span in zip(offsets, spans, strict=True))
    return Span(tuple(f + start for f in first), end - start)


def _sum(coefficients: list[float], given: list[Windows]) -> Windows:
    rows, cols = union([w.rows for w in given]), union([w.cols for w in given])

    def total(which: str, signed: bool) -> Tensor | None:
        out: Tensor | None = None
        for factor, w in zip(coefficients, given, strict=True):
            t = getattr(w, which)
            if t is None:
                return None
            top, left = (w.rows.starts[0] - rows.starts[0], w.cols.starts[0] - cols.starts[0])
            frame = (left, cols.size - left - w.cols.size, top, rows.size - top - w.rows.size)
            factor = factor if signed else abs(factor)
            t = F.pad(t if factor == 1 else t * factor, frame)
            out = t if out is None else out + t
        return out

    p = total("p", True)
    assert p is not None
    return Windows(p, total("m", False), rows, cols)


def _rectangles(
    height: int, width: int, patch: int, strides: list[int], chunk: int
) -> Iterator[tuple[range, range]]:
    """Rectangles of patches that lie alike on the strides, as whole rows as the chunk allows."""
    parts = product(lattices(height, patch, strides[0]), lattices(width, patch, strides[1]))
    for row_part, col_part in parts:
        n_cols = min(chunk, len(col_part))
        n_rows = max(1, chunk // n_cols)
        for i, j in product(range(0, len(row_part), n_rows), range(0, len(col_part), n_cols)):
            yield row_part[i : i + n_rows], col_part[j : j + n_cols]


def affine_of(stage: Stage) -> Affine | None:
    """The layer with weights that a step is, if it is one."""
    if isinstance(stage.local, Local):
        return stage.local.affine
    return stage.linear.affine if stage.linear is not None else None
