"""Shapley interactions of a dot product, by flips: against all coalitions, and the kept table."""

import math
from itertools import product

import pytest
import torch
from torch import nn

from bilrp.book import measured
from bilrp.compare import methods
from bilrp.compare.methods import METHODS
from tests import nets as networks
from tests import shapley_seeds


def exact(phi, phi2, n: int) -> torch.Tensor:
    """The interaction index of patch i of x and j of x', from all coalitions of the others."""
    players = torch.tensor(list(product([False, True], repeat=2 * n)))
    a, b = phi(players[:, :n]), phi2(players[:, n:])
    value = {tuple(c): float(v) for c, v in zip(players.tolist(), (a * b).sum(1), strict=True)}
    found = torch.zeros(n, n, dtype=torch.float64)
    for i, j in product(range(n), range(n)):
        for c in value:
            if c[i] or c[n + j]:
                continue
            size = sum(c)
            weight = math.factorial(size) * math.factorial(2 * n - 2 - size)
            weight /= math.factorial(2 * n - 1)
            put = [list(c) for _ in range(3)]
            put[0][i] = put[1][n + j] = put[2][i] = put[2][n + j] = True
            one, other, both = (value[tuple(p)] for p in put)
            found[i, j] += weight * (both - one - other + value[c])
    return found


def test_flips_estimate_the_interaction_index():
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU()).double()
        for _ in range(2)
    ]
    phi, phi2 = (lambda there, net=net: net(3 * there.double()).detach() for net in nets)
    true = exact(phi, phi2, 3)
    errors = []
    for draws in (100, 10_000):
        found = methods.by_flips(phi, phi2, 3, 3, draws, seed=0)
        errors.append(float((found - true).norm() / true.norm()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 4


def test_the_method_covers_patches_of_inputs_of_any_two_shapes():
    """Against all coalitions, with the model's inputs covered as by `pairwise_occlusion`."""
    model, x, x2 = networks.cnn(2)[:8], networks.image(1, 8, 16), networks.image(2, 16, 8)
    x, x2 = x.double(), x2.double()
    model = model.double()
    sides = [lambda there, v=v: methods.features_of_covered(model, v, 8, ~there) for v in (x, x2)]
    true = exact(*sides, 2).view(1, 2, 2, 1)
    found = METHODS["Shapley interactions, by flips"](model, x, x2, 8, draws=2000)
    assert found.shape == true.shape
    assert float((found - true).norm()) < 0.05 * float(true.norm())


def test_flips_refuse_a_number_of_draws_that_is_none():
    with pytest.raises(ValueError, match="draws must be a whole number >= 1, got 0"):
        methods.shapley_by_flips(networks.mlp(), networks.vector(1), networks.vector(2), 2, draws=0)


@pytest.mark.slow
@pytest.mark.weights
def test_a_number_of_the_table_comes_out_again(monkeypatch):
    """The first pair at layer 5: the layers above are not run."""
    table = measured.read(shapley_seeds.ASSETS / shapley_seeds.SEEDS).rows
    (row,) = (r for r in table if r["estimator"] == "flips" and r["pair"] == 0)
    monkeypatch.setattr(shapley_seeds, "LAYERS", (5,))
    ((phi, phi2),) = shapley_seeds.planted(1, layer=5)
    found = shapley_seeds.agreement(lambda s: shapley_seeds.by_flips(phi, phi2, 16, 30, s))
    assert found[5] == pytest.approx(row["layer 5"], abs=1e-4)


@pytest.mark.weights
@pytest.mark.parametrize("method", shapley_seeds.OTHERS)
def test_other_methods_at_its_patches_come_out_again(method):
    cell = "two planted", "VGG-16, layer 17, pooled", method
    table = measured.read(shapley_seeds.ASSETS / shapley_seeds.BESIDE).rows
    (row,) = (r for r in table if (r["truth"], r["network"], r["method"]) == cell and not r["pair"])
    (found,) = shapley_seeds.beside(*cell, count=1)
    assert found["above"] == pytest.approx(row["above"], abs=1e-4)
    assert found["auc"] == pytest.approx(row["auc"], abs=1e-3)
