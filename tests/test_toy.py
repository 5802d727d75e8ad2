"""Toy digits: rows, their truth, networks that count, and the table of the sweep in assets."""

from __future__ import annotations

import json

import pytest
import torch

import bilrp
from bilrp import toy
from tests import toy_sweep


def test_truth_and_inputs():
    d, d2 = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([2, 7, 1, 8, 2, 9])
    assert toy.matches(d, d2).nonzero().tolist() == [[1, 2], [3, 2], [5, 5]]
    x = toy.embed(torch.stack([d, d2]), toy.VECTORS["wide"])
    assert x.shape == (2, 60)
    assert x[1, 20:30].argmax() == 1
    assert [len(rows) for rows in toy.rows(7, seed=1)] == [7, 7]


@pytest.mark.parametrize("rows", [torch.tensor([0, 10]), torch.tensor([-1]), torch.rand(6)])
def test_what_is_no_digit_is_refused(rows):
    with pytest.raises(ValueError, match="whole numbers from 0 to 9"):
        toy.embed(rows, toy.VECTORS["near"])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"seeds": 0}, {"side": 0}, {"only": 5}])
def test_training_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        toy.train(toy.VECTORS["near"], **wrong)
    with pytest.raises(ValueError, match=r"\(10, 10\), one row a digit"):
        toy.train(torch.eye(9))


def test_one_seed_alone_is_trained_as_among_all():
    options = {"steps": 20, "seeds": 3, "progress": False}
    among, losses = toy.train(toy.VECTORS["wide"], **options)
    alone, loss = toy.train(toy.VECTORS["wide"], **options, only=1)
    torch.testing.assert_close(loss, losses[:, [1, 4]], rtol=1e-3, atol=1e-4)
    for network, same in zip(alone, (among[1], among[4]), strict=True):
        for (w, b), (w2, b2) in zip(network, same, strict=True):
            torch.testing.assert_close(w, w2, rtol=1e-2, atol=1e-3)
            torch.testing.assert_close(b, b2, rtol=1e-2, atol=1e-3)
    assert all(bool((b == 0).all()) for _, b in alone[0])  # the first is the one without biases
    assert any(bool((b != 0).any()) for _, b in alone[1])


@pytest.mark.parametrize("kind", [0, 1])
def test_factors_of_many_rows_are_those_of_the_package(kind):
    layers = toy.train(toy.VECTORS["near"], steps=20, seeds=1, progress=False)[0][kind]
    double = [(w.double(), b.double()) for w, b in layers]
    x = toy.embed(toy.rows(2, 1)[0], toy.VECTORS["near"]).double()
    model = toy.as_model(layers)
    torch.testing.assert_close(model(x), toy.features(double, x))
    for gamma in (0, 0.09):
        expected = [bilrp.factor(model, v, bilrp.Gamma(gamma), groups=10).dense() for v in x]
        torch.testing.assert_close(toy.factors(double, x, gamma), torch.stack(expected))


def test_a_sample_of_the_sweep_comes_out_again():
    """Two networks of its thirty, trained anew, are of their kind.

    Not the same ones: training enlarges rounding, which depends on the machine and on how many
    networks are trained at once.
    """
    table = json.loads(toy_sweep.TARGET.read_text())
    assert tuple(table["gammas"]) == toy_sweep.GAMMAS
    assert len(table["networks"]) == 30
    vectors = toy.VECTORS["wide"]
    again, _ = toy.train(vectors, only=2, progress=False)
    for layers, biases in zip(again, (False, True), strict=True):
        kind = {"vectors": "wide", "biases": biases}
        rows = [row for row in table["networks"] if kind.items() <= row.items()]
        acs = torch.tensor([row["acs"] for row in rows])
        found = toy_sweep.measured(layers, vectors)
        gain = max(found["acs"]) - found["acs"][0]
        gains = acs.max(1).values - acs[:, 0]
        assert found["mse"] < 1e-3
        assert 0.01 <= found["chosen"] <= 0.07
        assert 0.5 * float(gains.min()) < gain < 1.5 * float(gains.max())
        off = torch.tensor(found["acs"]) - acs.mean(0)
        assert float(off.abs().max()) < 0.08
        kept = torch.tensor([row["kept"] for row in rows]).mean(0)
        assert found["kept"] == pytest.approx(kept.tolist(), abs=0.05)
