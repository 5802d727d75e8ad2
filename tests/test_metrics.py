"""Invariance, linear classifiers, views: numbers that are known, and bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

import bilrp
from bilrp.engine.transforms import VIEWS
from tests import nets

CLIP = torch.tensor([0] * 8 + [1] * 8)
FRAME = torch.arange(8).repeat(2)


def features(seed=0, n=16, d=5):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


# --- Eq. (7) ---------------------------------------------------------------------------------


def test_invariance_is_the_ratio_of_two_means():
    f = features()
    pairs = [(i, j) for i in range(16) for j in range(16)]
    local = [
        float(f[i] @ f[j])
        for i, j in pairs
        if CLIP[i] == CLIP[j] and abs(int(FRAME[i] - FRAME[j])) <= 2
    ]
    everywhere = [float(f[i] @ f[j]) for i, j in pairs]
    expected = (sum(local) / len(local)) / (sum(everywhere) / len(everywhere))
    assert bilrp.invariance(f, CLIP, FRAME, radius=2) == pytest.approx(expected, rel=1e-6)


def test_invariance_of_known_features():
    """Equal features: 1. One-hot by clip: the number of clips. The scale does not matter."""
    assert bilrp.invariance(torch.ones(16, 3), CLIP, FRAME) == pytest.approx(1)
    clips = torch.nn.functional.one_hot(CLIP).float()
    assert bilrp.invariance(7 * clips, CLIP, FRAME, radius=1) == pytest.approx(2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"clip": CLIP[:-1]}, r"got \(16, 5\), \(15,\) and \(16,\)"),
        ({"frame": FRAME[None]}, r"clip \(N,\) and frame \(N,\)"),
        ({"features": torch.ones(16)}, r"needs features \(N, D\)"),
        ({"clip": torch.tensor([0] * 15 + [3])}, "clip 3 has a single frame"),
        ({"frame": 100 * FRAME}, "no two frames of a clip are within radius=5"),
        ({"radius": 0}, "at least 1 frame, got 0"),
        ({"features": torch.full((16, 5), torch.nan)}, "NaN or infinite"),
        ({"features": torch.zeros(16, 5)}, "must be positive, got 0"),
    ],
)
def test_invariance_of_bad_input(change, match):
    given = {"features": features(), "clip": CLIP, "frame": FRAME} | change
    with pytest.raises(ValueError, match=match):
        bilrp.invariance(**given)


# --- support vector machine ------------------------------------------------------------------


def blobs(seed=0, n=40, classes=3, noise=0.4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, 6, generator=generator)
    f = centres[labels] + noise * torch.randn(n, 6, generator=generator)
    return f, labels, torch.arange(n) < n // 2


def test_svm_accuracy_is_that_of_a_linear_machine_on_the_features():
    f, labels, train = blobs(noise=1.2)
    scaled = (f / f[train].square().sum(1).mean().sqrt()).double().numpy()
    grid = {"C": [0.001, 0.01, 0.1, 1, 10, 100, 1000]}
    peer = GridSearchCV(
        SVC(kernel="linear"), grid, cv=StratifiedKFold(4, shuffle=True, random_state=0)
    ).fit(scaled[train], labels[train])
    ours = bilrp.svm_accuracy(f, labels, train)
    assert ours == pytest.approx(peer.score(scaled[~train], labels[~train]))
    assert 0.4 < ours < 1
    assert bilrp.svm_accuracy(1e4 * f, labels, train) == pytest.approx(ours)


def test_svm_accuracy_finds_what_is_there_and_no_more():
    f, labels, train = blobs(noise=0.05)
    assert bilrp.svm_accuracy(f, labels, train) == 1
    generator = torch.Generator().manual_seed(1)
    shuffled = labels[torch.randperm(len(labels), generator=generator)]
    assert bilrp.svm_accuracy(f, shuffled, train) < 0.7


def test_few_examples_of_many_classes_give_no_warning(recwarn):
    f, labels, train = blobs(classes=15, noise=0.05)
    assert bilrp.svm_accuracy(f, labels, train) > 0.5
    assert not [w for w in recwarn if "classes" in str(w.message)]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": torch.zeros(39)}, r"got \(40, 6\), \(39,\) and \(40,\)"),
        ({"labels": torch.zeros(40)}, "the training set holds 1 class"),
        ({"train": torch.arange(40)}, "mask of bool, got torch.int64"),
        ({"train": torch.ones(40, dtype=torch.bool)}, "40 of 40 examples are for training"),
        ({"train": torch.arange(40) < 3}, "3 of 40 examples are for training, with folds=4"),
        ({"C": ()}, "positive numbers to choose from"),
        ({"C": (0.0, 1.0)}, "positive numbers to choose from"),
        ({"features": torch.full((40, 6), torch.inf)}, "NaN or infinite"),
    ],
)
def test_svm_accuracy_of_bad_input(change, match):
    f, labels, train = blobs()
    with pytest.raises(ValueError, match=match):
        bilrp.svm_accuracy(**({"features": f, "labels": labels, "train": train} | change))


# --- views -----------------------------------------------------------------------------------


def test_there_are_eight_different_views_and_each_can_be_undone():
    x = torch.arange(2 * 9.0).view(2, 3, 3)
    assert len({tuple(view.of(x).flatten().tolist()) for view in VIEWS}) == 8
    assert str(VIEWS[0]) == "as it is"
    assert str(VIEWS[5]) == "mirrored, turned 90°"
    for view in VIEWS:
        assert torch.equal(view.undo(view.of(x)), x)
        assert torch.equal(view.of(x.movedim(0, 2), (0, 1)).movedim(2, 0), view.of(x))


def maximum(model, x, x2):
    return max(
        float((model(view.of(x)) * model(view2.of(x2))).sum().detach())
        for view in VIEWS
        for view2 in VIEWS
    )


@given(seed=st.integers(0, 1000))
def test_the_similarity_is_the_greatest_of_64(seed):
    model, x, x2 = nets.cnn(seed % 5), nets.image(seed), nets.image(seed + 1)
    best = bilrp.MaxOverTransforms(model)
    assert float(best(x, x2)) == pytest.approx(maximum(model, x[None], x2[None]))
    view, view2 = best.best(x, x2)
    y = float((model(view.of(x[None])) * model(view2.of(x2[None]))).sum())
    assert y == pytest.approx(float(best(x, x2)))
    # which way either image is held makes no difference
    turned = best(VIEWS[seed % 8].of(x), VIEWS[(seed + 3) % 8].of(x2))
    assert float(turned) == pytest.approx(float(best(x, x2)))


def test_a_batch_is_compared_pair_by_pair():
    best = bilrp.MaxOverTransforms(nets.cnn())
    x, x2 = (torch.stack([nets.image(seed), nets.image(seed + 1)]) for seed in (1, 3))
    expected = torch.stack([best(a, b) for a, b in zip(x, x2, strict=True)])
    torch.testing.assert_close(best(x, x2), expected)


@given(seed=st.integers(0, 1000))
def test_the_explanation_turns_with_the_images(seed):
    """Whatever way the images are held, the scores stay with their patches."""
    best = bilrp.MaxOverTransforms(nets.cnn(seed % 5))
    x, x2 = nets.image(seed), nets.image(seed + 1)
    e = bilrp.explain(best, x, x2, bilrp.Gamma(0.1), patch=4)
    assert e.similarity == pytest.approx(float(best(x, x2)))
    assert float(e.ledger.sum()) == pytest.approx(e.similarity)
    assert float(e.relevance.sum()) == pytest.approx(float(e.ledger[0, 0]))
    view = VIEWS[seed % 8]
    turned = bilrp.explain(best, view.of(x), x2, bilrp.Gamma(0.1), patch=4)
    torch.testing.assert_close(turned.relevance, view.of(e.relevance, (0, 1)))


def test_where_the_plain_pair_is_best_the_explanation_is_the_plain_one():
    model, x = nets.cnn(2), nets.image(7)
    best = bilrp.MaxOverTransforms(model)
    view, view2 = best.best(x, x)
    assert view == view2  # a picture is most similar to itself
    plain = bilrp.explain(model, view.of(x), view.of(x), bilrp.Gamma(0.1), patch=4)
    e = bilrp.explain(best, x, x, bilrp.Gamma(0.1), patch=4)
    undone = view.undo(view.undo(plain.relevance, (0, 1)), (2, 3))
    torch.testing.assert_close(e.relevance, undone)


def test_bad_input_to_max_over_transforms():
    best, x = bilrp.MaxOverTransforms(nets.cnn()), nets.image(1)
    tall = nets.image(1, 16, 8)
    with pytest.raises(ValueError, match=r"must be square.*\(1, 3, 16, 8\).*Crop or pad"):
        best(tall, tall)
    with pytest.raises(ValueError, match="must be square"):
        bilrp.explain(best, tall, tall, bilrp.Gamma(0.1))
    with pytest.raises(ValueError, match="as many x as x2"):
        best(x[None], x)
    with pytest.raises(ValueError, match="one image a side"):
        best.best(torch.stack([x, x]), x)
    with pytest.raises(ValueError, match="not factors or groups"):
        bilrp.explain(best, x, x, bilrp.Gamma(0.1), groups=2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        bilrp.explain(best, torch.full_like(x, torch.nan), x, bilrp.Gamma(0.1))
    with pytest.raises(NotImplementedError, match="MaxOverTransforms"):
        bilrp.factor(best, x, bilrp.Gamma(0.1))


# --- features of VGG-16 ----------------------------------------------------------------------


@pytest.mark.weights
def test_features_of_all_layers_are_those_of_the_network():
    x = bilrp.normalize(torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    found = bilrp.vgg16_features(x, layers=(31, 4, 10), batch=2)
    assert list(found) == [31, 4, 10]
    for layer, f in found.items():
        torch.testing.assert_close(f, bilrp.vgg16(layer)(x).flatten(1), rtol=1e-4, atol=1e-4)
    assert list(bilrp.vgg16_features(x[:1])) == [5, 10, 17, 24, 31]


@pytest.mark.parametrize(
    ("x", "layers", "match"),
    [
        (torch.zeros(3, 64, 64), (5,), r"must be \(N, 3, H, W\).*\(3, 64, 64\)"),
        (torch.zeros(0, 3, 64, 64), (5,), r"\(0, 3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), (5,), "torch.uint8"),
        (torch.zeros(1, 3, 64, 64), (), "whole numbers from 1 to 31"),
        (torch.zeros(1, 3, 64, 64), (32,), "whole numbers from 1 to 31"),
        (torch.zeros(1, 3, 16, 64), (5, 31), "layer 31 needs images of at least 32 x 32"),
        (torch.full((1, 3, 64, 64), torch.nan), (5,), "NaN or infinite"),
    ],
)
def test_bad_input_to_vgg16_features(x, layers, match):
    with pytest.raises(ValueError, match=match):
        bilrp.vgg16_features(x, layers)
