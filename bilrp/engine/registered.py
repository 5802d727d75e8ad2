"""Maps that users add: for a module type or a torch function, global or within a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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
    functions = {t: b for t, b in _all().items() if not isinstance(t, type)}
    return {getattr(t, "__name__", str(t)): b for t, b in functions.items()}


def _all() -> dict[Any, Callable]:
    return {**_GLOBAL, **(_SCOPED.get() or {})}
