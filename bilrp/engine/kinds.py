"""Kinds of operations: for each torch function, its linear map on parts.

One list, by the names of the functions; `bilrp.register` adds to it. A function that stands nowhere
here is refused if relevance reaches it, and is no matter if it only makes sizes, masks or gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bilrp.engine.gates import (
    ACTIVATIONS,
    MEANS,
    MOVES,
    SAME,
    chosen,
    gate_of,
    is_mask,
    mixed_by_gates,
    ungated,
)
from bilrp.engine.maps import (
    Affine,
    Linear,
    Sink,
    Winners,
    adjoint,
    beside,
    channels_last,
)
from bilrp.engine.modules import RelevanceMap, Step
from bilrp.engine.record import Ref, Value, _given, dense, leaves, mapped
from bilrp.engine.registered import registered_functions, registered_modules
from bilrp.engine.rules import CPLRP, AttnLRP
from bilrp.engine.run import Run, refs
from bilrp.engine.windows import Geometry
from bilrp.engine.writes import first_of

FEW = 4  # maps that are worth being turned in memory before a convolution


@dataclass
class Activation:
    """An element-wise function: the end of a segment."""

    parent: int
    zero: Tensor | None = None  # its value at 0, where that is not 0


@dataclass
class Tokens:
    """An embedding of whole numbers: where parts begin."""

    parent: int


@dataclass
class ModuleCall:
    """A registered module and its map."""

    parent: int
    map: RelevanceMap


Made = Linear | Activation | Tokens | ModuleCall
_KINDS: dict[str, Callable[[Value, Run], Made]] = {}


def kind(*names: str) -> Callable:
    def add(builder: Callable[[Value, Run], Made]) -> Callable[[Value, Run], Made]:
        _KINDS.update(dict.fromkeys(names, builder))
        return builder

    return add


def known_functions() -> list[str]:
    """Names of all functions that have a map."""
    return sorted({*_KINDS, *registered_functions()})


def made_of(value: Value, run: Run) -> Made:
    """The map of one call.

    Raises
    ------
    NotImplementedError
        If the function has none, or not with these arguments: says which call, and what to do.
    """
    if value.name == "module":
        return _module(value, run)
    registered = registered_functions().get(value.name)
    if registered is not None:
        return registered(value, run.values)
    if value.name not in _KINDS:
        raise refusal(value, "has no relevance map")
    try:
        return _KINDS[value.name](value, run)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise refusal(value, "was given its arguments in a way that is not known") from error


def _module(value: Value, run: Run) -> ModuleCall:
    module = value.func.module
    if len(value.inputs) != 1 or value.pick is not None:
        raise refusal(value, "is a registered module with more than one input or output")
    builders = registered_modules()
    builder = next(builders[c] for c in type(module).__mro__ if c in builders)
    place = value.place
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    step = Step(place.name, place.number, module, weight, bias)
    rule = run.book.at(place, "weights")
    product = run.product
    return ModuleCall(value.inputs[0], builder(step, run.data(value.inputs[0]), rule, product))


def refusal(value: Value, why: str) -> NotImplementedError:
    kind = value.place.kind.__name__
    return NotImplementedError(
        f"{value.name}, called at {value.place.line} in {value.place}, {why}. Register a map: "
        f"@bilrp.register({kind}) for the whole module, or @bilrp.register of the function."
    )


# --- helpers ---------------------------------------------------------------------------------


def each(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of values as a function of rows of them."""
    mapped = torch.vmap(f)

    def rows(*given: Tensor) -> Tensor:
        try:
            return mapped(*given)
        except RuntimeError as error:
            if "Batching rule not implemented" not in str(error):
                raise
        return torch.stack([f(*one) for one in zip(*given, strict=True)])

    return rows


def tensors(tree: Any) -> Iterable[Tensor]:
    return (t for t in leaves(tree) if isinstance(t, Tensor) and t.is_floating_point())


def again(value: Value, run: Run, parents: list[int]) -> Callable[..., Tensor]:
    """The call itself on rows of some of its values; the others stay as they were."""

    def one(*ts: Tensor) -> Tensor:
        put = dict(zip(parents, ts, strict=True))
        return value.called(lambda n: put.get(n, run.data(n)))

    return each(one)


def offset(value: Value, run: Run) -> list[Sink]:
    """What the numbers among the arguments add, one sink for each of them."""
    sinks = []
    # the same tensor twice, as in cat([p, x, p]), is one sink
    for number in {id(t): t for t in tensors((value.args, value.kwargs))}.values():
        alone = _with_numbers(value, number)
        part = alone.called(lambda n: torch.zeros_like(run.data(n)))
        if bool((part != 0).any()):
            sinks.append(Sink(run.named(number, value), part))
    return sinks


def _with_numbers(value: Value, kept: Tensor | None = None) -> Value:
    """The same call with zeros for the numbers among its arguments, all but one."""

    def zero(t: Any) -> Any:
        number = isinstance(t, Tensor) and t.is_floating_point() and t is not kept
        return torch.zeros_like(t) if number else t

    args, kwargs = mapped((value.args, value.kwargs), zero)
    return replace(value, args=args, kwargs=kwargs)


def scaled(parent: int, factor: Tensor | float, shape: torch.Size) -> Linear:
    """Times a number, element by element."""
    factor = numeric(factor)
    if factor.dim() == 0 or factor.shape == shape[len(shape) - factor.dim() :]:
        simple = factor  # broadcasts over rows as it is
    else:
        simple = factor.expand(shape)
    magnitude = None if bool((factor >= 0).all()) else simple.abs()
    absolute = None if magnitude is None else (lambda r: _wide(r, shape) * magnitude)
    return Linear([parent], lambda r: _wide(r, shape) * simple, absolute)


def numeric(t: Any) -> Tensor:
    """A tensor of what may be a Python number, with all its digits."""
    return t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)


def _wide(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows of a value that an operation broadcasts to another shape."""
    if rows.shape[1:] == shape:
        return rows
    missing = len(shape) - (rows.dim() - 1)
    if missing < 0:  # y[0] = x may leave out leading dimensions of 1
        rows, missing = rows.flatten(0, -missing), 0
    return rows.reshape(len(rows), *[1] * missing, *rows.shape[1:]).expand(len(rows), *shape)


# --- moves -----------------------------------------------------------------------------------


@kind(*MOVES)
def _move(value: Value, run: Run) -> Linear:
    first = _source(value)
    if value.name == "view":
        shape = value.data.shape  # rows may lie otherwise in memory than the value did
        return Linear([first], lambda r: r.reshape(len(r), *shape), moves=True)
    return Linear([first], again(value, run, [first]), moves=True)


@kind("as_strided")
def _as_strided(value: Value, run: Run) -> Linear:
    """Numbers of a value by their places in its memory, such as overlapping windows."""
    first = _source(value)
    a = run.data(first)
    size, stride = (
        _given(value.args, value.kwargs, k, n, None) for k, n in ((1, "size"), (2, "stride"))
    )
    offset = _given(value.args, value.kwargs, 3, "storage_offset", None)
    places = torch.empty_strided(a.shape, a.stride(), dtype=torch.long, device=a.device)
    start = 0 if offset is None else offset - a.storage_offset()
    last = start + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if places.untyped_storage().nbytes() != 8 * a.numel() or start < 0 or last >= a.numel():
        raise refusal(value, "reads memory that is not of this value")
    places.copy_(torch.arange(a.numel(), device=a.device).view(a.shape))
    index = places.as_strided(size, stride, start)
    return Linear([first], lambda r: r.flatten(1)[:, index], moves=True)


@kind(*SAME)
def _same(value: Value, run: Run) -> Linear:
    return Linear([_source(value)], lambda r: r, moves=True, coefficients=[1.0])


def _source(value: Value) -> int:
    """What is moved, where other arguments only say where to."""
    source = first_of(value.args, value.kwargs)
    if not isinstance(source, Ref):
        raise refusal(value, "moves numbers by a value that depends on the input")
    return source.number


@kind("cat", "stack", "hstack", "vstack", "dstack", "column_stack")
def _join(value: Value, run: Run) -> Linear:
    parents = refs((value.args, value.kwargs))
    fn = again(_with_numbers(value), run, parents)
    joined = value.args[0] if value.args else []
    if value.name == "cat" and all(isinstance(t, Ref) for t in joined) and value.data.dim() == 4:
        order = [parents.index(t.number) for t in joined]
        dim = 1 + _given(value.args, value.kwargs, 1, "dim", 0) % 4

        def fn(*rows: Tensor) -> Tensor:
            return beside([rows[k] for k in order], dim)

    return Linear(parents, fn, sinks=offset(value, run), moves=len(parents) == 1)


@kind("index_add", "scatter_add", "index_copy", "slice_scatter")
def _put_in(value: Value, run: Run) -> Linear:
    if value.kwargs.get("alpha", 1) != 1:
        raise refusal(value, "adds a multiple")
    places = refs((value.args, value.kwargs))
    parents = [n for n in places if run.data(n).is_floating_point()]
    fn = again(_with_numbers(value), run, parents)
    return Linear(parents, fn, sinks=offset(value, run))


@kind("pad")
def _pad(value: Value, run: Run) -> Linear:
    first = value.inputs[0]
    constant = _given(value.args, value.kwargs, 2, "mode", "constant") == "constant"
    fill = _given(value.args, value.kwargs, 3, "value", None) if constant else None
    if not fill:
        # Not called a move: zeros that are added are no share of anyone.
        return Linear([first], again(value, run, [first]))
    widths = value.args[1] if len(value.args) > 1 else value.kwargs["pad"]
    sink = Sink(
        f"{run.named(None, value)}, padding",
        F.pad(torch.zeros_like(run.data(first)), widths, value=fill),
    )
    return Linear([first], each(lambda t: F.pad(t, widths)), sinks=[sink])


@kind("__setitem__")
def _put(value: Value, run: Run) -> Linear:
    base, index, filled = value.args
    parents = refs((base, filled))
    index = mapped(index, lambda t: run.data(t.number) if isinstance(t, Ref) else t)
    index = index if isinstance(index, tuple) else (index,)
    shape = value.data.shape
    target = value.data[index].shape
    if _stand_apart(index):
        raise refusal(value, "writes to places whose numbers stand apart, as in y[a, :, b]")

    def fn(*rows: Tensor) -> Tensor:
        given = dict(zip(parents, rows, strict=True))
        zeros = rows[0].new_zeros(len(rows[0]), *shape)
        out = given[base.number].clone() if isinstance(base, Ref) else zeros
        put = _wide(given[filled.number], target) if isinstance(filled, Ref) else 0
        out[(slice(None), *index)] = put
        return out

    sinks = []
    for number, kept in ((base, base), (filled, torch.zeros_like(value.data))):
        if isinstance(number, Ref):
            continue
        part = kept.to(value.data, copy=True)
        part[index] = 0 if number is base else number
        sinks.append(Sink(run.named(number, value), part))
    return Linear(parents, fn, sinks=[s for s in sinks if bool((s.part != 0).any())])


def _stand_apart(index: tuple) -> bool:
    """Whether tensors of places have a slice between them: torch puts their dimension in front."""
    single = (int, slice, type(None), type(...))
    places = [k for k, t in enumerate(index) if not isinstance(t, single)]
    between = index[places[0] : places[-1]] if places else ()
    return any(isinstance(t, slice) or t is None or t is ... for t in between)


@kind("where")
def _where(value: Value, run: Run) -> Linear:
    parents = refs(value.args[1:])
    condition = value.args[0]
    condition = run.data(condition.number) if isinstance(condition, Ref) else condition
    shape = value.data.shape
    sides = [_side(t) for t in value.args[1:3]]
    masks = (condition.expand(shape), ~condition.expand(shape))
    sinks = [
        Sink(f"{run.named(t, value)}, where", torch.where(mask, numeric(t).to(value.data), 0))
        for (number, t), mask in zip(sides, masks, strict=True)
        if number is None
    ]
    used = {n: [m for (k, _), m in zip(sides, masks, strict=True) if k == n] for n in parents}

    def fn(*rows: Tensor) -> Tensor:
        chosen = [
            _kept(_wide(r, shape), mask)
            for n, r in zip(parents, rows, strict=True)
            for mask in used[n]
        ]
        return reduce(torch.add, chosen)

    return Linear(parents, fn, sinks=[s for s in sinks if bool((s.part != 0).any())])


def _kept(rows: Tensor, mask: Tensor) -> Tensor:
    """Zero elsewhere, whatever stands there, such as y / 0."""
    return torch.where(mask, rows, rows.new_zeros(()))


def _side(t: Any) -> tuple[int | None, Any]:
    return (t.number, None) if isinstance(t, Ref) else (None, t)


@kind("masked_fill")
def _mask(value: Value, run: Run) -> Linear:
    first, mask = value.inputs[0], value.args[1]
    mask = run.data(mask.number) if isinstance(mask, Ref) else mask
    shape, fill = value.data.shape, value.args[2]
    if not isinstance(value.args[0], Ref) or isinstance(fill, Ref):
        raise refusal(value, "fills with a value that depends on the input")
    keep = (~mask).expand(shape)
    part = torch.where(keep, 0, numeric(fill).to(value.data))
    sinks = [Sink(f"{run.named(None, value)}, mask", part)] if bool((part != 0).any()) else []
    return Linear([first], lambda r: _kept(_wide(r, shape), keep), sinks=sinks)


@kind("embedding")
def _embedding(value: Value, run: Run) -> Tokens:
    n = value.inputs[0]
    if run.data(n).is_floating_point():
        raise refusal(value, "has a table that depends on the input")
    shape = run.data(n).shape
    while run.values[n].name in _KEEPS_TOKENS and run.data(run.values[n].inputs[0]).shape == shape:
        n = run.values[n].inputs[0]
    return Tokens(n)


_KEEPS_TOKENS = {"view", "reshape", "contiguous", "clone", "detach", "to", "long", "type", "int"}


# --- sums and means --------------------------------------------------------------------------


@kind("add", "sub", "rsub")
def _add(value: Value, run: Run) -> Linear:
    a, b = value.args[0], value.args[1] if len(value.args) > 1 else value.kwargs["other"]
    alpha = value.kwargs.get("alpha", 1)
    factors = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[value.name]
    shape, sinks = value.data.shape, []
    weights: dict[int, float] = {}
    for t, factor in zip((a, b), factors, strict=True):
        if isinstance(t, Ref) and not is_mask(t.number, run):
            weights[t.number] = weights.get(t.number, 0) + factor
            continue
        if isinstance(t, Ref):  # such as positions, counted from where the padding is
            made = run.values[t.number]
            known = (run.names.get(id(n)) for n in tensors((made.args, made.kwargs)))
            name, t = next(filter(None, known), made.place.name), made.data
        else:
            name = run.named(t, value)
        part = (numeric(t).to(value.data) * factor).expand(shape)
        if bool((part != 0).any()):
            sinks.append(Sink(name, part))
    parents = list(weights)
    if not parents:
        raise refusal(value, "adds values that depend on the input through comparisons alone")

    def total(rows: tuple[Tensor, ...], ws: Iterable[float]) -> Tensor:
        wide = (
            _wide(r, shape) if w == 1 else _wide(r, shape) * w
            for r, w in zip(rows, ws, strict=True)
        )
        return reduce(torch.add, wide)

    magnitudes = [abs(w) for w in weights.values()]
    signed = magnitudes != list(weights.values())
    absolute = (lambda *rows: total(rows, magnitudes)) if signed else None
    moves = len(parents) == 1 and not sinks and value.data.shape == run.data(parents[0]).shape
    return Linear(
        parents,
        lambda *rows: total(rows, weights.values()),
        absolute,
        sinks,
        moves=moves and list(weights.values()) == [1],
        coefficients=list(weights.values())
        if all(run.data(n).shape == shape for n in parents)
        else None,
    )


@kind("neg")
def _neg(value: Value, run: Run) -> Linear:
    return scaled(value.inputs[0], -1.0, value.data.shape)


@kind(*MEANS)
def _mean(value: Value, run: Run) -> Linear:
    parents = refs((value.args, value.kwargs))
    if parents != value.inputs[:1]:
        raise refusal(value, "depends on the input in more than one argument")
    if "pool" in value.name:  # which torch cannot map over rows without a loop
        return Linear(parents, _as_batch(value))
    return Linear(parents, again(value, run, parents))


def _as_batch(value: Value) -> Callable[[Tensor], Tensor]:
    """The call on rows as if they were more of the batch."""

    def fn(rows: Tensor) -> Tensor:
        out = value.called(lambda _: rows.flatten(0, 1))
        return out.unflatten(0, rows.shape[:2])

    return fn


@kind("upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa")
def _resize(value: Value, run: Run) -> Linear:
    """Interpolation with negative weights: a matrix for rows, one for columns."""
    n = value.inputs[0]
    high, wide = run.data(n).shape[-2:]
    one = torch.ones_like(run.data(n)[0, 0])
    rows = value.called(lambda _: torch.eye(high).to(one)[:, None, :, None] * one)[:, 0, :, 0]
    columns = value.called(lambda _: torch.eye(wide).to(one)[:, None, None, :] * one)[:, 0, 0]

    def fn(r: Tensor) -> Tensor:
        return rows.T @ r @ columns

    def absolute(r: Tensor) -> Tensor:
        return rows.abs().T @ r @ columns.abs()

    return Linear([n], fn, absolute)


@kind("grid_sample")
def _sampled(value: Value, run: Run) -> Linear:
    """Interpolation at places; where these depend on the input they are taken as numbers."""
    first = _source(value)
    if _given(value.args, value.kwargs, 2, "mode", "bilinear") == "bicubic":
        raise refusal(value, "has negative weights")
    return Linear([first], again(value, run, [first]))


@kind("lerp")
def _lerp(value: Value, run: Run) -> Linear:
    a, b, w = value.args
    if isinstance(w, Ref) or not isinstance(a, Ref) or not isinstance(b, Ref):
        raise refusal(value, "has a weight or an end that is not a plain number or value")
    shape = value.data.shape

    def between(u: Any, v: Any) -> Callable[..., Tensor]:
        return lambda p, q: _wide(p, shape) * u + _wide(q, shape) * v

    return Linear([a.number, b.number], between(1 - w, w), between(abs(1 - w), abs(w)))


# --- layers with weights ---------------------------------------------------------------------


def weighted(parent: int, affine: Affine, name: str) -> Linear:
    """A layer z = op(a, w) + b, all its coefficients at hand."""
    w = affine.weight
    sinks = [] if affine.bias is None else [Sink(name, affine.bias)]
    return Linear(
        [parent],
        lambda r: affine.op(r, w),
        lambda r: affine.op(r, w.abs()),
        sinks,
        weights=True,
        affine=affine,
        transposed=lambda c, absolute: [affine.transposed(c, w.abs() if absolute else w)],
    )


def _weight_and_bias(value: Value, run: Run, like: Tensor) -> tuple[int, Tensor, Tensor | None]:
    x = value.args[0] if value.args else value.kwargs["input"]
    weight = _given(value.args, value.kwargs, 1, "weight", None)
    weight, bias = (
        chosen(weight, run),
        chosen(_given(value.args, value.kwargs, 2, "bias", None), run),
    )
    if isinstance(weight, Ref) and _freezes_weight(value, x, weight, run):
        weight = run.data(weight.number)
    if not isinstance(x, Ref) or isinstance(weight, Ref) or isinstance(bias, Ref):
        why = "has weights that depend on the input (bilrp.CPLRP(take=1) takes them for numbers)"
        raise refusal(value, why)
    return x.number, weight.to(like), None if bias is None else bias.to(like)


def _freezes_weight(value: Value, x: Any, weight: Ref, run: Run) -> bool:
    """Whether weights that are computed from the input are numbers, and what they weigh owns all.

    So it is in dynamic convolutions, whose weights are mixed by gates. Others need a rule: two maps
    may be correlated by a convolution, and none of them is a number more than the other.
    """
    rule = run.book.at(value.place, "products")
    if not isinstance(x, Ref) or isinstance(rule, AttnLRP):
        return False
    if isinstance(rule, CPLRP) and rule.take:
        return rule.take == 1
    gated = mixed_by_gates(weight.number, run) and not gate_of(x.number, run).level
    return value.name.startswith("conv") and gated


@kind("linear")
def _linear(value: Value, run: Run) -> Linear:
    parent, weight, bias = _weight_and_bias(value, run, value.data)
    full = None if bias is None else bias.expand(value.data.shape)
    shape = (*[1] * (value.data.dim() - 1), -1)
    affine = Affine(lambda v, w: v @ w.T, lambda c, w: c @ w, weight, full, shape)
    return weighted(parent, affine, value.place.label)


@kind("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv(value: Value, run: Run) -> Linear:
    parent, weight, bias = _weight_and_bias(value, run, value.data)
    a, n = run.data(parent), weight.dim() - 2
    if a.dim() != n + 2:
        raise refusal(value, f"has an input of {a.dim()} dimensions, without the batch")
    up = "transpose" in value.name
    names = ("output_padding", "groups", "dilation") if up else ("dilation", "groups")
    stride = _given(value.args, value.kwargs, 3, "stride", 1)
    padding = _given(value.args, value.kwargs, 4, "padding", 0)
    options = {"stride": stride}
    for k, key in enumerate(names, start=5):
        options[key] = _given(value.args, value.kwargs, k, key, 0 if key == "output_padding" else 1)
    if isinstance(padding, str):
        padding, frame = _padding_in_numbers(padding, options, weight)
    else:
        frame = None
    options["padding"] = padding
    conv = getattr(F, value.name)

    def op(v: Tensor, w: Tensor) -> Tensor:
        flat = v.flatten(0, 1)
        if n == 2 and (len(flat) <= FEW or flat.is_contiguous(memory_format=torch.channels_last)):
            flat = channels_last(flat)
        flat = flat if frame is None else F.pad(flat, frame)
        return conv(flat, w, **options).unflatten(0, v.shape[:2])

    def transposed(c: Tensor, w: Tensor) -> Tensor:
        channels = a.shape[1] if up else w.shape[1] * options["groups"]
        shape = (len(c) * a.shape[0], channels, *a.shape[2:])
        like = torch.empty(shape, dtype=c.dtype, device=c.device)
        like = like if frame is None else F.pad(like, frame)
        back = torch.ops.aten.convolution_backward(
            c.flatten(0, 1).contiguous(),
            like,
            w,
            None,
            *_settings(options, n, up),
            [True, False, False],
        )[0]
        if frame is not None:
            back = F.pad(back, [-p for p in frame])
        return back.unflatten(0, (len(c), a.shape[0]))

    shape = (1, -1, *[1] * n)
    full = None if bias is None else bias.view(shape).expand(value.data.shape)
    affine = Affine(op, transposed, weight, full, shape)
    affine.joins = not up and options["groups"] == 1
    if value.name == "conv2d" and frame is None and a.shape[0] == 1:
        sizes = (_two(options[k]) for k in ("stride", "padding", "dilation"))
        affine.geometry = Geometry(_two(weight.shape[2:]), *sizes)
        affine.groups = options["groups"]
        affine.framed = partial(_framed_conv, {k: options[k] for k in names} | {"stride": stride})
    return weighted(parent, affine, value.place.label)


def _framed_conv(options: dict, v: Tensor, w: Tensor, frame: tuple[int, int, int, int]) -> Tensor:
    """Convolution of windows with zeros around them: left, right, top, bottom; below 0 cuts off."""
    left, right, top, bottom = frame
    if left == right >= 0 and top == bottom >= 0:  # spares a copy
        return F.conv2d(v, w, padding=(top, left), **options)
    return F.conv2d(F.pad(v, frame), w, **options)


def _two(v: Any) -> tuple[int, int]:
    height, width = _tuple(v, 2)
    return height, width


def _tuple(v: Any, n: int) -> list[int]:
    return [v] * n if isinstance(v, int) else list(v) * (n if len(v) == 1 and n > 1 else 1)


def _settings(options: dict, n: int, up: bool) -> list:
    return [
        *(_tuple(options[k], n) for k in ("stride", "padding", "dilation")),
        up,
        _tuple(options.get("output_padding", 0), n),
        options["groups"],
    ]


def _padding_in_numbers(
    padding: str, options: dict, weight: Tensor
) -> tuple[int, list[int] | None]:
    """padding="same" as zeros before and after, which may differ by one."""
    if padding == "valid":
        return 0, None
    frame: list[int] = []
    n = weight.dim() - 2
    for size, dilation in zip(weight.shape[2:], _tuple(options["dilation"], n), strict=True):
        whole = dilation * (size - 1)
        frame = [whole // 2, whole - whole // 2, *frame]
    return 0, frame


@kind("addmm", "baddbmm")
def _addmm(value: Value, run: Run) -> Linear:
    x = value.args[1]
    bias, w = (chosen(value.args[k], run) for k in (0, 2))
    if not isinstance(x, Ref) or isinstance(w, Ref) or isinstance(bias, Ref):
        raise refusal(value, "has weights or a bias that depend on the input")
    beta, alpha = value.kwargs.get("beta", 1), value.kwargs.get("alpha", 1)
    full = (bias * beta).expand(value.data.shape)
    affine = Affine(
        lambda v, m: v @ m, lambda c, m: c @ m.transpose(-1, -2), alpha * w, full, (1, -1)
    )
    return weighted(x.number, affine, value.place.label)


@kind("matmul", "bmm", "mm", "mv", "rmatmul", "_sparse_mm", "spmm", "smm")
def _matmul(value: Value, run: Run) -> Linear:
    a, b = value.args[:2] if value.name != "rmatmul" else value.args[1::-1]
    a, b = chosen(a, run), chosen(b, run)
    if isinstance(a, Ref) and isinstance(b, Ref):
        return product(value, run, a.number, b.number, torch.matmul)
    if isinstance(a, Ref):
        return _times(value, run, a.number, b, torch.matmul)
    return _times(value, run, b.number, a, lambda t, m: torch.matmul(m, t))


def _times(
    value: Value, run: Run, parent: int, weight: Tensor, f: Callable[[Tensor, Tensor], Tensor]
) -> Linear:
    """A product f(a, w), linear in each, with a tensor of numbers: a layer with weights."""
    shape = run.data(parent).shape
    weight, named = dense(weight), run.named(weight, value)

    def op(rows: Tensor, w: Tensor) -> Tensor:
        return torch.vmap(f, (0, None))(rows, w)

    def transposed(c: Tensor, w: Tensor) -> Tensor:
        return adjoint(lambda rows: op(rows, w), [shape], c)[0]

    affine = Affine(op, transposed, weight.to(value.data), None, (1, -1))
    return weighted(parent, affine, named)


@kind("grouped_mm", "_grouped_mm")
def _experts(value: Value, run: Run) -> Linear:
    """Each group of rows (S, d), up to a place of `offs`, by a matrix of its own: (E, d, o)."""
    x, w = value.args[0], chosen(value.args[1], run)
    offs = _given(value.args, value.kwargs, 2, "offs", None)
    ends = run.data(offs.number) if isinstance(offs, Ref) else offs
    known = isinstance(x, Ref) and isinstance(w, Tensor) and isinstance(ends, Tensor)
    if not known or value.data.dim() != 2 or w.dim() != 3 or len(ends) != len(w):
        raise refusal(value, "is not of rows in groups, each with a matrix of its own")
    size = ends.diff(prepend=ends[:1] * 0).tolist()

    def op(rows: Tensor, matrices: Tensor) -> Tensor:
        rest = rows.shape[-2] - sum(size)
        *groups, _ = rows.split([*size, rest], -2)
        parts = [g @ m for g, m in zip(groups, matrices, strict=True)]
        return F.pad(torch.cat(parts, -2), (0, 0, 0, rest))

    affine = Affine(op, lambda c, m: op(c, m.mT), w.to(value.data), None, (1, -1))
    return weighted(x.number, affine, value.place.label)


@kind("batch_norm")
def _batch_norm(value: Value, run: Run) -> Linear:
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    x, *rest = (
        _given(value.args, value.kwargs, k, n, None) for k, n in enumerate(("input", *names))
    )
    mean, var, weight, bias, training, _, eps = rest
    if mean is None or training:
        raise refusal(value, "normalises with the statistics of its batch; use running statistics")
    scale = (var + (1e-5 if eps is None else eps)).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (1, -1, *[1] * (value.data.dim() - 2))
    full = shift.to(value.data).view(shape).expand(value.data.shape)

    def op(v: Tensor, w: Tensor) -> Tensor:
        return v * w.view(shape)

    affine = Affine(op, op, scale.to(value.data), full, shape)
    return weighted(x.number, affine, value.place.label)


# --- norms with the spread frozen ------------------------------------------------------------


def norm(
    value: Value,
    run: Run,
    parent: int,
    grouped: Callable[[Tensor], Tensor],
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    centred: bool = True,
) -> Linear:
    """(a - mean) / spread * weight + bias, with the spread taken as a number.

    Parameters
    ----------
    grouped : callable
        A view of values (..., n) in which the last dimension is what is normalised together.
    """
    a = run.data(parent)
    g = grouped(a)
    n, shape = g.shape[-1], a.shape
    middle = g - g.mean(-1, keepdim=True) if centred else g
    spread = (middle.square().mean(-1, keepdim=True) + eps).rsqrt()
    factor = spread.expand(g.shape).reshape(shape)
    factor = factor if weight is None else factor * weight

    def apply(rows: Tensor, own: float, mean: float, times: Tensor) -> Tensor:
        lines = rows.reshape(len(rows), *g.shape)
        lines = own * lines + mean * lines.mean(-1, keepdim=True)
        return lines.reshape(rows.shape) * times

    sinks = [] if bias is None else [Sink(value.place.label, bias.expand(shape))]
    if not centred:
        return Linear([parent], lambda r: r * factor, lambda r: r * factor.abs(), sinks)
    # The centring matrix 1 - 1/n has magnitudes 1 - 1/n on its diagonal and 1/n elsewhere.
    return Linear(
        [parent],
        lambda r: apply(r, 1, -1, factor),
        lambda r: apply(r, 1 - 2 / n, 1, factor.abs()),
        sinks,
    )


@kind("layer_norm", "rms_norm")
def _layer_norm(value: Value, run: Run) -> Linear:
    a = run.data(value.inputs[0])
    dims = value.args[1] if len(value.args) > 1 else value.kwargs["normalized_shape"]
    count = 1 if isinstance(dims, int) else len(dims)
    weight = _given(value.args, value.kwargs, 2, "weight", None)
    root = value.name == "rms_norm"
    bias = None if root else _given(value.args, value.kwargs, 3, "bias", None)
    eps = _given(value.args, value.kwargs, 3 if root else 4, "eps", None if root else 1e-5)
    eps = torch.finfo(a.dtype).eps if eps is None else eps
    return norm(
        value, run, value.inputs[0], lambda t: t.flatten(-count), eps, weight, bias, not root
    )


@kind("group_norm")
def _group_norm(value: Value, run: Run) -> Linear:
    groups = _given(value.args, value.kwargs, 1, "num_groups", 1)
    weight, bias = (_channel(value, k, n) for k, n in ((2, "weight"), (3, "bias")))
    eps = _given(value.args, value.kwargs, 4, "eps", 1e-5)
    return norm(
        value,
        run,
        value.inputs[0],
        lambda t: t.unflatten(1, (groups, -1)).flatten(2),
        eps,
        weight,
        bias,
    )


@kind("instance_norm")
def _instance_norm(value: Value, run: Run) -> Linear:
    if not _given(value.args, value.kwargs, 5, "use_input_stats", True):
        raise refusal(value, "uses running statistics; fold it into a batch norm")
    weight, bias = (_channel(value, k, n) for k, n in ((3, "weight"), (4, "bias")))
    eps = _given(value.args, value.kwargs, 7, "eps", 1e-5)
    return norm(value, run, value.inputs[0], lambda t: t.flatten(2), eps, weight, bias)


def _channel(value: Value, position: int, name: str) -> Tensor | None:
    t = _given(value.args, value.kwargs, position, name, None)
    return None if t is None else t.view(1, -1, *[1] * (value.data.dim() - 2))


# --- products --------------------------------------------------------------------------------


def product(
    value: Value, run: Run, a: int, b: int, function: Callable[[Tensor, Tensor], Tensor]
) -> Linear:
    """A product of two values, linear in each: one is frozen, or each gets half."""

    def f(p: Tensor, q: Tensor) -> Tensor:  # rows may be of a finer format than what was run
        form = torch.promote_types(p.dtype, q.dtype)
        return function(p.to(form), q.to(form))

    rule = run.book.at(value.place, "products")
    x, y = run.data(a), run.data(b)
    held = [is_mask(n, run) or gate_of(n, run).norm for n in (a, b)]
    if isinstance(rule, AttnLRP) and not any(held):
        if a == b:
            return Linear(
                [a],
                each(lambda t: 0.5 * (f(t, y) + f(x, t))),
                each(lambda t: 0.5 * (f(t, y.abs()) + f(x.abs(), t))),
            )
        return Linear(
            [a, b],
            each(lambda t, s: 0.5 * (f(t, y) + f(x, s))),
            each(lambda t, s: 0.5 * (f(t, y.abs()) + f(x.abs(), s))),
        )
    take = rule.take if isinstance(rule, CPLRP) else None
    if isinstance(rule, AttnLRP) and held[0] != held[1]:
        take = 2 if held[0] else 1
    if a == b and not take:
        raise refusal(value, "is a value times itself, and no rule says who owns it")
    levels = gate_of(a, run).level, gate_of(b, run).level
    if take is None and levels[0] == levels[1] and value.name == "mul":
        take = ungated(a, b, run)
    if take is None and levels[0] == levels[1]:
        raise NotImplementedError(
            f"{value.name}, called at {value.place.line} in {value.place}, multiplies two values "
            "of one kind: neither is a gate (softmax, sigmoid, erf, 1 / sqrt, then tanh; in a "
            "gated linear unit the activated factor) more than the other. Say who owns the "
            f"product: rules={{{value.place.name!r}: bilrp.CPLRP(take=1), ...}} gives it to the "
            "first factor, 2 to the second, bilrp.AttnLRP() half to each."
        )
    first = take == 1 if take else levels[0] < levels[1]
    main, gate = (a, y) if first else (b, x)

    def times(frozen: Tensor) -> Callable[..., Tensor]:
        return each(lambda t: f(t, frozen) if first else f(frozen, t))

    return Linear([main], times(gate), None if bool((gate >= 0).all()) else times(gate.abs()))


@kind("mul")
def _mul(value: Value, run: Run) -> Linear:
    a, b = value.args[0], value.args[1] if len(value.args) > 1 else value.kwargs["other"]
    if isinstance(a, Ref) and isinstance(b, Ref):
        return product(value, run, a.number, b.number, torch.mul)
    number, factor = (a.number, b) if isinstance(a, Ref) else (b.number, a)
    return scaled(number, factor, value.data.shape)


@kind("div", "rdiv")
def _div(value: Value, run: Run) -> Linear:
    a, b = value.args[:2] if value.name == "div" else value.args[1::-1]
    if value.kwargs.get("rounding_mode"):
        raise refusal(value, "rounds")
    if not isinstance(a, Ref):
        raise refusal(value, "divides a number by a value that depends on the input")
    divisor = run.data(b.number) if isinstance(b, Ref) else numeric(b)
    if isinstance(b, Ref) and b.number == a.number:
        raise refusal(value, "divides a value by itself")
    divisor = divisor.to(value.data)
    linear = scaled(a.number, torch.where(divisor == 0, 0, 1 / divisor), value.data.shape)
    if bool((divisor == 0).any()):  # nobody's: of use only where it is left out afterwards
        part = torch.where(divisor == 0, value.data, 0)
        linear.sinks = [Sink(f"{value.place.label}, divided by 0", part)]
    return linear


@kind("einsum")
def _einsum(value: Value, run: Run) -> Linear:
    equation, *operands = value.args
    if len(operands) == 1 and isinstance(operands[0], Ref):
        number = operands[0].number
        return Linear([number], again(value, run, [number]))
    if len(operands) == 1:
        operands = list(operands[0])
    held = [(k, t.number) for k, t in enumerate(operands) if isinstance(t, Ref)]

    def with_only(put: dict[int, Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
        full = [put[k] if k in put else change(t) for k, t in enumerate(operands)]
        return torch.einsum(equation, *full)

    if len(held) == 1 and len(operands) == 2:
        ((k, number),) = held
        return _times(
            value,
            run,
            number,
            operands[1 - k],
            lambda t, w: torch.einsum(equation, *((t, w) if k == 0 else (w, t))),
        )
    if len(held) == 1:
        ((k, number),) = held
        fn = each(lambda t: with_only({k: t}, lambda m: m))
        return Linear([number], fn, each(lambda t: with_only({k: t}, torch.abs)))
    if len(held) != 2 or len(operands) != 2:
        raise refusal(value, "multiplies more than two values that depend on the input")
    (_, a), (_, b) = held
    return product(value, run, a, b, lambda p, q: torch.einsum(equation, p, q))


@kind("softmax", "log_softmax")
def _softmax(value: Value, run: Run) -> Linear:
    rule = run.book.at(value.place, "products")
    if not isinstance(rule, AttnLRP) or value.name == "log_softmax":
        raise refusal(
            value,
            "has no parts, and reaches the features other than as a gate (bilrp.AttnLRP() hands "
            "relevance through softmax)",
        )
    number, s = value.inputs[0], value.data
    dim = _given(value.args, value.kwargs, 1, "dim", -1)
    dim = dim if dim < 0 else dim - s.dim()
    x = torch.where(s == 0, 0, run.data(number))  # masked by -inf: no share either way
    total = s.sum(dim)  # 0 where everything is masked
    if not bool(((total - 1).abs() < 1e-3).logical_or(total == 0).all()):
        raise refusal(value, f"does not sum to 1 along dimension {dim}")

    def fn(rows: Tensor) -> Tensor:
        rows = rows.nan_to_num(0.0, 0.0, 0.0)
        return s * (rows - (s * rows).sum(dim, keepdim=True))

    def absolute(rows: Tensor) -> Tensor:
        rows = rows.nan_to_num(0.0, 0.0, 0.0)
        return s * ((1 - 2 * s) * rows + (s * rows).sum(dim, keepdim=True))

    kept = s * (1 - x + (s * x).sum(dim, keepdim=True))  # the tangent at x = 0
    return Linear([number], fn, absolute, [Sink(f"{value.place.label}, softmax", kept)])


# --- winners ---------------------------------------------------------------------------------


@kind("max_unpool1d", "max_unpool2d", "max_unpool3d")
def _unpool(value: Value, run: Run) -> Linear:
    first = _source(value)
    return Linear([first], again(value, run, [first]))  # no move: most of it are zeros


@kind("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
      "adaptive_max_pool3d")  # fmt: skip
def _max_pool(value: Value, run: Run) -> Linear:
    if value.pick:
        raise refusal(value, "gives numbers of places, which carry no relevance")
    number = value.inputs[0]
    a = run.data(number)
    pool = value.name
    n = int(pool[-2])
    if a.dim() != n + 2:
        raise refusal(value, "has an input without the batch")
    names = ("output_size",) if "adaptive" in pool else (
        "kernel_size", "stride", "padding", "dilation", "ceil_mode"
    )  # fmt: skip
    given = dict(zip(names, value.args[1:], strict=False)) | {
        k: v for k, v in value.kwargs.items() if k in names
    }
    if given.get("stride", 1) in ([], ()):
        given["stride"] = None
    a = channels_last(a) if n == 2 else a
    index = getattr(F, pool)(a, **given, return_indices=True)[1].flatten(2).contiguous()
    shape = value.data.shape

    def fn(rows: Tensor) -> Tensor:
        flat = rows.flatten(3)
        return flat.gather(3, index.expand(len(rows), *index.shape)).view(len(rows), *shape)

    def transposed(c: Tensor, absolute: bool) -> list[Tensor]:
        out = c.new_zeros(len(c), *a.shape[:2], a[0, 0].numel())
        out.scatter_add_(3, index.expand(len(c), *index.shape), c.flatten(3))
        return [out.view(len(c), *a.shape)]

    winners = None
    if pool == "max_pool2d" and a.shape[0] == 1:
        kernel = given["kernel_size"]
        given = {"stride": given.get("stride") or kernel, "padding": 0, "dilation": 1, **{
            k: v for k, v in given.items() if v is not None
        }}  # fmt: skip
        sizes = (given[k] for k in ("kernel_size", "stride", "padding", "dilation"))
        geometry = Geometry(*map(_two, sizes))
        winners = Winners(index.view(shape[1:]), geometry, tuple(a.shape[1:]))
    return Linear([number], fn, moves=True, transposed=transposed, winners=winners)


@kind("amax", "amin", "max", "min")
def _extreme(value: Value, run: Run) -> Linear:
    numbers = refs((value.args, value.kwargs))
    second = _given(value.args, value.kwargs, 1, "other", None)
    if isinstance(second, Tensor | Ref):
        return _larger(value, run)
    number = numbers[0]
    a = run.data(number)
    if a.dim() == 0:
        raise refusal(value, "is of a single number")
    dim = _given(value.args, value.kwargs, 1, "dim", None)
    keep = _given(value.args, value.kwargs, 2, "keepdim", False)
    if value.pick:
        raise refusal(value, "gives numbers of places, which carry no relevance")
    best = torch.argmax if "max" in value.name else torch.argmin
    if dim is None or dim == ():
        index = best(a)
        return Linear(
            [number], lambda r: r.flatten(1)[:, index].view(-1, *value.data.shape), moves=True
        )
    dims = [dim] if isinstance(dim, int) else list(dim)
    dims = sorted(d % a.dim() for d in dims)
    rest = [d for d in range(a.dim()) if d not in dims]
    index = best(a.permute(*rest, *dims).flatten(len(rest)), -1, keepdim=True)

    def one(t: Tensor) -> Tensor:
        found = t.permute(*rest, *dims).flatten(len(rest)).gather(-1, index)[..., 0]
        for d in dims if keep else ():
            found = found.unsqueeze(d)
        return found

    return Linear([number], each(one), moves=True)


@kind("maximum", "minimum", "fmax", "fmin")
def _larger(value: Value, run: Run) -> Linear:
    a, b = value.args[0], value.args[1] if len(value.args) > 1 else value.kwargs["other"]
    x, y = (run.data(t.number) if isinstance(t, Ref) else t for t in (a, b))
    first = (x >= y) if "max" in value.name else (x <= y)
    chosen = replace(
        value, name="where", func=torch.where, args=(first, a, b), kwargs={}, pick=None
    )
    return _where(chosen, run)


# --- activations -----------------------------------------------------------------------------


@kind(*ACTIVATIONS)
def _activation(value: Value, run: Run) -> Activation:
    number = value.inputs[0]
    if len(refs((value.args, value.kwargs))) > 1:
        raise refusal(value, "has bounds or slopes that depend on the input")
    if value.data.shape != run.data(number).shape:
        raise refusal(value, "has bounds of a larger shape than what they bound")
    if value.args and not isinstance(value.args[0], Ref):
        raise refusal(value, "raises a number to a power that depends on the input")
    zero = value.called(lambda _: torch.zeros_like(run.data(number)))
    if not bool(zero.isfinite().all()):
        raise refusal(value, "is not finite at 0, and parts of nothing would be infinite")
    return Activation(number, zero if bool((zero != 0).any()) else None)


_TIMES = (_mul, _matmul, _einsum, _linear, _conv)  # the last two where weights are computed
PRODUCTS = {name for name, made in _KINDS.items() if made in _TIMES}
WINNERS = {name for name, made in _KINDS.items() if made in (_max_pool, _extreme, _larger)}
