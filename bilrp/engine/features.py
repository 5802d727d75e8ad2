"""The parts of all features by owner: pushed forward, or pulled back where that is cheaper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from bilrp.engine.cones import Cones, affine_of
from bilrp.engine.living import Living, Reach
from bilrp.engine.owners import Groups, Patches
from bilrp.engine.plan import Stage
from bilrp.engine.trace import Pair, Trace
from bilrp.engine.windows import Span, place, sum_of_windows

T = TypeVar("T")
WORKING_MEMORY = 1.0e9  # bytes that one chunk may take
# A whole-map pull does little with each number: on a CPU, chunks near its cache are 3 times faster.
PULLED_ON_A_CPU = 5.0e7


def parts_of_features(
    trace: Trace, owners: Groups, chunk: int | None = None
) -> tuple[Tensor, Tensor, tuple[Span, Span] | None]:
    """The parts a_k u_k of the features by owner: exact, `chunk` owners or features at a time.

    Owners are pushed forward; where the living features are few, each is pulled back instead, which
    gives the same numbers. Either way, one row for the input as a whole and one for each sink are
    pushed first, and their sum is compared with the value at every step.

    Returns
    -------
    Tensor (owners, features)
    Tensor (sinks, features)
        In the order of `trace.absorbing`.
    tuple of Span or None
        Where the windows lie, if the parts are kept in windows.
    """
    spans = None
    cones = Cones(trace, owners) if isinstance(owners, Patches) else None
    if cheaper_to_pull(trace, owners, cones):
        whole = with_smaller_chunks(lambda _: owned_by_all(trace), trace, 1)
        values = _pulled_one_by_one(trace, owners, chunk)
    elif cones is not None and trace.output in cones.inside:
        whole = with_smaller_chunks(lambda _: owned_by_all(trace), trace, 1)
        chunk = chunk or max(1, int(WORKING_MEMORY / (16 * cones.largest)))
        values, spans = with_smaller_chunks(lambda n: _joined(cones, n), trace, chunk)
    else:
        chunk = chunk or chunk_that_fits(trace, cones)
        values, whole = with_smaller_chunks(
            lambda n: _pushed(trace, owners, cones, n), trace, chunk
        )

    def total(parts: Tensor) -> Tensor:
        if spans is None:
            return parts.sum(0)
        return sum_of_windows(parts, *spans, trace.features.shape[-2:])

    tolerance = trace.tolerance(trace.output)
    check_sum(total(values), whole[0], lambda: total(values.abs()), "the features", tolerance)
    names = [sink.name for _, sink in trace.sinks]
    absorbed = whole.new_zeros(len(trace.absorbing), whole.shape[1])
    index = torch.tensor([trace.absorbing.index(n) for n in names], dtype=torch.long)
    return values, absorbed.index_add_(0, index.to(whole.device), whole[1:]), spans


def owned_by_all(trace: Trace) -> Tensor:
    """Parts of the features: of the input as a whole, then of each sink, (1 + sinks, features)."""
    return trace.push_rows(_everything(trace), sinks=True, check=_checked(trace)).flatten(1)


def _everything(trace: Trace) -> Tensor:
    return torch.ones(1, *trace.input.shape, dtype=trace.features.dtype, device=trace.input.device)


def _checked(trace: Trace) -> Callable[[Stage, Tensor | Living, int, Callable], None]:
    """The guard: rows of the whole input and of all sinks must add up to the value."""

    def check(stage: Stage, rows: Tensor | Living, first: int, products: Callable) -> None:
        if stage.shares:
            return
        value, biases = trace.data(stage.number), trace.hidden_biases(stage.number)
        if isinstance(rows, Living):
            alive = rows.where >= 0
            value, parts = value[0][alive], rows.rows[:, first:][rows.where[alive]].T
        else:
            parts = rows[first:]
        # of few rows, adding one by one is faster
        total = sum(parts[1:], parts[0]) if len(parts) < 8 else parts.sum(0)
        total = total if biases is None else total + biases
        told, tolerance = trace.told(stage.number), trace.tolerance(stage.number)

        def sizes() -> Tensor:
            own, added = parts.abs().sum(0), None if isinstance(rows, Living) else products()
            return own if added is None else torch.maximum(own, added)

        check_sum(total, value, sizes, told, tolerance)

    return check


def check_sum(
    total: Tensor,
    value: Tensor,
    sizes: Callable[[], Tensor],
    what: str,
    tolerance: float,
) -> None:
    """The parts of all owners are the value; NotImplementedError where they are not.

    Compared with the sizes of the parts, sum over owners of their magnitudes: of large parts that
    cancel, rounding leaves more. They are at least as large as the total, which mostly decides.
    """
    if value.numel() == 0:
        return
    error = _largest(total.reshape(value.shape) - value)
    if not math.isfinite(error):
        number = value.isfinite()  # others must not reach the features, which are looked at
        total, value = (torch.where(number, t.reshape(value.shape), 0) for t in (total, value))
        error = _largest(total - value)
    if error <= tolerance * _largest(total):
        return
    size = float(sizes().max())
    if not math.isfinite(size):
        raise NotImplementedError(
            f"the parts of all owners of {what} are infinite or no numbers. Gamma adds up the "
            "magnitudes of all paths from the last activation on, which grow from layer to layer "
            f"and may be beyond what {value.dtype} holds: use bilrp.Gamma(0), or "
            "dtype=torch.float64"
        )
    if not error <= tolerance * size + 1e-30:
        doubt = "rounding may have added up, which dtype=torch.float64 tells; otherwise "
        doubt = doubt if value.dtype == torch.float32 else ""
        raise NotImplementedError(
            f"the parts of all owners do not add up to the value of {what}: they miss it by "
            f"{error:.3g} of {size:.3g}: {doubt}the map of this call does not describe what it "
            "computed, and another one must be registered"
        )


def _largest(t: Tensor) -> float:
    """The largest magnitude; NaN if there is one. Without a copy of the magnitudes."""
    turned = t.movedim(1, -1) if t.dim() == 4 else t
    low, high = (turned if turned.is_contiguous() else t).aminmax()  # contiguous is fast
    return float(torch.maximum(-low, high))


def _pushed(trace: Trace, owners: Groups, cones: Cones | None, chunk: int) -> tuple[Tensor, Tensor]:
    """Parts of all owners, and of the whole input and all sinks, which go with the first chunk."""
    inside = set() if cones is None else cones.inside
    upper = [s for s in trace.steps[1:] if s.number not in inside]
    lower = [s for s in trace.steps[1:] if s.number in inside]
    rest: dict[int, Pair] = {0: (_everything(trace), None)}
    kept = () if cones is None else cones.frontier  # steps above read it once more
    at = trace.run(lower, rest, 1, {}, 0, _checked(trace), kept)
    assert at is not None
    values: Tensor | None = None
    whole: Tensor | None = None
    for numbers, rows, reach in _at_the_bottom(trace, owners, cones, chunk):
        n = len(numbers)
        if whole is None:
            rows = {k: _appended(r, rest[k]) for k, r in rows.items()}
            end = trace.run(upper, rows, n + at, reach, n, _checked(trace))
            both = trace.at_the_end(rows, end).flatten(1)
            found, whole = both[:n], both[n:].clone()
            values = found.new_empty(math.prod(owners.grid), found.shape[1])
        else:
            trace.run(upper, rows, None, reach)
            found = trace.at_the_end(rows, None).flatten(1)
        assert values is not None
        values[numbers] = found
    assert values is not None
    assert whole is not None
    return values, whole


def _appended(pair: Pair, rest: Pair) -> Pair:
    (p, m), (p2, m2) = pair, rest
    p, p2 = (t.dense() if isinstance(t, Living) else t for t in (p, p2))
    if m is None:
        return torch.cat([p, p2]), None
    assert m2 is not None
    return torch.cat([p, p2]), torch.cat([m, m2])


def _at_the_bottom(
    trace: Trace, owners: Groups, cones: Cones | None, chunk: int
) -> Iterator[tuple[Tensor, dict[int, Pair], dict[int, Reach]]]:
    """Owners in chunks: their numbers, and their rows where whole maps begin."""
    if cones is None:
        for numbers in torch.arange(math.prod(owners.grid)).split(chunk):
            u = owners.indicator(numbers, trace.input, trace.features.dtype)
            yield numbers, {0: (u, None)}, {}
        return
    for numbers, windows in cones.push(chunk):
        rows: dict[int, Pair] = {}
        reach: dict[int, Reach] = {}
        for n, w in windows.items():
            size = trace.data(n).shape[-2:]
            p = place(w.p, w.rows, w.cols, size)[:, None]
            m = None if w.m is None else place(w.m, w.rows, w.cols, size)[:, None]
            rows[n] = (p, m)
            across = len(w.cols.starts)
            k = torch.arange(len(numbers))
            row_of = k.div(across, rounding_mode="floor")
            reach[n] = Reach(w.rows, row_of)
        yield numbers, rows, reach


def _joined(cones: Cones, chunk: int) -> tuple[Tensor, tuple[Span, Span]]:
    """All patches' windows of the features in one tensor, with zeros below and on the right."""
    grid, (output,) = cones.owners.grid, [cones.trace.output]
    found = [(n, cones.parts(output, windows[output])) for n, windows in cones.push(chunk)]
    height = max(w.rows.size for _, w in found)
    width = max(w.cols.size for _, w in found)
    row_starts, col_starts = [0] * grid[0], [0] * grid[1]
    first = found[0][1].p
    values = first.new_zeros(math.prod(grid), first.shape[1], height, width)
    for numbers, w in found:
        values[numbers, :, : w.rows.size, : w.cols.size] = w.p
        starts = product(w.rows.starts, w.cols.starts)
        for number, (r, c) in zip(numbers.tolist(), starts, strict=True):
            row_starts[number // grid[1]], col_starts[number % grid[1]] = r, c
    return values, (Span(tuple(row_starts), height), Span(tuple(col_starts), width))


def pull_projected(
    trace: Trace, owners: Groups, projection: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The paper's way: pull K projected features back, `chunk` of them as one batch.

    The projection has no ReLU and its outputs may be close to zero, so nothing is divided by them:
    the relevance R_km = a_k W_mk needs no denominator.

    Returns
    -------
    Tensor (owners, K)
        LRP of each projected feature, summed over owners.
    Tensor (sinks, K)
        What the sinks keep.
    """
    c = projection.view(-1, *trace.features.shape)

    def pulled(n: int) -> tuple[Tensor, Tensor]:
        parts, kept = [], []
        for part in c.split(n):
            inputs, sinks = trace.pull_rows(part)
            parts.append(owners.pool(inputs))
            kept.append(sinks)
        return torch.cat(parts, 1), torch.cat(kept, 1)

    memory = PULLED_ON_A_CPU if trace.input.device.type == "cpu" else WORKING_MEMORY
    return with_smaller_chunks(pulled, trace, chunk or chunk_that_fits(trace, None, memory))


def _pulled_one_by_one(trace: Trace, owners: Groups, chunk: int | None) -> Tensor:
    """Each living feature pulled back alone; the dead have no parts."""
    features = trace.features.flatten()
    living = features.nonzero()[:, 0]
    values = features.new_zeros(math.prod(owners.grid), len(features))
    if not len(living):
        return values
    step = max(1, int(2e8 / max(1, features.numel() * features.element_size())))
    for some in living.split(step):
        each = features.new_zeros(len(some), len(features))
        each[torch.arange(len(some)), some] = 1
        values[:, some] = pull_projected(trace, owners, each, chunk)[0]
    return values


def cheaper_to_pull(trace: Trace, owners: Groups, cones: Cones | None) -> bool:
    """Whether pulling every living feature back takes fewer multiplications than pushing owners."""
    count, features = math.prod(owners.grid), int((trace.features != 0).sum())
    if features >= count:
        return False
    pull = push = 0.0
    for stage in trace.steps[1:]:
        affine, size = affine_of(stage), trace.data(stage.number).numel()
        if affine is None:
            continue
        each = affine.weight.numel() / affine.weight.shape[0]
        pull += features * size * each
        whole = count * size * each
        if cones is not None and stage.number in cones.inside:
            rows, cols = cones.spans[stage.number]
            whole = count * rows.size * cols.size * affine.weight.numel()
        else:
            whole = min(whole, trace.living_cost(stage, count))
        push += whole
    return pull < push if push else features < count


def random_projection(dimensions: int, features: int, seed: int) -> Tensor:
    """Gaussian matrix W, (dimensions, features), scaled so that W^T W is the identity on average.

    Drawn on the CPU in float32, so that the same seed gives the same numbers on every device and
    whatever torch's default format is.
    """
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(dimensions, features, generator=generator, dtype=torch.float32)
    return w / math.sqrt(dimensions)


def with_smaller_chunks(work: Callable[[int], T], trace: Trace, chunk: int) -> T:
    """Call `work(chunk)`; where memory runs out, try again with half the chunk."""
    while True:
        try:
            return work(chunk)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if chunk == 1:
                shape = " x ".join(map(str, trace.input.shape[1:]))
                raise MemoryError(
                    f"out of memory with one patch or dimension at a time. The input x is {shape}: "
                    "lower its size, or the layer of the model, or `project`; a larger `patch` "
                    "gives fewer patches"
                ) from error
        chunk //= 2


def out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in text
        or "not enough memory" in text
    )


def chunk_that_fits(
    trace: Trace, cones: Cones | None = None, memory: float = WORKING_MEMORY
) -> int:
    """How many rows at once keep the largest values of a run within this memory."""
    inside = set() if cones is None else cones.inside - set(cones.frontier)
    sizes = [
        trace.data(s.number).numel() * (2 if s.pair else 1)
        for s in trace.steps
        if s.number not in inside
    ]
    largest = max([*sizes, 1 if cones is None else cones.largest])
    return max(1, int(memory / (4 * largest * trace.features.element_size())))
