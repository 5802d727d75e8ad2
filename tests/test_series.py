"""Simulated recordings: what is in them, their truth, the network that counts bursts."""

from __future__ import annotations

import pytest
import torch

import bilrp
from bilrp.models import series


def drawn(n: int = 40, seed: int = 0) -> series.Recordings:
    return series.simulate(n, torch.Generator().manual_seed(seed))


def test_recordings_hold_background_and_the_bursts_that_they_say():
    r = drawn()
    background = r.x - r.bursts.sum(1)
    torch.testing.assert_close(background.std((1, 2)), torch.ones(40))
    there = r.rhythm >= 0
    assert (r.bursts.abs().amax((2, 3)) > 1)[there].all()
    assert float(r.bursts[~there].abs().max()) == 0
    assert torch.equal(r.counts().sum(1), there.sum(1).float())
    assert set(there.sum(1).tolist()) == {0, 1, 2, 3}
    assert torch.equal(drawn().x, r.x)  # the same seed, the same numbers


def test_bursts_have_their_rhythm():
    r = drawn(60)
    spectrum = torch.fft.rfft(r.bursts.sum(2)).abs()
    hertz = torch.fft.rfftfreq(series.LENGTH, 1 / series.RATE)[spectrum.argmax(2)]
    for number, wanted in enumerate(series.RHYTHMS.values()):
        assert (hertz[r.rhythm == number] - wanted).abs().max() < 1.2


def test_the_truth_is_one_for_each_pair_of_bursts_of_one_rhythm():
    a, b = drawn(30, 1), drawn(30, 2)
    for i in range(30):
        T = series.truth(a, b, i, i)
        assert T.shape == (128, 128)
        assert float(T.sum()) == pytest.approx(float(a.counts()[i] @ b.counts()[i]), abs=1e-4)
        assert float(T.min()) >= 0
    groups = series.owners()
    assert groups.shape == (8, 256)
    energy = a.bursts[0, 0].square().flatten()
    pooled = torch.zeros(128).index_add_(0, groups.flatten(), energy)
    torch.testing.assert_close(pooled / energy.sum().clamp(min=1e-12), a.energy()[0, 0])


@pytest.mark.parametrize("seed", series.SEEDS)
def test_the_books_networks_count_bursts(seed):
    net = series.load(seed)
    assert series.error(net, 200)[1] < 0.2
    a = drawn(2)
    e = bilrp.explain(net, a.x[0], a.x[1], groups=series.owners())
    assert e.relevance.shape == (128, 128)
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, rel=1e-4, abs=1e-4)


def test_training_repeats_and_missing_weights_are_told(tmp_path):
    one, two = (series.train(0, steps=3, side=8) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FileNotFoundError, match=r"python -m bilrp\.models\.series"):
        series.load(path=tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"one of \[0, 1, 2\]"):
        series.load(3)
