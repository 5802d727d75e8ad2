"""Calls that hide several operations: opened, or replaced by their formula in plain functions."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Written in Python by torch itself: their own code runs, call by call.
_OPENED = {
    "multi_head_attention_forward", "local_response_norm", "normalize", "interpolate", "upsample",
    "lp_pool1d", "lp_pool2d", "softmin",
}  # fmt: skip
_CLOSED = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def opened(func: Callable) -> Callable | None:
    """The function's own Python code, which calls other torch functions; None for all others."""
    if getattr(func, "__name__", "") not in _OPENED or not isinstance(func, types.FunctionType):
        return None
    plain = {**func.__globals__, **dict.fromkeys(_CLOSED, lambda *_: False)}
    inner = types.FunctionType(
        func.__code__, plain, func.__name__, func.__defaults__, func.__closure__
    )
    inner.__kwdefaults__ = func.__kwdefaults__
    return inner


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's scaled_dot_product_attention in plain functions."""
    if dropout_p:
        raise NotImplementedError("attention with dropout is random: call eval() on the model")
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        size = (query.shape[-2], key.shape[-2])
        causal = torch.ones(size, dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~causal, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)


def baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """torch's baddbmm in plain functions, and its addmm."""
    return beta * input + alpha * torch.matmul(batch1, batch2)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's bilinear in plain functions."""
    out = (torch.einsum("...i,oij->...oj", input1, weight) * input2.unsqueeze(-2)).sum(-1)
    return out if bias is None else out + bias


def select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """torch's select_scatter by slices: its own derivative is wrong under torch.vmap (2.12)."""
    start = index % input.shape[dim]
    return torch.slice_scatter(input, src.unsqueeze(dim), dim, start, start + 1)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """torch's addcmul in plain functions."""
    return input + value * tensor1 * tensor2


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """torch's addcdiv in plain functions."""
    return input + value * tensor1 / tensor2


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """torch's glu in plain functions."""
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def embedding_bag(
    tokens: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """torch's embedding_bag in plain functions, of bags that are rows of tokens."""
    if tokens.dim() == 1:
        raise NotImplementedError("embedding_bag with offsets: give tokens as rows, a row a bag")
    each = F.embedding(tokens, weight)
    if per_sample_weights is not None:
        each = each * per_sample_weights[..., None]
    if padding_idx is None:
        total = each.amax(1) if mode == "max" else each.sum(1)
        return total / tokens.shape[1] if mode == "mean" else total
    keep = (tokens != padding_idx)[..., None]
    if mode == "max":
        best = each.masked_fill(~keep, -math.inf).amax(1)
        return torch.where(keep.any(1), best, 0)  # a bag of nothing else is 0
    total = (each * keep).sum(1)
    return total if mode == "sum" else total / keep.sum(1).clamp(min=1)


def _lstm_cell(x: Tensor, state: tuple, w: list) -> tuple[Tensor, tuple]:
    h, c = state
    gates = F.linear(x, w[0], w[2]) + F.linear(h, w[1], w[3])
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if len(w) > 4:  # a projection of the state
        h = F.linear(h, w[4])
    return h, (h, c)


def _gru_cell(x: Tensor, state: tuple, w: list) -> tuple[Tensor, tuple]:
    (h,) = state
    r, z, n = F.linear(x, w[0], w[2]).chunk(3, -1)
    r2, z2, n2 = F.linear(h, w[1], w[3]).chunk(3, -1)
    z = torch.sigmoid(z + z2)
    n = torch.tanh(n + torch.sigmoid(r + r2) * n2)
    h = (1 - z) * n + z * h
    return h, (h,)


def _rnn_cell(nonlinearity: Callable) -> Callable:
    def cell(x: Tensor, state: tuple, w: list) -> tuple[Tensor, tuple]:
        h = nonlinearity(F.linear(x, w[0], w[2]) + F.linear(state[0], w[1], w[3]))
        return h, (h,)

    return cell


def _recurrent(cell: Callable, states: int) -> Callable:
    def run(
        x: Tensor,
        hx: Any,
        weights: list[Tensor],
        bias: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool = False,
    ) -> tuple:
        if isinstance(weights, Tensor) or not isinstance(bias, bool):
            raise NotImplementedError(
                "packed sequences have no map: give one sequence without padding"
            )
        hx = [hx] if isinstance(hx, Tensor) else list(hx)
        two = 2 if bidirectional else 1
        each = len(weights) // (layers * two)
        steps = list(x.unbind(1 if batch_first else 0))
        last: list[list[Tensor]] = [[] for _ in range(states)]
        for layer in range(layers):
            ways = []
            for way in range(two):
                k = layer * two + way
                w: list[Tensor | None] = list(weights[k * each : (k + 1) * each])
                w = w if bias else [*w[:2], None, None, *w[2:]]
                state, out = tuple(h[k] for h in hx), []
                for v in steps if way == 0 else steps[::-1]:
                    h, state = cell(v, state, w)
                    out.append(h)
                ways.append(out if way == 0 else out[::-1])
                for kept, s in zip(last, state, strict=True):
                    kept.append(s)
            steps = (
                ways[0] if two == 1 else [torch.cat(pair, -1) for pair in zip(*ways, strict=True)]
            )
        return torch.stack(steps, 1 if batch_first else 0), *(torch.stack(s) for s in last)

    return run


def _one_step(cell: Callable, both: bool) -> Callable:
    def run(x: Tensor, hx: Any, *weights: Tensor | None) -> Any:
        state = hx if both else (hx,)
        h, new = cell(x, state, [*weights, *[None] * (4 - len(weights))])
        return new if both else h

    return run


# Torch's compiled functions by their names; gates are frozen by the rule for products.
FORMULAS: dict[str, Callable] = {
    "scaled_dot_product_attention": attention,
    "glu": glu,
    "baddbmm": baddbmm,
    "addmm": baddbmm,
    "bilinear": bilinear,
    "select_scatter": select_scatter,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "embedding_bag": embedding_bag,
    "lstm": _recurrent(_lstm_cell, 2),
    "gru": _recurrent(_gru_cell, 1),
    "rnn_tanh": _recurrent(_rnn_cell(torch.tanh), 1),
    "rnn_relu": _recurrent(_rnn_cell(torch.relu), 1),
    "lstm_cell": _one_step(_lstm_cell, True),
    "gru_cell": _one_step(_gru_cell, False),
    "rnn_tanh_cell": _one_step(_rnn_cell(torch.tanh), False),
    "rnn_relu_cell": _one_step(_rnn_cell(torch.relu), False),
}
