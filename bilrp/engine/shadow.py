"""How a model is run: copies of its module objects, sharing all tensors, with exact products."""

from __future__ import annotations

import copy
import functools
import random
import threading
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def shadow(model: nn.Module, dtype: torch.dtype | None, device: torch.device | None) -> nn.Module:
    """Copies of all module objects in eval mode that share the model's tensors.

    Parameters
    ----------
    dtype, device : optional
        Floating-point tensors are converted where they differ; the model's own stay as they are.
    """
    made: dict[int, nn.Module] = {}
    same: dict[int, tuple[Tensor, Tensor]] = {}  # one copy of each tensor, wherever it is held
    functions: dict[int, Any] = {}
    others: dict[int, tuple[Any, Any]] = {}
    training: list[bool] = []

    def tensor(t: Any, written: bool = True) -> Any:
        if not isinstance(t, Tensor):
            return t
        if id(t) not in same:
            to = dtype if t.is_floating_point() else None
            new = t.detach().to(device=device, dtype=to)
            same[id(t)] = (new.clone() if written else new, t)  # a forward may write into it
        return same[id(t)][0]

    def attribute(v: Any) -> Any:
        # Modules in plain lists are not registered, but run all the same.
        if isinstance(v, nn.Module):
            return module(v)
        if isinstance(v, Tensor):
            return tensor(v)
        if id(v) in others:
            return others[id(v)][0]
        if isinstance(v, list | dict | deque | set | np.ndarray) or _is_plain(v):
            return contents(v)
        if type(v) in (tuple, frozenset):
            return type(v)(attribute(t) for t in v)
        if isinstance(v, tuple) and hasattr(v, "_make"):  # with names
            return v._make(attribute(t) for t in v)
        owner = getattr(v, "__self__", None)
        if isinstance(owner, nn.Module) and hasattr(v, "__func__"):
            return v.__func__.__get__(module(owner))  # a bound method of a module
        if isinstance(v, functools.partial) and _holds_copied(v):
            named = {k: attribute(t) for k, t in v.keywords.items()}
            return functools.partial(attribute(v.func), *map(attribute, v.args), **named)
        return closure(v) if isinstance(v, types.FunctionType) and _holds_copied(v) else v

    def contents(v: Any) -> Any:
        """A copy of a container or of an object of the user's own, filled with copies."""
        new = copy.copy(v)
        others[id(v)] = (new, v)  # v is kept, so that its address is not another's
        if isinstance(v, dict):
            if any(key(k) is not k for k in v):
                new.clear()
            for k, t in v.items():
                dict.__setitem__(new, key(k), attribute(t))
        elif isinstance(v, set):
            new.clear()
            new.update(map(key, v))
        elif isinstance(v, list | deque):
            for k, t in enumerate(v):
                new[k] = attribute(t)
        if hasattr(v, "__dict__"):
            new.__dict__.update({k: attribute(t) for k, t in vars(v).items()})
        return new

    def key(k: Any) -> Any:
        """What a copy is found under."""
        if isinstance(k, nn.Module | Tensor):
            return attribute(k)
        return tuple(map(key, k)) if type(k) is tuple else k

    def closure(f: types.FunctionType) -> types.FunctionType:
        """The same function around the copies of the modules that it holds."""
        if id(f) in functions:
            return functions[id(f)]
        cells = tuple(types.CellType() for _ in f.__closure__ or ())
        new = types.FunctionType(f.__code__, f.__globals__, f.__name__, None, cells or None)
        functions[id(f)] = new
        for cell, old in zip(cells, f.__closure__ or (), strict=True):
            if old != types.CellType():  # not empty
                cell.cell_contents = attribute(old.cell_contents)
        new.__dict__.update(f.__dict__)
        new.__defaults__ = attribute(f.__defaults__)
        new.__kwdefaults__ = attribute(f.__kwdefaults__)
        return new

    def module(m: nn.Module) -> nn.Module:
        if id(m) in made:
            return made[id(m)]
        if isinstance(m, torch.jit.ScriptModule):
            raise NotImplementedError(
                f"{type(m).__name__} is a scripted module: its calls cannot be seen. Give the "
                "Python module it was made from."
            )
        new = made[id(m)] = object.__new__(m.__class__)
        training.append(m.training)
        for name, v in vars(m).items():
            if name == "_modules":
                v = {k: None if c is None else module(c) for k, c in v.items()}
            elif name in ("_parameters", "_buffers"):
                v = {k: tensor(t) for k, t in v.items()}
            elif name in _HOOKS:  # they run as they do for the user, on the copy
                v = type(v)((k, attribute(f)) for k, f in v.items())
            else:
                v = attribute(v)
            new.__dict__[name] = v
        new.__dict__["training"] = False
        return new

    for p in model.parameters():
        tensor(p, written=False)  # writes into them are refused
    copied = module(model)
    copied.__dict__["_copied_from"] = frozenset(made)
    copied.__dict__["_copied_in_training"] = any(training)
    return copied


def _is_plain(v: Any) -> bool:
    """Whether this is an object of a class written in Python that is copied in the usual way."""
    kind = type(v)
    usual = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    own = bool(kind.__flags__ & _HEAP) and not hasattr(kind, "__copy__")
    return usual and own and hasattr(v, "__dict__") and not isinstance(v, type | nn.Module)


_HEAP = 1 << 9  # of types that a class statement made
_HOOKS = {name for name in vars(nn.Module()) if "hooks" in name}


def _holds_copied(v: Any, seen: tuple = ()) -> bool:
    """Whether a function leads to what is copied: a module, or a container that may change."""
    if any(v is s for s in seen):
        return False
    seen = (*seen, v)
    if isinstance(v, nn.Module | list | dict | deque | set | np.ndarray):
        return True
    if isinstance(getattr(v, "__self__", None), nn.Module):
        return True
    if isinstance(v, functools.partial):
        held: Any = (v.func, *v.args, *v.keywords.values())
    elif isinstance(v, types.FunctionType):
        cells = [c.cell_contents for c in v.__closure__ or () if c != types.CellType()]
        held = (*cells, *(v.__defaults__ or ()), *(v.__kwdefaults__ or {}).values())
    elif isinstance(v, tuple):
        held = v
    else:
        return False
    return any(_holds_copied(t, seen) for t in held)


def place_and_format(
    model: nn.Module, x: Tensor, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.device, torch.dtype]:
    """Where and in which format to compute: the model's own, at least float32."""
    if dtype not in (None, torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    # A model without any numbers of its own, such as a lone pooling, follows the input.
    numbers = [t for t in (*model.parameters(), *model.buffers(), x) if t.is_floating_point()]
    some = numbers[0] if numbers else torch.empty(0)
    double = torch.float64 in (dtype, None if dtype else some.dtype)
    where = torch.device(device) if device is not None else some.device
    return where, torch.float64 if double else torch.float32


class _WholeFloat32:
    """Products of float32 in all their bits on a GPU, where TF32 keeps 11 of 24.

    The switch is the process's, so the first to come sets it and the last to go sets it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: list[tuple[Any, str, Any]] = []

    def _switches(self) -> list[tuple[Any, str, Any]]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        conv = getattr(cudnn, "conv", None)
        if hasattr(conv, "fp32_precision"):  # torch 2.9 and later
            return [(conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
        return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1 and torch.cuda.is_available():
                self._before = [(o, key, getattr(o, key)) for o, key, _ in self._switches()]
                for o, key, value in self._switches():
                    setattr(o, key, value)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for o, key, value in self._before:
                    setattr(o, key, value)
                self._before = []


_WHOLE_FLOAT32 = _WholeFloat32()


@contextmanager
def exact() -> Iterator[None]:
    """No gradients, no inference tensors, no autocast, no TF32: values as they are."""
    with (
        _WHOLE_FLOAT32,
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@contextmanager
def same_chance(device: torch.device) -> Iterator[None]:
    """What a model draws at random leaves no trace in the user's generators."""
    # NumPy's old generator, which a model may draw from, is the process's
    numbers, plain = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(plain)
