"""Each rule and layer: adjoint directions, conservation, a slow oracle, and zennit as the peer."""

import pytest
import torch
import zennit.rules
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bilrp
from tests import nets

LOW, HIGH = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
RULES = {
    "lrp0": bilrp.LRP0(),
    "gamma": bilrp.Gamma(0.25),
    "epsilon": bilrp.Epsilon(0.05),
    "zb": {1: bilrp.ZB(LOW, HIGH), range(2, 99): bilrp.Gamma(0.1)},
}


def random_rows(like, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *like.shape, dtype=like.dtype, generator=generator)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_push_is_the_adjoint_of_pull(rule, seed):
    """From the first to the last: <rows of u, c> = <u, what c brings back>, sinks included."""
    trace = bilrp.Trace(nets.zoo(seed), nets.image(seed)[None], RULES[rule])
    u, c = (random_rows(t, 3, seed) for t in (trace.input, trace.features))
    rows = trace.push_rows(u, sinks=True)
    back, kept = trace.pull_rows(c)
    torch.testing.assert_close(
        rows[:3].flatten(1) @ c.flatten(1).T, u.flatten(1) @ back.flatten(1).T
    )
    found = torch.zeros_like(kept)
    for row, (_, sink) in zip(rows[3:], trace.sinks, strict=True):
        found[trace.absorbing.index(sink.name)] += (row * c).flatten(1).sum(1)
    torch.testing.assert_close(found, kept)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_inputs_and_layers_together_own_every_feature(rule, seed):
    trace = bilrp.Trace(nets.zoo(seed), nets.image(seed)[None], RULES[rule])
    relevance = random_rows(trace.features, 4, seed) * trace.features
    inputs, kept = trace.pull(relevance)
    total = inputs.flatten(1).sum(1) + kept.sum(0)
    torch.testing.assert_close(total, relevance.flatten(1).sum(1), rtol=1e-7, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 10))
def test_conserves_exactly_without_biases(seed, gamma):
    model, x = nets.mlp(seed, bias=False), nets.vector(seed)
    relevance = bilrp.lrp(model, x, bilrp.Gamma(gamma))
    assert float(relevance.sum()) == pytest.approx(
        float(model(x).detach().sum()), rel=1e-12, abs=1e-14
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100))
def test_scales_with_the_input_without_biases(seed, factor):
    model, x = nets.mlp(seed, bias=False), nets.vector(seed)
    once = bilrp.lrp(model, x, bilrp.Gamma(0.3))
    torch.testing.assert_close(bilrp.lrp(model, factor * x, bilrp.Gamma(0.3)), factor * once)


def jacobian_oracle(linear, x, rule, relevance):
    """R_j = sum_k n_jk / z_k R_k, element by element, straight from the formulas."""
    w, b = linear.weight, linear.bias
    out = torch.zeros_like(x)
    for k in range(len(b)):
        contributions, rest = w[k] * x, b[k]
        if isinstance(rule, bilrp.Gamma):
            sign = torch.sign(contributions.sum() + rest)
            grow = [(c * sign > 0) * rule.gamma + 1 for c in (contributions, rest)]
            contributions, rest = contributions * grow[0], rest * grow[1]
        if isinstance(rule, bilrp.AlphaBeta):  # z^+ is alpha = 1
            sides = [(c.clamp(min=0), c.clamp(max=0)) for c in (contributions, rest)]
            for i, part in enumerate((rule.alpha, 1 - rule.alpha)):
                out += part * sides[0][i] / (sides[0][i].sum() + sides[1][i]) * relevance[k]
            continue
        if isinstance(rule, bilrp.WSquare | bilrp.Flat):
            contributions = w[k] ** 2 if isinstance(rule, bilrp.WSquare) else torch.ones_like(x)
            rest = torch.zeros(())
        if isinstance(rule, bilrp.ZB):
            low, high = torch.as_tensor(rule.low), torch.as_tensor(rule.high)
            contributions = contributions - low * w[k].clamp(min=0) - high * w[k].clamp(max=0)
            rest = torch.zeros(())
        z = contributions.sum() + rest
        if isinstance(rule, bilrp.Epsilon):
            z = z + rule.epsilon * torch.sign(z)
        out += contributions / z * relevance[k]
    return out


@pytest.mark.parametrize(
    "rule",
    [
        bilrp.LRP0(),
        bilrp.Gamma(0.4),
        bilrp.Epsilon(0.1),
        bilrp.ZB(-2.0, 2.0),
        bilrp.ZPlus(),
        bilrp.AlphaBeta(2.0),
        bilrp.WSquare(),
        bilrp.Flat(),
    ],
    ids=str,
)
@pytest.mark.parametrize("signed", [False, True])
def test_rules_equal_their_formulas_one_element_at_a_time(rule, signed):
    generator = torch.Generator().manual_seed(3)
    linear = nets.randomise(nn.Linear(7, 9), 3)
    x = nets.vector(5, 7) * 2 - (1 if signed else 0)
    relevance = torch.randn(9, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = jacobian_oracle(linear, x, rule, relevance)
    torch.testing.assert_close(bilrp.lrp(linear, x, rule, relevance), expected)


STABLE = {"stabilizer": 1e-12}
ZENNIT = {
    "lrp0": (bilrp.LRP0(), lambda: zennit.rules.Epsilon(1e-12)),
    "epsilon": (bilrp.Epsilon(0.05), lambda: zennit.rules.Epsilon(0.05)),
    "gamma": (bilrp.Gamma(0.25), lambda: zennit.rules.Gamma(0.25, **STABLE)),
    "zplus": (bilrp.ZPlus(), lambda: zennit.rules.ZPlus(**STABLE)),
    "alpha-beta": (bilrp.AlphaBeta(2.0), lambda: zennit.rules.AlphaBeta(2.0, 1.0, **STABLE)),
}
LOW4, HIGH4 = torch.zeros(1, 3, 1, 1).double(), torch.ones(1, 3, 1, 1).double()
FIRST = {  # of pixels; zennit gives biases a share in w^2 unless told not to
    "zb": (bilrp.ZB(LOW, HIGH), lambda: zennit.rules.ZBox(LOW4, HIGH4, **STABLE)),
    "w^2": (bilrp.WSquare(), lambda: zennit.rules.WSquare(zero_params=["bias"], **STABLE)),
    "flat": (bilrp.Flat(), lambda: zennit.rules.Flat(**STABLE)),
}


@pytest.mark.parametrize("name", ZENNIT)
@pytest.mark.parametrize("first", [None, *FIRST])
def test_agrees_with_zennit_on_a_small_vgg(name, first):
    rule, peer = ZENNIT[name]
    one, peer_one = FIRST[first] if first else (rule, peer)
    model, x = nets.cnn(4), nets.image(4)[None]
    features = model(x).detach()
    expected = nets.zennit_lrp(model, x, features, peer_one, peer)
    found = bilrp.lrp(model, x, {1: one, range(2, 99): rule})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_winner_takes_all():
    pool = nn.Sequential(nn.MaxPool2d(2))
    x = torch.tensor([[1.0, 4.0], [2.0, 3.0]])[None, None]
    relevance = bilrp.lrp(pool, x, bilrp.WinnerTakeAll())
    assert relevance.tolist() == [[[[0, 4], [0, 0]]]]


def test_pass_hands_relevance_through():
    model = nets.randomise(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6)), 1)
    x, relevance = nets.vector(2), torch.arange(6.0).double()
    through = bilrp.lrp(model, x, {1: bilrp.LRP0(), 3: bilrp.Pass()}, relevance)
    torch.testing.assert_close(through, bilrp.lrp(model[:2], x, bilrp.LRP0(), relevance))


def test_a_dead_output_takes_no_relevance_and_makes_no_nan():
    linear = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        linear[0].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        linear[0].bias.zero_()
    relevance = bilrp.lrp(linear, torch.tensor([1.0, 2.0]), bilrp.Gamma(1.0), torch.ones(2))
    assert relevance.tolist() == pytest.approx([1 / 3, 2 / 3])
    zero = bilrp.lrp(linear, torch.zeros(2), bilrp.Gamma(1.0))
    assert zero.tolist() == [0, 0]


def test_zb_divides_by_nothing_where_the_relu_is_silent_anyway():
    """A patch near the worst corner of a filter: its denominator is rounding, and no part of y."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3)
    low, high = -2.0, 2.0
    x = torch.where(conv.weight[0] > 0, low + 1e-4, high - 1e-4).detach()
    assert conv(x[None])[0, 0].item() < 0
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten())
    e = bilrp.explain(model, x, x, {1: bilrp.ZB(low, high)}, patch=3)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-5)
    assert e.similarity == pytest.approx(float(model(x[None]).square().sum()), rel=1e-5)
