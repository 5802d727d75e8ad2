"""The baselines of Section 4 against the full Hessian, and the cosine that judges them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bilrp
from bilrp.compare import metrics
from tests import nets

seeds = st.integers(0, 10_000)
METHODS = (bilrp.saliency, bilrp.curvature, bilrp.hessian_x_product)


def hessian(model, x, x2):
    """The mixed block of the Hessian of y with respect to (x, x') joined into one vector."""
    n = x.numel()

    def y(both):
        a, b = both[:n].view(1, *x.shape), both[n:].view(1, *x2.shape)
        return model(a).flatten() @ model(b).flatten()

    return torch.func.hessian(y)(torch.cat([x.flatten(), x2.flatten()]))[:n, n:].detach()


def curved(seed):
    """A smooth network, whose Hessian has more than the mixed block."""
    layers = [nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4), nn.Softplus()]
    return nets.randomise(nn.Sequential(*layers), seed)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, make=st.sampled_from([nets.mlp, curved]))
def test_against_the_full_hessian(seed, make):
    model, x, x2 = make(seed), nets.vector(seed), nets.vector(seed + 1)
    h = hessian(model, x, x2)
    product = x[:, None] * x2
    torch.testing.assert_close(bilrp.saliency(model, x, x2), product**2)
    torch.testing.assert_close(bilrp.curvature(model, x, x2), h**2)
    torch.testing.assert_close(bilrp.hessian_x_product(model, x, x2), h * product)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, bias=st.booleans(), groups=st.sampled_from([None, 1, 2, 3, 6]))
def test_proposition_2(seed, bias, groups):
    model, x, x2 = nets.mlp(seed, bias=bias), nets.vector(seed), nets.vector(seed + 1)
    e = bilrp.explain(model, x, x2, bilrp.LRP0(), groups=groups)
    r = bilrp.hessian_x_product(model, x, x2, groups)
    torch.testing.assert_close(r, e.relevance)
    if not bias:  # Eq. (1)
        assert float(r.sum()) == pytest.approx(e.similarity, rel=1e-10, abs=1e-13)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, ids=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_groups_sum_the_scores_of_single_features(seed, ids):
    model, x, x2 = nets.mlp(seed), nets.vector(seed), nets.vector(seed + 1)
    ids = torch.tensor(ids)
    member = (ids == torch.arange(int(ids.max()) + 1)[:, None]).double()
    for method in METHODS:
        single = method(model, x, x2)
        torch.testing.assert_close(method(model, x, x2, ids), member @ single @ member.T)


@pytest.mark.parametrize("method", METHODS)
def test_images(method):
    model, x, x2 = nets.cnn(2), nets.image(2, 8, 8), nets.image(3, 8, 8)
    single = method(model, x, x2)
    assert single.shape == (192, 192)
    pixels = torch.arange(64).view(8, 8) // 16  # four stripes of two rows, all colours
    pooled = method(model, x[None], x2, pixels)
    stripes = single.view(3, 4, 16, 3, 4, 16).sum((0, 2, 3, 5))
    torch.testing.assert_close(pooled, stripes)


def test_images_against_the_full_hessian_and_bilrp():
    model, x, x2 = nets.cnn(2), nets.image(2, 8, 8), nets.image(3, 8, 8)
    h = hessian(model, x, x2)
    torch.testing.assert_close(bilrp.curvature(model, x, x2), h**2)
    e = bilrp.explain(model, x, x2, bilrp.LRP0(), patch=4)
    rows = torch.arange(8)[:, None] // 4 * 2
    r = bilrp.hessian_x_product(model, x, x2, rows + torch.arange(8) // 4)
    torch.testing.assert_close(r, e.matrix)


def test_a_function_that_this_package_has_no_map_for():
    class Running(nn.Module):
        def forward(self, x):
            return torch.cumprod(x, -1)

    model = nn.Sequential(curved(1), Running())
    with pytest.raises(NotImplementedError, match="cumprod"):
        bilrp.explain(model, nets.vector(1), nets.vector(2), bilrp.LRP0())
    assert bilrp.hessian_x_product(model, nets.vector(1), nets.vector(2)).shape == (6, 6)


def test_the_model_is_left_as_it_is():
    model = nets.zoo(3).train()
    model[1][3].eval()
    x, x2 = nets.image(1), nets.image(2)
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    r = bilrp.hessian_x_product(model, x, x2, 192)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not r.requires_grad
    torch.testing.assert_close(r, bilrp.hessian_x_product(model.eval(), x, x2, 192))


def test_a_model_that_fails_gets_its_mode_back():
    model = nets.mlp().train()
    with pytest.raises(RuntimeError):
        bilrp.curvature(model, nets.vector(1)[:5], nets.vector(2))
    assert all(m.training for m in model.modules())


def test_inputs_come_to_the_type_of_the_model():
    model = nets.mlp().float()
    assert bilrp.hessian_x_product(model, nets.vector(1), nets.vector(2)).dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_bad_input(method):
    model, v = nets.mlp(), nets.vector(1)
    for match, x, groups in (
        ("torch.Tensor, got ndarray", v.numpy(), None),
        ("floating-point", v.long(), None),
        ("say who owns an input of the shape", v[None, None, None, None], None),
        ("one input at a time, got a batch of 2", v.expand(2, 3, 4, 6), None),
        ("NaN or infinite", v * torch.nan, None),
        ("groups=4 consecutive features must divide the 6", v, 4),
        ("whole numbers >= 0 of shape", v, torch.zeros(5, dtype=torch.long)),
    ):
        with pytest.raises(ValueError, match=match):
            method(model, x, v if groups is None else x, groups)
        with pytest.raises(ValueError, match=match):
            method(model, v if groups is None else x, x, groups)


def test_different_numbers_of_features():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).double()
    with pytest.raises(ValueError, match="different numbers of features, 72 and 32"):
        bilrp.curvature(model, nets.image(1, 8, 8), nets.image(2, 6, 6))


def test_acs_by_hand():
    truth = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    found = torch.tensor([[[3.0, 4.0]], [[5.0, 0.0]]])
    assert metrics.acs(found, truth) == pytest.approx((3 / 5 + 0) / 2)
    assert metrics.acs(found, found) == pytest.approx(1)
    assert metrics.acs(-found, found) == pytest.approx(-1)
    assert bilrp.acs is metrics.acs


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_acs_is_the_mean_of_cosines_and_ignores_scale(seed, scale):
    rng = np.random.default_rng(seed)
    a, b = (torch.tensor(rng.normal(size=(4, 3, 2))) for _ in range(2))
    expected = np.mean([metrics.cosine(p, q) for p, q in zip(a, b, strict=True)])
    assert metrics.acs(scale * a, b) == pytest.approx(expected)


def test_acs_refuses():
    ones = torch.ones(2, 3, 3)
    with pytest.raises(ValueError, match="equal shapes"):
        metrics.acs(ones, ones[:1])
    with pytest.raises(ValueError, match=r"\(N, ...\)"):
        metrics.acs(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="at least one"):
        metrics.acs(ones[:0], ones[:0])
    zero = ones.clone()
    zero[1] = 0
    with pytest.raises(ValueError, match=r"1 of 2 truths .* first is number 1"):
        metrics.acs(ones, zero)
    with pytest.raises(ValueError, match="1 of 2 explanations"):
        metrics.acs(zero, ones)
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.acs(ones * torch.nan, ones)
