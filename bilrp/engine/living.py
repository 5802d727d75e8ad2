"""Shares of the living neurons alone, of the owners that reach them.

After a ReLU most activations are zero (four of five in the upper half of VGG-16), and a neuron in
the middle of a network is reached by a part of the picture only. A dead input has no parts, a dead
output takes none, an owner that does not reach a place has none there: what is skipped is exactly
zero. At each place of a convolution's map one small product remains, (living outputs x living
inputs) @ (living inputs x reaching owners). Max-pooling moves no numbers at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp.engine.windows import Geometry, Span

COPY = 50  # what copying a number costs, in multiplications; measured on VGG-16


@dataclass(frozen=True)
class Reach:
    """Which owners reach which rows of a map.

    Attributes
    ----------
    rows : Span
        Cones of the rows of the patch grid.
    row_of : Tensor (patches,) of int
        Row of the grid of each row of parts that belongs to a patch, ascending; the rows of parts
        after them, of sinks, reach all places.
    """

    rows: Span
    row_of: Tensor

    def through(self, layer: Geometry) -> Reach:
        return Reach(self.rows.cone(layer, 0), self.row_of)

    def slices(self, height: int) -> list[slice]:
        """For each row of a map, the rows of parts whose patches reach it."""
        starts = torch.tensor(self.rows.starts)[self.row_of]
        places = torch.arange(height)[:, None]
        mask = (starts <= places) & (places < starts + self.rows.size)
        found = (m.nonzero()[:, 0] for m in mask)
        return [slice(int(f[0]), int(f[-1]) + 1) if len(f) else slice(0, 0) for f in found]


@dataclass(frozen=True)
class Living:
    """Parts of the living neurons of one map.

    Attributes
    ----------
    rows : Tensor (living, owners)
        One row of parts for each living neuron.
    where : Tensor (channels, height, width) of int
        Each neuron's row, -1 where it is dead.
    reach : Reach or None
        Which owners reach which places; None: all may.
    """

    rows: Tensor
    where: Tensor
    reach: Reach | None = None

    def __len__(self) -> int:
        return self.rows.shape[1]

    @classmethod
    def of(cls, parts: Tensor, living: Tensor, reach: Reach | None = None) -> Living:
        """Keep the living neurons, (C, H, W) of bool, of parts (owners, 1, C, H, W)."""
        index = living.flatten().nonzero()[:, 0]
        rows = parts.flatten(1).index_select(1, index).T.contiguous()
        return cls(rows, _numbered(living.flatten()).view(living.shape), reach)

    def dense(self) -> Tensor:
        """All parts, (owners, 1, C, H, W), zero at the dead."""
        flat = self.where.flatten()
        living = (flat >= 0).nonzero()[:, 0]
        parts = self.rows.new_zeros(self.rows.shape[1], len(flat))
        parts[:, living] = self.rows.index_select(0, flat[living]).T
        return parts.view(-1, 1, *self.where.shape)

    def with_owners(self, parts: Tensor) -> Living:
        """The same with more owners, whose parts are (owners, 1, C, H, W)."""
        living = self.where.flatten() >= 0
        new = self.rows.new_zeros(len(self.rows), len(parts))
        new[self.where.flatten()[living]] = parts.flatten(1)[:, living].T
        return Living(torch.cat([self.rows, new], 1), self.where, self.reach)

    def pooled(self, index: Tensor, layer: Geometry) -> Living:
        """Through max-pooling whose winners are at `index`, (C, H', W'), of flattened maps."""
        where = self.where.flatten(1).gather(1, index.flatten(1)).view(index.shape)
        return Living(self.rows, where, self.reach and self.reach.through(layer))

    def convolved(self, weight: Tensor, scale: Tensor, layer: Geometry) -> Living:
        """Through a convolution: t_k = f_k sum_j w_jk t_j.

        Parameters
        ----------
        weight : Tensor (C_out, C, kh, kw)
            rho(w).
        scale : Tensor (C_out, H_out, W_out)
            f_k; outputs where it is zero need no parts.
        layer : Geometry
        """
        (top, left), (dy, dx), (kh, kw) = layer.padding, layer.dilation, layer.kernel
        # Room for places below and on the right that a floor division left out.
        where = F.pad(self.where.permute(1, 2, 0), (0, 0, left, left, top, top), value=-1)
        filters = weight.permute(0, 2, 3, 1).flatten(1)
        factor = scale.permute(1, 2, 0)
        needed = factor != 0
        count = len(self)
        new = self.reach and self.reach.through(layer)
        slices = new.slices(scale.shape[1]) if new else [slice(0, count)] * scale.shape[1]
        patches = len(new.row_of) if new else count
        rows = self.rows.new_zeros(int(needed.sum()), count)
        done = 0
        for y, own in enumerate(slices):
            down = slice(y * layer.stride[0], y * layer.stride[0] + dy * (kh - 1) + 1, dy)
            reaching, others = self.rows[:, own], self.rows[:, patches:]
            for x in range(factor.shape[1]):
                across = slice(x * layer.stride[1], x * layer.stride[1] + dx * (kw - 1) + 1, dx)
                k = needed[y, x].nonzero()[:, 0]
                source = where[down, across].reshape(-1)
                j = (source >= 0).nonzero()[:, 0]
                w = filters.index_select(0, k).index_select(1, j)
                w *= factor[y, x, k][:, None]
                parts, out = source[j], rows[done : done + len(k)]
                done += len(k)
                torch.mm(w, reaching.index_select(0, parts), out=out[:, own])
                if patches < count:
                    torch.mm(w, others.index_select(0, parts), out=out[:, patches:])
        place = _numbered(needed.flatten()).view(needed.shape).permute(2, 0, 1)
        return Living(rows, place, new)


def living_cost(a: Tensor, needed: Tensor, weight: Tensor) -> tuple[float, float]:
    """Estimated multiply-adds of `Living.convolved`: for each owner at a place, and beside that."""
    inputs, outputs = (float(t.sign().abs().mean()) for t in (a, needed))
    inputs, outputs = inputs * weight[0].numel(), outputs * weight.shape[0]
    each = needed.shape[-2] * needed.shape[-1] * inputs
    return each * (outputs + COPY), each * COPY * weight.shape[0]


def _numbered(mask: Tensor) -> Tensor:
    """0, 1, 2, ... at the true entries of a flat mask, -1 at the others."""
    return torch.where(mask, mask.cumsum(0) - 1, -1)
