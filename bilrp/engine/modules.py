"""Modules with a map of their own: one step of the run, whatever they do inside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bilrp.engine.maps import Sink


@dataclass(frozen=True)
class Step:
    """What the builder of a registered module's map is told about it."""

    name: str  # as in model.named_modules(), such as "0" or "features.3"
    number: int | None  # place among the leaf modules, counted from 1 as in the paper
    module: nn.Module
    weight: Tensor | None = None
    bias: Tensor | None = None
    relu: bool = False

    def __str__(self) -> str:
        return f"layer {self.number} ({type(self.module).__name__}, named {self.name!r})"


class RelevanceMap:
    """Linear relevance map of one module at one input. Base class: relevance passes unchanged.

    Attributes
    ----------
    step : Step
    output : Tensor (N, ...)
        The module's activations at this input.
    absorbed : Tensor (N, ...) or None
        Share of each output's relevance that stays in the module; None if nothing does.
    """

    absorbed: Tensor | None = None

    def __init__(self, step: Step, output: Tensor) -> None:
        self.step, self.output = step, output

    def pull(self, relevance: Tensor) -> Tensor:
        """Relevance of the inputs, (K, ...), from that of the outputs, (K, ...)."""
        return relevance

    def push(self, u: Tensor) -> Tensor:
        """Owner's shares of the outputs, (K, ...), from those of the inputs, (K, ...)."""
        return u

    def prune(self, live: Tensor) -> Tensor:
        """Forget outputs that no relevance reaches; returns which inputs it can reach."""
        return torch.ones_like(live) if live.shape == self.output.shape else live


class Opaque:
    """A registered module as a step: its map moves relevance, the run moves parts.

    Parameters
    ----------
    relevance_map : RelevanceMap
    a, value : Tensor
        Input and output of the module.
    shares : bool
        Whether the rows that come in are shares u instead of parts a u.
    """

    def __init__(self, relevance_map: RelevanceMap, a: Tensor, value: Tensor, shares: bool) -> None:
        self.map, self.a, self.value, self.shares = relevance_map, a, value, shares
        name = relevance_map.step.name or type(relevance_map.step.module).__name__
        self.sinks: list[Sink] = []
        if relevance_map.absorbed is not None:
            self.sinks.append(Sink(name, value * relevance_map.absorbed))
        if not shares:
            nobody = (a == 0).to(value)
            lost = value * relevance_map.push(nobody)
            if bool((lost != 0).any()):
                self.sinks.append(Sink(f"{name}, at zeros", lost))

    def push(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return rows.new_zeros(0, *self.value.shape)
        u = rows if self.shares else torch.where(self.a == 0, 0, rows / self.a)
        return self.map.push(u.flatten(0, 1)).unflatten(0, (len(rows), -1)) * self.value

    def pull(self, c: Tensor) -> Tensor:
        if not len(c):
            return c.new_zeros(0, *self.a.shape)
        relevance = self.map.pull((c * self.value).flatten(0, 1)).unflatten(0, (len(c), -1))
        return relevance if self.shares else torch.where(self.a == 0, 0, relevance / self.a)
