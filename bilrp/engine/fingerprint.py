"""A checksum of a model, so that factors of different models do not go together."""

from __future__ import annotations

import functools
import types
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilrp.engine.registered import registered_functions, registered_modules
from bilrp.engine.rules import held_by, told, told_of_code

_OF_EVERY_MODULE = set(vars(nn.Module()))
_DEEP = 5  # how far into objects of a model's own making


def fingerprint(model: nn.Module) -> str:
    """Checksum of a model: structure, numbers of all kinds, hooks, and the maps registered for it.

    Functions and hooks count by what they do and hold. The code of a forward counts by its name
    alone, and globals and attributes of classes do not count.
    """
    total = zlib.crc32(repr(model).encode())
    for name, item in _told_of(model):
        total = zlib.crc32(f"{name} {_as_text(item)}".encode(), total)
        if isinstance(item, Tensor | np.ndarray) and (data := _as_bytes(item)):
            total = zlib.crc32(data, total)
    for name, builder in sorted(registered_functions().items()):
        total = zlib.crc32(f"{name} {told(builder)}".encode(), total)
    return f"{total:08x}"


def _told_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and numbers of all that a model holds."""
    maps = registered_modules()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    yield from sorted(tensors.items())
    known = {id(m): n for n, m in model.named_modules()}
    for name, m in model.named_modules():
        for key, v in sorted(vars(m).items()):
            if "hooks" in key and isinstance(v, dict):
                yield from _inside(f"{name}.{key}", list(v.values()), known, 0)
        yield from _beside(name, m, known)
        for kind in type(m).__mro__:
            if kind in maps:
                yield name, told(maps[kind])


def held_besides(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and numbers of all that a model holds besides parameters, buffers and hooks."""
    known = {id(m): n for n, m in model.named_modules()}
    for name, m in model.named_modules():
        yield from _beside(name, m, known)


def _beside(name: str, m: nn.Module, known: dict[int, str]) -> Iterator[tuple[str, Any]]:
    """Of one module."""
    for key, v in sorted(vars(m).items()):
        if key not in _OF_EVERY_MODULE:
            yield from _inside(f"{name}.{key}", v, known, 0)


def _inside(name: str, v: Any, known: dict[int, str], depth: int) -> Iterator[tuple[str, Any]]:
    """Names and numbers in what is no parameter, buffer or registered module.

    `known` has the modules and functions that were told of, by what they were called there.
    """
    inner: dict[Any, Any] = {}
    if isinstance(v, nn.Module | types.FunctionType) and id(v) in known:
        yield name, f"as {known[id(v)]}"
    elif isinstance(v, nn.Module):
        known[id(v)] = name
        yield from ((f"{name}.{key}", item) for key, item in _told_of(v))
    elif isinstance(v, functools.partial):
        inner = {"func": v.func, "args": v.args, "keywords": v.keywords}
    elif isinstance(v, types.FunctionType):
        known[id(v)] = name
        yield name, told_of_code(v)
        inner = {"closed over": held_by(v), "defaults": v.__defaults__, "named": v.__kwdefaults__}
    elif isinstance(v, types.MethodType):
        inner = {"function": v.__func__, "self": v.__self__}
    elif isinstance(v, types.BuiltinFunctionType | types.MethodDescriptorType | type):
        yield name, told(v)
    elif isinstance(v, dict):
        inner = v
    elif isinstance(v, list | tuple | deque):
        inner = dict(enumerate(v))
    elif isinstance(v, set | frozenset):
        inner = dict(enumerate(sorted(v, key=repr)))
    elif isinstance(v, Tensor | np.ndarray | bool | int | float | complex | str | bytes | None):
        yield name, v
    elif isinstance(v, torch.dtype | torch.device | torch.layout | slice | range):
        yield name, repr(v)
    else:
        yield name, type(v).__qualname__
        inner = _attributes(v) if depth < _DEEP else {}
    for key, item in inner.items():
        yield from _inside(f"{name}.{key}", item, known, depth + 1)


def _attributes(v: Any) -> dict[str, Any]:
    slots = (s for kind in type(v).__mro__ for s in getattr(kind, "__slots__", ()))
    return {**getattr(v, "__dict__", {}), **{s: getattr(v, s) for s in slots if hasattr(v, s)}}


def _as_text(item: Any) -> str:
    if isinstance(item, Tensor | np.ndarray):
        return f"{tuple(item.shape)} {item.dtype}"
    return str(item) if isinstance(item, str) else repr(item)


def _as_bytes(t: Tensor | np.ndarray) -> bytes | memoryview:
    if isinstance(t, np.ndarray):
        return t.tobytes()
    data = t.detach().cpu().contiguous().flatten()
    return data.view(torch.uint8).numpy().data if data.numel() else b""
