"""Windows: an owner's shares are zero outside its receptive cone, so only the cone is computed.

The patches of one call form a grid. In each layer the cone of the patch in grid row i and column j
covers rows [rows.starts[i], rows.starts[i] + rows.size) and columns likewise: one `Span` an axis.
Windows may reach over the border of the map; there everything is zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride, padding and dilation of a layer, each (rows, columns). Default: identity."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def skips(self) -> bool:
        """Whether the stride steps over some inputs: a small window may have no output then."""
        reach = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return any(r < s for r, s in zip(reach, self.stride, strict=True))


@dataclass(frozen=True)
class Span:
    """Along one axis, the interval [start, start + size) of every patch row (or column)."""

    starts: tuple[int, ...]
    size: int

    @property
    def step(self) -> int | None:
        """From one window to the next; None if it is not the same throughout."""
        steps = {b - a for a, b in itertools.pairwise(self.starts)}
        return steps.pop() if len(steps) == 1 else None if steps else 0

    def through(self, layer: Geometry, axis: int) -> tuple[Span, tuple[int, int]]:
        """The spans one layer further up, and the zeros to add before and after the windows.

        Raises
        ------
        ValueError
            If the patches lie differently on the layer's stride; see `lattices`.
        """
        stride, padding = layer.stride[axis], layer.padding[axis]
        reach = layer.dilation[axis] * (layer.kernel[axis] - 1)
        above = self.cone(layer, axis)
        before = {
            s - (t * stride - padding) for s, t in zip(self.starts, above.starts, strict=True)
        }
        if len(before) > 1:
            raise ValueError(f"windows starting at {self.starts} do not align with stride {stride}")
        (lead,) = before
        after = (above.size - 1) * stride + reach + 1 - lead - self.size
        return above, (lead, after)

    def cone(self, layer: Geometry, axis: int) -> Span:
        """Spans one layer further up that hold all that is reached, however the patches lie."""
        stride, padding = layer.stride[axis], layer.padding[axis]
        reach = layer.dilation[axis] * (layer.kernel[axis] - 1)
        starts = tuple(-((reach - padding - s) // stride) for s in self.starts)
        ends = ((s + self.size - 1 + padding) // stride for s in self.starts)
        return Span(starts, max(e - s for s, e in zip(starts, ends, strict=True)) + 1)


def lattices(count: int, patch: int, stride: int) -> Iterator[range]:
    """Split patch indices 0..count-1 so that in each part all patches lie alike on the stride.

    Parameters
    ----------
    count, patch : int
        Patches along the axis and their size in pixels.
    stride : int
        Product of the strides of all layers that the windows pass.
    """
    step = stride // math.gcd(patch, stride)
    for offset in range(min(step, count)):
        yield range(offset, count, step)


def cut(image: Tensor, rows: Span, cols: Span) -> Tensor:
    """Windows of an image, (patches, channels, rows.size, cols.size), from (channels, H, W)."""
    return _windows(image, rows, cols).flatten(0, 1)


def cut_times(
    windows: Tensor, image: Tensor, rows: Span, cols: Span, out: Tensor | None = None
) -> Tensor:
    """windows * cut(image, rows, cols), without a copy of the image for each of them."""
    grid = len(rows.starts), len(cols.starts)
    written = None if out is None else out.unflatten(0, grid)
    return torch.mul(windows.unflatten(0, grid), _windows(image, rows, cols), out=written).flatten(
        0, 1
    )


def _windows(image: Tensor, rows: Span, cols: Span) -> Tensor:
    """The windows by row and column of the patch grid: (i, j, channels, rows.size, cols.size)."""
    height, width = image.shape[-2:]
    top, left = max(0, -min(rows.starts)), max(0, -min(cols.starts))
    bottom = max(0, max(rows.starts) + rows.size - height)
    right = max(0, max(cols.starts) + cols.size - width)
    # Channels stay last in memory: convolutions like it.
    wide = image.new_zeros(top + height + bottom, left + width + right, image.shape[0])
    turned = image.flatten(1).T.contiguous()  # in two dimensions it is fast
    wide[top : top + height, left : left + width] = turned.view(height, width, -1)
    step, step2 = rows.step, cols.step
    if step is not None and step2 is not None:
        down, across, one = wide.stride()
        return wide.as_strided(
            (len(rows.starts), len(cols.starts), image.shape[0], rows.size, cols.size),
            (step * down, step2 * across, one, down, across),
            (rows.starts[0] + top) * down + (cols.starts[0] + left) * across,
        )
    row, col = (
        torch.tensor(s.starts, device=image.device)[:, None]
        + torch.arange(s.size, device=image.device)
        + shift
        for s, shift in ((rows, top), (cols, left))
    )
    return wide[row[:, None, :, None], col[None, :, None, :]].permute(0, 1, 4, 2, 3)


def place(windows: Tensor, rows: Span, cols: Span, size: Sequence[int]) -> Tensor:
    """Whole maps (patches, channels, *size) with the windows in their places: undoes `cut`."""
    maps = windows.new_zeros(*windows.shape[:2], *size)
    for full, window, (r, c) in _placed(windows, rows, cols, size):
        maps[full][:, r[0], c[0]] = window[:, r[1], c[1]]
    return maps


def sum_of_windows(windows: Tensor, rows: Span, cols: Span, size: Sequence[int]) -> Tensor:
    """Sum of all windows in their places, (channels, *size), in float64."""
    apart = _apart(windows, rows, cols)
    strips = apart.new_zeros(len(apart), rows.size, size[1], apart.shape[4], dtype=torch.float64)
    for j, start in enumerate(cols.starts):
        inside, part = _clip(start, cols.size, size[1])
        strips[:, :, inside] += apart[:, j, :, part]
    total = strips.new_zeros(*size, apart.shape[4])
    for strip, start in zip(strips, rows.starts, strict=True):
        inside, part = _clip(start, rows.size, size[0])
        total[inside] += strip[part]
    return total.permute(2, 0, 1)


def product_of_windows(
    first: Tensor, rows: Span, cols: Span, second: Tensor, rows2: Span, cols2: Span, width: int
) -> Tensor:
    """A A'^T, (patches, patches'), of two factors in windows over maps of one size.

    Windows that do not overlap have no common feature. So it is summed over the rows of the map,
    and each row multiplies just the patches whose windows reach it.
    """
    result = first.new_zeros(len(first), len(second))
    left = max(0, -min(cols.starts), -min(cols2.starts))
    right = max(0, *(max(c.starts) + c.size - width for c in (cols, cols2)))
    sides = ((_apart(first, rows, cols), rows, cols), (_apart(second, rows2, cols2), rows2, cols2))
    for y in range(max(max(rows.starts) + rows.size, max(rows2.starts) + rows2.size)):
        (here, a), (here2, a2) = (_row_of(*side, y, left, left + width + right) for side in sides)
        if len(here) and len(here2):
            result[here[:, None], here2] += a @ a2.T
    return result


def _apart(windows: Tensor, rows: Span, cols: Span) -> Tensor:
    """Windows by row and column of the patch grid: (i, j, rows.size, cols.size, channels)."""
    grid = len(rows.starts), len(cols.starts)
    return windows.unflatten(0, grid).permute(0, 1, 3, 4, 2)


def _row_of(
    apart: Tensor, rows: Span, cols: Span, y: int, left: int, width: int
) -> tuple[Tensor, Tensor]:
    """Patches whose windows reach row y of the map, and that row, (patches, width * channels)."""
    n = torch.arange(len(cols.starts))
    reach = torch.tensor([i for i, s in enumerate(rows.starts) if s <= y < s + rows.size]).long()
    lines = apart[reach, :, y - torch.tensor(rows.starts)[reach]]  # (i, j, cols.size, channels)
    full = apart.new_zeros(len(reach), len(n), width, apart.shape[4])
    place = torch.tensor(cols.starts)[:, None] + left + torch.arange(cols.size)
    full[:, n[:, None], place] = lines
    return (reach[:, None] * len(n) + n).flatten(), full.flatten(2).flatten(0, 1)


def _placed(
    windows: Tensor, rows: Span, cols: Span, size: Sequence[int]
) -> Iterator[tuple[int, Tensor, tuple]]:
    """Each window with its number and its (slice of the map, slice of the window) per axis."""
    starts = itertools.product(rows.starts, cols.starts)
    for number, (window, (r, c)) in enumerate(zip(windows, starts, strict=True)):
        yield number, window, (_clip(r, rows.size, size[0]), _clip(c, cols.size, size[1]))


def _clip(start: int, size: int, limit: int) -> tuple[slice, slice]:
    low, high = max(start, 0), max(min(start + size, limit), 0)
    return slice(low, high), slice(low - start, high - start)
