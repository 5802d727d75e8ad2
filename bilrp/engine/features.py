"""The parts of all features by owner: pushed forward, or pulled back where that is cheaper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from bilrp.engine.owners import Groups
from bilrp.engine.plan import Stage
from bilrp.engine.trace import Trace
from bilrp.engine.windows import Span

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
    whole = owned_by_all(trace)
    if cheaper_to_pull(trace, owners):
        values = _pulled_one_by_one(trace, owners, chunk)
    else:
        values = with_smaller_chunks(
            lambda n: _pushed(trace, owners, n), trace, chunk or chunk_that_fits(trace)
        )
    check_sum(values.sum(0), whole[0], whole, "the features")
    names = [sink.name for _, sink in trace.sinks]
    absorbed = whole.new_zeros(len(trace.absorbing), whole.shape[1])
    index = torch.tensor([trace.absorbing.index(n) for n in names], dtype=torch.long)
    return values, absorbed.index_add_(0, index.to(whole.device), whole[1:]), None


def owned_by_all(trace: Trace) -> Tensor:
    """Parts of the features: of the input as a whole, then of each sink, (1 + sinks, features)."""

    def check(step: Stage, rows: Tensor) -> None:
        if not step.shares and step.number:
            value = trace.data(step.number)
            biases = trace.hidden_biases(step.number)
            total = rows.sum(0)
            total = total if biases is None else total + biases
            check_sum(total, value, rows, trace.told(step.number))

    u = torch.ones(1, *trace.input.shape, dtype=trace.features.dtype, device=trace.input.device)
    return trace.push_rows(u, sinks=True, check=check).flatten(1)


def check_sum(total: Tensor, value: Tensor, rows: Tensor, what: str) -> None:
    """The parts of all owners are the value; NotImplementedError where they are not."""
    size = float(rows.abs().sum(0).max())
    tolerance = 1e-4 if value.dtype == torch.float32 else 1e-9
    error = float((total.flatten() - value.flatten()).abs().max()) if value.numel() else 0.0
    if not error <= tolerance * size + 1e-30:
        raise NotImplementedError(
            f"the parts of all owners do not add up to the value of {what}: they miss it by "
            f"{error:.3g} of {size:.3g}. The map of this call does not describe what it computed; "
            "register another one."
        )


def _pushed(trace: Trace, owners: Groups, chunk: int) -> Tensor:
    values = None
    for numbers in torch.arange(math.prod(owners.grid)).split(chunk):
        u = owners.indicator(numbers, trace.input, trace.features.dtype)
        rows = trace.push_rows(u, sinks=False).flatten(1)
        if values is None:
            values = rows.new_empty(math.prod(owners.grid), rows.shape[1])
        values[numbers] = rows
    assert values is not None
    return values


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
    return with_smaller_chunks(pulled, trace, chunk or chunk_that_fits(trace, memory))


def _pulled_one_by_one(trace: Trace, owners: Groups, chunk: int | None) -> Tensor:
    """Each living feature pulled back alone; the dead have no parts."""
    features = trace.features.flatten()
    living = features.nonzero()[:, 0]
    values = features.new_zeros(math.prod(owners.grid), len(features))
    step = max(1, int(2e8 / max(1, features.numel() * features.element_size())))
    for some in living.split(step):
        each = features.new_zeros(len(some), len(features))
        each[torch.arange(len(some)), some] = 1
        values[:, some] = pull_projected(trace, owners, each, chunk)[0]
    return values


def cheaper_to_pull(trace: Trace, owners: Groups) -> bool:
    """Whether there are fewer living features to pull back than owners to push forward."""
    return int((trace.features != 0).sum()) < math.prod(owners.grid)


def random_projection(dimensions: int, features: int, seed: int) -> Tensor:
    """Gaussian matrix W, (dimensions, features), scaled so that W^T W is the identity on average.

    Drawn on the CPU, so that the same seed gives the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dimensions, features, generator=generator) / math.sqrt(dimensions)


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


def chunk_that_fits(trace: Trace, memory: float = WORKING_MEMORY) -> int:
    """How many rows at once keep the largest values of a run within this memory."""
    sizes = [trace.data(s.number).numel() * (2 if s.pair else 1) for s in trace.steps]
    return max(1, int(memory / (4 * max(sizes) * trace.features.element_size())))
