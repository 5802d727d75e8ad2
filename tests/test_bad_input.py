"""Bad input: the error says what was given, what is accepted and what to do."""

import pytest
import torch
from torch import nn

import bilrp
from bilrp.engine import features as engine
from tests import nets

GAMMA = bilrp.Gamma(0.25)
X, X2 = nets.image(1), nets.image(2)
V = nets.vector(1)


def refuses(match, *args, error=ValueError, **options):
    with pytest.raises(error, match=match):
        bilrp.explain(*args, **options)


def test_wrong_number_of_dimensions():
    refuses(r"got the shape \(1, 1, 3, 16, 16\)", nets.cnn(), X[None, None], X2, GAMMA)
    refuses(r"must be \(N, 3, H, W\).*got the shape \(1, 6\)", nets.cnn(), V, V, GAMMA)
    refuses(r"shape \(1, 3, 16, 16\). In layer 1 \(Linear", nets.mlp(), X, X2, GAMMA)
    refuses(r"one input at a time.*batch of 2", nets.cnn(), torch.stack([X, X2]), X, GAMMA)


def test_wrong_number_of_channels_or_features():
    refuses(r"layer 1 \(Conv2d.*to have 3 channels", nets.cnn(), X[:1], X2[:1], GAMMA)
    refuses(r"shape \(1, 5\). In layer 1 \(Linear, named '0'\)", nets.mlp(), V[:5], V, GAMMA)


def test_not_a_tensor_of_floats():
    refuses(r"torch.Tensor, got ndarray", nets.cnn(), X.numpy(), X2, GAMMA)
    refuses(r"floating-point.*torch.uint8", nets.cnn(), (X * 255).byte(), X2, GAMMA)


@pytest.mark.parametrize("sizes", [(4, 16), (16, 4), (7, 16)])
def test_images_smaller_than_the_pooling(sizes):
    small = nets.image(1, *sizes)
    refuses(
        r"In layer 11 \(MaxPool2d, named '10'\).*too small.*at least 8 x 8 pixels",
        nets.cnn(), small, small, GAMMA, patch=1,
    )  # fmt: skip
    eight = nets.image(1, 8, 8)
    assert bilrp.explain(nets.cnn(), eight, eight, GAMMA).relevance.shape == (1, 1, 1, 1)


def test_a_patch_that_does_not_divide_the_image():
    refuses(r"patch=5 does not divide.*16 x 16.*1, 2, 4, 8, 16", nets.cnn(), X, X2, GAMMA, patch=5)
    refuses(r"patch must be a whole number >= 1, got 0", nets.cnn(), X, X2, GAMMA, patch=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_or_infinity_is_found_before_any_work(value, monkeypatch):
    broken = X.clone()
    broken[0, 3, 3] = value
    monkeypatch.setattr(nn.functional, "conv2d", lambda *a, **k: pytest.fail("work was done"))
    refuses("NaN or infinite", nets.cnn(), broken, X2, GAMMA)
    with pytest.raises(ValueError, match="NaN or infinite"):
        bilrp.lrp(nets.mlp(), torch.full((6,), value, dtype=torch.float64), GAMMA)


def test_features_that_differ_in_number():
    refuses(r"\(8, 2, 2\) and \(8, 4, 2\)", nets.cnn(), X, nets.image(2, 32, 16), GAMMA)


def test_a_layer_without_a_map():
    class Running(nn.Module):
        def forward(self, x):
            return x.cumprod(-1)

    model = nn.Sequential(nn.Linear(6, 4), nn.Sequential(Running())).double()
    refuses(
        r"cumprod, called at test_bad_input.py:\d+ in layer 2 \(Running, named '1.0'\), has no rel"
        r".*@bilrp.register\(Running\)",
        model, V, V, GAMMA, error=NotImplementedError,
    )  # fmt: skip

    class Own(nn.Module):
        pass

    refuses("forward", Own(), V, V, GAMMA, error=NotImplementedError)
    refuses("model must be an nn.Module", (Own(), "f"), V, V, GAMMA)
    refuses("MaxOver.*two images", (bilrp.MaxOverTransforms(nets.cnn()),) * 2, X, X2, GAMMA,
            error=NotImplementedError)  # fmt: skip


def test_layers_that_are_supported_only_in_part():
    norm = nn.BatchNorm2d(3, track_running_stats=False).double()
    refuses("running statistics", nn.Sequential(norm), X, X2, GAMMA, error=NotImplementedError)


def test_a_layer_without_a_rule():
    rules = {1: GAMMA}
    refuses(
        r"layer 3 \(Linear, named '2'\) has weights but no rule.*3: bilrp.Gamma",
        nets.mlp(), V, V, rules, error=NotImplementedError,
    )  # fmt: skip
    refuses("must be one Rule.*got list", nets.mlp(), V, V, [GAMMA], error=TypeError)
    refuses("expected int or range", nets.mlp(), V, V, {1.5: GAMMA}, error=TypeError)
    refuses("expected int or range", nets.mlp(), V, V, {1: 0.1}, error=TypeError)
    refuses("WinnerTakeAll.*weights", nets.mlp(), V, V, bilrp.WinnerTakeAll(), error=TypeError)


def test_pass_needs_a_layer_that_keeps_the_shape():
    refuses(r"layer 5 \(MaxPool2d.*Pass", nets.cnn(), X, X2, {range(1, 5): GAMMA, 5: bilrp.Pass()})


def test_pixels_outside_the_box():
    rules = {1: bilrp.ZB(0.0, 1.0), range(2, 99): GAMMA}
    refuses(r"within \[0, 1\].*from -0\.\d+ to 1\.\d+", nets.cnn(), X * 1.5 - 0.2, X2, rules)
    with pytest.raises(ValueError, match="low must not exceed high"):
        bilrp.ZB(1.0, 0.0)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_parameters_of_rules(value):
    with pytest.raises(ValueError, match=f"gamma must be.*{value}"):
        bilrp.Gamma(value)
    with pytest.raises(ValueError, match=f"epsilon must be.*{value}"):
        bilrp.Epsilon(value)


def test_groups():
    model = nets.mlp()
    refuses(r"groups=4.*6", model, V, V, GAMMA, groups=4)
    refuses(r"shape \(6,\).*\(3,\)", model, V, V, GAMMA, groups=torch.tensor([0, 1, 2]))
    refuses("whole numbers >= 0", model, V, V, GAMMA, groups=torch.arange(6) - 1)
    refuses(r"\(16, 16\)", nets.cnn(), X, X2, GAMMA, groups=torch.zeros(8, 8, dtype=torch.long))


def test_other_options():
    refuses("project must be a whole number >= 1, got 0", nets.cnn(), X, X2, GAMMA, project=0)
    refuses("chunk must be a whole number >= 1, got -1", nets.cnn(), X, X2, GAMMA, chunk=-1)
    refuses("dtype must be.*int64", nets.cnn(), X, X2, GAMMA, dtype=torch.int64)


def test_output_of_lrp():
    with pytest.raises(ValueError, match=r"\(5,\).*\(4,\)"):
        bilrp.lrp(nets.mlp(), V, GAMMA, torch.ones(4))
    with pytest.raises(ValueError, match="3 input"):
        bilrp.lrp(nets.mlp(), [V, V, V], GAMMA, torch.ones(2, 5))
    with pytest.raises(ValueError, match="one or more inputs of one shape"):
        bilrp.lrp(nets.cnn(), [X, nets.image(1, 32, 16)], GAMMA)


def test_normalize():
    with pytest.raises(ValueError, match=r"\(1, 16, 16\)"):
        bilrp.normalize(X[:1])
    with pytest.raises(ValueError, match="divide bytes by 255"):
        bilrp.normalize(X * 255)


def test_factors_of_different_models():
    f = bilrp.factor(nets.cnn(), X, GAMMA)
    g = bilrp.factor(nn.Sequential(nets.cnn(), nn.Identity()), X, GAMMA)
    with pytest.raises(ValueError, match="different models"):
        f.explain(g)


@pytest.mark.parametrize("options", [{}, {"project": 3}])
def test_memory_that_runs_out_leads_to_smaller_chunks(options, monkeypatch):
    sizes = []

    def limited(original, largest):
        def run(*args):
            sizes.append(args[-1] if isinstance(args[-1], int) else len(args[-1]))
            if sizes[-1] > largest:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(*args)

        return run

    places = ((engine, "_pushed"), (engine, "_joined"), (bilrp.Trace, "pull_rows"))
    expected = bilrp.explain(nets.cnn(), X, X2, GAMMA, patch=4, **options)
    for place, name in places:
        monkeypatch.setattr(place, name, limited(getattr(place, name), 2))
    e = bilrp.explain(nets.cnn(), X, X2, GAMMA, patch=4, **options)
    assert max(sizes) > 2
    torch.testing.assert_close(e.relevance, expected.relevance)
    for place, name in places:
        monkeypatch.setattr(place, name, limited(getattr(place, name), 0))
    refuses("3 x 16 x 16: lower its size", nets.cnn(), X, X2, GAMMA, error=MemoryError, **options)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert engine.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not engine.out_of_memory(RuntimeError("shapes do not match"))
