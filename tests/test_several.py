"""Three inputs and more: every contraction against sums written out, and what is refused."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import bilrp


def small(features: int = 7, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, features), nn.ReLU()).double()
    with torch.no_grad():
        net[0].weight += 0.1  # so that no input leaves all features dead
        net[2].weight += 0.1
    return net


def inputs(n: int, seed: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return list(8 * torch.rand(n, 6, generator=g, dtype=torch.float64))


def brute(factors: list[bilrp.Factor]) -> Tensor:
    """R by loops over all tuples of owners."""
    made = [f.dense() for f in factors]
    whole = torch.zeros([len(a) for a in made], dtype=torch.float64)
    for at in product(*(range(len(a)) for a in made)):
        terms = (math.prod(float(a[p, k]) for a, p in zip(made, at, strict=True))
                 for k in range(made[0].shape[1]))  # fmt: skip
        whole[at] = sum(terms)
    return whole


@pytest.fixture(scope="module")
def three() -> tuple[nn.Module, list[bilrp.Factor], bilrp.Several, Tensor]:
    model = small()
    factors = bilrp.factor(model, inputs(3), bilrp.Gamma(0.1), groups=2)
    return model, factors, bilrp.several(factors), brute(factors)


def test_y_is_the_sum_of_products_of_the_models_features(three):
    model, _, s, _ = three
    phi = torch.stack([model(x[None])[0] for x in inputs(3)])
    assert s.similarity == pytest.approx(float(phi.detach().prod(0).sum()), rel=1e-12)
    assert s.similarity > 0.01


def test_all_owners_of_all_inputs(three):
    _, _, s, whole = three
    assert torch.allclose(s.relevance(":", ":", ":"), whole, rtol=1e-12, atol=0)
    assert s.carried() == pytest.approx(float(whole.sum()), rel=1e-12)
    assert float(s.relevance()) == pytest.approx(s.similarity, rel=1e-12)
    assert float(s.relevance("input", "input", "input")) == pytest.approx(s.carried())


def test_numbers_lists_masks_and_slices(three):
    _, _, s, whole = three
    mask = torch.tensor([True, False, True])
    expected = whole[mask].sum(0)[[2, 0]][:, 1]
    assert torch.allclose(s.relevance(mask, [2, 0], 1), expected, rtol=1e-12, atol=0)
    assert torch.allclose(s.relevance(slice(None), "input", ":"), whole.sum(1), rtol=1e-12)
    assert s.relevance([1], 0, 2).shape == (1,)
    assert float(s.relevance(~mask & mask, ":", ":").abs().max()) == 0


def test_all_is_the_input_with_its_biases(three):
    _, factors, s, whole = three
    sinks = factors[2].absorbed.sum(0)
    a, b = factors[0].dense(), factors[1].dense()
    expected = whole.sum(2) + (a[:, None] * b[None] * sinks).sum(2)
    assert torch.allclose(s.relevance(":", ":"), expected, rtol=1e-10)
    assert float(sinks.abs().max()) > 1e-3  # else the two would not differ


def test_a_pair_given_the_third_is_an_explanation_whose_ledger_adds_up(three):
    _, _, s, whole = three
    e = s.pair(0, 2)
    assert e.similarity == pytest.approx(s.similarity, rel=1e-12)
    assert float(e.ledger.sum()) == pytest.approx(s.similarity, rel=1e-10)
    assert torch.allclose(e.relevance, s.relevance(":", "all", ":"), rtol=1e-12)
    assert float(e.ledger[0, 0]) == pytest.approx(float(e.relevance.sum()), rel=1e-10)
    given = s.pair(2, 0, {1: 1})
    assert torch.allclose(given.relevance, whole[:, 1].T, rtol=1e-12)


def test_where_the_third_is_all_one_a_pair_is_the_ordinary_explanation():
    """A third encoder whose features are one whatever it is shown: two n = 2 slices."""
    model, (x, x2, x3) = small(), inputs(3)
    ones = nn.Sequential(nn.Linear(6, 7)).double()
    with torch.no_grad():
        ones[0].weight.zero_()
        ones[0].bias.fill_(1.0)
    rules = bilrp.Gamma(0.1)
    factors = [*bilrp.factor(model, [x, x2], rules), bilrp.factor(ones, x3, rules)]
    s, plain = bilrp.several(factors, encoders=True), bilrp.explain(model, x, x2, rules)
    for e, expected in (
        (s.pair(0, 1), plain.relevance),
        (s.pair(1, 0), plain.relevance.T),
    ):
        assert torch.allclose(e.relevance, expected, rtol=1e-12, atol=1e-14)
        assert e.similarity == pytest.approx(plain.similarity, rel=1e-12)
    assert torch.allclose(s.pair(0, 1).ledger, plain.ledger, rtol=1e-10, atol=1e-13)


def test_two_inputs_are_the_ordinary_explanation():
    model, (x, x2) = small(), inputs(2)
    s = bilrp.several(bilrp.factor(model, [x, x2]))
    e = bilrp.explain(model, x, x2)
    assert torch.allclose(s.relevance(":", ":"), e.relevance, rtol=1e-10)
    assert s.similarity == pytest.approx(e.similarity, rel=1e-12)


def test_five_images_in_windows_and_places_on_a_grid():
    """Features that keep their places; the factors are kept in windows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    images = list(torch.rand(5, 1, 8, 8))
    factors = bilrp.factor(model, images, bilrp.Gamma(0.1), patch=4)
    s, a = bilrp.several(factors), [f.dense().double() for f in factors]
    expected = torch.einsum("pk,k,k,k,qk->pq", a[0], *(f.features.double() for f in factors[1:4]),
                            a[4]).view(2, 2, 2, 2)  # fmt: skip
    assert torch.allclose(s.relevance(":", "all", "all", "all", ":"), expected, rtol=1e-5)
    one = s.relevance((1, 0), "input", [(0, 1), 3], torch.ones(2, 2, dtype=torch.bool), 2)
    terms = [a[0][2], a[1].sum(0), a[2][[1, 3]], a[3].sum(0), a[4][2]]
    assert torch.allclose(one, (terms[0] * terms[1] * terms[3] * terms[4] * terms[2]).sum(1))
    assert s.pair(0, 4).relevance.shape == (2, 2, 2, 2)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ((7,), "no owner 7"),
        ((-1,), "no owner -1"),
        (((0, 1),), "a choice of owners"),
        ((True,), "a choice of owners"),
        (("some",), "a choice of owners"),
        ((torch.tensor([True, False]),), r"of shape \(2,\)"),
        ((torch.tensor([0, 1]),), "a choice of owners"),
        (("all", "all", "all", "all"), "4 choices for 3 inputs"),
    ],
)
def test_choices_that_do_not_fit(three, choices, said):
    with pytest.raises(ValueError, match=said):
        three[2].relevance(*choices)


def test_pairs_that_are_none(three):
    s = three[2]
    for args in ((0, 0), (0, 3), (0, 1, {0: 1}), (0, 1, {2: ":"}), (0, 1, {5: 1})):
        with pytest.raises(ValueError, match=r"pair must|no input|must be summed"):
            s.pair(*args)


def test_too_many_scores_at_once_are_refused(three, monkeypatch):
    monkeypatch.setattr("bilrp.engine.several.MOST", 20)
    with pytest.raises(ValueError, match=r"27 scores, 3 x 3 x 3; at most 20"):
        three[2].relevance(":", ":", ":")


def test_factors_that_do_not_go_together(three):
    model, factors, _, _ = three
    x = inputs(1)[0]
    for other, said in (
        (bilrp.factor(small(seed=5), x, bilrp.Gamma(0.1), groups=2), "encoders=True"),
        (bilrp.factor(model, x, bilrp.LRP0(), groups=2), "rules are"),
        (bilrp.factor(model, x, bilrp.Gamma(0.1), groups=2, project=4), "project"),
    ):
        with pytest.raises(ValueError, match=said):
            bilrp.several([*factors, other])
    with pytest.raises(ValueError, match="two or more"):
        bilrp.several(factors[:1])
    with pytest.raises(ValueError, match="give factors"):
        bilrp.several([factors[0], x])
    with pytest.raises(ValueError, match="features of different shapes"):
        bilrp.several([factors[0], bilrp.factor(small(8), x)], encoders=True)


def test_products_beyond_the_largest_float_are_refused():
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1e200)
    factors = bilrp.factor(model, [torch.ones(2, dtype=torch.float64)] * 2)
    with pytest.raises(ValueError, match="too large for float64"):
        bilrp.several(factors)
