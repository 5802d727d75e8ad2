"""Factors of models or rules that differ in anything do not go together."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilrp
from tests import nets
from tests.nets import made

LRP0, GAMMA = bilrp.LRP0(), bilrp.Gamma(0.25)
V, V2, X = nets.vector(1), nets.vector(2), nets.image(1)


def test_factors_of_what_differs_do_not_mix():
    def scaled(self, x):
        return self.layer(x).relu() * self.scale * self.mask

    def model(scale=1.0, mask=1.0):
        return made(scaled, layer=nn.Linear(6, 4), scale=scale, mask=torch.full((4,), mask))

    def hooked():
        m = model()
        m.layer.register_forward_hook(lambda module, given, out: out * 3)
        return m

    first = bilrp.factor(model(), V, GAMMA)
    first.explain(bilrp.factor(model(), V2, GAMMA))
    for other in (model(scale=3.0), model(mask=3.0), hooked()):
        with pytest.raises(ValueError, match="different models"):
            first.explain(bilrp.factor(other, V2, GAMMA))
    some = {lambda m: isinstance(m, nn.Linear): GAMMA, "*": LRP0}
    others = {lambda m: getattr(m, "in_features", 0) == 6: GAMMA, "*": LRP0}
    f, g = (bilrp.factor(nets.mlp(1), v, r) for v, r in ((V, some), (V2, others)))
    with pytest.raises(ValueError, match="rules"):
        f.explain(g)


class Holds(nn.Module):
    """Keeps what it works with outside of parameters, buffers and registered modules."""

    def __init__(self, how, value):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)
        self.work = lambda y: y
        if how == "a module in a list":
            self.more = [nets.randomise(nn.Linear(6, 4), value)]
        elif how == "a function":
            self.act = (F.relu, F.gelu)[value]
        elif how == "a partial":
            self.act = functools.partial(F.leaky_relu, negative_slope=0.1 + value / 2)
        elif how == "a private number":
            self._scale = 1.0 + value
        elif how == "a private tensor":
            self._mask = torch.full((6,), 1.0 + value).double()
        else:
            self.config = type("Config", (), {})()
            self.config.scale = 1.0 + value

    def forward(self, x):
        y = self.layer(x)
        y = getattr(self, "act", F.relu)(y) * getattr(self, "_scale", 1.0)
        if hasattr(self, "_mask"):
            y = y * self._mask
        if hasattr(self, "config"):
            y = y * self.config.scale
        return self.more[0](y) if hasattr(self, "more") else y


@pytest.mark.parametrize(
    "how",
    [
        "a module in a list",
        "a function",
        "a partial",
        "a private number",
        "a private tensor",
        "a configuration",
    ],
)
def test_what_a_model_holds_privately_counts(how):
    models = [Holds(how, k).double().eval() for k in (0, 1, 0)]
    first, second, third = (bilrp.factor(m, V, GAMMA) for m in models)
    first.explain(third)
    with pytest.raises(ValueError, match="different models"):
        first.explain(second)


def test_features_of_different_shape_do_not_go_together():
    model = nets.randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), 1)
    with pytest.raises(ValueError, match=r"different shapes, \(4, 16, 32\) and \(4, 32, 16\)"):
        bilrp.explain(model, nets.image(1, 16, 32), nets.image(2, 32, 16), GAMMA)
