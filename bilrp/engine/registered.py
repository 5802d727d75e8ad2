"""Maps that users add: for a module type or a torch function, global or within a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

_GLOBAL: dict[Any, Callable] = {}
_SCOPED: ContextVar[dict[Any, Callable] | None] = ContextVar("bilrp_registered", default=None)


def register(*targets: type[nn.Module] | Callable) -> Callable[[Callable], Callable]:
    """Register the relevance map of a module type or of a torch function, for good.

    The decorated function of a module type takes (step, a, rule, product): the `Step`, the input
    activations with their batch dimension, the rule given for this module (None where none was
    given) and the number format for products (None: that of `a`). It returns a `RelevanceMap`. The
    module is one step then, whatever it does inside; its subclasses are too, unless they have a
    forward of their own.

    The decorated function of a torch function takes a `bilrp.engine.record.Value`, the call, and
    the list of all values of the run. It returns a `bilrp.engine.maps.Linear`.

    Examples
    --------
    >>> @bilrp.register(MyShift)
    ... def my_shift(step, a, rule, product):
    ...     return MyShiftMap(step, a)
    """

    def add(builder: Callable) -> Callable:
        for t in targets:
            _GLOBAL[t] = builder
        return builder

    return add


@contextmanager
def registered(target: type[nn.Module] | Callable, builder: Callable) -> Iterator[None]:
    """`register` for the length of a `with` block, in this thread alone.

    Examples
    --------
    >>> with bilrp.registered(torch.cumsum, my_cumsum):
    ...     e = bilrp.explain(model, x, x2)
    """
    token = _SCOPED.set({**(_SCOPED.get() or {}), target: builder})
    try:
        yield
    finally:
        _SCOPED.reset(token)


def registered_modules() -> dict[type, Callable]:
    """Builders by module type."""
    return {t: b for t, b in _all().items() if isinstance(t, type) and issubclass(t, nn.Module)}


def registered_functions() -> dict[str, Callable]:
    """Builders by the name of the function."""
    return {name_of(t): b for t, b in _all().items() if not isinstance(t, type)}


def _all() -> dict[Any, Callable]:
    return {**_GLOBAL, **(_SCOPED.get() or {})}


def name_of(func: Any) -> str:
    """The name of a torch function: one for all its aliases."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # a property, such as .T or .shape
        return getattr(func.__self__, "__name__", "property")
    if name == "fn":  # max pooling with and without indices
        name = torch.overrides.resolve_name(func).rsplit(".", 1)[-1]
    return _SAME.get(name, name.removesuffix("_with_indices"))


_SAME = {
    "__rsub__": "rsub", "__rdiv__": "rdiv", "__rtruediv__": "rdiv", "__add__": "add",
    "__radd__": "add", "__iadd__": "add_", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_",
    "__sub__": "sub", "__isub__": "sub_", "__truediv__": "div", "__itruediv__": "div_",
    "__div__": "div", "__idiv__": "div_", "__matmul__": "matmul", "__rmatmul__": "rmatmul",
    "__neg__": "neg", "__pow__": "pow", "true_divide": "div", "multiply": "mul", "divide": "div",
    "subtract": "sub", "concat": "cat", "concatenate": "cat", "negative": "neg",
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "absolute": "abs",
}  # fmt: skip
