"""What an audit of stores, search and themes found."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import bilrp

collect = pytest.importorskip("bilrp.collect")

from bilrp.collect import lsh, search  # noqa: E402
from bilrp.collect.inputs import Photos  # noqa: E402
from bilrp.collect.records import About, StoreError  # noqa: E402


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
    assert bool(zeros.scores(features[:1], lsh.Weights(dot=1.0)).isfinite().all())


@pytest.mark.parametrize("change", [{"more": 1}, {"chunk": 0}, {"input": None}])
def test_a_damaged_manifest_is_told(tmp_path, change):
    collect.build(tmp_path / "s", IMAGES, net(), patch=4)
    file = tmp_path / "s" / "store.json"
    whole = json.loads(file.read_text())
    for text in (json.dumps(whole | change), '{"format": 1}'):
        file.write_text(text)
        with pytest.raises(StoreError, match="damaged"):
            About.read(tmp_path / "s")
