"""What an audit of stores, search and themes found."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bilrp

collect = pytest.importorskip("bilrp.collect")

from bilrp.collect import cli, lsh, search  # noqa: E402
from bilrp.collect.inputs import Photos  # noqa: E402
from bilrp.collect.records import About, StoreError, record_path  # noqa: E402
from bilrp.engine.explanation import Explanation  # noqa: E402


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_model_in_training_mode_makes_no_query(tmp_path):
    model = net()
    store = collect.build(tmp_path / "s", IMAGES, model, patch=np.int64(4), chunk=np.int64(2))
    before = model[1].running_mean.clone()
    features = store.query(IMAGES[0])
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        store.query(IMAGES[0])
    with pytest.raises(ValueError, match="training mode"):
        collect.Store(tmp_path / "s", model)
    assert torch.equal(before, model[1].running_mean)
    torch.testing.assert_close(collect.Store(tmp_path / "s").features()[0], features)


def test_changing_a_block_changes_nothing_in_the_store(tmp_path):
    store = collect.build(tmp_path / "s", IMAGES, net(), patch=4)
    first = store.block(0)
    kept = first.clone()
    first.mul_(2)
    assert torch.equal(store.block(0), kept)
    store.block(0).mul_(2)
    assert torch.equal(store.block(0), kept)


def test_a_repaired_model_leaves_the_model_as_it_is():
    model = net().train()
    collect.repaired(model, torch.eye(4)[:1])
    assert model.training
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    for away in (torch.ones(1, 4), torch.eye(4)[[0, 0]]):
        with pytest.raises(ValueError, match="orthogonal"):
            collect.repaired(model, away)


def test_functions_without_a_name_of_their_own_prepare_no_photos(tmp_path):
    def local(x):
        return x

    for prepare in (lambda x: x, local, partial(torch.mul, 2), nn.Identity()):
        with pytest.raises(ValueError, match="a name of its own"):
            Photos(tmp_path, ("a.png",), 8, prepare)


def test_a_mask_lies_as_the_patches_lie():
    e = bilrp.explain(net(), IMAGES[0, :, :4], IMAGES[1], bilrp.LRP0(), patch=4)
    mask = torch.tensor([[True, False]])
    assert collect.carried_by(e, mask) == collect.carried_by(e, mask.flatten())
    with pytest.raises(ValueError, match=r"\(2, 1\).*grid of \(1, 2\)"):
        collect.carried_by(e, mask.T)


def test_numbers_that_are_left_out():
    features = torch.eye(3)
    hits = search.nearest(features, features[0], 2, without=torch.tensor([0]))
    assert hits.indices.tolist() == [[1, 2]]
    for wrong in ([-1], [3]):
        with pytest.raises(ValueError, match="without"):
            search.nearest(features, features[0], 1, without=wrong)
    with pytest.raises(ValueError, match="same queries"):
        search.recall(torch.zeros(1, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("variant", ["concatenated", "augmented"])
def test_codes_of_what_is_no_number(variant):
    features = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    spoiled = features.clone()
    spoiled[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        lsh.MultiHash(spoiled, variant=variant)
    codes = lsh.MultiHash(features, variant=variant)
    for k in (-3, 0, 7):
        with pytest.raises(ValueError, match="k must be"):
            codes.nearest(features[:1], k, lsh.Weights(dot=1.0))
    with pytest.raises(ValueError, match="NaN"):
        codes.nearest(spoiled[2:3], 1, lsh.Weights(dot=1.0))
    with pytest.raises(ValueError, match="finite"):
        lsh.Weights(float("nan"))
    zeros = lsh.MultiHash(torch.zeros(3, 4), variant=variant)
    found = zeros.scores(features[:1], lsh.Weights(dot=1.0))
    assert bool(found.isfinite().all())
    assert float(found.max()) < 1  # not all bits are equal to those of another vector


@pytest.mark.parametrize("change", [{"more": 1}, {"chunk": 0}, {"input": None}])
def test_a_damaged_manifest_is_told(tmp_path, change):
    collect.build(tmp_path / "s", IMAGES, net(), patch=4)
    file = tmp_path / "s" / "store.json"
    whole = json.loads(file.read_text())
    for text in (json.dumps(whole | change), '{"format": 1}'):
        file.write_text(text)
        with pytest.raises(StoreError, match="damaged"):
            About.read(tmp_path / "s")


def test_an_explanation_with_two_kinds_of_owners_has_a_mask_for_each():
    relevance = torch.arange(12.0).reshape(2, 2, 3)  # an image, and three tokens
    e = Explanation(relevance, 66.0, ("input",), torch.tensor([[66.0]]).double(), sides=2)
    corner, last = torch.tensor([[False, False], [False, True]]), torch.tensor([False, False, True])
    assert collect.carried_by(e, corner, last) == pytest.approx(11 / 66)
    with pytest.raises(ValueError, match=r"\(3, 1\) for 3 patches in a grid of \(3,\)"):
        collect.carried_by(e, corner, last[:, None])


def test_a_picture_is_covered_by_a_mask_and_no_numbers():
    x = torch.rand(3, 8, 8)
    with pytest.raises(ValueError, match=r"got torch\.float32: give mask\.bool\(\)"):
        collect.covered(x, torch.ones(2, 2))
    for shape in ((3, 2), (4,), (16, 8), (0, 2)):
        with pytest.raises(ValueError, match="divides 8 x 8 pixels"):
            collect.covered(x, torch.ones(shape, dtype=torch.bool))


def test_inputs_are_left_out_by_whole_numbers_alone():
    features = torch.eye(3)
    for without in ({torch.tensor(1)}, np.array([1]), [1, 1]):
        assert 1 not in search.nearest(features, features[0], 2, without=without).indices
    for wrong in ([1.7], torch.tensor([False, True, False])):
        with pytest.raises(ValueError, match="each number in `without` must be a whole number"):
            search.nearest(features, features[0], 1, without=wrong)


@pytest.mark.parametrize("variant", ["concatenated", "augmented"])
def test_codes_are_asked_by_what_fits(variant):
    codes = lsh.MultiHash(torch.rand(6, 4), variant=variant)
    with pytest.raises(ValueError, match="5 features, the collection 4"):
        codes.nearest(torch.rand(1, 5), 1, lsh.Weights(dot=1))
    with pytest.raises(ValueError, match="the query holds NaN"):
        codes.scores(torch.full((1, 4), torch.inf), lsh.Weights(dot=1))


def test_faiss_is_asked_by_what_fits():
    features = torch.rand(6, 4)
    spoiled = features.clone()
    spoiled[2, 1] = torch.nan
    with pytest.raises(ValueError, match="of 1 inputs, the first of them 2, hold NaN"):
        search.FaissIndex(spoiled, kind="Flat")
    index = search.FaissIndex(features, kind="Flat")
    with pytest.raises(ValueError, match="k must be a whole number >= 1, got 0"):
        index.nearest(features[0], 0)
    with pytest.raises(ValueError, match="5 features, the collection 4"):
        index.nearest(torch.rand(5))
    with pytest.raises(ValueError, match="the query holds NaN"):
        index.nearest(spoiled[2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch": "8"}, "patch must be a whole number"),
        ({"shape": [4.5]}, "shape must be a whole number"),
        ({"recipe": None}, "recipe is None"),
        ("input", "'input' is missing"),
    ],
    ids=str,
)
def test_what_is_damaged_in_a_manifest_is_told(tmp_path, capsys, change, said):
    collect.build(tmp_path / "s", IMAGES, net(), patch=4)
    file = tmp_path / "s" / "store.json"
    whole = json.loads(file.read_text())
    if isinstance(change, dict):
        whole |= change
    else:
        del whole[change]
    file.write_text(json.dumps(whole))
    page = ["-o", str(tmp_path / "page.html")]
    assert cli.main(["themes", "--store", str(tmp_path / "s"), *page]) == 1
    assert said in capsys.readouterr().err


def test_a_record_without_checksums_makes_its_chunk_damaged(tmp_path):
    whole = collect.build(tmp_path / "s", IMAGES, net(), patch=4, chunk=2).features()
    for change in ({"sha256": []}, {"inputs": [["", "", ""], ["", ""]]}):
        file = record_path(tmp_path / "s", 1)
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(StoreError, match=r"damaged|not complete"):
            collect.Store(tmp_path / "s").features()
        mended = collect.build(tmp_path / "s", IMAGES, net(), patch=4, chunk=2)
        assert torch.equal(mended.features(), whole)


@pytest.mark.parametrize("recipe", [{"a": {1}}, {"a": np.int64(4)}, ["a"]], ids=str)
def test_a_recipe_that_cannot_be_kept_is_refused_before_any_work(tmp_path, recipe):
    def made():
        raise AssertionError("the model was made")

    with pytest.raises(ValueError, match="recipe must"):
        collect.build(tmp_path / "s", IMAGES, made, recipe=recipe)
    assert not (tmp_path / "s").exists()


def test_a_recipe_is_what_is_read_again(tmp_path):
    store = collect.build(tmp_path, IMAGES, net(), patch=4, recipe={"sizes": (1, 2)})
    assert store.about.recipe == {"sizes": [1, 2]}
    file = tmp_path / "store.json"
    before = file.stat().st_mtime_ns
    collect.build(tmp_path, IMAGES, net(), patch=4, recipe={"sizes": (1, 2)})
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("factors", [np.int64(3), "exact"], ids=str)
@pytest.mark.parametrize("form", [torch.float64, torch.float16])
def test_inputs_in_another_format_are_taken_as_factors_take_them(tmp_path, factors, form):
    x = IMAGES.to(form)
    store = collect.build(tmp_path, x, net(), bilrp.LRP0(), factors, patch=4)
    with torch.no_grad():
        expected = net()(x.float())
    torch.testing.assert_close(store.features(), expected)
    torch.testing.assert_close(store.query(x[1]), expected[1])
    torch.testing.assert_close(store.factor(1).features, expected[1])


def test_themes_need_pairs_and_numbers(tmp_path):
    store = collect.build(tmp_path, IMAGES, net(), patch=4)
    for pairs in ([], [(0, 1)] * 3):
        with pytest.raises(ValueError, match=f"{len(pairs)} pairs are too few"):
            collect.find_themes(store, pairs)
    rows = torch.rand(6, 3)
    for count in (0, 7, 2.5, True):
        with pytest.raises(ValueError, match="count must be a whole number from 1 to 6"):
            collect.cluster(rows, count)
    rows[4, 1] = torch.nan
    with pytest.raises(ValueError, match="of 1 inputs, the first of them 4, hold NaN"):
        collect.cluster(rows)


class OverTheMean(nn.Module):
    """Features of black pictures are 0 / 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) / x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("factors", [None, "exact"])
def test_an_input_whose_features_are_nan_is_bad_and_spoils_no_other(tmp_path, factors):
    x = IMAGES.clone()
    x[3] = 0
    store = collect.build(tmp_path, x, OverTheMean().eval(), bilrp.LRP0(), factors, 4, chunk=2)
    assert store.bad == {3: "the model makes NaN or infinite features of it"}
    assert bool(store.features()[3].eq(0).all())
    hits = collect.nearest(store, store.features()[0], 4).indices[0].tolist()
    assert sorted(hits) == [0, 1, 2, 4]


def test_a_contrast_is_drawn_red_for_the_hit_and_blue_for_the_other():
    query, hit, other = bilrp.factor(net(), list(IMAGES[:3]), bilrp.LRP0(), patch=4)
    c = collect.contrast(query, hit, other)
    drawn = [ax.images[-1] for ax in c.plot(IMAGES[1], IMAGES[0], IMAGES[2]).axes]
    expected = [c.hit.relevance.sum((0, 1)), c.on_query, -c.other.relevance.sum((0, 1))]
    both = max(float(expected[n].abs().max()) for n in (0, 2))
    for artist, heat, top in zip(
        drawn, expected, (both, float(c.on_query.abs().max()), both), strict=True
    ):
        np.testing.assert_allclose(artist.get_array(), heat.numpy(), rtol=1e-6)
        assert artist.get_clim() == pytest.approx((-top, top))
        red, _, blue, _ = artist.cmap(artist.norm(top))
        assert red > blue  # what is above 0


def test_a_common_basis_weighs_what_it_has_seen():
    one = bilrp.factor(net(), IMAGES[0], bilrp.LRP0(), patch=4)
    rows = (100 * torch.eye(4)[:1], torch.eye(4)[1:2], 5 * torch.eye(4)[1:2])
    factors = [
        replace(one, values=v, absorbed=torch.zeros(0, 4), owners=("input",), spans=None)
        for v in rows
    ]
    basis = collect.common_basis(factors, 1)
    torch.testing.assert_close(basis.rows.abs(), torch.eye(4)[:1])


# --- the command -------------------------------------------------------------------------------


def test_a_link_to_a_photo_of_the_store_is_that_photo(tmp_path, monkeypatch, capsys):
    tiny = cli.Network("tiny", net, lambda: bilrp.LRP0(), bilrp.normalize, 32, 8, {})
    monkeypatch.setattr(cli, "network", lambda name: tiny)
    photos, store = tmp_path / "photos", str(tmp_path / "store")
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    for n in range(3):
        Image.fromarray(pixels[n]).save(photos / f"{n}.png")
    assert cli.main(["index", str(photos), "--store", store, "--size", "32"]) == 0
    link = tmp_path / "link.png"
    link.symlink_to(photos / "1.png")
    capsys.readouterr()
    page = ["-o", str(tmp_path / "page.html")]
    assert cli.main(["search", str(link), "--store", store, *page]) == 0
    said = capsys.readouterr().out
    assert "1.png is this very photo and is left out" in said
    assert not re.search(r"(?m)^\d+  .* 1\.png$", said)


@pytest.mark.parametrize("recipe", [None, {"mine": 1}, {"model": 1, "size": 2, "folder": 3}])
def test_a_store_that_the_command_has_not_made_is_refused(tmp_path, capsys, recipe):
    collect.build(tmp_path / "s", IMAGES, net(), patch=4, recipe=recipe)
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    page = ["-o", str(tmp_path / "page.html")]
    assert cli.main(["search", str(tmp_path / "a.png"), "--store", str(tmp_path / "s"), *page]) == 1
    assert "was not made by `bilrp index`" in capsys.readouterr().err
