"""assets/lite0.json: what chapter 11 quotes is what the script measures."""

import json

import pytest

import bilrp
from tests import lite0

KEPT = json.loads(lite0.TARGET.read_text(encoding="utf-8"))


def test_the_file_says_when_and_how():
    assert KEPT["command"] == "make lite0"
    assert len(KEPT["commit"]) >= 7
    assert KEPT["objects"] == list(lite0.OBJECTS)
    known = lite0.plan()
    measured = [name for name in KEPT if name not in ("date", "commit", "command", "objects")]
    assert measured
    assert set(measured) <= set(known)


@pytest.mark.weights
@pytest.mark.parametrize("gamma", [0.0, 0.02])
def test_a_sample_is_measured_again(gamma):
    kept = KEPT[f"planted, owners, {gamma:g}"]
    pairs = len(kept) // len(lite0.OBJECTS)
    first, ring = next(iter(lite0.OBJECTS)), max(2, pairs)
    found = lite0.planted(*lite0.lite0(), bilrp.Gamma(gamma), ring=ring, objects=(first,))
    for now, then in zip(found, kept[:pairs], strict=True):
        assert now[:2] == pytest.approx(then[:2], rel=0.02, abs=1e-3)
        assert now[2:] == pytest.approx(then[2:], rel=0.1, abs=1e-2)


@pytest.mark.weights
def test_without_the_rows_of_sinks_the_patches_own_the_same():
    model, prepare = lite0.lite0()
    image = prepare(lite0.backgrounds()[0])
    A, _ = lite0.factor(model, image, bilrp.Gamma(0.02))
    whole = bilrp.factor(model, image, bilrp.Gamma(0.02), patch=lite0.PATCH)
    assert float((A - whole.values).abs().max()) < 1e-4 * float(whole.values.abs().max())
