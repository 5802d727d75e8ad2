"""Which factor of a product is frozen: masks, gates, weights that the input chooses.

All by the names of the functions that a value came through, never by its numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bilrp.engine.record import Ref, Value
from bilrp.engine.run import Gate, Run, refs
from bilrp.engine.writes import first_of

# Functions by what they do; `kinds` has a map for each.
MOVES = (
    "view", "reshape", "permute", "transpose", "t", "T", "mT", "flatten", "unflatten", "squeeze",
    "unsqueeze", "expand", "expand_as", "view_as", "reshape_as", "repeat", "tile", "roll", "flip",
    "__getitem__", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow",
    "select", "index_select", "movedim", "rot90", "unfold", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "ravel", "broadcast_to", "repeat_interleave", "im2col", "take_along_dim",
    "gather", "diagonal", "fliplr", "flipud", "hsplit", "vsplit", "swapaxes", "atleast_2d",
    "adjoint",
)  # fmt: skip
SAME = (
    "contiguous", "clone", "detach", "to", "type", "float", "double", "type_as", "identity",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "requires_grad_", "data", "cpu", "cuda", "alias", "positive",
)  # fmt: skip
MEANS = (
    "sum", "mean", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
    "_upsample_nearest_exact2d", "fold", "col2im",
)  # fmt: skip
ACTIVATIONS = (
    "relu", "relu6", "gelu", "silu", "mish", "hardswish", "hardtanh", "tanh", "sigmoid",
    "hardsigmoid", "leaky_relu", "elu", "selu", "celu", "softplus", "prelu", "rrelu", "clamp",
    "clip", "clamp_min", "clamp_max", "threshold", "softsign", "tanhshrink", "softshrink",
    "hardshrink", "logsigmoid", "log_sigmoid", "_threshold", "erf", "abs", "sin", "atan",
    "arctan", "sinh", "asinh", "log1p", "expm1", "sqrt", "exp", "pow", "square",
)  # fmt: skip
_PASSES = {*MOVES, *SAME}


# --- masks ---------------------------------------------------------------------------------------


def is_mask(n: int, run: Run) -> bool:
    """Whether a value depends on the input through comparisons alone: masks, counts, positions.

    It has no parts, and nobody's share is lost: how it is used decides what it is, a gate in a
    product, a number of its own in a sum.
    """
    for value in run.values[len(run.masks) :]:  # in the order in which they were made
        given = value.inputs
        made_of_masks = bool(given) and all(run.masks[k] for k in given)
        alone = value.data.dtype == torch.bool or _gated_number(value, run) or _counts(value, run)
        run.masks.append(alone or made_of_masks)
    return run.masks[n]


def _counts(value: Value, run: Run) -> bool:
    """Whether it holds whole numbers in a network that is not given any: places, choices."""
    given = run.values[0].data
    return given.is_floating_point() and not (
        value.data.is_floating_point() or value.data.is_complex()
    )


def chosen(t: Any, run: Run) -> Any:
    """Weights that the input chooses among others, as in a mixture of experts, are numbers."""
    value = run.values[t.number] if isinstance(t, Ref) and is_mask(t.number, run) else None
    while value is not None and value.name in _PASSES:
        source = first_of(value.args, value.kwargs)
        if isinstance(source, Tensor):
            return run.data(t.number)
        value = run.values[source.number] if isinstance(source, Ref) else None
    return t


def _gated_number(value: Value, run: Run) -> bool:
    """Whether a recurrent layer lets a number through a gate, such as its first state.

    The signal takes all, and a number is nobody's but its own.
    """
    cell = isinstance(value.place.module, nn.RNNBase | nn.RNNCellBase)
    if not cell or value.name != "mul" or len(value.inputs) != 1:
        return False
    gate = run.values[value.inputs[0]].name == "sigmoid"
    return gate and any(isinstance(t, Tensor) and t.dim() for t in value.args)


# --- gates ---------------------------------------------------------------------------------------

# What is a gate: the more, the rather it is frozen.
_GATES = {
    "sign": 2, "softmax": 2, "sigmoid": 2, "hardsigmoid": 2, "erf": 2, "log_softmax": 2, "exp": 2,
    "tanh": 1, "softsign": 1,
}  # fmt: skip
_NORMS = {"rsqrt", "reciprocal", "norm", "linalg_vector_norm", "linalg_norm"}
_KEEPS_GATE = {  # and all that moves numbers or leaves them as they are
    "add", "sub", "rsub", "mul", "div", "neg", "where", "masked_fill", "cat", "stack",
}  # fmt: skip
_KEEPS_GATE |= _PASSES
# What is made of sigmoids remains a gate; of a tanh, which is the weaker one, that is less clear.
_KEEPS_STRONG_GATE = {
    "pad", "hstack", "vstack", "clamp", "clip", "clamp_min", "clamp_max", "sqrt", "square", "pow",
    "amax", "amin", "max", "min", "maximum", "minimum", "topk", "sort",
}  # fmt: skip
_KEEPS_STRONG_GATE |= set(MEANS)
_MIXES = {*_PASSES, *MEANS, "einsum"}


def gate_of(n: int, run: Run) -> Gate:
    """What a value is as a factor: the more of a gate, the rather it is frozen."""
    for value in run.values[len(run.gates) :]:  # in the order in which they were made
        run.gates.append(_as_gate(value, run))
    return run.gates[n]


def _as_gate(value: Value, run: Run) -> Gate:
    mixes = value.name in ("linear", "conv1d", "conv2d")  # attention whose heads are mixed
    below = [run.gates[k] for k in _numbers_of(value)]
    kept = bool(below) and (value.name in _KEEPS_GATE or mixes)
    softmax = value.name == "softmax" or (kept and all(g.softmax for g in below))
    inverse = _inverts(value)
    norm = inverse and not _of_exp(value, run)  # 1 / (1 + exp(-x)) is a gate, no norm
    norm = norm or (kept and not mixes and all(g.norm for g in below))
    level = min((g.level for g in below), default=0)
    if is_mask(value.number, run):
        level = 3
    elif value.name in _GATES:
        level = _GATES[value.name]
    elif inverse or norm or (mixes and softmax) or _is_hard_sigmoid(value, run):
        level = 2
    elif value.name not in _KEEPS_GATE and (value.name not in _KEEPS_STRONG_GATE or level < 2):
        level = 0
    return Gate(level, softmax, norm)


def _numbers_of(value: Value) -> list[int]:
    """The values that it takes numbers from: not the divisor, not what only says where to."""
    first = value.name == "div" or value.name in _PASSES
    return refs(value.args[:1]) if first else value.inputs


def _inverts(value: Value) -> bool:
    """Whether it is 1 / x, a negative power, or a length."""
    if value.name == "pow":
        power = value.args[1] if len(value.args) > 1 else value.kwargs["exponent"]
        return isinstance(power, int | float) and power < 0
    if value.name in ("div", "rdiv"):
        return not isinstance(value.args[0 if value.name == "div" else 1], Ref)
    return value.name in _NORMS


def _of_exp(value: Value, run: Run) -> bool:
    while len(value.inputs) == 1 and value.name != "exp":
        value = run.values[value.inputs[0]]
        if value.name not in ("add", "mul", "exp"):
            return False
    return value.name == "exp"


def mixed_by_gates(n: int, run: Run) -> bool:
    """Whether a value is a gate, or numbers that are mixed in proportions that are one."""
    value = run.values[n]
    if gate_of(n, run).level:
        return True
    moved = value.name in _AFFINE or value.name in _MIXES
    return moved and len(value.inputs) == 1 and mixed_by_gates(value.inputs[0], run)


def _is_hard_sigmoid(value: Value, run: Run) -> bool:
    """Whether it is relu6(x + 3), the hard sigmoid in plain functions but for a factor."""
    if value.name not in ("relu6", "hardtanh", "clamp", "clip") or len(value.inputs) != 1:
        return False
    below = run.values[value.inputs[0]]
    bounded = value.name == "relu6" or len([v for v in value.args[1:] if v is not None]) == 2
    return bounded and below.name == "add" and len(below.inputs) == 1


# --- gated units ---------------------------------------------------------------------------------


def ungated(a: int, b: int, run: Run) -> int | None:
    """In a gated linear unit act(W x) * (V x), which factor is V x: 1 or 2; None if it is none."""

    def below(n: int) -> int:  # without moves, such as the halves of one layer, and bounds
        while run.values[n].name in _SEEN_THROUGH:
            n = run.values[n].inputs[0]
        return n

    def scaled_from(n: int) -> int:  # without factors and terms that are numbers
        value = run.values[below(n)]
        single = value.name in ("mul", "add") and len(value.inputs) == 1
        return scaled_from(value.inputs[0]) if single else value.number

    @cache
    def sources(n: int) -> set[int]:  # all x of which it is an affine map, by one layer or more
        value = run.values[below(n)]
        if value.name == "cat":
            return set.intersection(*map(sources, value.inputs))
        given = [k for k in value.inputs if not is_mask(k, run)]
        if len(given) != 1 or value.name not in _AFFINE:
            return set()
        x = below(given[0])
        own = set() if value.name in ("add", "mul") else {x}
        return own | sources(x)

    def activated(n: int) -> set[int]:
        value = run.values[below(n)]
        if value.name in ACTIVATIONS:
            return sources(value.inputs[0])
        if value.name != "mul" or len(value.inputs) != 2:
            return set()
        signal, gate = sorted(value.inputs, key=lambda k: gate_of(k, run).level)  # x * sigmoid(x)
        x = scaled_from(signal)
        return sources(signal) if gate_of(gate, run).level and shaped_by(gate, x) <= {x} else set()

    @cache
    def shaped_by(n: int, x: int) -> set[int]:  # number by number, x or what comes before
        n = below(n)
        value = run.values[n]
        bent = value.name in ACTIVATIONS or value.name in _NUMBER_BY_NUMBER
        return {n} if n == x or not bent else set().union(*(shaped_by(k, x) for k in value.inputs))

    return 2 if activated(a) & sources(b) else 1 if activated(b) & sources(a) else None


_NUMBER_BY_NUMBER = {"mul", "add", "sub", "rsub", "div", "rdiv", "neg"}
_SEEN_THROUGH = _PASSES | {"clamp", "clip", "clamp_min", "clamp_max"}
_AFFINE = {
    "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "grouped_mm", "_grouped_mm", "conv1d",
    "conv2d", "conv3d", "add", "mul",
}  # fmt: skip
