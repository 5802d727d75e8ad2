"""Ownership of the living neurons alone.

After a ReLU most activations are zero (four of five in the upper half of VGG-16). A dead input owns
nothing and a dead output is owned by nobody, so neither is stored or multiplied: what is skipped is
exactly zero. At each place of a convolution's map one small matrix product remains,
(living outputs x living inputs) @ (living inputs x owners). Max-pooling moves no numbers at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp.engine.windows import Geometry


@dataclass(frozen=True)
class Alive:
    """Shares of the living neurons of one layer.

    Attributes
    ----------
    rows : Tensor (living, owners)
        One row of shares for each living neuron.
    where : Tensor (*shape) of int
        Each neuron's row, -1 where it is dead.
    """

    rows: Tensor
    where: Tensor

    @classmethod
    def of(cls, u: Tensor, living: Tensor) -> Alive:
        """Keep the living neurons, (*shape) of bool, of shares (owners, *shape)."""
        index = living.flatten().nonzero()[:, 0]
        rows = u.flatten(1).index_select(1, index).T.contiguous()
        return cls(rows, _numbered(living.flatten()).view(living.shape))

    def dense(self) -> Tensor:
        """All shares, (owners, *shape), zero at the dead."""
        flat = self.where.flatten()
        living = (flat >= 0).nonzero()[:, 0]
        u = self.rows.new_zeros(self.rows.shape[1], len(flat))
        u[:, living] = self.rows.index_select(0, flat[living]).T
        return u.view(-1, *self.where.shape)

    def and_owner(self, share: Tensor) -> Alive:
        """The same with one more owner, whose shares are (*shape)."""
        new = self.rows.new_zeros(len(self.rows), 1)
        living = self.where >= 0
        new[self.where[living], 0] = share[living]
        return Alive(torch.cat([self.rows, new], 1), self.where)


def push_alive(owned: Alive, a: Tensor, weight: Tensor, inverse: Tensor, layer: Geometry) -> Alive:
    """Push ownership through a convolution, u_k = sum_j w_jk a_j u_j / z_k.

    Parameters
    ----------
    owned : Alive
        Shares of the inputs (C, H, W).
    a : Tensor (C, H, W)
        Input activations.
    weight : Tensor (C_out, C, kh, kw)
        rho(w).
    inverse : Tensor (C_out, H_out, W_out)
        1 / z_k; outputs where it is zero need no ownership.
    layer : Geometry
    """
    (top, left), (dy, dx), (kh, kw) = layer.padding, layer.dilation, layer.kernel
    frame = (0, 0, left, left, top, top)
    where = F.pad(owned.where.permute(1, 2, 0), frame, value=-1)
    activation = F.pad(a.permute(1, 2, 0), frame)
    filters = weight.permute(0, 2, 3, 1).flatten(1)
    scale = inverse.permute(1, 2, 0)
    needed = scale != 0
    rows = owned.rows.new_empty(int(needed.sum()), owned.rows.shape[1])
    done = 0
    for y in range(scale.shape[0]):
        down = slice(y * layer.stride[0], y * layer.stride[0] + dy * (kh - 1) + 1, dy)
        for x in range(scale.shape[1]):
            across = slice(x * layer.stride[1], x * layer.stride[1] + dx * (kw - 1) + 1, dx)
            k = needed[y, x].nonzero()[:, 0]
            source = where[down, across].reshape(-1)
            j = (source >= 0).nonzero()[:, 0]
            w = filters.index_select(0, k).index_select(1, j)
            w *= activation[down, across].reshape(-1)[j]
            torch.mm(w, owned.rows.index_select(0, source[j]), out=rows[done : done + len(k)])
            done += len(k)
    rows *= scale[needed][:, None]
    return Alive(rows, _numbered(needed.flatten()).view(needed.shape).permute(2, 0, 1))


def _numbered(mask: Tensor) -> Tensor:
    """0, 1, 2, ... at the true entries of a flat mask, -1 at the others."""
    return torch.where(mask, mask.cumsum(0) - 1, -1)
