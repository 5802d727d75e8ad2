"""A recorded run under rules: which map stands where, pushing through all of them, pulling back.

Gamma acts on segments, from one activation to the next. Inside a segment two sets of rows travel:
p, the parts, through the operations as they are; m, through the same operations with magnitudes
for coefficients. Of the contributions of all paths, (p + m) / 2 are the positive ones and
(p - m) / 2 the negative ones. `maps.End` joins the two sets where the segment ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from bilrp.engine.living import Living, Reach, living_cost
from bilrp.engine.maps import Local, Sink, adjoint, beside, channels_last
from bilrp.engine.plan import Plan, Stage, together
from bilrp.engine.record import Record
from bilrp.engine.rules import RuleBook, Rules
from bilrp.engine.run import Run
from bilrp.engine.shadow import exact, place_and_format, same_chance, shadow
from bilrp.engine.windows import Geometry

Rows = Tensor | Living  # of one value
Pair = tuple[Rows, Tensor | None]  # p and, inside a segment with gamma, m
Parts = tuple[Tensor, Tensor | None]
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}
_CLOSED = 1 << 40  # and the number of a value: its rows where its segment ends, with sinks


class Trace:
    """One input under rules: the run, and the linear maps of relevance along it.

    Parameters
    ----------
    model : nn.Module
        Left as it is; evaluated as in eval mode.
    x : Tensor
        As the model takes it, with its batch dimension.
    rules : Rule or mapping
        See `bilrp.rules.RuleBook`.
    dtype : torch.dtype, optional
        float32 or float64; bfloat16 and float16 for the products only. Default: the model's, at
        least float32.
    device : torch.device, optional
        Default: the model's.

    Attributes
    ----------
    input : Tensor
    features : Tensor
        What the model makes of the input.
    steps : list of Stage
        From the input to the features.
    sinks : list of (int, Sink)
        Everything that owns parts beside the input, with the number of its value.
    absorbing : list of str
        Names of all sinks: layers with a bias, stabilisers, constants; each once, in order.

    Raises
    ------
    NotImplementedError
        For a call without a map on the way of relevance, naming it.
    ValueError
        If a rule's key fits nothing, or the model cannot run the input.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        rules: Rules,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        book = RuleBook(rules)
        book.check(model)
        place, form = place_and_format(model, x, dtype, device)
        self.product = dtype if dtype in (torch.bfloat16, torch.float16) else None
        x = x.detach()
        x = x.to(device=place, dtype=form) if x.is_floating_point() else x.to(place)
        with exact(), same_chance(place):
            record = _recorded(model, x, form, place)
            self.input, self.features = record.values[0].data, record.features
            self._run = Run(record.values, record.names, book, self.product)
            self.output = record.output
            plan = Plan(self._run, record.output, self.product)
        self.steps, self.closing = plan.steps, plan.closing
        both = {n: together(biases) for n, biases in plan.biases.items()}
        self._biases = {n: pair[0] for n, pair in both.items() if pair}
        self._scales: dict[int, Tensor] = {}
        self._tolerances: list[float] = []
        self._costs: dict[int, tuple[float, float]] = {}
        self.by_number = {step.number: step for step in self.steps}
        ends = [(s.number, e) for s in self.steps for e in (s, self.closing.get(s.number)) if e]
        for _, e in ends:  # a layer may have the name that the input has in a ledger
            for sink in e.sinks:
                sink.name = "input (a module)" if sink.name == "input" else sink.name
        self.absorbing = list(dict.fromkeys(sink.name for _, e in ends for sink in e.sinks))
        for _, e in ends:  # a name in the ledger, but no row to push
            e.sinks = [sink for sink in e.sinks if bool(sink.part.abs().sum() > 0)]
        self.sinks = [(number, sink) for number, e in ends for sink in e.sinks]

    # --- what travels --------------------------------------------------------------------------

    def data(self, number: int) -> Tensor:
        return self._run.data(number)

    def tolerance(self, number: int) -> float:
        """What rounding may leave of a value: by the coarsest format of those it is made of."""
        for value in self._run.values[len(self._tolerances) :]:
            own = _TOLERANCE.get(value.data.dtype, 0.0)
            self._tolerances.append(max([own, *(self._tolerances[n] for n in value.inputs)]))
        # products of 8 or 11 bits, layer after layer
        return self._tolerances[number] if self.product is None else 0.1

    def told(self, number: int) -> str:
        """A value's call in words."""
        return str(self._run.values[number])

    def hidden_biases(self, number: int) -> Tensor | None:
        """Part of a value that biases own whose rows begin at the segment's end, if any."""
        return self._biases.get(number)

    @torch.no_grad()
    def push(self, u: Tensor) -> Tensor:
        """Push shares of the input, (K, ...), forward to parts of the features, (K, ...)."""
        return self.push_rows(u, sinks=False)

    def push_rows(self, u: Tensor, sinks: bool, check: Callable | None = None) -> Tensor:
        """Push rows of shares of the input; with sinks, these are appended as more rows.

        Parameters
        ----------
        u : Tensor (K, ...)
        sinks : bool
        check : callable (stage, parts, first), optional
            Called with the parts of all owners at every step.

        Returns
        -------
        Tensor (K, ...) or, with sinks, (K + sinks, ...)
        """
        rows: dict[int, Pair] = {0: (u, None)}
        at = self.run(self.steps[1:], rows, len(u) if sinks else None, {}, 0, check)
        return self.at_the_end(rows, at)

    def run(
        self,
        stages: list[Stage],
        rows: dict[int, Pair],
        at: int | None,
        reach: dict[int, Reach],
        first: int = 0,
        check: Callable | None = None,
        keep: Collection[int] = (),
    ) -> int | None:
        """Push rows through some of the steps; what is not needed any more is dropped.

        Parameters
        ----------
        stages : list of Stage
        rows : dict
            Of the values below; those of the values above are put there.
        at : int or None
            Row at which the next sink begins; None to leave sinks out.
        reach : dict
            Which owners reach which places of a value, where that is known.
        first, check
            `check` is called with each stage, its parts, `first`, and what gives the sizes of the
            products that its parts are sums of, if that is at hand.
        keep
            Values that are needed afterwards.

        Returns
        -------
        int or None
            `at` after the sinks of these steps.
        """
        last = self._last_use()
        for stage in stages:
            # the rows of the ledger alone: few, so a smaller format gains nothing
            full = check is not None and first == 0
            p, m = self._pushed(stage, rows, reach, full)
            if at is not None and stage.sinks:
                p, m = _with_sinks(p, m, stage, at)
                at += len(stage.sinks)
            if isinstance(p, Tensor) and p.shape[1:] != self.data(stage.number).shape:
                raise NotImplementedError(
                    f"the map of {self.told(stage.number)} makes parts of the shape "
                    f"{tuple(p.shape[1:])} for a value of {tuple(self.data(stage.number).shape)}"
                )
            if check is not None:
                check(stage, p, first, partial(self._sizes, stage, rows))
            rows[stage.number] = (p, m)
            end = self.closing.get(stage.number)
            if at is not None and end is not None and end.sinks:
                sinks = torch.stack([s.part for s in end.sinks])
                closed = torch.cat([_padded(self._closed(rows, stage.number), at), sinks])
                rows[_CLOSED + stage.number] = (closed, None)
                at += len(end.sinks)
            self._reached(stage, reach)
            for n in last[stage.number]:
                if n not in keep:
                    rows.pop(n, None)
                    rows.pop(_CLOSED + n, None)
        return at

    def _sizes(self, stage: Stage, rows: dict[int, Pair]) -> Tensor | None:
        """Magnitudes of what a linear step adds up, summed over owners; None for other steps."""
        if stage.linear is None or stage.shares:
            return None
        if stage.pair:
            parts = [self._pair(n, rows)[1] for n in stage.parents]
        else:
            parts = self._given(stage, rows)
        return stage.linear.magnitudes(*(p.abs().sum(0, keepdim=True) for p in parts))[0]

    def _given(self, stage: Stage, rows: dict[int, Pair]) -> list[Tensor]:
        """Parts of the values that a linear step without magnitudes is made of."""
        if stage.closes:
            return [self._closed(rows, n) for n in stage.parents]
        return [self._parts(n, rows)[0] for n in stage.parents]

    def at_the_end(self, rows: dict[int, Pair], at: int | None) -> Tensor:
        """Rows of the features, with all sinks if `at` counts them."""
        out = self._closed(rows, self.output)
        return out if at is None else _padded(out, at)

    def _pushed(
        self, stage: Stage, rows: dict[int, Pair], reach: dict[int, Reach], full: bool
    ) -> Pair:
        if stage.tokens:
            (u, _), shape = self._dense(0, rows), self.data(stage.number).shape
            extra = len(shape) - (u.dim() - 1)
            return u.view(*u.shape, *[1] * extra).expand(len(u), *shape), None
        if stage.local is not None:
            return self._through_layer(stage, rows, reach, full), None
        if stage.end is not None:
            if stage.closes:
                return stage.end.push(self._closed(rows, stage.parents[0]), None), None
            if stage.end.f_m is None:
                return stage.end.push(self._parts(stage.parents[0], rows)[0], None), None
            return stage.end.push(*self._pair(stage.parents[0], rows)), None
        linear = stage.linear
        assert linear is not None
        if stage.shares:
            return linear.fn(rows[stage.parents[0]][0]), None
        if not stage.pair:
            if linear.winners is not None:
                (maps,) = (rows[n][0] for n in stage.parents)
                if isinstance(maps, Living):
                    return maps.pooled(linear.winners.index, linear.winners.geometry), None
            return linear.fn(*_aligned(self._given(stage, rows))), None
        pairs = [self._pair(n, rows) for n in stage.parents]
        p, m = _aligned([g[0] for g in pairs]), _aligned([g[1] for g in pairs])
        return linear.fn(*p), linear.magnitudes(*m)

    def _through_layer(
        self, stage: Stage, rows: dict[int, Pair], reach: dict[int, Reach], full: bool
    ) -> Tensor | Living:
        n = stage.parents[0]
        given = rows[n][0]
        local = stage.local
        if isinstance(local, Local) and local.affine.geometry and n not in self.closing:
            whole = len(given) * self.data(stage.number)[0, 0].numel() * local.affine.weight.numel()
            if self.living_cost(stage, len(given)) < whole:
                if not isinstance(given, Living):
                    given = Living.of(given, self.data(n)[0] != 0, reach.get(n))
                scale = self.needed_scale(stage)
                geometry = local.affine.geometry
                assert geometry is not None
                return given.convolved(local.terms[0].weight, scale, geometry)
        if not (self.by_number[n].shares and isinstance(given, Tensor)):
            given = self._closed(rows, n)
        if isinstance(local, Local):
            return local.push(given, full)
        assert local is not None
        return local.push(given)

    def _reached(self, stage: Stage, reach: dict[int, Reach]) -> None:
        g = self.geometry(stage)
        if g is not None and len(stage.parents) == 1 and stage.parents[0] in reach:
            reach[stage.number] = reach[stage.parents[0]].through(g)

    def geometry(self, stage: Stage) -> Geometry | None:
        """How a step moves the cone of a patch; None if it does not work on maps place by place."""
        shape = self.data(stage.number).shape
        if len(shape) != 4 or shape[0] != 1:
            return None
        if not stage.parents or stage.end is not None:
            return Geometry()
        if isinstance(stage.local, Local):
            return stage.local.affine.geometry
        linear = stage.linear
        if linear is None:
            return None
        if linear.affine is not None:
            return linear.affine.geometry
        if linear.winners is not None:
            return linear.winners.geometry
        return Geometry() if linear.coefficients is not None else None

    def living_cost(self, stage: Stage, owners: int) -> float:
        """Multiply-adds of a layer on its living inputs and outputs alone; inf if it cannot."""
        local = stage.local
        # On a GPU one large product beats many small ones, so it is left to whole maps there.
        if (
            not isinstance(local, Local)
            or local.affine.geometry is None
            or local.affine.groups > 1
            or [t.factors for t in local.terms] != [[None]]
            or self.features.device.type != "cpu"
        ):
            return float("inf")
        if stage.number not in self._costs:
            a, scale = self.data(stage.parents[0]), self.needed_scale(stage)
            self._costs[stage.number] = living_cost(a, scale, local.affine.weight)
        each, once = self._costs[stage.number]
        return owners * each + once

    def needed_scale(self, stage: Stage) -> Tensor:
        """f_k of a layer, (C, H, W), 0 where no relevance of the features can arrive."""
        if stage.number not in self._scales:
            assert isinstance(stage.local, Local)
            scale = stage.local.scales[0][0]
            readers = [s for s in self.steps if stage.number in s.parents]
            if len(readers) == 1 and stage.number != self.output:
                linear = readers[0].linear
                if linear is not None and linear.winners is not None:
                    index = linear.winners.index.flatten(1)
                    won = torch.zeros_like(scale, dtype=torch.bool).flatten(1)
                    used = (self.data(readers[0].number)[0] != 0).flatten(1)
                    won.scatter_reduce_(1, index, used, "amax")
                    scale = scale * won.view(scale.shape)
            self._scales[stage.number] = scale
        return self._scales[stage.number]

    def _parts(self, n: int, rows: dict[int, Pair]) -> Parts:
        p, m = self._dense(n, rows)
        return (p * self.data(n), None) if self.by_number[n].shares else (p, m)

    def _dense(self, n: int, rows: dict[int, Pair]) -> Parts:
        p, m = rows[n]
        return (p.dense() if isinstance(p, Living) else p), m

    def _pair(self, n: int, rows: dict[int, Pair]) -> tuple[Tensor, Tensor]:
        p, m = self._parts(n, rows)
        return (p, p * self.data(n).sign()) if m is None else (p, m)

    def _closed(self, rows: dict[int, Pair], n: int) -> Tensor:
        """Parts of a value whose segment, if it is in one, ends with it."""
        if _CLOSED + n in rows:  # with the sinks that stand at its end
            return self._dense(_CLOSED + n, rows)[0]
        p, m = self._parts(n, rows)
        return self.closing[n].push(p, m) if n in self.closing else p

    def _last_use(self) -> dict[int, list[int]]:
        last: dict[int, int] = {}
        for step in self.steps:
            last.update(dict.fromkeys(step.parents, step.number))
        last.pop(self.output, None)
        ends: dict[int, list[int]] = {step.number: [] for step in self.steps}
        for n, when in last.items():
            ends[when].append(n)
        return ends

    @torch.no_grad()
    def pull(self, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Pull relevance of the features, (K, ...), back to the input.

        Relevance of a feature that is 0 has no owner and is dropped.

        Returns
        -------
        Tensor (K, ...)
            Relevance of the inputs.
        Tensor (sinks, K)
            Relevance that each of `absorbing` keeps.
        """
        if relevance.shape[1:] != self.features.shape:
            raise ValueError(
                f"relevance must be (K, *{tuple(self.features.shape)}), the shape of the features "
                f"with their batch dimension; got {tuple(relevance.shape)}"
            )
        c = torch.where(self.features == 0, 0, relevance / self.features)
        return self.pull_rows(c)

    def pull_rows(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """`pull` of c = R / a: relevance of the inputs (K, *input), of the sinks (sinks, K)."""
        waiting: dict[int, Parts] = {}
        kept: dict[str, Tensor] = {}

        def keep(sinks: list[Sink], p: Tensor, m: Tensor | None) -> None:
            for sink in sinks:
                found = self._over(p, sink.part)
                found = found if m is None else found + self._over(m, sink.part.abs())
                kept[sink.name] = kept.get(sink.name, 0) + found

        def add(n: int, p: Tensor, m: Tensor | None = None) -> None:
            if n in waiting:
                q, k = waiting[n]
                p = p + q
                m = k if m is None else m if k is None else m + k
            waiting[n] = (p, m)

        def give(n: int, p: Tensor, m: Tensor | None = None) -> None:
            """Add to what has come back to a value, in the form in which its rows travel."""
            step, a = self.by_number[n], self.data(n)
            if m is not None and not step.pair:
                p, m = p + m * a.sign(), None
            add(n, p * a if step.shares else p, m)

        def close(n: int, p: Tensor) -> None:
            if n not in self.closing:
                return give(n, p)
            keep(self.closing[n].sinks, p, None)
            give(n, *self.closing[n].pull(p))

        close(self.output, c)
        for step in reversed(self.steps):
            if step.number not in waiting:
                continue
            if not step.parents:
                break
            p, m = waiting.pop(step.number)
            keep(step.sinks, p, m)
            self._pulled(step, p, m, add, give, close)
        zero = c.new_zeros(len(c), *self.input.shape)
        result = waiting.get(0, (zero, None))[0]
        rows = [kept.get(name, c.new_zeros(len(c))) for name in self.absorbing]
        return result, torch.stack(rows) if rows else c.new_zeros(0, len(c))

    def _over(self, c: Tensor, part: Tensor) -> Tensor:
        return (c * part).flatten(1).sum(1)

    def _pulled(self, step: Stage, p: Tensor, m: Tensor | None, add, give, close) -> None:
        parents = step.parents
        if step.tokens:
            total = p.flatten(1 + self.input.dim()).sum(-1) if p.dim() > 1 + self.input.dim() else p
            add(0, total)
        elif step.local is not None:
            back = step.local.pull(p)
            (add if self.by_number[parents[0]].shares else close)(parents[0], back)
        elif step.end is not None:
            back, other = step.end.pull(p)
            if step.closes:
                close(parents[0], back)
            else:
                give(parents[0], back, other)
        else:
            linear = step.linear
            assert linear is not None
            shapes = [self.data(n).shape for n in parents]

            def transposed(c: Tensor, absolute: bool) -> list[Tensor]:
                if linear.transposed is not None:
                    return linear.transposed(c, absolute)
                return adjoint(linear.magnitudes if absolute else linear.fn, shapes, c)

            if step.shares:
                add(parents[0], *transposed(p, False))
            elif not step.pair:
                for n, back in zip(parents, transposed(p, False), strict=True):
                    (close if step.closes else give)(n, back)
            else:
                backs = transposed(p, False)
                others = [None] * len(parents) if m is None else transposed(m, True)
                for n, back, other in zip(parents, backs, others, strict=True):
                    give(n, back, other)


def _with_sinks(p: Tensor | Living, m: Tensor | None, stage: Stage, at: int) -> Pair:
    """Rows with those of the sinks that begin here, which stand from row `at` on."""
    parts = beside([s.part[None] for s in stage.sinks], 0)
    if isinstance(p, Living):
        return p.with_owners(torch.cat([parts.new_zeros(at - len(p), *parts.shape[1:]), parts])), m
    parts = parts.to(p)
    p = beside([_padded(p, at), parts], 0)
    return p, None if m is None else beside([_padded(m, at), parts.abs()], 0)


def _padded(rows: Tensor, count: int) -> Tensor:
    """Rows of owners that have not come this way are zero."""
    if len(rows) >= count:
        return rows
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])


def _aligned(rows: list[Tensor]) -> list[Tensor]:
    most = max(map(len, rows))
    return [_padded(r, most) for r in rows]


def _recorded(model: nn.Module, x: Tensor, form: torch.dtype, place: torch.device) -> Record:
    """The run of the model's copy, compared with a plain call of the model."""
    if x.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in model.modules()):
        # Fast where the maps lie so in memory; a model that cannot have that runs as it is.
        with suppress(ValueError, RuntimeError):
            return _compared(model, shadow(model, form, place), channels_last(x), x)
    return _compared(model, shadow(model, form, place), x, x)


def _compared(model: nn.Module, copied: nn.Module, turned: Tensor, x: Tensor) -> Record:
    record = Record(copied, turned)
    _compare_with_model(model, copied, record, x)
    return record


def _compare_in_its_format(model: nn.Module, found: Tensor, x: Tensor) -> None:
    """The model itself in its own format, where that is another: roughly the same features."""
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), x)
    given = x.to(like.device, like.dtype if x.is_floating_point() else None, copy=True)
    try:
        plain = model(given)
    except (RuntimeError, TypeError):  # half-precision operations that a device lacks
        return
    plain = plain.to(found)
    loose = 0.1 if like.dtype in (torch.bfloat16, torch.float16) else 1e-2
    error, size = float((plain - found).abs().max()), float(plain.abs().max())
    if not error <= loose * size + 1e-30:
        raise NotImplementedError(
            f"in {found.dtype} a copy of the model's modules gives other features than the model "
            f"in its own format, {like.dtype}: by {error:.2g} of {size:.2g}"
        )


def _compare_with_model(model: nn.Module, copied: nn.Module, record: Record, x: Tensor) -> None:
    """What was recorded must be what a plain call of the model gives."""
    harmless = not (record.writes or copied.__dict__["_copied_in_training"])  # to run the model
    same = harmless and all(
        t.device == x.device and (not t.is_floating_point() or t.dtype == record.features.dtype)
        for t in (*model.parameters(), *model.buffers())
    )
    plain = (model if same else copied)(x.clone())  # which it may write into
    found = record.features
    if harmless and not same:
        _compare_in_its_format(model, found, x)
    if not isinstance(plain, Tensor) or plain.shape != found.shape:
        raise NotImplementedError("the model gives something else when it is called again")
    if not bool(torch.isfinite(plain).all()):
        raise ValueError(
            "the model's features hold NaN or infinite values: look at its weights and the input"
        )
    tolerance = 1e-4 if found.dtype == torch.float32 else 1e-9
    if float((plain - found).abs().max()) <= tolerance * float(plain.abs().max()) + 1e-30:
        return
    again = Record(copied, x)
    for one, other in zip(record.values, again.values, strict=False):
        if one.name != other.name or one.data.shape != other.data.shape:
            raise NotImplementedError(
                f"the model runs differently when called again, from {one} on"
            )
        if not torch.allclose(one.data, other.data, rtol=tolerance, equal_nan=True):
            raise NotImplementedError(f"{one} gives other numbers when called again: is it random?")
    raise NotImplementedError(
        "a copy of the model's modules that shares its tensors gives other features than the model "
        "itself: something in it refers to the original modules, or torch takes a faster way (for "
        "nn.TransformerEncoder with padding, build it with enable_nested_tensor=False). Call "
        "eval() on it, and write it with registered submodules."
    )
