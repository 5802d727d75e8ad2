"""One form for each call: torch takes some arguments by several names, and in several orders."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim"}
_OTHER_TENSORS = {"x": "input", "x1": "input", "x2": "other"}  # where `input` and `other` are known
# The same functions, with their arguments in another order.
_OTHER_ORDER: dict[Callable, tuple[Callable, tuple[str, ...]]] = {
    torch.batch_norm: (
        F.batch_norm,
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    ),
    torch.instance_norm: (
        F.instance_norm,
        ("input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum",
         "eps"),
    ),
    torch.embedding: (F.embedding, ("weight", "input", "padding_idx", "scale_grad_by_freq",
                                    "sparse")),
}  # fmt: skip
# Arguments that hold tensors, of functions whose maps look for them by their places.
_IN_ORDER: dict[str, tuple[str, ...]] = {
    "cat": ("tensors",),
    "stack": ("tensors",),
    "where": ("condition", "input", "other"),
    "masked_fill": ("input", "mask", "value"),
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "matmul", "maximum", "minimum", "fmax", "fmin"),
        ("input", "other"),
    ),
    "bmm": ("input", "mat2"),
    "mm": ("input", "mat2"),
    "mv": ("input", "vec"),
    "addmm": ("input", "mat1", "mat2"),
}


def usual(func: Callable, name: str, args: tuple, kwargs: dict) -> tuple[Callable, tuple, dict]:
    """The same call by torch's first names for its arguments, with tensors in their places."""
    if func in _OTHER_ORDER:
        func, named = _OTHER_ORDER[func]
        kwargs = {**dict(zip(named, args, strict=False)), **kwargs}
        asked = {k: v for k, v in kwargs.items() if k in named and k != "input"}
        return func, (kwargs["input"],), asked
    if isinstance(func, types.FunctionType) or not (kwargs or name == "where"):
        return func, args, kwargs  # one written in Python has one name for each
    known = {"input", "other"} & set(_IN_ORDER.get(name, ()))
    more = {k: v for k, v in _OTHER_TENSORS.items() if v in known}
    names = {} if name == "segment_reduce" else {**_OTHER_NAMES, **more}
    for other, first in names.items():
        if other in kwargs and first not in kwargs:
            kwargs = {first if k == other else k: v for k, v in kwargs.items()}
    if func is Tensor.where:  # x.where(condition, other)
        func = torch.where
        by_place = dict(zip(("input", "condition", "other"), args, strict=False))
        args, kwargs = (), {**by_place, **kwargs}
    order: tuple[str, ...] = _IN_ORDER.get(name, ())
    given: list[Any] = list(args)
    while len(given) < len(order) and order[len(given)] in kwargs:
        key = order[len(given)]
        given.append(kwargs[key])
        kwargs = {k: v for k, v in kwargs.items() if k != key}
    return func, tuple(given), kwargs
