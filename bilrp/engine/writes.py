"""Writes in place: which call gives what was written, and what else lies in the same memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Call = tuple[tuple, dict]  # positional and named arguments


def memory(t: Tensor) -> int:
    """Which memory a tensor lies in; 0 for one that has none, such as a sparse one."""
    try:
        return t.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def version(t: Tensor) -> int:
    """How often it was written into."""
    return 0 if t.is_inference() else t._version


def first_of(args: tuple, kwargs: dict) -> Any:
    """What a call works on: its first argument, or what torch calls that."""
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def same_numbers(t: Tensor, other: Tensor) -> bool:
    """Whether two tensors in one memory are the same numbers in the same order."""
    return (t.shape, t.stride(), t.storage_offset(), t.dtype) == (
        other.shape, other.stride(), other.storage_offset(), other.dtype,
    )  # fmt: skip


def common(t: Tensor, written: Tensor) -> Tensor | None:
    """For each number of t, which of the flattened `written` it is.

    Returns
    -------
    Tensor of int, of t's shape
        -1 for a number that is none of them. None if they have no number in common.

    Raises
    ------
    NotImplementedError
        If the two read the memory as numbers of different formats.
    """
    if t.dtype != written.dtype:
        raise NotImplementedError(
            f"a tensor of {written.dtype} was written into, whose memory is also read as {t.dtype}"
        )
    places = torch.arange(t.untyped_storage().nbytes() // t.element_size())
    which = torch.full_like(places, -1)
    which[_seen(places, written).flatten()] = torch.arange(written.numel())
    index = _seen(which, t)
    return index.to(t.device) if bool((index >= 0).any()) else None


def _seen(all_places: Tensor, by: Tensor) -> Tensor:
    return all_places.as_strided(by.shape, by.stride(), by.storage_offset())


class Before(NamedTuple):
    """The memory of a tensor before a call that may write into it.

    Attributes
    ----------
    target : Tensor
    version : int
        Of the target.
    copies : list of (Tensor, Tensor, int)
        Each tensor that lies there, with a copy and its version.
    """

    target: Tensor
    version: int
    copies: list[tuple[Tensor, Tensor, int]]

    @property
    def written(self) -> bool:
        return version(self.target) != self.version

    def holds(self, written: list[Tensor]) -> bool:
        """Whether the target was written into, and nothing that lies elsewhere."""
        here = {id(t) for t, *_ in self.copies}
        return self.written and all(id(t) in here for t in written)


def writes(name: str, kwargs: dict) -> bool:
    """Whether a call says that it writes into its first argument."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or kwargs.get("inplace") is True


def in_place(name: str, kwargs: dict) -> bool:
    """Whether a call writes, or has a form that does and may have been asked for by place."""
    forms = (f"{name}_", f"{name.removesuffix('_')}_")
    return writes(name, kwargs) or any(hasattr(torch.Tensor, n) or hasattr(torch, n) for n in forms)


def written_by(name: str, args: tuple, kwargs: dict) -> Tensor | None:
    """The tensor that a call may write into; None if it writes into none."""
    if not (writes(name, kwargs) or any(a is True for a in args)):
        return None
    target = first_of(args, kwargs)
    return target if isinstance(target, Tensor) else None


def out_of_place(name: str, func: Any, recorded: Call) -> tuple[str, Any, Call]:
    """The call that gives what a call writes."""
    args, kwargs = recorded
    if name in _FILL:
        new = [*args[1:], *kwargs.values(), 0.0][0]
        args, kwargs, name = (args[0], ..., new), {}, "__setitem__"
    if name == "__setitem__":
        return name, _set_item, (args, kwargs)
    if name.endswith("_"):
        name = name.rstrip("_")
        found = (getattr(home, name, None) for home in (torch, Tensor, nn.functional))
        return name, next(filter(None, found), func), recorded
    args = tuple(a for a in args if a is not True)
    return name, func, (args, {k: v for k, v in kwargs.items() if k != "inplace"})


def _set_item(base: Tensor, index: Any, value: Any) -> Tensor:
    out = base.clone()
    out[index] = value
    return out


_FILL = {"copy_", "fill_", "zero_"}
