"""One forward pass of any module, recorded call by call.

A torch function mode sees every call of a torch function (function, inputs, output), whatever the
model's Python does. It belongs to this thread and this call. The model itself is never run, but a
copy of its module objects, in eval mode: see `shadow`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bilrp.engine.calls import usual
from bilrp.engine.fingerprint import held_besides
from bilrp.engine.opened import FORMULAS, opened
from bilrp.engine.registered import name_of, registered_functions, registered_modules
from bilrp.engine.rules import numbered
from bilrp.engine.shadow import exact, shadow
from bilrp.engine.writes import (
    Before,
    Call,
    common,
    first_of,
    in_place,
    memory,
    out_of_place,
    same_numbers,
    version,
    writes,
    written_by,
)

_MODULE_CALL = {nn.Module._call_impl.__code__}


class Place(NamedTuple):
    """Which module a call was made in, and where in its code."""

    name: str  # as in model.named_modules(), "" for the model itself
    kind: type
    number: int | None  # of a leaf module in the order of definition, from 1
    module: nn.Module
    line: str  # "file.py:12"

    @property
    def label(self) -> str:
        """What to call it in a ledger: its name, or the type of a model that is one layer."""
        return self.name or self.kind.__name__

    def __str__(self) -> str:
        layer = f"layer {self.number}" if self.number else "module"
        return f"{layer} ({self.kind.__name__}, named {self.name!r})"


class Ref(NamedTuple):
    """Stands for the value with this number among a call's arguments."""

    number: int


@dataclass(eq=False)
class Value:
    """A tensor that depends on the input, and the call that made it.

    Attributes
    ----------
    number : int
        In the order in which they were made; 0 is the input.
    name : str
        Of the function, such as "conv2d", "add" or "__getitem__".
    func, args, kwargs
        The call; `Ref` stands for tensors that depend on the input, all others are themselves.
    pick : int or None
        Which of the function's outputs this is.
    data : Tensor
        What came out.
    place : Place
    """

    number: int
    name: str
    func: Any
    args: tuple
    kwargs: dict
    pick: int | None
    data: Tensor
    place: Place

    @property
    def inputs(self) -> list[int]:
        """Numbers of the values that the call was given, in the order of its arguments."""
        return [t.number for t in leaves((self.args, self.kwargs)) if isinstance(t, Ref)]

    def called(self, replace: Callable[[int], Tensor]) -> Tensor:
        """The same call with other tensors for the values that depend on the input."""
        args, kwargs = mapped((self.args, self.kwargs), lambda t: _filled(t, replace))
        out = self.func(*args, **kwargs)
        return out if self.pick is None else out[self.pick]

    def __str__(self) -> str:
        return f"{self.name}, called by {self.place} at {self.place.line}"


def dense(t: Tensor) -> Tensor:
    """A tensor of numbers that may be stored sparsely, all of them."""
    return t if t.layout == torch.strided else t.to_dense()


def _filled(t: Any, replace: Callable[[int], Tensor]) -> Any:
    return replace(t.number) if isinstance(t, Ref) else t


def leaves(tree: Any) -> Iterator[Any]:
    """All that stands in nested tuples, lists, dicts and slices."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, tuple | list):
        for t in tree:
            yield from leaves(t)
    elif isinstance(tree, dict):
        for t in tree.values():
            yield from leaves(t)
    elif isinstance(tree, slice):
        yield from leaves((tree.start, tree.stop, tree.step))
    else:
        yield tree


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting with every leaf changed."""
    if isinstance(tree, Ref):
        return change(tree)
    if isinstance(tree, tuple | list):
        new = [mapped(t, change) for t in tree]
        if isinstance(tree, list):
            return new
        return type(tree)(*new) if hasattr(tree, "_fields") else tuple(new)
    if isinstance(tree, dict):
        return {k: mapped(t, change) for k, t in tree.items()}
    if isinstance(tree, slice):
        return slice(*(mapped(t, change) for t in (tree.start, tree.stop, tree.step)))
    return change(tree)


def smallest_image(model: nn.Module, x: Tensor) -> int | None:
    """Side of the smallest square images that a model runs; None if it is not found."""
    empty = shadow(model, None, torch.device("meta"))

    def runs(size: int) -> bool:
        try:
            empty(torch.empty(*x.shape[:-2], size, size, dtype=x.dtype, device="meta"))
        except Exception:
            return False
        return True

    if x.dim() < 3 or not runs(1024):
        return None
    low, high = 0, 1024
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    return high


# --- the record ------------------------------------------------------------------------------


class Record(TorchFunctionMode):
    """All calls of one forward pass that depend on the input.

    Attributes
    ----------
    values : list of Value
        Value 0 is the input, the last call's output is not always the model's: see `output`.
    output : int
        Number of the model's output.
    writes : bool
        Whether the run changed anything that the model holds, such as a buffer or a counter.
    names : dict
        For the numbers that enter (parameters and what is made of them alone): what to call them.

    Raises
    ------
    NotImplementedError
        Where the run leaves torch, is random, or cannot be followed.
    """

    def __init__(self, model: nn.Module, x: Tensor, hidden: bool = True) -> None:
        super().__init__()
        x = x.clone()  # a model may write into its input
        self.model = model
        self.values: list[Value] = []
        self.names: dict[int, str] = {}
        self._known: dict[int, tuple[Tensor, int, int]] = {}  # id -> (tensor, number, version)
        # All tensors met, by memory and id; kept, so that no id is used twice.
        self._all: dict[int, dict[int, Tensor]] = {}
        self._unknown: list[tuple[Tensor, str]] = []
        self._where = {id(m): (name, number) for m, name, number in numbered(model)}
        for name, t in (*model.named_parameters(), *model.named_buffers()):
            self._name(t, name)
        for name, m in model.named_modules():
            for key, t in vars(m).items():
                for item in leaves(t) if type(t) in (Tensor, list, tuple, dict) else ():
                    if isinstance(item, Tensor):
                        self._name(item, f"{name}.{key}".lstrip("."))
        self._originals = vars(model).get("_copied_from", frozenset())
        self._own = {memory(t) for t in model.parameters()} - {0}
        self._maps = registered_functions()
        root = Place("", type(model), None, model, "the input")
        self._add("input", _identity, ((), {}), None, x, root)
        before = _state(model)
        with exact(), self._opaque(), self:
            out = self._run(x)
        self.writes = before != _state(model)
        if not isinstance(out, Tensor):
            raise NotImplementedError(
                f"the model returns {type(out).__name__}, not a tensor. Wrap it in a module whose "
                "forward returns the features, a tensor."
            )
        if id(out) not in self._known:
            raise NotImplementedError(
                "the model's output does not depend on its input through calls of torch functions"
            )
        self.output = self._known[id(out)][1]
        self.features = self.values[self.output].data
        if self.features.dim() == 0:
            raise NotImplementedError(
                "the model returns a number without dimensions, and features need the batch's. "
                "Wrap it in a module that returns them so, such as y.view(1, 1)."
            )
        if hidden and self._unknown:
            self._refuse_what_is_hidden(self.values[0].data)

    def _refuse_what_is_hidden(self, x: Tensor) -> None:
        """Tensors from nowhere are constants, or were made of the input unseen: try another."""
        why = (
            "uses a tensor that depends on the input, but was made of it by calls that cannot be "
            "seen, such as a scripted function. Write them in plain torch functions, or register a "
            "map of the module."
        )
        try:
            others = Record(self.model, _another(x), hidden=False)._unknown
            met = [(dense(t), call) for t, call in self._unknown]
            changed = [
                k >= len(others)
                or others[k][0].shape != t.shape
                or not torch.equal(dense(others[k][0]), t)
                for k, (t, _) in enumerate(met)
            ]
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise NotImplementedError(f"{self._unknown[0][1]} {why}") from error
        if any(changed):
            raise NotImplementedError(f"{met[changed.index(True)][1]}, {why}")

    def _run(self, x: Tensor) -> Any:
        try:
            return self.model(x)
        except Exception as error:
            if isinstance(error, NotImplementedError | ValueError) or "memory" in str(error):
                raise
            where = self._failed_in(error)
            found = smallest_image(self.model, x) if "too small" in str(error) else None
            advice = f" It takes images of at least {found} x {found} pixels." if found else ""
            raise ValueError(
                f"the model cannot run an input x of the shape {tuple(x.shape)}. In {where}: "
                f"{error}.{advice}"
            ) from error

    def _failed_in(self, error: BaseException) -> Place:
        place, step = Place("", type(self.model), None, self.model, ""), error.__traceback__
        while step is not None:
            m = step.tb_frame.f_locals.get("self")
            called = step.tb_frame.f_code in _MODULE_CALL
            if called and isinstance(m, nn.Module) and id(m) in self._where:
                place = self._place_of(m)
            step = step.tb_next
        return place

    # A registered module is one call, whatever happens inside.
    @contextmanager
    def _opaque(self) -> Iterator[None]:
        kinds = registered_modules()
        changed = []
        for m in self.model.modules():
            kind: Any = next((c for c in type(m).__mro__ if c in kinds), None)
            if kind is not None and type(m).forward is kind.forward:
                m.__dict__["forward"] = self._one_call(m, m.forward)
                changed.append(m)
        try:
            yield
        finally:
            for m in changed:
                del m.__dict__["forward"]

    def _one_call(self, m: nn.Module, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            if torch.overrides._get_current_function_mode() is not self:
                return forward(*args, **kwargs)
            with torch._C.DisableTorchFunction():  # what it does inside is its own business
                return self.__torch_function__(_ModuleCall(m, forward), (), args, kwargs)

        return run

    def _name(self, t: Tensor, name: str) -> None:
        if id(t) not in self.names:
            self.names[id(t)] = name
            self._all.setdefault(memory(t), {})[id(t)] = t

    def _add(self, name: str, func: Any, call: Call, pick, data: Tensor, place: Place) -> None:
        value = Value(len(self.values), name, func, *call, pick, data, place)
        self.values.append(value)
        self._known[id(data)] = (data, value.number, version(data))
        self._all.setdefault(memory(data), {})[id(data)] = data

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = name_of(func)
        func, args, kwargs = usual(func, name, args, kwargs or {})
        given = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = [t for t in given if id(t) in self._known]
        if name in _FACTS:  # a size, a type: no numbers
            return func(*args, **kwargs)
        target = written_by(name, args, kwargs)
        if target is not None and torch.is_inference_mode_enabled() and in_place(name, kwargs):
            raise NotImplementedError(
                f"{self._place().line}, in {self._place()}, writes in place ({name}) in inference "
                "mode, which the model turns on itself and where writes cannot be followed. Use "
                "torch.no_grad() there."
            )
        self._refuse_harm(name, args, kwargs, target)
        like = name in _MADE_LIKE
        one = len(known) == 1 and (first_of(args, kwargs) is known[0]) == like
        made = one and (like or name in _AS_ANOTHER)  # of its size or format alone
        if not known or made:
            before = self._before(target)
            if any(id(t) not in self.names and id(t) not in self._known for t in given):
                self._meet(given, name, self._place())
            out = func(*args, **kwargs)
            if name in _EMPTY:
                out.zero_()  # no number by chance, in a place that is written later or never
            self._made_of(out, [t for t in given if t is not known[0]] if made else given)
            if before is not None and before.written:
                self._keep(before)
                self._share(before)
            return out
        place = self._place_of(func.module) if isinstance(func, _ModuleCall) else self._place()
        self._refuse_what_cannot_be_followed(name, func, args, kwargs, known, place)
        layer = name == "addmm" and all(t is not args[0] for t in known)  # and its bias
        if name in FORMULAS and name not in self._maps and not layer:
            with self:
                return FORMULAS[name](*args, **kwargs)
        inner = None if name in self._maps else opened(func)
        if inner is not None:
            with self:
                return inner(*args, **kwargs)
        self._meet(given, name, place)
        recorded: Call = mapped((args, kwargs), self._ref)
        before = self._before(target)
        versions = [version(t) for t in given]
        out = func(*args, **kwargs)
        written = [t for t, v in zip(given, versions, strict=True) if version(t) != v]
        if not written:
            self._results(name, func, recorded, out, place)
            return out
        if before is None or not before.holds(written):
            raise NotImplementedError(
                f"{name} at {place.line}, in {place}, writes in place in a way that cannot be "
                "followed; write it without in-place functions"
            )
        name, func, recorded = out_of_place(name, func, self._keep(before, recorded))
        self._results(name, func, recorded, before.target, place)
        self._share(before)
        return out

    def _results(self, name: str, func: Any, recorded: Call, out: Any, place: Place) -> None:
        if isinstance(out, Tensor):
            self._add(name, func, recorded, None, out, place)
        elif isinstance(out, tuple | list):
            for pick, t in enumerate(out):
                if isinstance(t, Tensor):
                    self._add(name, func, recorded, pick, t, place)

    def _ref(self, t: Any) -> Any:
        if not isinstance(t, Tensor) or id(t) not in self._known:
            return t
        tensor, number, seen = self._known[id(t)]
        if seen != version(tensor):
            raise NotImplementedError(
                f"value {self.values[number]} was overwritten in place through another view of its "
                "memory. Write that step without in-place functions."
            )
        return Ref(number)

    def _meet(self, given: list[Tensor], name: str, place: Place) -> None:
        """Remember tensors that no call has made and that are not the model's."""
        for t in given:
            if id(t) not in self._known and id(t) not in self.names:
                # as it is now: it may be written into later
                self._unknown.append((t.clone(), f"{name}, called by {place} at {place.line}"))
                self._name(t, f"a number in {place.name or type(self.model).__name__}")

    def _made_of(self, out: Any, given: list[Tensor]) -> None:
        """Numbers made of numbers are called after the first of them, whole ones aside."""
        known = [t for t in given if id(t) in self.names]
        known.sort(key=lambda t: not t.is_floating_point())  # a table before its index
        name = next((self.names[id(t)] for t in known), None)
        for t in leaves(out):
            if isinstance(t, Tensor):
                self._name(t, name or self._place().name or type(self.model).__name__)

    # --- writes in place: the old numbers stay with the old values, the new ones get new values --

    def _before(self, target: Tensor | None) -> Before | None:
        """What lies in the memory of a tensor that a call may write into."""
        if target is None:
            return None
        where = memory(target)
        others = self._all.get(where, {}) if where else {}
        tensors = {id(target): target, **others}.values()
        copies = [(t, t.clone(), version(t)) for t in tensors]
        return Before(target, version(target), copies)

    def _keep(self, before: Before, recorded: Call = ((), {})) -> Call:
        """After the write: earlier calls, and this one, were given what was there before."""
        copies = {id(t): old for t, old, _ in before.copies}
        for value in self.values:
            value.data = copies.get(id(value.data), value.data)
        numbers = {}  # values stand as `Ref` among the arguments, numbers as themselves
        for key, old in copies.items():
            if key in self._known:
                self._known[id(old)] = (old, self._known[key][1], version(old))
            elif key in self.names:
                self._name(old, self.names[key])
                numbers[key] = old
        if not numbers:
            return recorded

        def kept(t: Any) -> Any:
            return numbers.get(id(t), t)

        for value in self.values:
            value.args, value.kwargs = mapped((value.args, value.kwargs), kept)
        return mapped(recorded, kept)

    def _share(self, before: Before) -> None:
        """After the write: what else lies there has the numbers that were written."""
        target = before.target
        for t, old, seen in before.copies:
            _, number, known = self._known.get(id(t), (None, None, seen))
            if t is target or known != seen:  # not known any more: it was written into unseen
                continue
            index = common(t, target)
            if index is None:
                if number is not None:
                    self._known[id(t)] = (t, number, version(t))
                continue
            new = target if same_numbers(t, target) else self._replaced(old, target, index)
            if id(new) in self._known:
                self._known[id(t)] = (t, self._known[id(new)][1], version(t))
            elif number is not None:
                del self._known[id(t)]
                self._name(t, self.names[id(new)])

    def _replaced(self, old: Tensor, written: Tensor, index: Tensor) -> Tensor:
        """`old` with the numbers that it has in common with `written`, as calls of the record."""
        apart, index = index < 0, index.clamp(min=0)
        self._name(index, "places")
        self._name(apart, "places")
        with self:
            new = written.reshape(-1)[index]
            return torch.where(apart, old, new) if bool(apart.any()) else new

    def _refuse_harm(self, name: str, args: tuple, kwargs: dict, target: Tensor | None) -> None:
        """Before it is done: a write into the model's own weights, or into a tensor `out`."""
        into = False
        if name != "requires_grad_" and writes(name, kwargs):
            into = target is not None and memory(target) in self._own
        embeds = name in ("embedding", "embedding_bag")
        renorms = embeds and _given(args, kwargs, 3, "max_norm", None) is not None
        out = kwargs.get("out") is not None
        if out or renorms or into:
            what = "a tensor given as out=" if out else "the model's weights"
            place = self._place()
            raise NotImplementedError(
                f"{name} at {place.line}, in {place}, writes into {what}, and explaining must not "
                "change a model. Do it before, outside of forward."
            )

    def _place(self) -> Place:
        frame: FrameType | None = sys._getframe(2)
        line, user, inner = "?", None, None
        while frame is not None:
            file = frame.f_code.co_filename
            if user is None and not file.startswith((_TORCH, _HERE)):
                user = frame
            if inner is None and not file.startswith(_HERE):
                inner = frame  # of torch itself, if the model's own code does not call
            if frame.f_code in _MODULE_CALL:
                m = frame.f_locals.get("self")
                if id(m) in self._originals:
                    raise NotImplementedError(
                        f"{type(m).__name__} is called past its copy: something in the model, such "
                        "as a global name, leads to the original module, so rules and names cannot "
                        "be told. Make it an attribute of the module that calls it."
                    )
                if isinstance(m, nn.Module) and id(m) in self._where:
                    name, number = self._where[id(m)]
                    shown = user or inner
                    if shown is not None:
                        line = f"{shown.f_code.co_filename.rsplit('/', 1)[-1]}:{shown.f_lineno}"
                    return Place(name, type(m), number, m, line)
            frame = frame.f_back
        return Place("", type(self.model), None, self.model, line)

    def _place_of(self, m: nn.Module) -> Place:
        name, number = self._where[id(m)]
        return Place(name, type(m), number, m, "its call")

    def _refuse_what_cannot_be_followed(self, name, func, args, kwargs, known, place) -> None:
        if name in _LEAVES and any(t.is_floating_point() for t in known):
            raise NotImplementedError(
                f"{name} at {place.line}, in {place}, takes a number out of torch: what is done "
                "with it there cannot be followed. Keep it a tensor."
            )
        if name == "__set__" and func.__self__ is Tensor.data:
            raise NotImplementedError(
                f"{place.line}, in {place}, puts other numbers into a tensor by setting its .data, "
                "which cannot be followed. Give them a name of their own."
            )
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
            raise NotImplementedError(
                f"{place.line}, in {place}, runs under autocast that the model turns on itself. "
                "Turn it off, or give explain the number format, such as dtype=torch.bfloat16."
            )
        if name.startswith(("dropout", "alpha_dropout", "feature_")):
            random = _given(args, kwargs, 2, "training", True) and _given(args, kwargs, 1, "p", 0.5)
        else:
            trains = _given(args, kwargs, 5, "training", False)
            random = (
                name == "batch_norm" and trains and _given(args, kwargs, 1, "", None) is not None
            )
        if random:
            raise NotImplementedError(
                f"{place} runs {name} in training mode though the model was set to eval mode: what "
                "it gives depends on chance or on other inputs. Call eval() on it."
            )


def _state(model: nn.Module) -> list:
    """What a forward may change: counts of writes into tensors, and all else by its contents."""
    state: list = [version(t) for t in (*model.parameters(), *model.buffers())]
    for name, item in held_besides(model):
        if isinstance(item, Tensor):
            state.append((name, id(item), version(item)))
        else:  # of an array all numbers, which in words are shortened
            state.append((name, item.tobytes() if hasattr(item, "tobytes") else str(item)))
    return state


def _another(x: Tensor) -> Tensor:
    """An input near x, different everywhere, of the same signs; of whole numbers, moved ones."""
    if not x.is_floating_point():
        used = x.unique()  # all of them are known to the model
        if len(used) == 1:
            return torch.where(x == 0, 1, 0).to(x)
        return used[(torch.searchsorted(used, x) + 1) % len(used)]
    generator = torch.Generator().manual_seed(0)
    little = 0.01 * torch.rand(x.shape, generator=generator).to(x)
    return torch.where(x == 0, little, x * (1 - little))


def _given(args: tuple, kwargs: dict, position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


class _ModuleCall:
    """A registered module as if it were one function."""

    __name__ = "module"

    def __init__(self, module: nn.Module, forward: Callable) -> None:
        self.module, self.forward = module, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


_TORCH = str(torch.__file__).rsplit("/", 1)[0]
_HERE = __file__.rsplit("/", 1)[0]
_LEAVES = {"item", "tolist", "numpy", "__float__", "__int__", "__index__", "__array__",
           "__complex__", "__dlpack__", "untyped_storage", "storage", "data_ptr"}  # fmt: skip
_FACTS = {
    "size", "dim", "numel", "shape", "dtype", "device", "is_cuda", "is_contiguous", "ndim",
    "requires_grad", "grad_fn", "is_nested", "layout", "stride", "ndimension", "nelement",
    "is_floating_point", "is_complex", "__len__", "names", "is_leaf", "__bool__", "is_quantized",
    "is_sparse", "is_mps", "is_xpu", "element_size", "storage_offset", "get_device",
    "__hash__", "is_meta", "is_mkldnn", "itemsize", "nbytes", "_version", "is_same_size",
    "__repr__", "is_nonzero",
    "is_grad_enabled", "__format__", "is_inference", "is_tensor", "allclose", "equal",
}  # fmt: skip


def _identity(x: Tensor) -> Tensor:
    return x


_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_MADE_LIKE = {
    "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty",
    "new_full", "new_tensor", "new_empty_strided",
}  # fmt: skip
_AS_ANOTHER = {"to", "type_as", "expand_as", "view_as", "reshape_as"}
