"""A rule acts where it is asked for, or is refused there."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilrp
from tests import contributions, nets
from tests.nets import made

LRP0, GAMMA = bilrp.LRP0(), bilrp.Gamma(0.25)
V, X = nets.vector(1), nets.image(1)


def test_a_rule_for_a_batch_norm_is_heard():
    model = nets.randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 1)
    usual = bilrp.factor(model, X, LRP0, patch=4).dense()
    for key in (2, "1", nn.BatchNorm2d):
        passed = bilrp.factor(model, X, {key: bilrp.Pass(), "*": LRP0}, patch=4).dense()
        assert not torch.allclose(passed, usual)
    conv, norm, _ = model
    with torch.no_grad():  # Pass at the norm: its outputs are shared out as its inputs are
        z = conv(X[None])
        share = norm(z).relu() / z
        parts = [F.conv2d(torch.where(mask, X, 0)[None], conv.weight) * share for mask in patches()]
    torch.testing.assert_close(passed, torch.stack(parts).flatten(1))
    nets.contract(model, X, {2: bilrp.Pass(), "*": GAMMA})


def patches(side=4):
    rows, columns = torch.arange(X.shape[1]) // side, torch.arange(X.shape[2]) // side
    number = rows[:, None] * (X.shape[2] // side) + columns
    return [number == k for k in range(int(number.max()) + 1)]


@pytest.mark.parametrize(
    "key_and_rule", [(nn.ReLU, bilrp.Epsilon(9.0)), (nn.Linear, bilrp.AttnLRP()), ("1", GAMMA)]
)
def test_a_rule_that_changes_nothing_is_refused(key_and_rule):
    key, rule = key_and_rule
    with pytest.raises(ValueError, match="changes nothing"):
        bilrp.factor(nets.mlp(1), V, {key: rule, "*": LRP0})


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.l = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 4)

    def forward(self, x):
        return self.l(self.attn(x, x, x)[0]).relu()


@pytest.mark.parametrize("key", ["attn.out_proj", 1])
def test_a_module_that_is_never_called_has_no_rule(key):
    model = nets.randomise(Attends(), 1)
    with pytest.raises(ValueError, match="never called"):
        bilrp.factor(model, nets.tokens(), {key: bilrp.Epsilon(1.0), "*": LRP0})


def test_a_rule_for_what_holds_layers_is_for_its_layers():
    model, x = nets.randomise(Attends(), 1), nets.tokens()
    stable = bilrp.Epsilon(1.0)
    attn, every, none = (
        bilrp.factor(model, x, rules).dense()
        for rules in ({"attn": stable, "*": LRP0}, {"*": stable}, LRP0)
    )
    assert not torch.allclose(attn, none)
    assert not torch.allclose(attn, every)
    nets.contract(model, x, {"attn": stable, "*": LRP0})

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in "ab")

        def forward(self, x):
            return (self.b(self.a(x).relu()) + x).relu()

    blocks = nets.randomise(nn.Sequential(nn.Conv2d(3, 3, 1), Block()), 1)
    named, listed = (
        bilrp.factor(blocks, X, rules, patch=4).dense()
        for rules in (
            {"1.*": stable, "*": GAMMA},
            {"1.a": stable, "1.b": stable, "*": GAMMA},
        )
    )
    torch.testing.assert_close(named, listed)


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (nn.AvgPool2d, bilrp.WinnerTakeAll()),
        (nn.AvgPool2d, bilrp.Gamma(9.0)),
        (nn.GroupNorm, bilrp.Gamma(9.0)),
        (nn.GroupNorm, bilrp.Epsilon(9.0)),
    ],
)
def test_rules_for_layers_without_weights_are_refused(key, rule):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AvgPool2d(2), nn.ReLU())
    with pytest.raises(ValueError, match="changes nothing"):
        bilrp.factor(nets.randomise(model, 1), X, {key: rule, "*": GAMMA}, patch=4)


def test_pass_takes_what_gamma_made_of_the_layer_before():
    model = nets.randomise(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.ReLU()), 1)
    rules = {1: bilrp.Gamma(0.5), 2: bilrp.Pass()}
    found = bilrp.factor(model, V, rules)
    first = bilrp.factor(model[0], V, bilrp.Gamma(0.5))
    with torch.no_grad():
        share = model(V[None])[0] / model[0](V[None])[0]
    torch.testing.assert_close(found.values, first.values * share)
    nets.contract(model, V, rules)


@pytest.mark.parametrize("rule", [bilrp.Epsilon(0.1), LRP0, bilrp.ZPlus(), bilrp.Pass()])
def test_shared_biases_before_another_rule(rule):
    model = nets.randomise(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.ReLU()), 1)
    rules = {1: bilrp.Gamma(1.0, "shared"), 2: rule}
    nets.contract(model, V, rules)
    first = bilrp.factor(model[0], V, bilrp.Gamma(1.0, "shared"))
    if isinstance(rule, bilrp.LRP0):
        found = bilrp.factor(model, V, rules)
        w, b = model[1].weight.detach(), model[1].bias.detach()
        z = first.features @ w.T + b
        torch.testing.assert_close(found.values, (first.values @ w.T) * (z > 0))


def test_shared_biases_do_not_depend_on_who_else_reads():
    def alone(self, x):
        return torch.cat([self.n(x).tanh(), self.l(x).relu() * 0], 1)

    def beside(self, x):
        h = self.n(x)
        return torch.cat([h.tanh(), self.l(h).relu() * 0], 1)

    one, other = (
        bilrp.factor(
            made(f, n=nn.LayerNorm(6), l=nn.Linear(6, 4)),
            V,
            {nn.Linear: bilrp.Gamma(1.0, "shared")},
        )
        for f in (alone, beside)
    )
    torch.testing.assert_close(one.values[:, :6], other.values[:, :6])


CHOICES = {
    "owners": [
        bilrp.Gamma(0.0), bilrp.Gamma(0.1), bilrp.Gamma(1.0), LRP0, bilrp.Epsilon(0.1),
    ],
    "shared": [
        bilrp.Gamma(0.1, "shared"), bilrp.Gamma(1.0, "shared"), LRP0, bilrp.Epsilon(0.1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("biases", CHOICES)
def test_joint_gamma_is_what_all_contributions_make_it(biases):
    """Random networks whose layers have rules of different kinds, against dense matrices."""
    compared = 0
    for seed in range(250):
        model, rng = contributions.Drawn(seed), random.Random(seed)
        x = torch.randn(contributions.SIZE, generator=torch.Generator().manual_seed(seed)).double()
        linear = [k for k, (kind, *_) in enumerate(model.nodes, 1) if kind == "linear"]
        rules = {k: rng.choice(CHOICES[biases]) for k in linear}
        try:
            found = bilrp.factor(model, x, {f"layers.{k}": r for k, r in rules.items()} or LRP0)
        except NotImplementedError as error:
            if "no relevance can reach the input" in str(error):
                continue  # such as a gate of a gate
            raise
        expected = contributions.parts(model, x, rules)
        bound = 1e-8 * max(1.0, float(expected.abs().max()))
        assert float((found.dense() - expected).abs().max()) <= bound, seed
        compared += 1
    assert compared > 150
