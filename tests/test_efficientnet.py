"""EfficientNet-Lite0: what the published code computes from the published weights."""

import re

import pytest
import torch

import bilrp
from bilrp.book import data, weights
from bilrp.book.registry import registry
from bilrp.models import efficientnet
from tests.efficientnet_published import summary, waves

# Printed by `python -m tests.efficientnet_published`, which runs the published code.
PUBLISHED = {
    ("features", 64): [1.063944, 4.145561, 6.0, 14.0, 0.748258],
    ("features", 100): [0.428769, 1.117708, 6.0, 522.0, 0.0],
    ("features", 224): [0.17034, 0.251693, 3.720073, 1269.0, 0.156859],
    ("block", 1): [0.161161, 124.135137, 53.975605, 6606.0, 3.64685],
    ("block", 5): [-1.471035, 92.225078, 37.205402, 1503.0, 7.720847],
    ("block", 16): [-0.03048, 11.73584, 10.718396, 202.0, 0.778987],
}


def test_the_network_has_the_published_shape():
    model = efficientnet._network()
    names = [name for name, _ in model.named_children()]
    assert names == ["stem", *(f"block{k}" for k in range(1, 17)), "head", "pool", "flat"]
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 - 1_281_000  # no classifier
    shortcuts = [k for k in range(1, 17) if getattr(model, f"block{k}").shortcut]
    assert shortcuts == [3, 5, 7, 8, 10, 11, 13, 14, 15]


@pytest.mark.parametrize("wrong", [0, 17, -1, 2.0, "3", True])
def test_a_wrong_block_is_refused(wrong):
    with pytest.raises(ValueError, match=r"whole number from 1 to 16, got"):
        bilrp.efficientnet_lite0(wrong)


def test_wrong_pixels_are_refused():
    for wrong in (torch.rand(3, 8, 8) * 255, torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"efficientnet_lite0_input needs .*in \[0, 1\]"):
            bilrp.efficientnet_lite0_input(wrong)
    with pytest.raises(ValueError, match=r"needs \(3, H, W\) or \(N, 3, H, W\), got \(1, 8, 8\)"):
        bilrp.efficientnet_lite0_input(torch.rand(1, 8, 8))
    assert bilrp.efficientnet_lite0_input(torch.ones(3, 1, 1)).unique().tolist() == [1]


def test_missing_or_other_weights_are_told(monkeypatch, tmp_path):
    def nowhere(name):
        raise data.NotAvailable(f"{name} is not here")

    monkeypatch.setattr(weights, "fetch", nowhere)
    with pytest.raises(data.DataError, match=r"efficientnet-lite0\.pth is not here"):
        bilrp.efficientnet_lite0()
    path = tmp_path / "other.pth"
    monkeypatch.setattr(weights, "fetch", lambda name: path)
    torch.save({"_fc.bias": torch.zeros(1000), "_bn0.bias": torch.zeros(32)}, path)
    with pytest.raises(data.DataError, match="not those of EfficientNet-Lite0"):
        bilrp.efficientnet_lite0()
    torch.save({"anything": torch.zeros(1)}, path)
    with pytest.raises(data.DataError, match="not those of EfficientNet-Lite0"):
        bilrp.efficientnet_lite0()
    path.write_bytes(b"junk")
    with pytest.raises(data.DataError, match="not a file of weights"):
        bilrp.efficientnet_lite0()


class Evil:
    def __reduce__(self):
        return print, ("this must never run",)


def test_no_code_in_the_weights_runs(monkeypatch, tmp_path, capsys):
    torch.save({"_bn0.bias": Evil()}, tmp_path / "evil.pth")
    monkeypatch.setattr(weights, "fetch", lambda name: tmp_path / "evil.pth")
    with pytest.raises(data.DataError, match="not a file of weights"):
        bilrp.efficientnet_lite0()
    assert "never" not in capsys.readouterr().out


@pytest.mark.weights
@pytest.mark.parametrize("key", PUBLISHED, ids=str)
def test_it_computes_what_the_published_code_computes(key):
    what, number = key
    model = bilrp.efficientnet_lite0(number if what == "block" else None)
    with torch.no_grad():
        out = model(waves(64 if what == "block" else number))
    mean, square, largest, where, middle = summary(out)
    told = PUBLISHED[key]
    assert (mean, square) == pytest.approx(told[:2], rel=1e-4, abs=1e-5)
    assert (largest, middle) == pytest.approx((told[2], told[4]), rel=1e-3, abs=1e-4)
    assert where == told[3]


@pytest.mark.weights
def test_it_recognises_photos_of_what_it_was_trained_on():
    """With the classifier of the published file; the class of a photo is in its file's name."""
    images, _ = data.imagenet_photos(224)
    paths = [registry().find(name).path for name in data.names("imagenet")]
    told = torch.tensor([int(re.search(r"_(\d+)\.jpg", path)[1]) for path in paths])
    state = data.efficientnet_lite0_state()
    with torch.no_grad():
        features = bilrp.efficientnet_lite0()(bilrp.efficientnet_lite0_input(images))
        found = (features @ state["_fc.weight"].T + state["_fc.bias"]).argmax(1)
    assert features.shape == (20, 1280)
    assert int((found == told).sum()) >= 17


@pytest.mark.weights
@pytest.mark.parametrize("block", [3, None])
def test_its_explanation_adds_up(block):
    x, x2 = bilrp.efficientnet_lite0_input(data.cats(64)[0][:2])
    model = bilrp.efficientnet_lite0(block)
    e = bilrp.explain(model, x, x2, patch=16)
    with torch.no_grad():
        y = float(model(x[None]).flatten().double() @ model(x2[None]).flatten().double())
    assert e.similarity == pytest.approx(y, rel=1e-5)
    assert float(e.ledger.sum()) == pytest.approx(y, rel=1e-4)
    assert e.relevance.shape == (4, 4, 4, 4)
