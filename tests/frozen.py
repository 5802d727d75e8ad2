"""LRP-0 by automatic differentiation: the model itself, with what LRP freezes held fixed.

R_i = x_i df/dx_i, where each activation is its input times the number f(a) / a, and gates, softmax
and the spread of norms are numbers. Nothing of the engine is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GATES = ("softmax", "sigmoid", "hardsigmoid")
ACTIVATIONS = ("relu", "relu6", "gelu", "silu", "hardswish", "tanh")


class Frozen(TorchFunctionMode):
    """Calls of the functions above give the same values and the gradient of LRP-0."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").rstrip("_")
        with torch._C.DisableTorchFunction():
            return self._run(name, func, args, dict(kwargs or {}))

    def _run(self, name, func, args, kwargs):
        if name in GATES:
            return func(*args, **kwargs).detach()
        if name in ACTIVATIONS:
            kwargs.pop("inplace", None)
            further = [a for a in args[1:] if not isinstance(a, bool)]
            return _as_a_number_times(args[0], getattr(F, name), further, kwargs)
        if name == "layer_norm":
            return _layer_norm(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs)
        if name == "multi_head_attention_forward":
            return _many_heads(args[0], *args[3:7], *args[11:13]), None
        return func(*args, **kwargs)


def _as_a_number_times(a: Tensor, f, args: list, kwargs: dict) -> Tensor:
    out, zero = (f(t, *args, **kwargs).detach() for t in (a, torch.zeros_like(a)))
    return a * torch.where(a == 0, 0, (out - zero) / a).detach() + zero


def _layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True)
    out = centred * (spread + eps).rsqrt().detach()
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    scores = query @ key.mT * (scale or query.shape[-1] ** -0.5)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -1e30)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1).detach() @ value


def _many_heads(x, size, heads, weight, bias, out_weight, out_bias):
    length, batch, _ = x.shape
    q, k, v = (
        t.reshape(length, batch * heads, -1).transpose(0, 1)
        for t in F.linear(x, weight, bias).chunk(3, -1)
    )
    mixed = _attention(q, k, v).transpose(0, 1).reshape(length, batch, size)
    return F.linear(mixed, out_weight, out_bias)


def relevance(model: nn.Module, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Features (M,) of one input (1, ...), and LRP-0 of sums of them, (K, ...)."""
    leaf = x.clone().requires_grad_()
    with Frozen():
        out = model(leaf).flatten()
    found = [torch.autograd.grad(out @ row, leaf, retain_graph=True)[0][0] for row in rows]
    return out.detach(), torch.stack(found) * x[0]
