"""What is known of a recorded run while its calls are turned into maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bilrp.engine.record import Ref, Value, leaves
from bilrp.engine.rules import RuleBook


@dataclass(frozen=True)
class Gate:
    """What a value is as a factor.

    `level` is 3 for masks, 2 for a softmax, sigmoid, erf, 1 / x or length, 1 for tanh, 0 for
    others.
    """

    level: int
    softmax: bool = False
    norm: bool = False


@dataclass
class Run:
    """What a kind needs to know of the run."""

    values: list[Value]
    names: dict[int, str]
    book: RuleBook
    product: torch.dtype | None = None
    masks: list[bool] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)

    def data(self, number: int) -> Tensor:
        return self.values[number].data

    def named(self, t: Any, value: Value) -> str:
        """What to call a number that enters: the parameter's name, or the module's."""
        return self.names.get(id(t)) or value.place.label


def refs(tree: Any) -> list[int]:
    return list(dict.fromkeys(t.number for t in leaves(tree) if isinstance(t, Ref)))
