"""The engine on the real VGG-16, with real photos."""

import itertools

import pytest
import torch
import torchvision
import zennit.rules
from torch import nn

import bilrp
from bilrp.book import data
from bilrp.compare import metrics
from bilrp.engine import features as engine
from tests import nets

pytestmark = pytest.mark.weights
RULES = bilrp.vgg16_rules()
# conv1, conv2 ... of VGG-16 with the layers after them up to the next max-pooling.
BLOCKS = [(0, 5), (5, 10), (10, 17), (17, 24), (24, 31)]


@pytest.fixture(scope="module")
def pair():
    tabby, siamese = data.cats(128)[0][[0, 2]]
    return bilrp.normalize(tabby), bilrp.normalize(siamese)


@pytest.fixture(scope="module")
def exact(pair):
    return bilrp.explain(bilrp.vgg16(), *pair, RULES)


@pytest.mark.parametrize("layer", [5, 10, 17, 24, 31])
def test_the_model_is_torchvisions_up_to_a_layer(layer):
    model = bilrp.vgg16(layer)
    assert len(model) == layer
    assert isinstance(model[-1], nn.MaxPool2d)
    assert not model.training
    full = torchvision.models.vgg16(weights=None).features[:layer]
    full.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(full.eval()(x), model(x))


def test_the_model_recognises_what_it_was_trained_on():
    """Guards the weights' order and layout: similar things must have similar features."""
    images, names = data.imagenet_photos(128)
    features = bilrp.vgg16()(bilrp.normalize(images)).flatten(1)
    angle = nn.functional.normalize(features) @ nn.functional.normalize(features).T
    angle.fill_diagonal_(0)
    jeeps = [i for i, name in enumerate(names) if name == "jeep"]
    assert sorted(divmod(int(angle.argmax()), len(names))) == jeeps


def test_layers_are_counted_from_one():
    with pytest.raises(ValueError, match="1 to 31, got 0"):
        bilrp.vgg16(0)
    with pytest.raises(ValueError, match="1 to 31, got 32"):
        bilrp.vgg16(32)


def test_the_ledger_adds_up_in_float32(exact, pair):
    with torch.no_grad():
        a, b = (bilrp.vgg16()(x[None]).flatten().double() for x in pair)
    assert exact.similarity == pytest.approx(float(a @ b), rel=1e-5)
    assert float(exact.ledger.sum()) == pytest.approx(exact.similarity, rel=1e-5)
    assert float(exact.ledger[0, 0]) == pytest.approx(float(exact.relevance.sum()), rel=1e-5)
    assert exact.owners == ("input", *bilrp.VGG16_NAMES)
    assert 0.4 < float(exact.ledger[0, 0]) / exact.similarity < 0.9


@pytest.mark.parametrize("layer", [10, 17, 31])
def test_single_features_pulled_back_are_columns_of_the_factor(layer, pair):
    model = bilrp.vgg16(layer)
    factor = bilrp.factor(model, pair[0], RULES)
    strongest = factor.features.topk(3).indices
    seeds = torch.zeros(3, len(factor.features))
    seeds[torch.arange(3), strongest] = factor.features[strongest]
    pulled = bilrp.lrp(model, pair[0], RULES, seeds.view(3, *factor.feature_shape))
    by_patch = pulled.sum(1).unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).sum((2, 4)).flatten(1)
    columns = factor.dense()[:, strongest].T
    scale = float(columns.abs().max())
    torch.testing.assert_close(columns / scale, by_patch / scale, rtol=1e-4, atol=1e-5)


def test_the_projection_of_the_paper(exact, pair):
    """Pulling projected features back agrees with projecting the factors, and K must be large."""
    factors = [bilrp.factor(bilrp.vgg16(), x, RULES) for x in pair]
    pulled = bilrp.explain(bilrp.vgg16(), *pair, RULES, project=8, seed=1)

    def projected(k, seed):
        w = engine.random_projection(k, 8192, seed)
        a, b = (f.dense() @ w.T for f in factors)
        return (a @ b.T).view_as(exact.relevance)

    scale = float(pulled.relevance.abs().max())
    torch.testing.assert_close(pulled.relevance / scale, projected(8, 1) / scale, rtol=0, atol=1e-5)
    cosines = [metrics.cosine(projected(k, 0), exact.relevance) for k in (10, 100, 1000, 10_000)]
    assert cosines == sorted(cosines)
    assert cosines[1] < 0.9 < cosines[3]


@pytest.mark.parametrize(
    ("block", "first"),
    [(BLOCKS[0], "zb"), *itertools.product(BLOCKS, ("gamma", "epsilon", "lrp0"))],
    ids=str,
)
def test_each_block_agrees_with_zennit(block, first, pair):
    """Every rule on every block of the real network, at its real activations."""
    low, high = ((v - bilrp.models.MEAN) / bilrp.models.STD for v in (0, 1))
    rules = {
        "zb": (bilrp.ZB(low, high), zennit.rules.ZBox(low[None], high[None], stabilizer=1e-12)),
        "gamma": (bilrp.Gamma(0.25), zennit.rules.Gamma(0.25, stabilizer=1e-12)),
        "epsilon": (bilrp.Epsilon(0.1), zennit.rules.Epsilon(0.1)),
        "lrp0": (bilrp.LRP0(), zennit.rules.Epsilon(1e-12)),
    }
    others = "gamma" if first == "zb" else first
    full = bilrp.vgg16().double()
    a = full[: block[0]](pair[0].double()[None])[:, :, :32, :32]
    model = full[block[0] : block[1]]
    relevance = model(a)
    below, above = (lambda: rules[first][1].copy()), (lambda: rules[others][1].copy())
    expected = nets.zennit_lrp(model, a, relevance, below, above)
    ours = bilrp.lrp(model, a, {1: rules[first][0], range(2, 99): rules[others][0]})
    error = float((ours - expected).abs().max() / expected.abs().max())
    assert error < 1e-5


def test_small_products_change_little(exact, pair):
    rough = bilrp.explain(bilrp.vgg16(), *pair, RULES, dtype=torch.bfloat16)
    assert 0.999 < metrics.cosine(rough.relevance, exact.relevance) < 1


@pytest.mark.parametrize("layer", [5, 17])
def test_larger_images_and_lower_layers(layer):
    left, right = (bilrp.normalize(v) for v in data.cats(224)[0][:2])
    e = bilrp.explain(bilrp.vgg16(layer), left, right, RULES, patch=16)
    assert e.relevance.shape == (14, 14, 14, 14)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-5)


def test_unnormalised_pixels_are_refused(pair):
    photo = data.cats(128)[0][0]
    with pytest.raises(ValueError, match=r"found values from \d.* to 2\d\d.*bilrp.normalize"):
        bilrp.explain(bilrp.vgg16(5), photo * 255, pair[1], RULES)
    with pytest.raises(ValueError, match="at least 32 x 32 pixels"):
        bilrp.explain(bilrp.vgg16(), pair[0][:, :24, :24], pair[1], RULES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_numbers(exact, pair):
    model = bilrp.vgg16().cuda()
    e = bilrp.explain(model, *(x.cuda() for x in pair), RULES)
    assert e.relevance.is_cuda
    scale = float(exact.relevance.abs().max())
    torch.testing.assert_close(
        e.relevance.cpu() / scale, exact.relevance / scale, rtol=0, atol=1e-4
    )
