"""One forward pass of any module, recorded call by call.

A torch function mode sees every call of a torch function (function, inputs, output), whatever the
model's Python does. It belongs to this thread and this call. The model itself is never run: its
module objects are copied, sharing all tensors, and the copies run in eval mode.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bilrp.engine.opened import FORMULAS, opened
from bilrp.engine.registered import name_of, registered_functions, registered_modules
from bilrp.engine.rules import numbered

Call = tuple[tuple, dict]  # positional and named arguments
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


# --- the copy that runs ----------------------------------------------------------------------


def shadow(model: nn.Module, dtype: torch.dtype | None, device: torch.device | None) -> nn.Module:
    """Copies of all module objects in eval mode that share the model's tensors.

    Parameters
    ----------
    dtype, device : optional
        Floating-point tensors are converted where they differ; the model's own stay as they are.
    """
    made: dict[int, nn.Module] = {}
    functions: dict[int, Any] = {}

    def tensor(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        to = dtype if t.is_floating_point() else None
        return t.detach().to(device=device, dtype=to)

    def attribute(v: Any) -> Any:
        # Modules in plain lists are not registered, but run all the same.
        if isinstance(v, nn.Module):
            return module(v)
        if type(v) in (list, tuple):
            return type(v)(attribute(t) for t in v)
        if type(v) is dict:
            return {k: attribute(t) for k, t in v.items()}
        if isinstance(v, Tensor):
            return tensor(v).clone()  # a forward may write into it
        owner = getattr(v, "__self__", None)
        if isinstance(owner, nn.Module) and hasattr(v, "__func__"):
            return v.__func__.__get__(module(owner))  # a bound method of a module
        if isinstance(v, functools.partial) and _holds_module(v):
            named = {k: attribute(t) for k, t in v.keywords.items()}
            return functools.partial(attribute(v.func), *map(attribute, v.args), **named)
        return closure(v) if isinstance(v, types.FunctionType) and _holds_module(v) else v

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
        for key, v in vars(m).items():
            if key == "_modules":
                v = {k: None if c is None else module(c) for k, c in v.items()}
            elif key in ("_parameters", "_buffers"):
                v = {k: tensor(t) for k, t in v.items()}
                if key == "_buffers":  # a forward may write into them
                    v = {k: t if t is None else t.clone() for k, t in v.items()}
            elif key.startswith("_forward") or key.startswith("_backward"):
                v = copy.copy(v)  # hooks run as they do for the user, on the copy
            else:
                v = attribute(v)
            new.__dict__[key] = v
        new.__dict__["training"] = False
        return new

    copied = module(model)
    copied.__dict__["_copied_from"] = frozenset(made)
    return copied


def _holds_module(v: Any, seen: tuple = ()) -> bool:
    """Whether a function or a container of things leads to a module."""
    if any(v is s for s in seen):
        return False
    seen = (*seen, v)
    if isinstance(v, nn.Module) or isinstance(getattr(v, "__self__", None), nn.Module):
        return True
    if isinstance(v, functools.partial):
        held: Any = (v.func, *v.args, *v.keywords.values())
    elif isinstance(v, types.FunctionType):
        cells = [c.cell_contents for c in v.__closure__ or () if c != types.CellType()]
        held = (*cells, *(v.__defaults__ or ()), *(v.__kwdefaults__ or {}).values())
    elif type(v) in (list, tuple, dict):
        held = v.values() if isinstance(v, dict) else v
    else:
        return False
    return any(_holds_module(t, seen) for t in held)


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
        self.model = model
        self.values: list[Value] = []
        self.names: dict[int, str] = {}
        self._known: dict[int, tuple[Tensor, int, int]] = {}  # id -> (tensor, number, version)
        self._constants: list[Tensor] = []  # kept, so that no id is used twice
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
        self._own = {t.untyped_storage().data_ptr() for t in model.parameters() if t.numel()}
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
        if hidden and self._unknown:
            self._refuse_what_is_hidden(x)

    def _refuse_what_is_hidden(self, x: Tensor) -> None:
        """Tensors from nowhere are constants, or were made of the input unseen: try another."""
        why = (
            "uses a tensor that depends on the input, but was made of it by calls that cannot be "
            "seen, such as a scripted function. Write them in plain torch functions, or register a "
            "map of the module."
        )
        try:
            others = Record(self.model, _another(x), hidden=False)._unknown
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise NotImplementedError(f"{self._unknown[0][1]} {why}") from error
        for k, (t, call) in enumerate(self._unknown):
            same = k < len(others) and others[k][0].shape == t.shape
            if not same or not torch.equal(others[k][0], t):
                raise NotImplementedError(f"{call}, {why}")

    def _run(self, x: Tensor) -> Any:
        try:
            return self.model(x)
        except RuntimeError as error:
            if isinstance(error, NotImplementedError) or "memory" in str(error):
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
            self._constants.append(t)

    def _add(self, name: str, func: Any, call: Call, pick, data: Tensor, place: Place) -> None:
        value = Value(len(self.values), name, func, *call, pick, data, place)
        self.values.append(value)
        self._known[id(data)] = (data, value.number, _version(data))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = [t for t in given if id(t) in self._known]
        name = name_of(func)
        if name in _FACTS:  # a size, a type: no numbers
            return func(*args, **kwargs)
        self._refuse_harm(name, args, kwargs)
        if not known:
            if any(id(t) not in self.names for t in given):
                self._meet(given, name, self._place())
            out = func(*args, **kwargs)
            self._made_of(out, given)
            return out
        place = self._place_of(func.module) if isinstance(func, _ModuleCall) else self._place()
        self._refuse_what_cannot_be_followed(name, func, args, kwargs, known, place)
        if name in FORMULAS and name not in self._maps:
            with self:
                return FORMULAS[name](*args, **kwargs)
        inner = None if name in self._maps else opened(func)
        if inner is not None:
            with self:
                return inner(*args, **kwargs)
        self._meet(given, name, place)
        before = {id(t): _version(t) for t in given}
        first = known[0]
        kept = first.clone() if _may_write(name, args, kwargs) else None
        shared = [] if kept is None else self._sharing(first)
        recorded = mapped((args, kwargs), self._ref)
        number = args and isinstance(args[0], Tensor) and id(args[0]) not in self._known
        if number and _may_write(name, args, kwargs):  # as it was before the write
            base = args[0].clone()
            self._name(base, self.names[id(args[0])])
            recorded = ((base, *recorded[0][1:]), recorded[1])
        out = func(*args, **kwargs)
        written = [t for t in given if _version(t) != before[id(t)]]
        if written:
            for other, data in shared:
                other.data = data
            self._forget_aliases(written[0])
            self._written(written, first, kept, name, place)
        if name == "__setitem__":
            out_data = args[0]
            self._add(name, _set_item, recorded, None, out_data, place)
            return out
        self._results(
            name.rstrip("_") if written else name, func, recorded, out, place, bool(written)
        )
        return out

    def _results(self, name, func, recorded, out, place, written) -> None:
        func = _OUT_OF_PLACE.get(name, func) if written else func
        if written:
            recorded = (tuple(a for a in recorded[0] if a is not True), recorded[1])
            recorded[1].pop("inplace", None)
        if isinstance(out, Tensor):
            self._add(name, func, recorded, None, out, place)
        elif isinstance(out, tuple | list):
            for pick, t in enumerate(out):
                if isinstance(t, Tensor):
                    self._add(name, func, recorded, pick, t, place)

    def _ref(self, t: Any) -> Any:
        if not isinstance(t, Tensor) or id(t) not in self._known:
            return t
        tensor, number, version = self._known[id(t)]
        if version != _version(tensor):
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
        """Numbers made of numbers are called after the first of them."""
        name = next((self.names[id(t)] for t in given if id(t) in self.names), None)
        for t in leaves(out):
            if isinstance(t, Tensor):
                self._name(t, name or self._place().name or type(self.model).__name__)

    def _sharing(self, t: Tensor) -> list[tuple[Value, Tensor]]:
        """Values that lie in the same memory, with what they are now."""
        memory = t.untyped_storage().data_ptr()
        found = [v for v in self.values if v.data.untyped_storage().data_ptr() == memory]
        return [(v, v.data.clone()) for v in found]

    def _written(self, written, first, kept, name, place) -> None:
        """After an in-place call: the old numbers stay with the old value."""
        target = written[0]
        if len(written) > 1 or (
            id(target) in self._known and (target is not first or kept is None)
        ):
            raise NotImplementedError(
                f"{name} at {place.line}, in {place}, writes in place in a way that cannot be "
                "followed; write it without in-place functions"
            )
        if id(target) in self._known:
            _, number, _ = self._known[id(target)]
            self.values[number].data = kept

    def _forget_aliases(self, target: Tensor) -> None:
        """What shares the memory but not the count of writes, as `.data` does, is not known now."""
        memory = target.untyped_storage().data_ptr()
        for key, (t, number, version) in self._known.items():
            alias = t is not target and t.untyped_storage().data_ptr() == memory
            if alias and version == _version(t):
                self._known[key] = (t, number, -1)

    def _refuse_harm(self, name: str, args: tuple, kwargs: dict) -> None:
        """Before it is done: a write into the model's own weights, or into a tensor `out`."""
        into = False
        if name != "requires_grad_" and _writes(name, kwargs):
            target = args[0] if args else kwargs.get("input")
            into = isinstance(target, Tensor) and target.untyped_storage().data_ptr() in self._own
        renorms = name == "embedding" and _given(args, kwargs, 3, "max_norm", None) is not None
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
    """What a forward may change: counts of writes into tensors, plain values, lengths."""
    state: list = [_version(t) for t in (*model.parameters(), *model.buffers())]
    for m in model.modules():
        for v in vars(m).values():
            if isinstance(v, Tensor):
                state.append((id(v), _version(v)))
            elif isinstance(v, bool | int | float | str | None):
                state.append(v)
            elif isinstance(v, list | dict | set):
                state.append(len(v))
    return state


def _another(x: Tensor) -> Tensor:
    """An input near x, different everywhere, of the same signs; of whole numbers, moved ones."""
    if not x.is_floating_point():
        return x.flip(-1) if not torch.equal(x, x.flip(-1)) else torch.zeros_like(x)
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


def _set_item(base: Tensor, index: Any, value: Any) -> Tensor:
    out = base.clone()
    out[index] = value
    return out


# What an in-place function does, without writing.
_OUT_OF_PLACE: dict[str, Callable] = {
    name: getattr(torch, name)
    for name in (
        "add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "clamp", "neg", "exp", "sqrt",
        "rsqrt", "pow", "abs", "masked_fill", "celu", "selu", "reciprocal", "square", "clip",
        "addmm", "addcmul", "addcdiv", "erf", "floor", "ceil", "round", "log", "softmax",
        "squeeze", "unsqueeze", "transpose", "t", "index_add", "index_fill", "index_copy",
    )
    if hasattr(torch, name)
}  # fmt: skip
_OUT_OF_PLACE["leaky_relu"] = nn.functional.leaky_relu
_OUT_OF_PLACE["elu"] = nn.functional.elu
_OUT_OF_PLACE["threshold"] = nn.functional.threshold
_OUT_OF_PLACE["hardtanh"] = nn.functional.hardtanh


def _writes(name: str, kwargs: dict) -> bool:
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or kwargs.get("inplace") is True


def _may_write(name: str, args: tuple, kwargs: dict) -> bool:
    return _writes(name, kwargs) or any(a is True for a in args)


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version
