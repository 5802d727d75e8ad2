"""A forward pass under rules that keeps, for each layer, its linear relevance map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from bilrp.engine.layers import _BUILDERS, RelevanceMap, Step
from bilrp.engine.rules import LRP0, Pass, Rules, rule_for
from bilrp.engine.windows import Geometry

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def steps_of(model: nn.Module) -> list[Step]:
    """Flatten a model into the layers that move relevance.

    Nested `nn.Sequential` are opened, dropout and identities left out, a BatchNorm folded into the
    weighted layer right before it, and a ReLU joined with the weighted layer it follows. Parameters
    are read, never written.

    Raises
    ------
    NotImplementedError
        For a layer that has no relevance map, naming it, its type and its place.
    """
    steps: list[Step] = []
    for number, (name, module) in enumerate(_leaves(model, ""), start=1):
        last = steps[-1] if steps else None
        if isinstance(module, _NEUTRAL):
            continue
        if isinstance(module, nn.ReLU) and last is not None and last.weight is not None:
            steps[-1] = replace(last, relu=True)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            scale, shift = _affine_of(name, module)
            foldable = last is not None and isinstance(last.module, nn.Linear | nn.Conv2d)
            if foldable and not last.relu:
                weight = last.weight * scale.view(-1, *[1] * (last.weight.dim() - 1))
                bias = shift if last.bias is None else shift + scale * last.bias
                steps[-1] = replace(last, weight=weight, bias=bias)
            else:
                steps.append(Step(name, number, module, scale, shift))
        else:
            step = Step(name, number, module)
            builder_of(step)
            if isinstance(module, _WEIGHTED):
                bias = None if module.bias is None else module.bias.detach()
                step = replace(step, weight=module.weight.detach(), bias=bias)
            steps.append(step)
    return steps


def builder_of(step: Step):
    """The registered builder of a layer's relevance map; NotImplementedError if there is none."""
    for cls in type(step.module).__mro__:
        if cls in _BUILDERS and (
            cls is type(step.module) or type(step.module).forward is cls.forward
        ):
            return _BUILDERS[cls]
    known = ", ".join(sorted(t.__name__ for t in (*_BUILDERS, *_NEUTRAL, nn.Sequential)))
    kind = type(step.module).__name__
    raise NotImplementedError(
        f"{step} has no relevance map. Supported: {known}. Register one of your own with "
        f"@bilrp.register({kind}), or bring the model into a torch.nn.Sequential of these."
    )


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    if plain and type(module) not in _BUILDERS:
        for child_name, child in module.named_children():
            yield from _leaves(child, f"{name}.{child_name}" if name else child_name)
    else:
        yield name, module


def _affine_of(name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None:
        raise NotImplementedError(
            f"layer {name!r} ({type(norm).__name__}) keeps no running statistics, so its output "
            "depends on the other inputs of a batch; use track_running_stats=True."
        )
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


class Trace:
    """All relevance maps of a model at given inputs.

    Parameters
    ----------
    model : nn.Module
        Supported layer or (nested) Sequential of them. Evaluated as in eval mode; not changed.
    x : Tensor (N, ...)
    rules : Rule or mapping
        One rule for all layers with weights, or layer numbers (from 1) and ranges to rules.
    dtype : torch.dtype, optional
        float32 or float64 for everything; bfloat16 or float16 for the products alone, beside
        float32. Default: the model's, but at least float32.
    device : torch.device, optional
        Default: the model's.

    Attributes
    ----------
    maps : list of RelevanceMap
    features : Tensor (N, ...)
        Output activations.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        rules: Rules,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        steps = steps_of(model)
        a = x.detach().to(*_place_and_format(model, x, dtype, device))
        product = dtype if dtype in (torch.bfloat16, torch.float16) else None
        _check_input(steps, a)
        if a.dim() == 4:
            a = a.contiguous(memory_format=torch.channels_last)  # a quarter off on a CPU
        self.input = a
        self.maps: list[RelevanceMap] = []
        for i, step in enumerate(steps):
            _check_size(steps[: i + 1], a)
            self.maps.append(_build(_moved(step, a), a, rules, product))
            a = self.maps[-1].output
        self.features = a
        live = a != 0
        for relevance_map in reversed(self.maps):
            live = relevance_map.prune(live)

    @property
    def absorbing(self) -> list[str]:
        """Names of the layers that keep relevance: those with a bias or a stabiliser."""
        return [m.step.name for m in self.maps if m.absorbed is not None]

    @torch.no_grad()
    def pull(self, relevance: Tensor) -> tuple[Tensor, Tensor]:
        """Pull relevance of the features (K, ...) back to the input.

        Returns
        -------
        Tensor (K, ...)
            Relevance of the inputs.
        Tensor (layers, K)
            Relevance that each layer of `absorbing` keeps.
        """
        kept = []
        for m in reversed(self.maps):
            if m.absorbed is not None:
                kept.append((relevance * m.absorbed).flatten(1).sum(1))
            relevance = m.pull(relevance)
        kept.reverse()
        return relevance, torch.stack(kept) if kept else relevance.new_zeros(0, len(relevance))

    @torch.no_grad()
    def push(self, u: Tensor) -> Tensor:
        """Push ownership of the inputs (K, ...) forward to shares of the features (K, ...)."""
        for m in self.maps:
            u = m.push(u)
        return u


def _build(step: Step, a: Tensor, rules: Rules, product: torch.dtype | None) -> RelevanceMap:
    rule = rule_for(rules, step.number)
    if step.weight is not None and rule is None:
        raise NotImplementedError(
            f"{step} has weights but no rule. Give it one, for example "
            f"rules={{{step.number}: bilrp.Gamma(0.1), ...}}, or one rule for all layers."
        )
    relevance_map = builder_of(step)(step, a, LRP0() if isinstance(rule, Pass) else rule, product)
    if not isinstance(rule, Pass):
        return relevance_map
    if relevance_map.output.shape != a.shape:
        raise ValueError(
            f"{step}: Pass needs a layer that keeps the shape, but this one turns "
            f"{tuple(a.shape)} into {tuple(relevance_map.output.shape)}"
        )
    return RelevanceMap(step, relevance_map.output)


def _place_and_format(
    model: nn.Module, x: Tensor, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.device | str | None, torch.dtype]:
    # A model without any numbers of its own, such as a lone pooling, follows the input.
    numbers = (*model.parameters(), *model.buffers(), x)
    some = next(t for t in numbers if t.is_floating_point())
    if dtype not in (None, torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    double = torch.float64 in (dtype, None if dtype else some.dtype)
    return device or some.device, torch.float64 if double else torch.float32


def _moved(step: Step, a: Tensor) -> Step:
    if step.weight is None:
        return step
    bias = None if step.bias is None else step.bias.to(a)
    return replace(step, weight=step.weight.to(a), bias=bias)


def check_finite(x: Tensor) -> None:
    """ValueError if the input holds NaN or infinity."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinite values; clean them before explaining")


def _check_input(steps: list[Step], a: Tensor) -> None:
    check_finite(a)
    first = steps[0] if steps else None
    if first is None or not isinstance(first.module, nn.Conv2d | nn.Linear):
        return
    if isinstance(first.module, nn.Conv2d):
        c = first.module.in_channels
        if a.dim() != 4 or a.shape[1] != c:
            raise ValueError(
                f"the model begins with {first}, so x must be (N, {c}, H, W) or ({c}, H, W); "
                f"got the shape {tuple(a.shape)} (N added where it was missing)"
            )
    elif a.dim() != 2 or a.shape[1] != first.module.in_features:
        d = first.module.in_features
        raise ValueError(
            f"the model begins with {first}, so x must be (N, {d}) or ({d},); "
            f"got the shape {tuple(a.shape)}"
        )


def _check_size(steps: list[Step], a: Tensor) -> None:
    """Refuse an image that this layer would shrink to nothing, saying what would fit."""
    module = steps[-1].module
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) or a.dim() != 4:
        return
    if hasattr(module, "padding") and isinstance(module.padding, str):
        return
    sizes = [1, 1]
    for axis in (0, 1):
        for step in reversed(steps):
            if isinstance(step.module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                sizes[axis] = Geometry.of(step.module).smallest_input(axis, sizes[axis])
    here = [Geometry.of(module).smallest_input(axis, 1) for axis in (0, 1)]
    if a.shape[2] < here[0] or a.shape[3] < here[1]:
        raise ValueError(
            f"the image is too small: {steps[-1]} would get {a.shape[2]} x {a.shape[3]} values and "
            f"needs {here[0]} x {here[1]}. Use images of at least {sizes[0]} x {sizes[1]} pixels."
        )
