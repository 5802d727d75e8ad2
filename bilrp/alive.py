"""A convolution of ownership that multiplies only what is alive.

After a ReLU most activations are zero (four of five in the upper half of VGG-16). A dead input owns
nothing and a dead output is owned by nobody, so both can be left out: what is skipped is exactly
zero. At every place of the map that leaves one small matrix product,
(living outputs x living inputs) @ (living inputs x owners); places are done in batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bilrp.windows import Geometry

BATCH = 8_000_000  # numbers gathered at once: enough to keep the cores busy, small beside memory


def push_alive(u: Tensor, a: Tensor, weight: Tensor, inverse: Tensor, layer: Geometry) -> Tensor:
    """Push ownership through a convolution, u_k = sum_j w_jk a_j u_j / z_k.

    The result is laid out (row, column, channel, owner) in memory, seen as (owner, channel, row,
    column): the next call then gathers whole rows of owners without moving anything.

    Parameters
    ----------
    u : Tensor (owners, C, H, W)
    a : Tensor (C, H, W)
        Input activations.
    weight : Tensor (C_out, C, kh, kw)
        rho(w); its dtype is that of the products.
    inverse : Tensor (C_out, H_out, W_out)
        1 / z_k, zero at outputs that need no ownership.
    layer : Geometry

    Returns
    -------
    Tensor (owners, C_out, H_out, W_out)
    """
    (channels, height, width), owners = a.shape, u.shape[0]
    flat = u.permute(2, 3, 1, 0).reshape(-1, owners)
    activation = a.permute(1, 2, 0).reshape(-1)
    outputs = weight.shape[0]
    filters = weight.permute(2, 3, 1, 0).reshape(-1).contiguous()  # by (tap, channel, output)
    scale = inverse.permute(1, 2, 0).reshape(-1, outputs)  # by (place, output)
    fields = _receptive_fields(layer, (height, width), inverse.shape[1:], channels).to(a.device)
    living = (fields >= 0) & (activation[fields.clamp(min=0)] != 0)
    out = flat.new_zeros(scale.numel(), owners)
    # Places with about as many living outputs go together: little is lost to padding.
    order = (scale != 0).sum(1).argsort(stable=True)
    step = max(1, BATCH // max(1, int(living.sum(1).max()) * owners))
    for places in order.split(step):
        j, is_input = _where(living[places])
        k, is_output = _where(scale[places] != 0)
        if k.shape[1] == 0 or j.shape[1] == 0:
            continue
        source = fields[places].gather(1, j).clamp(min=0)
        owned = flat[source] * (activation[source] * is_input)[:, :, None]
        w = filters.take(j[:, None, :] * outputs + k[:, :, None])
        shares = torch.bmm(w, owned.to(w.dtype)).to(flat.dtype)
        shares *= scale[places].gather(1, k)[:, :, None]
        target = places[:, None] * outputs + k
        out.index_copy_(0, target[is_output], shares[is_output])
    return out.view(*inverse.shape[1:], outputs, owners).permute(3, 2, 0, 1)


def _receptive_fields(
    layer: Geometry, size: tuple[int, int], out_size: tuple[int, int], channels: int
) -> Tensor:
    """Flat index (row, column, channel) of each input of each output place; -1 in the padding.

    Returns
    -------
    Tensor (places, kh * kw * C), int64
    """
    axes = []
    for axis in (0, 1):
        place = torch.arange(out_size[axis]) * layer.stride[axis] - layer.padding[axis]
        index = place[:, None] + torch.arange(layer.kernel[axis]) * layer.dilation[axis]
        axes.append((index, (index >= 0) & (index < size[axis])))
    (row, row_inside), (col, col_inside) = axes
    pixel = row[:, None, :, None] * size[1] + col[None, :, None, :]
    inside = row_inside[:, None, :, None] & col_inside[None, :, None, :]
    index = pixel[..., None] * channels + torch.arange(channels)
    return torch.where(inside[..., None], index, -1).flatten(2).flatten(0, 1)


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the true entries of each row, padded with 0 to one length, and which are real."""
    count = mask.sum(1)
    row, index = mask.nonzero(as_tuple=True)
    rank = torch.arange(len(row), device=mask.device) - (count.cumsum(0) - count)[row]
    real = torch.arange(int(count.max()), device=mask.device) < count[:, None]
    padded = torch.zeros_like(real, dtype=torch.long)
    padded[row, rank] = index
    return padded, real
