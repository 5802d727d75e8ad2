"""Planted matches: what is pasted, where, and which pairs are true; and a control's statistics."""

import pytest
import torch
from torch import nn

import bilrp
from bilrp.compare.planted import planted_ring

PHOTOS = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
THING = torch.linspace(0, 1, 3 * 16 * 16).view(3, 16, 16)


@pytest.mark.parametrize(("size", "cells"), [(8, 1), (4, 1), (16, 2), (5, 1)])
def test_the_object_lies_where_the_pairs_say(size, cells):
    found = planted_ring(PHOTOS, THING, 3, seed=1, patch=8, size=size)
    assert len(found) == 3
    for pair in found:
        assert pair.photos[0] != pair.photos[1]
        assert int(pair.pairs.sum()) == cells**2
        changed = []
        for image, k in zip(pair.images, pair.photos, strict=True):
            places = (image != PHOTOS[k]).any(0).nonzero()
            assert len(places) == size**2
            changed.append(places.min(0).values)
            assert 0 <= float(image.min()) <= float(image.max()) <= 1
        for a, b, c, d in pair.pairs.nonzero().tolist():
            # the same part on both sides, in units of patches
            corner, corner2 = ((v // 8).tolist() for v in changed)
            assert [a - corner[0], b - corner[1]] == [c - corner2[0], d - corner2[1]]
        assert int(pair.pairs.flatten(2).any(2).flatten().nonzero()[0]) == pair.places[0]
        margin = (cells * 8 - size) // 2
        assert all(((c - margin) % 8 == 0).all() for c in changed)


def test_a_ring_of_images_and_one_pair():
    ring = planted_ring(PHOTOS, THING, 4, seed=2, patch=8)
    assert [a.photos[1] for a in ring] == [b.photos[0] for b in ring[1:] + ring[:1]]
    assert len({p for pair in ring for p in pair.photos}) == 4
    assert len(planted_ring(PHOTOS, THING, 2, seed=2, patch=8)) == 1
    again = planted_ring(PHOTOS, THING, 4, seed=2, patch=8)
    assert all(torch.equal(a.images[0], b.images[0]) for a, b in zip(ring, again, strict=True))


def test_places_have_nothing_to_do_with_each_other():
    places = torch.tensor(
        [
            planted_ring(PHOTOS, THING, 2, seed=s, patch=8)[0].places
            for s in range(400)
        ]
    ).float()  # fmt: skip
    assert places.unique().numel() == 16
    assert abs(float(torch.corrcoef(places.T)[0, 1])) < 0.15


def test_contrast():
    full, none = (planted_ring(PHOTOS, THING, 2, seed=3, patch=8, contrast=c)[0] for c in (1, 0))
    row, col = divmod(full.places[0], 4)
    box = (slice(None), slice(8 * row, 8 * row + 8), slice(8 * col, 8 * col + 8))
    assert float(none.images[0][box].std((1, 2)).max()) < 1e-6
    torch.testing.assert_close(none.images[0][box].mean((1, 2)), full.images[0][box].mean((1, 2)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(number=1), "number must be a whole number from 2 to 6"),
        (dict(number=7), "from 2 to 6"),
        (dict(patch=0), "patch must be"),
        (dict(photos=(255 * PHOTOS).byte()), "floats in"),
        (dict(contrast=1.5), "contrast must be 0 to 1"),
        (dict(size=12), "multiple of it"),
        (dict(size=40), "at most 32"),
        (dict(patch=5), "multiple of patch=5"),
        (dict(thing=THING[:1]), r"object must be \(3, h, h\), got \(1, 16, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    options = dict(photos=PHOTOS, thing=THING, number=3, seed=0, patch=8) | change
    with pytest.raises(ValueError, match=match):
        planted_ring(**options)


def test_recalibrated_norms_have_the_statistics_of_the_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    model[1].running_mean.fill_(100.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other = bilrp.recalibrated(model, PHOTOS)
    out = other[:2](PHOTOS)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)
    assert not other.training
    assert not other[1].training
    assert other[1].momentum == model[1].momentum
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        bilrp.recalibrated(model, PHOTOS[:1])
