"""Truths and the leaderboard: known answers, resuming, and a sample of the table computed anew."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import bilrp
from bilrp.compare import leaderboard, truths
from bilrp.compare.methods import METHODS, Method
from bilrp.models.toy import VECTORS, as_model, matches, train

TABLE = Path(__file__).resolve().parents[1] / "assets" / "leaderboard.json"


def pair(true, patch_sum=1):
    x = torch.rand(3, 16, 16)
    return truths.Pair(x, x, lambda patch: true, 0)


# --- judging ---------------------------------------------------------------------------------


def test_auc_is_the_probability_of_the_right_order():
    scores, true = torch.tensor([3.0, 2, 1, 0]), torch.tensor([True, False, True, False])
    assert truths.auc(scores, true) == pytest.approx(3 / 4)
    assert truths.auc(scores + 100, true) == pytest.approx(3 / 4)
    assert truths.auc(torch.ones(4), true) == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="both true and other"):
        truths.auc(scores, true | True)


def test_two_heat_maps_do_not_beat_their_marginals():
    true = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    true[0, 0, 0, 0] = true[1, 1, 1, 1] = True
    matched = truths.judge_planted(true.float(), pair(true), 8, None, None)
    assert matched["score"] == pytest.approx(1)
    assert matched["null"] == pytest.approx(1 / 2)
    heat = torch.tensor([1.0, 0, 0, 1])
    maps = (heat[:, None] * heat).view(2, 2, 2, 2)
    blind = truths.judge_planted(maps, pair(true), 8, None, None)
    assert blind["score"] == blind["null"] == pytest.approx(1 / 2)
    nothing = truths.judge_planted(-maps, pair(true), 8, None, None)
    assert nothing["score"] == nothing["null"] == 0


class Sums(nn.Module):
    """One feature a patch of 8 x 8 pixels, its mean: y joins equal places only."""

    def forward(self, x):
        return nn.functional.avg_pool2d(x, 8).mean(1).flatten(1)


def test_removal_prefers_the_pairs_that_carry_y():
    x = torch.zeros(3, 16, 16)
    x[:, 8:, :8] = 1  # a bright patch, third of four, in both
    inputs, model = (x, x), Sums()
    right = -torch.ones(2, 2, 2, 2)
    right[1, 0, 1, 0] = 1
    found = [
        truths.judge_removal(scores, None, 8, model, inputs)["score"] for scores in (right, -right)
    ]
    assert found[0] > found[1]


# --- pairs -----------------------------------------------------------------------------------


def test_toy_pairs_and_their_truth():
    found = truths.toy_pairs(20)
    assert all(bool(p.true(10).any()) for p in found)
    assert torch.equal(found[3].true(10), matches(found[3].x, found[3].x2).bool())
    assert [p.group for p in found[:6]] == [0, 1, 2, 3, 4, 0]
    assert torch.equal(truths.toy_pairs(5)[4].x, found[4].x)


def networks(count: int) -> list[nn.Module]:
    """Toy networks with biases, hardly trained."""
    layers, _ = train(VECTORS["near"], steps=3, seeds=count, progress=False)
    return [as_model(network).float() for network in layers[count:]]


def test_tables_share_two_numbers():
    found = truths.table_pairs(2)[1]
    true = found.true(8)
    assert true.shape == (10, 14, 10, 14)
    assert 0.002 < float(true.float().mean()) < 0.05
    assert not torch.equal(found.x, found.x2)


@pytest.mark.weights
@pytest.mark.parametrize("objects", [1, 2])
def test_planted_objects_are_where_they_are_said_to_be(objects):
    plain = truths.book_photos(64)
    for found in truths.planted_pairs(4, objects):
        true = found.true(8)
        for image, inside in ((found.x, true.any(3).any(2)), (found.x2, true.any(1).any(0))):
            untouched = (plain - image).abs().amax(1)  # (photos, H, W)
            which = int(untouched.flatten(1).median(1).values.argmin())
            changed = untouched[which].view(8, 8, 8, 8).transpose(1, 2).flatten(2)
            # Where a patch is said to hold no object, less than a third of it has changed.
            assert float((changed > 0.02).float().mean(2)[~inside].max()) < 0.34
            assert float((changed > 0).float().mean(2)[inside].min()) > 0.05
        if objects == 1:
            first, second = true.any(3).any(2), true.any(1).any(0)
            assert torch.equal(true, first[:, :, None, None] & second)


@pytest.mark.weights
def test_warps_and_films_join_what_looks_alike():
    """True pairs of patches look more alike than others, in most pairs."""
    model = nn.Identity()
    for name in ("warps", "films and stereo"):
        better = []
        for p in truths.TRUTHS[name].pairs(6):
            scores = METHODS["pixels"](model, p.x, p.x2, 8)
            better.append(truths.auc(scores, p.true(8)) > 0.5)
        assert sum(better) >= 4


# --- cells -----------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A cell that is quickly computed, with its results in a folder of its own."""
    monkeypatch.setattr(leaderboard, "KEPT", tmp_path)
    network = leaderboard.NETWORKS["toy, one-hot + 0.3, with biases"]
    network = dataclasses.replace(network, load=lambda: networks(2))
    return leaderboard.Cell(truths.TRUTHS["toy digits"], network, METHODS["BiLRP"])


def test_a_cell_goes_on_where_it_was_stopped(small, monkeypatch):
    whole = leaderboard.compute(small, 4)["pairs"]
    assert len(leaderboard.compute(small, 2)["pairs"]) == 4  # what is there stays
    small.path.unlink()
    leaderboard.compute(small, 2)
    calls = []
    judge = leaderboard.judge
    monkeypatch.setattr(leaderboard, "judge", lambda *a: calls.append(a) or judge(*a))
    again = leaderboard.compute(small, 4)["pairs"]
    assert len(calls) == 2
    strip = [{k: v for k, v in r.items() if k != "seconds"} for r in again]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in whole]
    assert leaderboard.compute(small, 9, until=0)["pairs"] == again


def test_results_of_other_code_are_not_taken(small, monkeypatch):
    leaderboard.compute(small, 2)
    monkeypatch.setattr(leaderboard, "code_key", lambda method: "other")
    assert leaderboard.compute(small, 0)["pairs"] == []


def test_a_new_method_makes_no_result_of_others_old(monkeypatch, tmp_path):
    package = tmp_path / "bilrp"
    shutil.copytree(leaderboard.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(leaderboard, "PACKAGE", package)
    key = leaderboard.code_key.__wrapped__
    names = ("BiLRP", "pixels")
    before = [key(METHODS[name]) for name in names]
    file = package / "compare" / "methods.py"
    text = file.read_text(encoding="utf-8")
    new = '@add_method("mine", "me")\ndef mine(model, x, x2, patch):\n    return x\n'
    file.write_text(f"{text}\n\n{new}", encoding="utf-8")
    assert [key(METHODS[name]) for name in names] == before
    start = text.index('@add_method("pixels"')
    changed = text[:start] + text[start:].replace("    return ", "    return 2 * ", 1)
    file.write_text(changed, encoding="utf-8")
    after = [key(METHODS[name]) for name in names]
    assert after[0] == before[0]
    assert after[1] != before[1]
    other = dataclasses.replace(METHODS["pixels"], function=networks)  # registered elsewhere
    assert key(other) != after[1]


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: truths.planted_pairs(1, objects=3), "1 or 2"),
        (lambda: truths.planted_pairs(0), "count must be"),
        (lambda: truths.planted_pairs(1, size=10), "size must be"),
        (lambda: truths.warped_pairs(1, size=0), "size must be"),
        (lambda: truths.film_pairs(1.5), "count must be"),
        (lambda: truths.table_pairs(-1), "count must be"),
        (lambda: truths.toy_pairs(0), "count must be"),
        (lambda: truths.photo_pairs(2, size=100), "size must be"),
        (lambda: truths.auc(torch.rand(3), torch.ones(4).bool()), "one shape"),
        (lambda: truths.auc(torch.tensor([1.0, torch.nan]), torch.tensor([True, False])), "NaN"),
        (lambda: METHODS["pixels"](None, *torch.rand(2, 3, 16, 16), 0), "patch"),
        (lambda: METHODS["pixels"](None, *torch.rand(2, 3, 16, 16), 5), "patch"),
    ],
)
def test_bad_input_is_refused_in_words(work, said):
    with pytest.raises(ValueError, match=said):
        work()


def test_a_coarse_cell_passes_over_pairs_without_a_true_pair(small):
    def true(patch, k):
        return torch.full((2, 2), patch == 8 or k % 2 == 1)

    def pairs(count):
        return [truths.Pair(*torch.rand(2, 4), partial(true, k=k), k) for k in range(min(count, 9))]

    truth = truths.Truth("halves", pairs, truths.judge_share, False, "", 8, 16)
    slow = leaderboard.Cell(truth, small.network, METHODS["pairwise occlusion"])
    assert [p.group for p in leaderboard.judgeable(slow, 3)] == [1, 3, 5]
    assert len(leaderboard.judgeable(slow, 8)) == 4  # there are no more
    fast = dataclasses.replace(slow, method=METHODS["pixels"])
    assert [p.group for p in leaderboard.judgeable(fast, 3)] == [0, 1, 2]


def test_a_method_that_cannot_is_said_to_have_refused(small):
    cell = dataclasses.replace(small, method=METHODS["pixels"])
    row = leaderboard.summary(cell, leaderboard.compute(cell, 3))
    assert "compares places in images" in row["refused"]
    assert row["pairs"] == 0


def test_a_row_has_the_mean_its_interval_and_each_pair(small):
    row = leaderboard.summary(small, leaderboard.compute(small, 6))
    assert row["pairs"] == len(row["scores"]) == 6
    assert row["score"][0] == pytest.approx(sum(row["scores"]) / 6, abs=1e-4)
    assert row["score"][1] <= row["score"][0] <= row["score"][2]
    gap = [a - b for a, b in zip(row["scores"], row["nulls"], strict=True)]
    assert row["above"][0] == pytest.approx(sum(gap) / 6, abs=1e-4)


def test_a_new_method_gets_its_cells():
    mine = Method("mine", lambda model, x, x2, patch: x, "a test")
    found = list(leaderboard.cells(method="mine", methods={"mine": mine}))
    assert {c.truth.name for c in found} == set(truths.TRUTHS)
    assert len(found) == sum(len(n.truths) for n in leaderboard.NETWORKS.values())


def table_of(methods: list[str], commit: str, score: int) -> dict:
    """A table with rows for these methods only, in one cell of truth and network."""
    place = "planted match", "VGG-16, layer 31, pooled"
    names = [(c.truth.name, c.network.name, c.method.name) for c in leaderboard.cells(*place)]
    rows = [
        {"truth": t, "network": n, "method": m, "score": [score]}
        for t, n, m in names
        if m in methods
    ]
    return {"commit": commit, "rows": rows, "not_run": leaderboard.not_run(rows)}


def test_rows_that_were_not_computed_again_stay_with_their_commit():
    old, first = table_of(["BiLRP", "saliency", "pixels"], "old", 1), table_of(["BiLRP"], "new", 2)
    old["rows"].append({**old["rows"][0], "method": "one that is gone"})
    both = leaderboard.with_earlier(first, old)
    assert [(r.get("commit"), r["score"]) for r in both["rows"]] == [
        (None, [2]),
        ("old", [1]),
        ("old", [1]),
    ]
    left = both["not_run"]["planted match"]["VGG-16, layer 31, pooled"]
    assert {"BiLRP", "saliency", "pixels"}.isdisjoint(left)
    again = leaderboard.with_earlier(table_of(["pixels"], "newer", 3), both)
    assert [r.get("commit") for r in again["rows"]] == ["new", "old", None]


# --- the table -------------------------------------------------------------------------------


def test_the_table_says_what_was_run_and_what_was_not():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert {"commit", "date", "command", "rows", "not_run"} <= set(table)
    listed = {(r["truth"], r["network"], r["method"]) for r in table["rows"]}
    for truth, networks in table["not_run"].items():
        for network, left in networks.items():
            left = METHODS if left == ["all"] else left
            assert listed.isdisjoint({(truth, network, method) for method in left})
            listed |= {(truth, network, method) for method in left}
    assert listed == {(c.truth.name, c.network.name, c.method.name) for c in leaderboard.cells()}


SAMPLE = ("BiLRP", "BiLRP, gamma 0.02", "Hessian x Product", "saliency", "pixels", "distance only")


@pytest.mark.weights
def test_a_sample_of_the_table_comes_out_again():
    """The first pairs of rows that take seconds, computed anew from the photos and weights.

    The fast rows of some methods, and of every other one the row that is fastest.
    """
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    checked = 0
    rows = [r for r in table["rows"] if r.get("scores") and "toy" not in r["truth"]]  # no training
    fastest = {r["method"]: r for r in sorted(rows, key=lambda r: -r["seconds"])}
    assert set(fastest) == set(METHODS) - {"curvature"}  # which takes toys alone
    for row in rows:
        quick = row["method"] in SAMPLE and row["seconds"] < 1
        if not quick and (row is not fastest[row["method"]] or row["seconds"] > 3):
            continue
        if row["method"] == "Shapley interactions" and not importlib.util.find_spec("shapiq"):
            continue
        cell = next(leaderboard.cells(row["truth"], row["network"], row["method"]))
        pair = leaderboard.judgeable(cell, 1)[0]
        found = leaderboard.judge(cell, pair, 0)
        assert found["score"] == pytest.approx(row["scores"][0], abs=2e-3)
        assert found["null"] == pytest.approx(row["nulls"][0], abs=2e-3)
        checked += 1
    assert checked >= 4


def test_bilrp_is_the_public_explain():
    x, x2 = torch.rand(2, 60)
    (net,) = networks(1)
    rules = bilrp.Gamma(0.09)
    expected = bilrp.explain(net, x, x2, rules, groups=10).relevance
    torch.testing.assert_close(METHODS["BiLRP"](net, x, x2, 10, rules=rules), expected)
