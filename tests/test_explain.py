"""The engine: every way to compute an explanation gives the same one, and nothing is lost."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bilrp
from bilrp.engine import features as engine
from bilrp.engine.trace import Trace
from tests import nets

GAMMA = bilrp.Gamma(0.25)
PIXELS = {1: bilrp.ZB(0.0, 1.0), range(2, 99): GAMMA}
seeds = st.integers(0, 10_000)


def by_pulling(model, x, x2, rules, patch):
    """The exact explanation the long way: pull back every single feature, sum, outer product."""
    pulled = []
    for v in (x, x2):
        trace = bilrp.Trace(model, v[None], rules)
        n = trace.features.numel()
        single = torch.eye(n, dtype=v.dtype).view(n, *trace.features.shape) * trace.features
        r = trace.pull(single)[0][:, 0].sum(1)
        pulled.append(r.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).sum((2, 4)))
    return torch.einsum("kij,kmn->ijmn", *pulled)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, gamma=st.floats(0, 5))
def test_factored_equals_the_messages_between_all_pairs_of_neurons(seed, gamma):
    model, x, x2 = nets.mlp(seed, width=5), nets.vector(seed), nets.vector(seed + 1)
    with torch.no_grad():
        expected = nets.unfactored(model, x, x2, gamma)
    e = bilrp.explain(model, x, x2, bilrp.Gamma(gamma))
    torch.testing.assert_close(e.relevance, expected)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_gamma_zero_is_hessian_times_product(seed):
    """Proposition 2, against torch.func's mixed second derivative."""
    model, x, x2 = nets.mlp(seed), nets.vector(seed), nets.vector(seed + 1)

    def y(a, b):
        return model(a) @ model(b)

    hessian = torch.func.jacfwd(torch.func.grad(y, argnums=0), argnums=1)(x, x2)
    e = bilrp.explain(model, x, x2, bilrp.LRP0())
    torch.testing.assert_close(e.relevance, (x[:, None] * hessian * x2).detach())


@settings(max_examples=10, deadline=None)
@given(seed=seeds, rules=st.sampled_from([GAMMA, bilrp.Epsilon(0.1), bilrp.LRP0(), PIXELS]))
def test_the_ledger_accounts_for_all_of_the_similarity(seed, rules):
    model, x, x2 = nets.zoo(seed), nets.image(seed), nets.image(seed + 1)
    e = bilrp.explain(model, x, x2, rules, patch=4)
    with torch.no_grad():
        y = float(model(x[None]).flatten() @ model(x2[None]).flatten())
    assert e.similarity == pytest.approx(y, rel=1e-10)
    size = float(e.ledger.abs().sum())
    assert float(e.ledger.sum()) == pytest.approx(y, rel=1e-10, abs=1e-12 * size)
    assert float(e.ledger[0, 0]) == pytest.approx(float(e.relevance.sum()), abs=1e-12 * size)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, gamma=st.floats(0, 10))
def test_without_biases_the_inputs_carry_it_all(seed, gamma):
    """Proposition 1."""
    model, x, x2 = nets.mlp(seed, bias=False), nets.vector(seed), nets.vector(seed + 1)
    e = bilrp.explain(model, x, x2, bilrp.Gamma(gamma))
    assert float(e.relevance.sum()) == pytest.approx(e.similarity, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("rules", [GAMMA, PIXELS], ids=["gamma", "zb"])
@pytest.mark.parametrize(
    ("size", "patch"), [((32, 32), 8), ((32, 24), 4), ((24, 24), 2), ((16, 16), 1)]
)
@pytest.mark.parametrize("layer", [5, 8, 11])
def test_pushing_owners_equals_pulling_every_feature(rules, size, patch, layer, monkeypatch):
    model, x, x2 = nets.cnn(1)[:layer], nets.image(1, *size), nets.image(2, *size)
    monkeypatch.setattr(engine, "cheaper_to_pull", lambda *_: False)
    e = bilrp.explain(model, x, x2, rules, patch=patch)
    torch.testing.assert_close(e.relevance, by_pulling(model, x, x2, rules, patch))


@pytest.mark.parametrize("rules", [PIXELS, bilrp.Epsilon(0.1)])
def test_few_features_are_pulled_and_give_the_same_numbers(rules, monkeypatch):
    model = nn.Sequential(nets.cnn(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, x2, results = nets.image(5), nets.image(6), []
    pull, pulled = Trace.pull_rows, []
    monkeypatch.setattr(Trace, "pull_rows", lambda self, c: pulled.append(len(c)) or pull(self, c))
    for cheaper in (True, False):
        monkeypatch.setattr(engine, "cheaper_to_pull", lambda *_, c=cheaper: c)
        results.append(bilrp.explain(model, x, x2, rules, patch=2, chunk=3))
        assert bool(pulled) == cheaper
        pulled.clear()
    torch.testing.assert_close(results[0].relevance, results[1].relevance)
    torch.testing.assert_close(results[0].ledger, results[1].ledger)
    assert results[0].owners == results[1].owners
    monkeypatch.undo()
    trace = Trace(model, x[None], rules)
    for patch, cheaper in ((1, True), (16, False)):
        owners = bilrp.engine.owners.Patches(x[None], patch)
        assert engine.cheaper_to_pull(trace, owners, engine.Cones(trace, owners)) == cheaper


@pytest.mark.parametrize("chunk", [1, 3, 5, 16, 1000])
@pytest.mark.parametrize("layer", [5, 11])
def test_the_chunk_size_does_not_matter(chunk, layer):
    model, x, x2 = nets.cnn(3)[:layer], nets.image(3), nets.image(4)
    e = bilrp.explain(model, x, x2, PIXELS, patch=4, chunk=chunk)
    torch.testing.assert_close(e.relevance, bilrp.explain(model, x, x2, PIXELS, patch=4).relevance)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity)


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_swapping_the_inputs_transposes_the_explanation(seed):
    model, x, x2 = nets.cnn(seed), nets.image(seed), nets.image(seed + 1)
    e, back = (bilrp.explain(model, *pair, PIXELS, patch=4) for pair in ((x, x2), (x2, x)))
    torch.testing.assert_close(e.relevance, back.relevance.permute(2, 3, 0, 1))
    torch.testing.assert_close(e.ledger, back.ledger.T)


@settings(max_examples=8, deadline=None)
@given(seed=seeds, s=st.floats(0.1, 10), t=st.floats(0.1, 10))
def test_scaling_both_inputs_scales_the_explanation(seed, s, t):
    model, x, x2 = nets.mlp(seed, bias=False), nets.vector(seed), nets.vector(seed + 1)
    e = bilrp.explain(model, x, x2, GAMMA)
    scaled = bilrp.explain(model, s * x, t * x2, GAMMA)
    torch.testing.assert_close(scaled.relevance, s * t * e.relevance)


def test_groups_of_features_sum_the_single_ones():
    model, x, x2 = nets.mlp(1), nets.vector(1), nets.vector(2)
    single = bilrp.explain(model, x, x2, GAMMA).relevance
    pairs = bilrp.explain(model, x, x2, GAMMA, groups=2).relevance
    torch.testing.assert_close(pairs, single.view(3, 2, 3, 2).sum((1, 3)))
    ids = torch.tensor([0, 1, 1, 0, 2, 2])
    by_id = bilrp.explain(model, x, x2, GAMMA, groups=ids).relevance
    one_hot = nn.functional.one_hot(ids).double()
    torch.testing.assert_close(by_id, one_hot.T @ single @ one_hot)


def test_groups_of_pixels_equal_patches():
    model, x, x2 = nets.cnn(1), nets.image(1), nets.image(2)
    ids = torch.arange(16)[:, None] // 8 * 2 + torch.arange(16) // 8
    by_id = bilrp.explain(model, x, x2, PIXELS, groups=ids).relevance
    by_patch = bilrp.explain(model, x, x2, PIXELS, patch=8)
    torch.testing.assert_close(by_id, by_patch.matrix)


def test_the_projection_equals_projecting_the_exact_factor():
    """Pulling projected features back and projecting pushed owners are adjoint computations."""
    model, x, x2 = nets.cnn(1), nets.image(1, 32, 32), nets.image(2, 32, 32)
    e = bilrp.explain(model, x, x2, PIXELS, project=7, seed=5)
    f, f2 = (bilrp.factor(model, v, PIXELS) for v in (x, x2))
    w = engine.random_projection(7, len(f.features), seed=5).double()
    torch.testing.assert_close(e.matrix, f.dense() @ w.T @ w @ f2.dense().T)
    assert float(e.ledger.sum()) == pytest.approx(e.estimate)
    assert float(e.ledger[0, 0]) == pytest.approx(float(e.relevance.sum()))
    assert e.similarity == pytest.approx(float(f.features @ f2.features))


@pytest.mark.slow
def test_the_projection_converges_to_the_exact_explanation():
    model, x, x2 = nets.cnn(1), nets.image(1, 32, 32), nets.image(2, 32, 32)
    exact = bilrp.explain(model, x, x2, PIXELS).relevance

    def error(k):
        runs = [
            bilrp.explain(model, x, x2, PIXELS, project=k, seed=s).relevance - exact
            for s in range(12)
        ]
        mean = torch.stack(runs).mean(0).norm() / exact.norm()
        return float(torch.stack([r.norm() for r in runs]).mean() / exact.norm()), float(mean)

    (few, _), (many, bias) = error(8), error(512)
    assert few / many == pytest.approx((512 / 8) ** 0.5, rel=0.25)  # the 1 / sqrt(K) law
    assert bias < 0.6 * many, "the estimate must be unbiased: its mean error falls with more seeds"


def test_factors_are_reused_and_give_the_same_explanation():
    model, images = nets.cnn(1), [nets.image(s) for s in range(3)]
    factors = [bilrp.factor(model, x, PIXELS, patch=4) for x in images]
    for f, x in zip(factors, images, strict=True):
        for f2, x2 in zip(factors, images, strict=True):
            expected = bilrp.explain(model, x, x2, PIXELS, patch=4)
            torch.testing.assert_close(f.explain(f2).relevance, expected.relevance)
    mixed = bilrp.explain(model, factors[0], images[1], PIXELS, patch=4)
    torch.testing.assert_close(mixed.relevance, factors[0].explain(factors[1]).relevance)
    assert bilrp.explain(model, factors[0], factors[1]).similarity == mixed.similarity


def test_inputs_of_different_size_where_the_features_match_in_number():
    pooled = nn.Sequential(*nets.cnn(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    e = bilrp.explain(pooled, nets.image(1, 16, 24), nets.image(2, 32, 16), PIXELS)
    assert e.relevance.shape == (2, 3, 4, 2)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity)
    # Maps of different shape with as many numbers: no place of one is a place of the other.
    with pytest.raises(ValueError, match=r"different shapes, \(4, 8, 16\) and \(4, 16, 8\)"):
        bilrp.explain(nets.cnn(1)[:5], nets.image(1, 16, 32), nets.image(2, 32, 16), PIXELS)


def test_the_same_call_gives_the_same_numbers():
    model, x, x2 = nets.cnn(1).float(), nets.image(1).float(), nets.image(2).float()
    for options in ({}, {"project": 5, "seed": 3}):
        a, b = (bilrp.explain(model, x, x2, PIXELS, **options) for _ in range(2))
        assert torch.equal(a.relevance, b.relevance)
        assert torch.equal(a.ledger, b.ledger)
    other = bilrp.explain(model, x, x2, PIXELS, project=5, seed=4)
    assert not torch.equal(other.relevance, b.relevance)


def test_owners_are_named_from_the_bottom_to_the_top():
    e = bilrp.explain(nets.cnn(1), nets.image(1), nets.image(2), PIXELS)
    assert e.owners == ("input", "0", "2", "5", "8")
    assert e.ledger.shape == (5, 5)
    assert torch.equal(e.ledger[1], torch.zeros(5, dtype=torch.float64))  # z^B absorbs nothing
    without = bilrp.explain(nets.mlp(1, bias=False), nets.vector(1), nets.vector(2), GAMMA)
    assert without.owners == ("input", "0", "2", "4")
    no_bias = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU()).double()
    assert bilrp.explain(no_bias, nets.vector(1), nets.vector(2), GAMMA).owners == ("input",)


@pytest.mark.parametrize("state", ["train", "half", "bfloat16", "requires_grad", "float64"])
def test_the_model_is_left_exactly_as_it_was(state):
    model, x, x2 = nets.zoo(1), nets.image(1), nets.image(2)
    expected = bilrp.explain(copy.deepcopy(model), x, x2, GAMMA, patch=4)
    model.requires_grad_(state == "requires_grad")
    if state == "train":
        model.train()
    if state in ("half", "bfloat16"):
        model = model.to(getattr(torch, state))
    before = copy.deepcopy(model)
    e = bilrp.explain(model, x.requires_grad_(), x2, GAMMA, patch=4)
    bilrp.lrp(model, x, GAMMA)
    tolerance = {"half": 1e-2, "bfloat16": 1e-1}.get(state, 1e-12)
    torch.testing.assert_close(
        e.relevance.double(), expected.relevance, rtol=0, atol=tolerance * expected.similarity
    )
    assert not e.relevance.requires_grad
    assert x.grad is None
    for module, old in zip(model.modules(), before.modules(), strict=True):
        assert module.training == old.training
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not module._forward_pre_hooks
    for (name, p), (_, old) in zip(
        model.state_dict().items(), before.state_dict().items(), strict=True
    ):
        assert p.dtype == old.dtype, name
        assert torch.equal(p, old), name
    for p, old in zip(model.parameters(), before.parameters(), strict=True):
        assert p.requires_grad == old.requires_grad
        assert p.grad is None


def test_number_formats():
    model, x, x2 = nets.cnn(1), nets.image(1), nets.image(2)
    double = bilrp.explain(model, x, x2, PIXELS)
    single = bilrp.explain(model.float(), x, x2, PIXELS)
    assert double.relevance.dtype == torch.float64
    assert single.relevance.dtype == torch.float32
    torch.testing.assert_close(single.relevance.double(), double.relevance, rtol=1e-4, atol=1e-6)
    products = bilrp.explain(model, x, x2, PIXELS, dtype=torch.bfloat16)
    assert products.relevance.dtype == torch.float32
    cosine = nn.functional.cosine_similarity(
        products.relevance.flatten(), single.relevance.flatten(), dim=0
    )
    assert 0.999 < float(cosine) < 1.0 - 1e-9
    again = bilrp.explain(model, x, x2, PIXELS, dtype=torch.float64)
    assert again.relevance.dtype == torch.float64


def test_lrp_takes_one_input_and_several_outputs_or_a_list_of_inputs():
    model = nets.mlp(1)
    x, batch = nets.vector(1), [nets.vector(1), nets.vector(2)]
    assert bilrp.lrp(model, x, GAMMA).shape == (6,)
    both = bilrp.lrp(model, batch, GAMMA)
    torch.testing.assert_close(both[0], bilrp.lrp(model, x, GAMMA))
    features = model(x).detach()
    each = bilrp.lrp(model, x, GAMMA, torch.diag(features))
    assert each.shape == (5, 6)
    torch.testing.assert_close(each.sum(0), bilrp.lrp(model, x, GAMMA))
    outputs = torch.stack([model(v).detach() for v in batch])
    torch.testing.assert_close(bilrp.lrp(model, batch, GAMMA, outputs), both)
    pictures = [nets.image(1), nets.image(2)]
    assert bilrp.lrp(nets.cnn(1), pictures, PIXELS).shape == (2, 3, 16, 16)


def test_a_registered_layer_is_explained():
    class Shift(nn.Module):
        def forward(self, x):
            return torch.cumprod(x, -1).cumprod(-1) * 0 + x.roll(1, -1)

    with pytest.raises(NotImplementedError):
        bilrp.lrp(nn.Sequential(Shift()), torch.ones(3), GAMMA)

    class ShiftMap(bilrp.RelevanceMap):
        def pull(self, relevance):
            return relevance.roll(-1, -1)

        def push(self, u):
            return u.roll(1, -1)

        def prune(self, live):
            return live.roll(-1, -1)

    @bilrp.register(Shift)
    def _(step, a, rule, product):
        return ShiftMap(step, step.module(a))

    x = torch.tensor([1.0, 2.0, 3.0])
    relevance = bilrp.lrp(nn.Sequential(Shift()), x, GAMMA, torch.tensor([5.0, 6.0, 7.0]))
    assert relevance.tolist() == [6, 7, 5]
    e = bilrp.explain(nn.Sequential(Shift(), nn.Linear(3, 2)), x, x, GAMMA)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-5)
