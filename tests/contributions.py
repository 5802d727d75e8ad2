"""Joint gamma written slowly: random networks of five numbers, with dense matrices.

Every value of the network knows, for each owner, its positive and its negative contributions since
the last activation; where the segment ends they are weighted by gamma and divided. Nothing of the
engine is used.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilrp

SIZE = 5
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
LAYERS = {"linear": lambda: nn.Linear(SIZE, SIZE), "norm": lambda: nn.LayerNorm(SIZE)}


class Drawn(nn.Module):
    """Values made one of another: (operation, number of the value, further arguments)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.nodes: list[tuple] = []
        self.layers = nn.ModuleDict()
        kinds = (
            ["linear"] * 3 + ["act"] * 2 + ["add"] * 2 + ["norm", "shift", "gate", "swap", "max"]
        )
        for k in range(1, rng.randint(6, 12)):
            kind, other = rng.choice(kinds), rng.randrange(k)
            if kind in LAYERS:
                self.layers[str(k)] = LAYERS[kind]()
            last = rng.choice(list(ACTIVATIONS)) if kind == "act" else other
            self.nodes.append((kind, k - 1, last))
        for p in self.parameters():
            nn.init.normal_(p)
        self.register_buffer("numbers", torch.randn(SIZE))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for k, (kind, n, last) in enumerate(self.nodes, 1):
            v = values[n]
            if kind in LAYERS:
                values.append(self.layers[str(k)](v))
            elif kind == "act":
                values.append(ACTIVATIONS[last](v))
            elif kind == "shift":
                values.append(v + self.numbers)
            elif kind == "gate":
                values.append(v * torch.sigmoid(values[last]))
            elif kind == "add":
                values.append(torch.add(v, values[last], alpha=-0.5))
            elif kind == "swap":
                values.append(torch.cat([v[:, 2:], values[last][:, :2]], 1))
            else:
                values.append(torch.maximum(v, values[last]))
        return values[-1]


@dataclass
class Contributions:
    """Of the owners (SIZE, SIZE) and of all biases (SIZE,) since the last activation."""

    positive: Tensor
    negative: Tensor
    bias: tuple[Tensor, Tensor]  # of this segment: positive, negative
    own: tuple[Tensor, Tensor]  # of everything: owners, sinks and biases
    layer: int = -1
    rule: bilrp.Gamma | None = None

    def through(self, w: Tensor, b: Tensor) -> Contributions:
        more, less = w.clamp(min=0).T, w.clamp(max=0).T

        def moved(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
            return pos @ more + neg @ less, neg @ more + pos @ less

        def with_bias(pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
            pos, neg = moved(pos, neg)
            return pos + b.clamp(min=0), neg + b.clamp(max=0)

        return replace(
            self,
            positive=moved(self.positive, self.negative)[0],
            negative=moved(self.positive, self.negative)[1],
            bias=with_bias(*self.bias),
            own=with_bias(*self.own),
        )

    def plus(self, other: Contributions) -> Contributions:
        later = self if self.layer >= other.layer else other
        return replace(
            later,
            positive=self.positive + other.positive,
            negative=self.negative + other.negative,
            bias=tuple(a + b for a, b in zip(self.bias, other.bias, strict=True)),
            own=tuple(a + b for a, b in zip(self.own, other.own, strict=True)),
        )

    def ended(self, target: Tensor) -> Tensor:
        """Parts of the owners of what the segment's activation makes of the sum."""
        value = self.own[0] + self.own[1]
        gamma = self.rule.gamma if self.rule else 0.0
        weights = [1 + gamma * mask.to(value) for mask in (value > 0, value < 0)]
        z = weights[0] * self.own[0] + weights[1] * self.own[1]
        if self.rule and self.rule.biases == "shared":
            for side in (0, 1):
                others = self.own[side] - self.bias[side]
                weights[side] = weights[side] * torch.where(
                    others.abs() > 1e-9, self.own[side] / others, 1.0
                )
        f = torch.where(z == 0, 0.0, target / z)
        return f * (weights[0] * self.positive + weights[1] * self.negative)


def parts(model: Drawn, x: Tensor, rules: dict[int, bilrp.Rule]) -> Tensor:
    """Parts (owners, features) of one input (SIZE,), by number of the layer's value its rule."""
    values, states = [x], [torch.diag(x)]

    def state(n: int) -> Contributions:
        found = states[n]
        if isinstance(found, Contributions):
            return found
        a = values[n]
        none = torch.zeros_like(a)
        alive = (a > 0).to(a)
        return Contributions(
            found * alive, found * (1 - alive), (none, none), (a.clamp(min=0), a.clamp(max=0))
        )

    def closed(n: int) -> Tensor:
        found = states[n]
        return found.ended(values[n]) if isinstance(found, Contributions) else found

    one, zero = torch.eye(SIZE).to(x), torch.zeros(SIZE).to(x)
    for k, (kind, n, last) in enumerate(model.nodes, 1):
        v = values[n]
        with torch.no_grad():
            if kind in LAYERS:
                layer = model.layers[str(k)]
                out = layer(v[None])[0]
            if kind == "linear":
                w, b, rule = layer.weight.detach(), layer.bias.detach(), rules[k]
                if isinstance(rule, bilrp.Gamma):
                    new = replace(state(n).through(w, b), layer=k, rule=rule)
                else:
                    stable = getattr(rule, "epsilon", 0.0)
                    new = (closed(n) @ w.T) * out / (out + stable * out.sign())
            elif kind == "norm":
                spread = (v.var(unbiased=False) + layer.eps).rsqrt()
                w = (layer.weight * spread)[:, None] * (one - 1 / SIZE)
                new = state(n).through(w.detach(), layer.bias.detach())
            elif kind == "act":
                f = ACTIVATIONS[last]
                out = f(v)
                found = states[n]
                new = (
                    found.ended(out)
                    if isinstance(found, Contributions)
                    else found * torch.where(v == 0, 0.0, out / v)
                )
            elif kind == "shift":
                out, new = v + model.numbers, state(n).through(one, model.numbers)
            elif kind == "gate":
                gate = torch.sigmoid(values[last])
                out, new = v * gate, state(n).through(torch.diag(gate), zero)
            else:
                u = values[last]
                first, second = one, -0.5 * one
                if kind == "swap":
                    first = torch.diag(torch.ones(SIZE - 2).to(x), 2)
                    second = torch.diag(torch.ones(2).to(x), 2 - SIZE)
                elif kind == "max":
                    first = torch.diag((v >= u).to(x))
                    second = one - first
                out = first @ v + second @ u
                if n == last:
                    new = state(n).through(first + second, zero)
                else:
                    new = state(n).through(first, zero).plus(state(last).through(second, zero))
        values.append(out)
        states.append(new)
    return closed(len(values) - 1)
