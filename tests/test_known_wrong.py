"""Every number that was once wrong without a word, and every crash: each stays right or refused."""

import importlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilrp
from tests import nets

GAMMA = bilrp.Gamma(0.25)
RULES = [bilrp.LRP0(), GAMMA, bilrp.Epsilon(0.1)]
X, X2 = nets.image(1), nets.image(2)
V, V2 = nets.vector(1), nets.vector(2)


def test_one_relu_and_one_pool_used_twice():
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    convolutions = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    model = nn.Sequential(convolutions[0], relu, pool, convolutions[1], relu, pool)
    for rule in RULES:
        nets.contract(nets.randomise(model, 1), X, rule)


def test_a_layer_used_twice_has_its_bias_counted_twice():
    linear = nn.Linear(6, 6)
    model = nets.randomise(nn.Sequential(linear, nn.ReLU(), linear, nn.ReLU()), 1)
    for rule in RULES:
        trace = nets.contract(model, V, rule)
        assert trace.absorbing.count("0") == 1


class TwiceReLU(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


class HalfDropout(nn.Dropout):
    def forward(self, x):
        return super().forward(x) * 0.5 + 1


class MinusBatchNorm(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) - x


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_subclasses_with_a_forward_of_their_own(rule):
    for layer in (TwiceReLU(), HalfDropout(), MinusBatchNorm(6), ScaledLinear(6, 6)):
        model = nets.randomise(nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 4)), 3)
        nets.contract(model, V, rule)


def test_forward_hooks_and_pre_hooks():
    for rule in RULES:
        model = nets.mlp(2)
        model[0].register_forward_hook(lambda m, args, out: out * 3)
        model[2].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
        nets.contract(model, V, rule)


@pytest.mark.parametrize("kind", ["old", "parametrized", "spectral"])
def test_weight_norm(kind):
    model = nets.mlp(2)
    if kind == "old":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(model[2])
        model[2].weight_g.data.mul_(3)
    elif kind == "parametrized":
        nn.utils.parametrizations.weight_norm(model[2])
        model[2].parametrizations.weight.original0.data.mul_(3)
    else:
        nn.utils.parametrizations.spectral_norm(model[2])
    nets.contract(model.eval(), V, GAMMA)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_linear_layer_after_flatten_2(rule):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 5))
    trace = nets.contract(nets.randomise(model, 1), nets.image(1, 8, 8), rule)
    assert {"0", "3"} <= set(trace.absorbing)


def test_z_b_above_the_first_layer_and_on_black_pixels():
    model = nets.cnn(1)
    rules = {"2": bilrp.ZB(-1.0, 9.0), 1: bilrp.LRP0(), range(4, 99): GAMMA}
    trace = nets.contract(model, X, rules)
    assert "2, z^B at zeros" in trace.absorbing
    black = X.clone()
    black[:, 3:9, 2:12] = 0
    nets.contract(model, black, rules)
    with torch.no_grad():
        model[0].weight.abs_()
    for picture in (black, torch.zeros_like(X)):
        nets.contract(model, picture, {1: bilrp.ZB(0.0, 1.0), range(2, 99): GAMMA})


def test_pass_on_batch_norm_and_on_other_layers_that_keep_the_shape():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    for key in (2, 4, nn.BatchNorm2d, "3"):
        nets.contract(nets.randomise(model, 1), X, {key: bilrp.Pass(), range(1, 9): GAMMA})
    linear = nets.randomise(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), 2)
    nets.contract(linear, V, bilrp.Pass())
    nets.contract(linear, V * 0, bilrp.Pass())


@pytest.mark.parametrize("beyond", [1e-12, 1e-8, 5e-5])
def test_z_b_of_an_input_just_outside_its_box(beyond):
    linear = nets.randomise(nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU()), 4)
    inside = torch.zeros(6, dtype=torch.float64)
    outside = inside - beyond
    rules = bilrp.ZB(0.0, 1.0)
    for x in (inside, outside):
        f = bilrp.factor(linear, x, rules)
        assert float(f.values.abs().max()) <= float(f.features.abs().max()) * (1 + 1e-9) + 1e-15
    with pytest.raises(ValueError, match="must lie within"):
        bilrp.factor(linear, inside - 0.1, rules)


def test_max_over_transforms_in_training_mode_changes_nothing_and_sees_no_batch():
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    model = bilrp.MaxOverTransforms(nets.randomise(inner, 1))
    expected = bilrp.explain(model, X, X2, GAMMA)
    views = model.best(X, X2)
    model.train()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    e = bilrp.explain(model, X, X2, GAMMA)
    assert model.best(X, X2) == views
    assert all(m.training for m in model.modules())
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    torch.testing.assert_close(e.relevance, expected.relevance)


def test_max_over_transforms_takes_a_double_model_and_a_device():
    model = bilrp.MaxOverTransforms(nets.cnn(1))
    single = bilrp.explain(model, X.float(), X2.float(), GAMMA)
    assert single.relevance.dtype == torch.float64
    with_device = bilrp.explain(model, X, X2, GAMMA, device="cpu", dtype=torch.float32)
    assert with_device.relevance.dtype == torch.float32
    assert with_device.similarity == pytest.approx(single.similarity, rel=1e-5)


def test_factors_that_do_not_go_together_are_refused_with_the_difference():
    f = bilrp.factor(nets.mlp(1), V, GAMMA)
    refused = [
        (bilrp.factor(nets.mlp(2), V, GAMMA), "other weights"),
        (bilrp.factor(nets.mlp(1), V, bilrp.Gamma(0.5)), r"rules are.*0\.25.*0\.5"),
        (bilrp.factor(nets.mlp(1), V, GAMMA, project=3), "projections are none, exact and 3"),
    ]
    for other, match in refused:
        with pytest.raises(ValueError, match=match):
            f.explain(other)
    a, b = (bilrp.factor(nets.mlp(1), V, GAMMA, project=3, seed=s) for s in (0, 1))
    with pytest.raises(ValueError, match=r"seed 0, of features .* and 3 dimensions, seed 1"):
        a.explain(b)
    with pytest.raises(ValueError, match="another model"):
        bilrp.explain(nets.mlp(2), f, V, GAMMA)
    low, high = (bilrp.factor(nets.mlp(1), V, bilrp.ZB(low, 1.0)) for low in (-1.0, 0.0))
    with pytest.raises(ValueError, match="rules are"):
        low.explain(high)


def test_the_rules_of_a_call_and_of_its_factors_agree():
    f = bilrp.factor(nets.mlp(1), V, GAMMA)
    with pytest.raises(ValueError, match="rules"):
        bilrp.explain(nets.mlp(1), f, V2, bilrp.LRP0())
    with pytest.raises(ValueError, match="projection"):
        bilrp.explain(nets.mlp(1), f, V2, GAMMA, project=3)


def test_a_changed_model_is_another_model():
    model = nets.mlp(1)
    f = bilrp.factor(model, V, GAMMA)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="other weights"):
        f.explain(bilrp.factor(model, V2, GAMMA))


def test_the_similarity_of_a_projection_is_y_and_the_estimate_stands_beside_it():
    model = nets.cnn(1)
    e, exact = (bilrp.explain(model, X, X2, GAMMA, project=k) for k in (5, None))
    with torch.no_grad():
        y = float((model(X[None]) * model(X2[None])).sum())
    assert e.similarity == pytest.approx(y, rel=1e-12)
    assert exact.similarity == pytest.approx(y, rel=1e-12)
    assert exact.estimate is None
    assert e.estimate != pytest.approx(y, rel=1e-3)
    assert float(e.ledger.sum()) == pytest.approx(e.estimate, rel=1e-10)


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_kernels_smaller_than_their_stride(patch):
    model = nets.randomise(nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.ReLU()), 1)
    e = bilrp.explain(model, X, X2, GAMMA, patch=patch)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-10)
    nets.contract(model, X, GAMMA)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_ceil_mode(pool):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool(2, ceil_mode=True))
    model.append(pool(3, 2, 1, ceil_mode=True))
    for size in ((16, 24), (6, 5), (3, 3)):
        nets.contract(nets.randomise(model, 1), nets.image(1, *size), GAMMA)


def test_nothing_but_an_identity():
    for model in (nn.Identity(), nn.Sequential(), nn.Dropout()):
        e = bilrp.explain(model.eval(), V, V2)
        torch.testing.assert_close(e.relevance, torch.diag(V * V2))
        assert e.owners == ("input",)
    nets.contract(nn.Flatten().eval(), X)


def test_few_living_features_of_many_need_no_square_matrix(monkeypatch):
    """100,000 features of which 3 live: an identity of all of them would take 40 GB."""
    model = nets.randomise(nn.Sequential(nn.Linear(6, 100_000), nn.ReLU()), 1)
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(-1e3)
        model[0].bias[[5, 70, 99_999]] = 1.0
    f = bilrp.factor(model, V, GAMMA)
    assert int((f.features != 0).sum()) == 3
    torch.testing.assert_close(f.values.sum(0) + f.absorbed.sum(0), f.features)


def test_groups():
    with pytest.raises(ValueError, match=r"whole numbers >= 0.*torch\.bool"):
        bilrp.explain(nets.mlp(1), V, V2, GAMMA, groups=V > 0.5)
    with pytest.raises(ValueError, match="groups"):
        bilrp.explain(nets.mlp(1), V, V2, GAMMA, groups=True)
    ids = torch.tensor([0, 0, 1, 1, 3, 3], dtype=torch.int32)
    e = bilrp.explain(nets.mlp(1), V, V2, GAMMA, groups=ids)
    assert e.relevance.shape == (4, 4)
    assert not e.relevance[2].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_groups_on_a_gpu():
    model, ids = nets.mlp(1).cuda(), torch.arange(6).cuda() // 2
    e = bilrp.explain(model, V.cuda(), V2, GAMMA, groups=ids)
    expected = bilrp.explain(nets.mlp(1), V, V2, GAMMA, groups=2)
    torch.testing.assert_close(e.relevance.cpu(), expected.relevance)


def test_autocast_has_no_say():
    model = nets.cnn(1).float()
    expected = bilrp.explain(model, X, X2, GAMMA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e = bilrp.explain(model, X, X2, GAMMA)
        assert torch.is_autocast_enabled("cpu")
    assert e.relevance.dtype == torch.float32
    assert torch.equal(e.relevance, expected.relevance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value):
    model = nets.mlp(1)
    with torch.no_grad():
        model[2].weight[0, 0] = value
    with pytest.raises(ValueError, match=r"NaN or infinite.*weights"):
        bilrp.explain(model, V, V2, GAMMA)


def test_the_matrix_of_an_image_and_a_vector():
    f = nn.Sequential(nn.Flatten(), nets.randomise(nn.Linear(192, 5), 1)).double()
    g = nets.mlp(1)
    e = bilrp.explain((f, g), nets.image(1, 8, 8), V, GAMMA, patch=4)
    assert e.relevance.shape == (2, 2, 6)
    assert e.matrix.shape == (4, 6)
    torch.testing.assert_close(e.matrix.sum(), e.relevance.sum())
    back = bilrp.explain((g, f), V, nets.image(1, 8, 8), GAMMA, patch=4)
    torch.testing.assert_close(back.matrix, e.matrix.T)


def test_explanations_are_compared_and_hashed_by_identity():
    e, same = (bilrp.explain(nets.mlp(1), V, V2, GAMMA) for _ in range(2))
    assert e == e
    assert e != same
    assert len({e, same}) == 2


def test_no_submodule_carries_the_name_of_a_public_function():
    for name in bilrp.__all__:
        if callable(getattr(bilrp, name)) and name.islower():
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(f"bilrp.{name}")
    assert callable(bilrp.explain)
    assert callable(bilrp.features)
    from bilrp.engine import features

    assert callable(bilrp.features)
    assert features is not bilrp.features


@pytest.mark.parametrize("key", [99, 0, "no.such.*", nn.Conv3d, lambda m: False])
def test_a_rule_for_a_layer_that_is_not_there(key):
    with pytest.raises(ValueError, match="fits no module"):
        bilrp.explain(nets.mlp(1), V, V2, {key: GAMMA, range(1, 9): GAMMA})


def test_ranges_of_layers_may_be_longer_than_the_model():
    bilrp.explain(nets.mlp(1), V, V2, {range(1, 99): GAMMA})


def test_rows_of_a_float_tensor_are_tokens():
    model = nets.randomise(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Flatten()), 1)
    tokens = torch.stack([V, V2, V + V2])
    e = bilrp.explain(model, tokens, tokens, GAMMA)
    assert e.relevance.shape == (3, 3)
    nets.contract(model, tokens, GAMMA)
    with_batch = bilrp.explain(model, tokens[None], tokens[None], GAMMA)
    torch.testing.assert_close(with_batch.relevance, e.relevance)
    factors = bilrp.factor(nets.mlp(1), [V, V2], GAMMA)
    assert [f.grid for f in factors] == [(6,), (6,)]
    assert F.relu(factors[0].features).shape == (5,)


class Lying(nn.Module):
    """A network that sees how its maps lie in memory: by a view, or by a stride."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 3, padding=1), how

    def forward(self, x):
        maps = self.conv(x).relu()
        if self.how == "view":
            return maps.view(len(maps), -1)
        return (maps * maps.stride(1)).flatten(1)


@pytest.mark.parametrize("how", ["view", "stride"])
def test_how_maps_lie_in_memory_changes_nothing(how):
    """The engine runs networks with channels last, where they let it."""
    model = nets.randomise(Lying(how), 3)
    image = nets.image(3, 8, 12)
    torch.testing.assert_close(bilrp.features(model, image), model(image[None]))
    nets.contract(model, image, GAMMA)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_one_row_of_patches_through_fields_that_overlap(shape):
    """Windows of one row lie over each other in memory; nothing may be written into them."""
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 3))
    model = nets.randomise(nn.Sequential(*layers, nn.ReLU()), 5)
    e = bilrp.explain(model, nets.image(1, *shape), nets.image(2, *shape), GAMMA, patch=8)
    whole = bilrp.explain(model, nets.image(1, *shape), nets.image(2, *shape), GAMMA, patch=1)
    rows, cols = (n // 8 for n in shape)
    summed = whole.relevance.view(rows, 8, cols, 8, rows, 8, cols, 8).sum((1, 3, 5, 7))
    torch.testing.assert_close(e.relevance, summed)


def test_only_layers_of_one_term_run_on_living_neurons():
    """Terms side by side in channels are no product of weights with what comes in."""
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = nets.randomise(nn.Sequential(*layers, nn.ReLU()), 2)
    image = nets.image(0, 16, 24)
    image[:, 2:7, 3:9] = 0
    rules = {1: GAMMA, range(2, 99): bilrp.ZB(0.0, 100.0)}
    trace = bilrp.Trace(model, image[None], rules)
    several = [s for s in trace.steps if s.local and len(s.local.terms[0].factors) > 1]
    assert len(several) == 2
    assert all(trace.living_cost(s, 4) == float("inf") for s in several)
    nets.contract(model, image, rules)
