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
import torch.nn.functional as F
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
    height, width = image.shape[-2:]
    top, left = max(0, -min(rows.starts)), max(0, -min(cols.starts))
    bottom = max(0, max(rows.starts) + rows.size - height)
    right = max(0, max(cols.starts) + cols.size - width)
    image = F.pad(image.permute(1, 2, 0), (0, 0, left, right, top, bottom))
    row, col = (
        torch.tensor(s.starts, device=image.device)[:, None]
        + torch.arange(s.size, device=image.device)
        + shift
        for s, shift in ((rows, top), (cols, left))
    )
    windows = image[row[:, None, :, None], col[None, :, None, :]]  # (i, j, rows, cols, C)
    # Channels stay last in memory: convolutions like it.
    return windows.flatten(0, 1).permute(0, 3, 1, 2)


def place(windows: Tensor, rows: Span, cols: Span, size: Sequence[int]) -> Tensor:
    """Whole maps (patches, channels, *size) with the windows in their places: undoes `cut`."""
    maps = windows.new_zeros(*windows.shape[:2], *size)
    for full, window, (r, c) in _placed(windows, rows, cols, size):
        maps[full][:, r[0], c[0]] = window[:, r[1], c[1]]
    return maps


def sum_of_windows(windows: Tensor, rows: Span, cols: Span, size: Sequence[int]) -> Tensor:
    """Sum of all windows in their places, (channels, *size), in float64."""
    total = windows.new_zeros(windows.shape[1], *size, dtype=torch.float64)
    for _, window, (r, c) in _placed(windows, rows, cols, size):
        total[:, r[0], c[0]] += window[:, r[1], c[1]]
    return total


def product_of_windows(
    first: Tensor, rows: Span, cols: Span, second: Tensor, rows2: Span, cols2: Span, width: int
) -> Tensor:
    """A A'^T, (patches, patches'), of two factors in windows over maps of one size.

    Windows that do not overlap have no common feature. So it is summed over the rows of the map,
    and each row multiplies just the patches whose windows reach it.
    """
    result = first.new_zeros(len(first), len(second))
    last = max(max(rows.starts) + rows.size, max(rows2.starts) + rows2.size)
    for y in range(last):
        here, a = _row_of(first, rows, cols, y, width)
        here2, a2 = _row_of(second, rows2, cols2, y, width)
        if len(here) and len(here2):
            result[here[:, None], here2] += a @ a2.T
    return result


def _row_of(windows: Tensor, rows: Span, cols: Span, y: int, width: int) -> tuple[Tensor, Tensor]:
    """Patches whose windows reach row y of the map, and that row, (patches, channels * width)."""
    n = len(cols.starts)
    reach = [i for i, start in enumerate(rows.starts) if start <= y < start + rows.size]
    numbers = (torch.tensor(reach, dtype=torch.long)[:, None] * n + torch.arange(n)).flatten()
    full = windows.new_zeros(len(numbers), windows.shape[1], width)
    for k, i in enumerate(reach):
        for j, start in enumerate(cols.starts):
            inside, part = _clip(start, cols.size, width)
            full[k * n + j, :, inside] = windows[i * n + j, :, y - rows.starts[i], part]
    return numbers, full.flatten(1)


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
