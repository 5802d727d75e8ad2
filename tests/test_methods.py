"""Methods on pairs: exact on linear models, sums where they are promised, refusals."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import bilrp
from bilrp.compare import methods
from bilrp.compare.methods import METHODS
from tests import nets


def linear(image=False):
    """Features that are linear in the input, so that R_pp' = <W x_p, W x'_p'> is the truth."""
    torch.manual_seed(0)
    return (nn.Conv2d(3, 5, 8, bias=False) if image else nn.Linear(6, 4, bias=False)).double()


def linear_truth(model, x, x2, masks):
    parts = [torch.stack([model(v[None] * m).flatten() for m in masks]) for v in (x, x2)]
    return parts[0] @ parts[1].T


EXACT = [
    "BiLRP",
    "BiLRP, gamma 0.02",
    "Hessian x Product",
    "integrated Jacobians, pixels",
    "pairwise occlusion",
]


@pytest.mark.parametrize("name", EXACT)
def test_exact_on_a_linear_model_of_vectors(name):
    model, x, x2 = linear(), nets.vector(1), nets.vector(2)
    rules = {"rules": bilrp.LRP0()} if name == "BiLRP" else {}
    if "gamma" in name:
        pytest.skip("gamma treats signs apart, also in a linear model")
    found = METHODS[name](model, x, x2, 2, **rules)
    masks = torch.eye(3).repeat_interleave(2, 1).double()
    torch.testing.assert_close(found, linear_truth(model, x, x2, masks))
    assert float(found.sum()) == pytest.approx(float((model(x) @ model(x2)).detach()))


@pytest.mark.parametrize("name", ["BiLRP", "Hessian x Product", "integrated Jacobians, pixels"])
def test_exact_on_a_linear_model_of_images(name):
    model, x, x2 = linear(True), nets.image(1, 8, 8), nets.image(2, 8, 8)
    rules = {"rules": bilrp.LRP0()} if name == "BiLRP" else {}
    masks = torch.zeros(4, 1, 8, 8).double()
    for p in range(4):
        masks[p, 0, p // 2 * 4 : p // 2 * 4 + 4, p % 2 * 4 : p % 2 * 4 + 4] = 1
    found = METHODS[name](model, x, x2, 4, **rules)
    torch.testing.assert_close(found.view(4, 4), linear_truth(model, x, x2, masks))


@pytest.mark.parametrize("smooth", [False, True])
def test_hessian_x_product_by_both_ways(smooth):
    """The fast way for networks of ReLUs, one derivative a patch for others: the same numbers."""
    act = nn.Tanh() if smooth else nn.ReLU()
    model = nets.randomise(nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 5)), 3)
    x, x2 = nets.vector(1), nets.vector(2)
    expected = bilrp.hessian_x_product(model, x, x2, 2)
    torch.testing.assert_close(METHODS["Hessian x Product"](model, x, x2, 2), expected)


def test_a_saturated_activation_is_not_taken_for_a_relu():
    model = nets.randomise(nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 5)), 1)
    with torch.no_grad():
        model[0].weight.mul_(20)
    x, x2 = nets.vector(1), nets.vector(2)
    expected = bilrp.hessian_x_product(model, x, x2, 2)
    torch.testing.assert_close(METHODS["Hessian x Product"](model, x, x2, 2), expected)


def test_integrated_jacobians_add_up_with_many_steps():
    model = nets.randomise(nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 5)), 1)
    x, x2 = nets.vector(1), nets.vector(2)
    phi, phi2, zero = (model(v) for v in (x, x2, 0 * x))
    expected = float((phi - zero) @ (phi2 - zero))
    found = methods.integrated_jacobians(model, x, x2, 2, steps=64)
    assert float(found.sum()) == pytest.approx(expected, rel=1e-3)
    few = methods.integrated_jacobians(model, x, x2, 2, steps=1)
    assert abs(float(few.sum()) - expected) > abs(float(found.sum()) - expected)
    with pytest.raises(ValueError, match="steps must be"):
        methods.integrated_jacobians(model, x, x2, 2, steps=0)


def test_deep_integrated_jacobians_at_the_top_are_activation_products():
    """Above the map lies a sum over places: then y = sum_uu' <A_u, A'_u'>."""
    below = nets.randomise(nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU()), 1)
    model = nn.Sequential(*below, nn.AdaptiveAvgPool2d(1))
    x, x2 = nets.image(1, 8, 8), nets.image(2, 8, 8)
    found = methods.integrated_jacobians_deep(model, x, x2, 4, layer=2)
    expected = methods.activation_products(model, x, x2, 4) / 16
    torch.testing.assert_close(found, expected)
    assert float(found.sum()) == pytest.approx(float((model(x) * model(x2)).sum()))


def test_projection_is_the_paper_s():
    model, x, x2 = nets.cnn(1), nets.image(1, 8, 8), nets.image(2, 8, 8)
    rules = bilrp.Gamma(0.1)
    expected = bilrp.explain(model, x, x2, rules, patch=4, project=100, seed=0).relevance
    found = METHODS["BiLRP, K = 100"](model, x, x2, 4, rules=rules)
    torch.testing.assert_close(found, expected)


def test_gamma_leaves_the_rule_of_the_pixels():
    model, x, x2 = nets.cnn(1), nets.image(1, 8, 8), nets.image(2, 8, 8)
    rules = {1: bilrp.WSquare(), "*": bilrp.LRP0()}
    found = METHODS["BiLRP, gamma 0.1"](model, x, x2, 4, rules=rules)
    both = {1: bilrp.WSquare(), "*": bilrp.Gamma(0.1)}
    torch.testing.assert_close(found, bilrp.explain(model, x, x2, both, patch=4).relevance)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_symmetric_in_its_inputs_and_leaves_the_model(name):
    if name == "Shapley interactions":
        pytest.skip("tested below, where shapiq is")
    model = nn.Sequential(*nets.cnn(2)[:8]).float()
    x, x2 = nets.image(1).float(), nets.image(2).float()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    found = METHODS[name](model, x, x2, 8)
    grid = methods.patch_grid(x, 8)
    assert found.shape == (*grid, *grid)
    assert bool(torch.isfinite(found).all())
    assert not found.requires_grad
    other = METHODS[name](model, x2, x, 8).permute(2, 3, 0, 1)
    torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_activation_products_with_gradient_weights_by_hand():
    """phi_k is the mean of map k, so dy / dA_k is phi'_k / places everywhere."""
    model = nn.Sequential(*nets.cnn(2)[:8], nn.AdaptiveAvgPool2d(1))
    x, x2 = nets.image(1), nets.image(2)
    maps, maps2 = (methods.last_map(model, v) for v in (x, x2))
    size = maps[0].numel()
    a, a2 = (m.flatten(1) for m in (maps, maps2))
    weights = a2.mean(1) * a.mean(1) / size**2
    expected = torch.einsum("k,ku,kv->uv", weights, a, a2)
    found = methods.weighted_products(model, x, x2, x.shape[-1] // maps.shape[-1])
    torch.testing.assert_close(found.flatten(2).flatten(0, 1), expected)


def test_similarity_attention_is_of_rank_one_and_finds_what_is_shared():
    model, x, x2 = nets.cnn(2)[:8], nets.image(1), nets.image(2)
    found = methods.similarity_attention(model, x, x2, 8)
    assert torch.linalg.matrix_rank(found.flatten(2).flatten(0, 1)) <= 1
    assert METHODS["similarity attention"].two_maps


def test_pixels_find_a_patch_that_has_moved():
    x = nets.image(1, 16, 16)
    found = methods.pixels(nets.cnn(), x, x.roll(8, 2), 8).flatten(2).flatten(0, 1)
    assert found.argmax(1).tolist() == [1, 0, 3, 2]


@pytest.mark.weights  # not fast: importing shapiq takes seconds
def test_shapley_interactions_of_a_bilinear_similarity():
    pytest.importorskip("shapiq")
    model, x, x2 = linear(), nets.vector(1), nets.vector(2)
    found = METHODS["Shapley interactions"](model, x, x2, 2)
    masks = torch.eye(3).repeat_interleave(2, 1).double()
    torch.testing.assert_close(
        found.double(), linear_truth(model, x, x2, masks), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"6 players have 15 pairs.* budget than 10"):
        methods.shapley_interactions(model, x, x2, 2, budget=10)


def test_shapley_interactions_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -r requirements-bench\.txt"):
        methods.shapley_interactions(linear(), nets.vector(1), nets.vector(2), 2)


PLACES = [
    "activation products",
    "activation products, gradient weights",
    "similarity attention",
    "feature correspondence",
    "pixels",
    "integrated Jacobians, deep",
]


@pytest.mark.parametrize("name", PLACES)
def test_methods_of_places_refuse_vectors(name):
    with pytest.raises(ValueError, match="compares places in images"):
        METHODS[name](nets.mlp(), nets.vector(1), nets.vector(2), 2)


def test_refusals():
    x = nets.image(1, 8, 8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    with pytest.raises(ValueError, match="gives maps with places"):
        methods.activation_products(flat, x, x, 4)
    with pytest.raises(ValueError, match=r"gives no maps \(C, h, w\)"):
        methods.integrated_jacobians_deep(flat, x, x, 4)
    with pytest.raises(ValueError, match=r"an nn\.Sequential only, got Linear"):
        methods.integrated_jacobians_deep(flat[1], x, x, 4)
    with pytest.raises(ValueError, match="between 1 and 10"):
        methods.integrated_jacobians_deep(nets.cnn(), x, x, 4, layer=11)
    big = torch.rand(3, 64, 64)
    with pytest.raises(ValueError, match="small inputs"):
        methods.curvature(nets.cnn().float(), big, big, 8)
    with pytest.raises(ValueError, match="already"):
        methods.add_method("BiLRP", "twice")


def test_a_method_is_added_by_its_name():
    @methods.add_method("constant", "a test")
    def constant(model, x, x2, patch):
        return torch.ones(*methods.patch_grid(x, patch), *methods.patch_grid(x2, patch))

    try:
        assert METHODS["constant"](None, nets.image(1), nets.image(2), 8).unique().tolist() == [1]
    finally:
        del METHODS["constant"]
