"""What an audit of the controls, metrics, pictures and files found."""

from __future__ import annotations

import json

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

import bilrp
from bilrp._files import replaced
from bilrp.book import kept, measured
from bilrp.compare import leaderboard, methods, metrics
from bilrp.compare.altered import warped
from bilrp.models import numerals, series
from bilrp.models.bigram import BigramNetwork
from bilrp.show import plot
from tests import nets

mpl.use("agg")


# --- metrics and intervals -------------------------------------------------------------------


def test_negative_share():
    r = torch.cat([torch.full((8000,), 10.0), torch.full((1000,), -10.0)])
    for form in (torch.float64, torch.float32, torch.float16, torch.int8):
        assert metrics.negative_share(r.to(form)) == pytest.approx(1 / 9)
    assert metrics.negative_share(torch.tensor([3e38, -3e38, 0.0])) == pytest.approx(0.5)
    assert metrics.negative_share(torch.zeros(3)) == 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.negative_share(torch.tensor([1.0, torch.inf]))


def test_cosines_of_any_size():
    a, b = torch.randn(2, 5, 7, dtype=torch.float64)
    plain = float((a * b).sum() / a.norm() / b.norm())
    for size in (1e-200, 1e200):
        assert metrics.cosine(size * a, size * b) == pytest.approx(plain)
        assert bilrp.acs(size * a[None], size * b[None]) == pytest.approx(plain)
    with pytest.raises(ValueError, match="NaN"):
        metrics.cosine(a * torch.nan, b)


def test_a_share_on_pairs_wants_a_mask():
    r = torch.rand(3, 3)
    with pytest.raises(ValueError, match="mask of bool"):
        metrics.share_on(r, torch.eye(3).long())


def test_frames_are_numbered_in_any_format():
    features = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    clip, frame = torch.arange(20) // 10, torch.arange(20) % 10
    expected = bilrp.invariance(features, clip, frame, radius=2)
    for form in (torch.uint8, torch.int16, torch.float32):
        found = bilrp.invariance(features, clip.to(form), frame.to(form), radius=2)
        assert found == pytest.approx(expected)


def test_a_fold_with_one_class_is_no_choice_of_c():
    features = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0, 1])
    train = torch.arange(9) < 7
    with pytest.raises(ValueError, match="single class"):
        bilrp.svm_accuracy(features, labels, train)
    with pytest.raises(ValueError, match="C must be positive"):
        bilrp.svm_accuracy(features, labels, train, C=[torch.nan, 1.0])


def test_correspondence_refuses():
    row = torch.zeros(8, 8)
    for patch in (0, -4, 4.0):
        with pytest.raises(ValueError, match="patch must be"):
            metrics.correspondence(row, row, patch, (8, 8))
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        metrics.correspondence(row[0], row[0], 4, (8, 8))


def test_warps_in_half_precision():
    image = nets.image(0, 64, 64).float()
    exact = warped(image, rotate=20.0)
    for form in (torch.float16, torch.bfloat16):
        found = warped(image.to(form), rotate=20.0)
        assert found.image.dtype == form
        torch.testing.assert_close(found.image.float(), exact.image, rtol=0, atol=2e-2)


def test_members_may_be_tensors():
    values = torch.tensor([1.0, 2, 3, 5, 2, 4])
    pairs = [[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [7, 8]]
    assert bilrp.sharing_interval(values, torch.tensor(pairs)) == bilrp.sharing_interval(
        values, pairs
    )


def test_bootstrap_of_numbers_of_entries():
    """A statistic of pairs of pages is given which pages were drawn."""
    values = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bilrp.bootstrap(torch.arange(12), lambda drawn: values[drawn].mean(), seed=0)
    assert found == bilrp.bootstrap(values, seed=0)


def test_bootstrap_takes_whole_numbers_and_refuses_what_is_none():
    whole = bilrp.bootstrap(torch.arange(10), seed=0)
    assert whole == bilrp.bootstrap(torch.arange(10.0).double(), seed=0)
    for options in ({"seed": None}, {"seed": 0, "samples": 10.0}):
        with pytest.raises(ValueError, match="must be a whole number"):
            bilrp.bootstrap(torch.arange(10), **options)
    with pytest.raises(ValueError, match="no interval"):
        bilrp.bootstrap(torch.arange(3.0), lambda t: t.sum() / (t - t[0]).sum(), seed=0)


# --- methods ---------------------------------------------------------------------------------


def test_patches_of_one_grey_correlate_with_nothing():
    grey = torch.full((3, 8, 8), 0.1)
    other = nets.image(0, 8, 8).float()
    other[:, :4] = 0.3
    scores = methods.pixels(nn.Identity(), grey, other, 4)
    assert bool((scores == 0).all())
    scores = methods.pixels(nn.Identity(), other, other, 4).view(4, 4)
    torch.testing.assert_close(scores.diag(), torch.tensor([0.0, 0, 1, 1]))


def test_activation_products_of_a_mean_are_y_times_the_places():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    net = nn.Sequential(*net, nn.Flatten()).eval()
    x, x2 = nets.image(0, 8, 8).float(), nets.image(1, 8, 8).float()
    y = float(net(x[None]).flatten() @ net(x2[None]).flatten())
    scores = methods.activation_products(net, x, x2, 1)
    assert float(scores.sum()) == pytest.approx(64 * 64 * y, rel=1e-4)


# --- pictures --------------------------------------------------------------------------------


def two_encoders() -> bilrp.Explanation:
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    g = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    return bilrp.explain((f, g), torch.rand(6), torch.rand(3), bilrp.LRP0())


def test_a_ledger_of_two_encoders_has_the_names_of_both():
    e = two_encoders()
    axes = plot.ledger(e)
    assert [t.get_text() for t in axes.get_xticklabels()] == list(e.owners2)
    assert [t.get_text() for t in axes.get_yticklabels()] == list(e.owners)
    assert len(e.owners) != len(e.owners2)


def test_arcs_refuse_what_they_would_draw_wrongly():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    a, b = nets.image(0, 8, 16).float(), nets.image(1, 16, 8).float()
    e = bilrp.explain(net, a, b, bilrp.LRP0(), patch=4)
    assert len(plot.arcs(e, a, b).collections) == 1
    with pytest.raises(ValueError, match="does not fit"):
        plot.arcs(e, b, a)
    for most in (0, -3):
        with pytest.raises(ValueError, match="most must be"):
            plot.arcs(e, a, b, most=most)


# --- files -----------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "ä file"
    path.write_text("old")

    def interrupted():
        with replaced(path) as new:
            new.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replaced(path) as new:
        new.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_text_in_tables_stays_text(tmp_path):
    rows = [{"a": "1_000", "b": "infinity", "c": 1e-07, "d": -2, "e": " 3"}]
    found = measured.write(tmp_path / "t.csv", rows, "make it").rows[0]
    assert found == {"a": "1_000", "b": "infinity", "c": 1e-07, "d": -2.0, "e": " 3"}
    for command in ("two\nlines", "a `quote`"):
        with pytest.raises(ValueError, match="one line"):
            measured.write(tmp_path / "t.csv", rows, command)


def test_a_damaged_file_of_the_leaderboard_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard, "KEPT", tmp_path)
    cell = next(leaderboard.cells("toy digits", "*near*", "pixels"), None) or next(
        leaderboard.cells("toy digits")
    )
    for text in ("{", "[]", '{"pairs": []}'):
        cell.path.parent.mkdir(exist_ok=True)
        cell.path.write_text(text)
        assert leaderboard.compute(cell, 0)["pairs"] == []


def test_what_is_kept_knows_all_settings_of_torchs_modules():
    def net(**options) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AvgPool2d(3, 1, 1, **options))

    def heads(n: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.MultiheadAttention(8, n)

    x = torch.zeros(3, 8, 8)
    names = [kept.name_of(net(count_include_pad=v), x, None, 8) for v in (True, False, True)]
    assert names[0] == names[2] != names[1]
    assert len({kept.name_of(heads(n), x, None, 8) for n in (2, 4)}) == 2


@pytest.mark.parametrize(
    "load",
    [
        lambda: numerals.numeral_encoders(),
        lambda: series.load(),
        lambda: BigramNetwork.load(),
        lambda: series.train(0, steps=1, side=2),
        lambda: numerals.train(0, steps=1, side=4),
    ],
)
def test_loading_and_training_leave_the_random_numbers_alone(load):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    load()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_numeral_that_is_none_is_told():
    with pytest.raises(ValueError, match="1a"):
        numerals.truth("XIX", "1a")


def test_patches_of_numpys_whole_numbers():
    assert bilrp.factor(nn.Linear(4, 2), torch.rand(4), patch=np.int64(8)).grid == (4,)
    assert json.dumps(bilrp.factor(nn.Linear(4, 2), torch.rand(4), patch=np.int32(8)).grid)
