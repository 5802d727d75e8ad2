"""Who owns the features: patches and biases pushed forward, or projected features pulled back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from bilrp.engine.alive import Alive
from bilrp.engine.layers import Convolution, RelevanceMap
from bilrp.engine.trace import Trace
from bilrp.engine.windows import Span, cut, lattices, place

T = TypeVar("T")
WORKING_MEMORY = 1.0e9  # bytes that one chunk may take
# A whole-map pull does little with each number: on a CPU, chunks near its cache are 3 times faster.
PULLED_ON_A_CPU = 5.0e7


class Groups:
    """Groups of input features, as owners: u is their indicator."""

    def __init__(self, batch: Tensor, groups: int | Tensor | None) -> None:
        shape = batch.shape[1:]
        if groups is None or isinstance(groups, int):
            size = 1 if groups is None else groups
            if size < 1 or shape.numel() % size:
                raise ValueError(
                    f"groups={groups} consecutive features must divide the {shape.numel()} "
                    "features of the input"
                )
            self.ids = torch.arange(shape.numel()).div(size, rounding_mode="floor").view(shape)
        else:
            ids = torch.as_tensor(groups)
            per_pixel = batch.dim() == 4 and ids.shape == shape[1:]
            if (ids.shape != shape and not per_pixel) or ids.is_floating_point() or ids.min() < 0:
                raise ValueError(
                    f"groups must be a number, or whole numbers >= 0 of shape {tuple(shape)}"
                    f"{f' or {tuple(shape[1:])}' if batch.dim() == 4 else ''}; got {ids.dtype} of "
                    f"shape {tuple(ids.shape)}"
                )
            self.ids = ids.expand(shape)
        self.grid: tuple[int, ...] = (int(self.ids.max()) + 1,)

    def indicator(self, numbers: Tensor, like: Tensor) -> Tensor:
        """1 at the features of each group, (len(numbers), ...)."""
        return (self.ids == numbers.view(-1, *[1] * self.ids.dim())).to(like)

    def pool(self, relevance: Tensor) -> Tensor:
        """Sum relevance (K, ...) over groups: (groups, K)."""
        out = relevance.new_zeros(self.grid[0], len(relevance))
        return out.index_add_(0, self.ids.flatten().to(out.device), relevance.flatten(1).T)


class Patches(Groups):
    """Square patches of an image."""

    def __init__(self, batch: Tensor, patch: int) -> None:
        height, width = batch.shape[2:]
        if height % patch or width % patch:
            both = math.gcd(height, width)
            fits = [d for d in range(1, both + 1) if both % d == 0]
            raise ValueError(
                f"patch={patch} does not divide the image of {height} x {width} pixels; "
                f"{', '.join(map(str, fits))} would, or resize the image"
            )
        self.patch = patch
        rows, cols = torch.arange(height) // patch, torch.arange(width) // patch
        ids = rows[:, None] * (width // patch) + cols
        self.ids = ids.expand(batch.shape[1:])
        self.grid = (height // patch, width // patch)

    def pool(self, relevance: Tensor) -> Tensor:
        summed = relevance.sum(1).unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch))
        return summed.sum((2, 4)).flatten(1).T


def parts_of_features(
    trace: Trace, owners: Groups, chunk: int | None = None
) -> tuple[Tensor, Tensor, tuple[Span, Span] | None]:
    """The parts a_k u_k of the features by owner: exact, `chunk` owners or features at a time.

    Owners are pushed forward: early layers run on windows, the receptive cones of the patches, the
    others on whole maps; the biases are owners too and travel with the first patches. Where the
    features are few, each is pulled back instead, which gives the same numbers.

    Returns
    -------
    Tensor (patches, features) or, in windows, (patches, channels, rows, cols)
        Parts of the input's patches.
    Tensor (layers, features)
        Parts of the layers' biases.
    tuple of Span or None
        Where the windows lie.
    """
    windows = _windows(trace, owners)
    if cheaper_to_pull(trace, owners, windows):
        return *_pulled_one_by_one(trace, owners, chunk), None
    chunk = chunk or _chunk_that_fits(trace, windows)
    return _with_smaller_chunks(lambda n: _pushed(trace, owners, len(windows), n), trace, chunk)


def _pushed(
    trace: Trace, owners: Groups, top: int, chunk: int
) -> tuple[Tensor, Tensor, tuple[Span, Span] | None]:
    lower, upper = trace.maps[:top], trace.maps[top:]
    biases = _push(lower, None, with_biases=True)
    places, windows, values = [], [], None
    for which, u, rows, cols in _at_the_bottom(trace, owners, lower, chunk):
        for m in lower:
            u, rows, cols = m.push_window(u, rows, cols)
        if not upper:
            places.append(which)
            windows.append((u.mul_(cut(trace.features[0], rows, cols)), rows, cols))
            continue
        if lower:
            u = place(u, rows, cols, lower[-1].output.shape[-2:])
        n = len(u)
        if values is None:
            u = u if biases is None else torch.cat([u, biases])
            u = _push(upper, u, with_biases=True)
            biases = u[n:]
            values = u.new_empty(math.prod(owners.grid), trace.features[0].numel())
        else:
            u = _push(upper, u, with_biases=False)
        values[which] = (u[:n] * trace.features).flatten(1)
    spans = None
    if values is None:
        values, spans = _joined(places, windows, owners.grid)
    kept = [bool(m.absorbed.any()) for m in trace.maps if m.absorbed is not None]
    absorbed = trace.features.new_zeros(len(kept), trace.features[0].numel())
    if biases is not None:
        absorbed[torch.tensor(kept, dtype=torch.bool)] = (biases * trace.features).flatten(1)
    return values, absorbed, spans


def pull_projected(
    trace: Trace, owners: Groups, projection: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The paper's way: pull K projected features back, `chunk` of them as one batch.

    The projection has no ReLU and its outputs may be close to zero, so nothing is divided by them:
    the relevance R_km = a_k W_mk needs no denominator.

    Returns
    -------
    Tensor (patches, K)
        LRP of each projected feature, summed over patches.
    Tensor (layers, K)
        What the layers' biases keep.
    """
    relevance = projection.view(-1, *trace.features.shape[1:]) * trace.features

    def pulled(n: int) -> tuple[Tensor, Tensor]:
        parts = []
        for part in relevance.split(n):
            inputs, kept = trace.pull(part)
            parts.append(torch.cat([owners.pool(inputs), kept]))
        return torch.cat(parts, 1).split([math.prod(owners.grid), len(trace.absorbing)])

    memory = PULLED_ON_A_CPU if trace.input.device.type == "cpu" else WORKING_MEMORY
    return _with_smaller_chunks(pulled, trace, chunk or _chunk_that_fits(trace, [], memory))


def _pulled_one_by_one(trace: Trace, owners: Groups, chunk: int | None) -> tuple[Tensor, Tensor]:
    """Each living feature pulled back alone; the dead have no parts."""
    features = trace.features[0].flatten()
    living = features.nonzero()[:, 0]
    values = features.new_zeros(math.prod(owners.grid), len(features))
    absorbed = features.new_zeros(len(trace.absorbing), len(features))
    if len(living):
        each = torch.eye(len(features)).to(features)[living]
        values[:, living], absorbed[:, living] = pull_projected(trace, owners, each, chunk)
    return values, absorbed


def cheaper_to_pull(trace: Trace, owners: Groups, windows: list[int]) -> bool:
    """Whether pulling every feature back takes fewer multiplications than pushing every owner."""
    count, features = math.prod(owners.grid), int((trace.features != 0).sum())
    if features >= count:
        return False
    pull = push = 0.0
    for i, m in enumerate(trace.maps):
        size = m.output[0].numel()
        whole = size if m.step.weight is None else m.step.weight[0].numel() * size
        pull += features * whole
        if i < len(windows):
            push += count * whole * windows[i] / size
        elif isinstance(m, Convolution):
            push += min(count * whole, m.alive_cost(count))
        else:
            push += count * whole
    return pull < push


def random_projection(dimensions: int, features: int, seed: int) -> Tensor:
    """Gaussian matrix W, (dimensions, features), scaled so that W^T W is the identity on average.

    Drawn on the CPU, so that the same seed gives the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dimensions, features, generator=generator) / math.sqrt(dimensions)


def _with_smaller_chunks(work: Callable[[int], T], trace: Trace, chunk: int) -> T:
    """Call `work(chunk)`; where memory runs out, try again with half the chunk."""
    while True:
        try:
            return work(chunk)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if chunk == 1:
                shape = " x ".join(map(str, trace.input.shape[1:]))
                raise MemoryError(
                    f"out of memory with one patch or dimension at a time. The input x is {shape}: "
                    "lower its size, or the layer of the model, or `project`; a larger `patch` "
                    "gives fewer patches"
                ) from error
        chunk //= 2


def _out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in text
        or "not enough memory" in text
    )


def _windows(trace: Trace, owners: Groups) -> list[int]:
    """Numbers per owner in each layer to run on windows: until whole maps become cheaper."""
    sizes: list[int] = []
    if not isinstance(owners, Patches):
        return sizes
    rows = cols = Span((0,), owners.patch)
    count = math.prod(owners.grid)
    for m in trace.maps:
        if m.geometry is None:
            break
        rows, cols = rows.through(m.geometry, 0)[0], cols.through(m.geometry, 1)[0]
        if isinstance(m, Convolution):
            weights = m.step.weight.numel()
            whole = min(count * m.output[0, 0].numel() * weights, m.alive_cost(count))
            if whole <= count * rows.size * cols.size * weights:
                break
        sizes.append(m.output.shape[1] * rows.size * cols.size)
    return sizes


def _chunk_that_fits(trace: Trace, windows: list[int], memory: float = WORKING_MEMORY) -> int:
    whole = [m.output[0].numel() for m in trace.maps]
    if not windows:
        whole.append(trace.input[0].numel())
    largest = max(windows + whole[max(0, len(windows) - 1) :])
    return max(1, int(memory / (4 * largest * trace.input.element_size())))


def _push(maps: Sequence[RelevanceMap], u: Tensor | None, with_biases: bool) -> Tensor | None:
    """Push whole maps; with_biases appends each layer's own share as one more owner."""
    for m in maps:
        if u is not None:
            u = _push_one(m, u)
        if with_biases and m.absorbed is not None and bool(m.absorbed.any()):
            if isinstance(u, Alive):
                u = u.and_owner(m.absorbed[0])
            else:
                u = m.absorbed if u is None else torch.cat([u, m.absorbed])
    return u.dense() if isinstance(u, Alive) else u


def _push_one(m: RelevanceMap, u: Tensor | Alive) -> Tensor | Alive:
    if isinstance(m, Convolution) and isinstance(u, Tensor) and m.saves_by_alive(len(u)):
        u = Alive.of(u, m.a[0] != 0)
    return m.push_alive(u) if isinstance(u, Alive) else m.push(u)


def _at_the_bottom(
    trace: Trace, owners: Groups, lower: Sequence[RelevanceMap], chunk: int
) -> Iterator[tuple[Tensor, Tensor, Span | None, Span | None]]:
    """Owners of the input in chunks: their numbers, u, and its windows if there are any."""
    if not lower:
        for numbers in torch.arange(math.prod(owners.grid)).split(chunk):
            yield numbers, owners.indicator(numbers, trace.input[0]), None, None
        return
    patch, (height, width) = owners.patch, owners.grid
    strides = [math.prod(m.geometry.stride[axis] for m in lower) for axis in (0, 1)]
    parts = product(lattices(height, patch, strides[0]), lattices(width, patch, strides[1]))
    for row_part, col_part in parts:
        # Rectangles of patches, as many whole rows of the grid as the chunk allows.
        n_cols = min(chunk, len(col_part))
        n_rows = max(1, chunk // n_cols)
        for i, j in product(range(0, len(row_part), n_rows), range(0, len(col_part), n_cols)):
            r, c = row_part[i : i + n_rows], col_part[j : j + n_cols]
            u = trace.input.new_ones(len(r) * len(c), trace.input.shape[1], patch, patch)
            u = u.contiguous(memory_format=torch.channels_last)
            numbers = torch.tensor(r)[:, None] * width + torch.tensor(c)
            rows, cols = (Span(tuple(k * patch for k in which), patch) for which in (r, c))
            yield numbers.flatten(), u, rows, cols


def _joined(
    places: list[Tensor], windows: list[tuple[Tensor, Span, Span]], grid: tuple[int, int]
) -> tuple[Tensor, tuple[Span, Span]]:
    """All patches' windows in one tensor; smaller ones get zeros below and on the right."""
    height = max(rows.size for _, rows, _ in windows)
    width = max(cols.size for _, _, cols in windows)
    row_starts, col_starts = [0] * grid[0], [0] * grid[1]
    channels = windows[0][0].shape[1]
    values = windows[0][0].new_zeros(math.prod(grid), channels, height, width)
    for numbers, (window, rows, cols) in zip(places, windows, strict=True):
        values[numbers, :, : rows.size, : cols.size] = window
        starts = product(rows.starts, cols.starts)
        for number, (r, c) in zip(numbers.tolist(), starts, strict=True):
            row_starts[number // grid[1]], col_starts[number % grid[1]] = r, c
    return values, (Span(tuple(row_starts), height), Span(tuple(col_starts), width))
