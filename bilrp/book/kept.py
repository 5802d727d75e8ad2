"""Factors that stay: a page that runs again, or another one, reads what was computed before.

A file belongs to all that its content depends on: the code of the method, the version of torch, the
model with its weights, the rules, the patches and the input. Nothing is told by names or times.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bilrp.book.registry import ROOT
from bilrp.engine.api import factor as computed
from bilrp.engine.factors import Factor, load
from bilrp.engine.fingerprint import fingerprint
from bilrp.engine.registered import registered_functions, registered_modules
from bilrp.engine.rules import Rules

PACKAGE = Path(__file__).resolve().parents[1]


class Unclear(Exception):
    """What a factor depends on cannot be told from outside."""


def factor(model: nn.Module, x: Tensor, rules: Rules, patch: int = 8) -> Factor:
    """`bilrp.factor`, from a file where the very same was computed before.

    In a checkout it is kept in _build/kept; elsewhere, or where something takes part that cannot be
    told by its content (a module with a forward of its own, a registered map, a rule from outside
    the package), it is computed each time.

    Parameters
    ----------
    model, x, rules, patch
        As for `bilrp.factor`; one input.
    """
    path = None
    with suppress(Unclear):
        path = folder() / f"{name_of(model, x, rules, patch)}.npz"
        with suppress(FileNotFoundError, ValueError):  # not there, or damaged
            return load(path)
    made = computed(model, x, rules, patch=patch)
    if path is not None:
        with suppress(OSError):  # a full disk costs time, not the page
            others = [p for p in path.parent.parent.glob("*") if p != path.parent]
            path.parent.mkdir(parents=True, exist_ok=True)
            made.save(path)
            for old in others:  # of other code, which nobody will ask for again
                shutil.rmtree(old, ignore_errors=True)
    return made


def folder() -> Path:
    """Where factors of this code are kept.

    Raises
    ------
    Unclear
        Outside a checkout.
    """
    if not (ROOT / "data" / "registry.toml").is_file() or not os.access(ROOT, os.W_OK):
        raise Unclear("there is no checkout to keep anything in")
    return ROOT / "_build" / "kept" / code_of(PACKAGE)[:16]


@functools.cache  # what was imported stays what it is
def code_of(package: Path) -> str:
    """Checksum of the code that computes a factor, and of torch's version."""
    sha = hashlib.sha256(torch.__version__.encode())
    own = [*package.glob("*.py"), *package.glob("engine/**/*.py"), package / "book" / "kept.py"]
    for path in sorted(own):
        sha.update(f"\0{path.relative_to(package)}\0".encode() + path.read_bytes())
    return sha.hexdigest()


def name_of(model: nn.Module, x: Tensor, rules: object, patch: int) -> str:
    """Checksum of what a factor is made of.

    Raises
    ------
    Unclear
        If part of it cannot be told by its content.
    """
    theirs = (t for t in registered_modules() if not t.__module__.startswith("bilrp."))
    if any(theirs) or registered_functions():
        raise Unclear("a map of the user's takes part")
    told = f"{model!r} {fingerprint(model)} {patch} {torch.get_default_dtype()}"
    sha = hashlib.sha256(told.encode())
    for part in model.modules():
        # Of torch's own modules the code is known, and attributes are all their settings.
        if not type(part).__module__.startswith("torch.nn.") or "forward" in vars(part):
            raise Unclear(f"{type(part)} has a forward of its own")
        if part._forward_hooks or part._forward_pre_hooks:
            raise Unclear("a hook takes part")
        sha.update(f"{type(part).__qualname__} {part.training}".encode())
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in [*sorted(state.items()), ("x", x)]:
        sha.update(f"\0{name}\0".encode() + _content(tensor))
    sha.update(_content(rules))
    return sha.hexdigest()


def _content(value: object) -> bytes:
    """All of a tensor, of a rule, or of rules by layer, as bytes."""
    if isinstance(value, Tensor):
        t = value.detach().cpu().contiguous()
        raw = t.flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.device.type} {t.dtype} {tuple(t.shape)} ".encode() + raw
    if value is None or isinstance(value, int | float | str | range):
        return f"{type(value).__name__} {value!r} ".encode()
    if isinstance(value, Mapping):
        return b"{" + b"".join(_content(k) + b":" + _content(v) for k, v in value.items()) + b"}"
    if is_dataclass(value) and type(value).__module__ == "bilrp.engine.rules":
        parts = (f.name.encode() + b"=" + _content(getattr(value, f.name)) for f in fields(value))
        return type(value).__qualname__.encode() + b"(" + b",".join(parts) + b")"
    raise Unclear(f"{type(value)} takes part")
