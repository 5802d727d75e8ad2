"""Kept factors: the very same numbers, and never those of anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bilrp
from bilrp import kept


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


RULES = {
    1: bilrp.ZB(torch.full((3, 1, 1), -1.0), torch.ones(3, 1, 1)),
    range(2, 4): bilrp.Gamma(0.1),
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout, in which the second call of the same must not compute."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/registry.toml").touch()
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def count(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls = [0]

    def counted(*args, **options):
        calls[0] += 1
        return bilrp.factor(*args, **options)

    monkeypatch.setattr(kept, "computed", counted)
    return calls


def test_what_is_read_is_what_was_computed(count: list[int]) -> None:
    x, x2 = torch.rand(2, 3, 8, 8)
    own, other = bilrp.factor(network(), [x, x2], RULES, patch=2)
    first, again = (kept.factor(network(), x, RULES, patch=2) for _ in range(2))
    assert count == [1]
    for f in (first, again):
        assert torch.equal(f.values, own.values)
        assert torch.equal(f.absorbed, own.absorbed)
        assert f.identity == own.identity
        assert torch.equal(f.explain(other).relevance, own.explain(other).relevance)


@pytest.mark.parametrize(
    "changed",
    ["weights", "a weight in place", "structure", "input", "rules", "bounds", "order", "patch"],
)
def test_what_is_anything_else_is_computed(changed: str, count: list[int]) -> None:
    net, x, rules, patch = network(), torch.rand(3, 8, 8), dict(RULES), 2
    kept.factor(net, x, rules, patch)
    if changed == "weights":
        net = network(1)
    elif changed == "a weight in place":
        with torch.no_grad():
            net[0].weight[0, 0, 0, 0] += 1e-3
    elif changed == "structure":
        net = nn.Sequential(*net[:2], nn.AvgPool2d(2))
    elif changed == "input":
        x = x + 0
        x[0, 0, 0] += 1e-6
    elif changed == "rules":
        rules[range(2, 4)] = bilrp.Gamma(0.1000001)
    elif changed == "bounds":  # of a rule whose repr rounds them
        rules[1] = bilrp.ZB(torch.full((3, 1, 1), -1.000001), torch.ones(3, 1, 1))
    elif changed == "order":
        rules = {"*": bilrp.LRP0(), **rules}
    else:
        patch = 4
    made = kept.factor(net, x, rules, patch)
    assert count == [2]
    assert torch.equal(made.values, bilrp.factor(net, x, rules, patch=patch).values)


def test_what_cannot_be_told_by_its_content_is_not_kept(count: list[int], checkout: Path) -> None:
    class Own(nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu() * 2

    hooked, patched = network(), network()
    hooked[1].register_forward_hook(lambda *_: None)
    patched[1].forward = lambda x: x.relu()
    own = nn.Sequential(network()[0], Own())
    for net, rules in (
        (hooked, RULES),
        (patched, RULES),
        (own, {}),
        (network(), {nn.Conv2d: bilrp.LRP0()}),
        (network(), {lambda m: True: bilrp.LRP0()}),
    ):
        with pytest.raises(kept.Unclear):
            kept.name_of(net, torch.rand(3, 8, 8), rules, 2)
    for _ in range(2):
        kept.factor(network(), torch.rand(3, 8, 8), {nn.Conv2d: bilrp.LRP0()})
    assert count == [2]
    assert not (checkout / "_build").exists()
    with bilrp.registered(nn.ReLU, lambda *_: None), pytest.raises(kept.Unclear):
        kept.name_of(network(), torch.rand(3, 8, 8), RULES, 2)


def test_a_damaged_file_is_computed_anew_and_one_of_other_code_removed(
    count: list[int], checkout: Path
) -> None:
    x = torch.rand(3, 8, 8)
    old = checkout / "_build/kept/0123456789abcdef"
    old.mkdir(parents=True)
    whole = kept.factor(network(), x, RULES)
    assert not old.exists()
    (path,) = (checkout / "_build/kept").glob("*/*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(kept.factor(network(), x, RULES).values, whole.values)
    kept.factor(network(), x, RULES)
    assert count == [2]


def test_other_code_is_another_folder(tmp_path: Path) -> None:
    names = ("_names.py", "engine/api.py", "engine/deep/inner.py", "book/kept.py", "show/plot.py")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")

    def code() -> str:
        kept.code_of.cache_clear()
        return kept.code_of(tmp_path)

    for name in names:
        before = code()
        (tmp_path / name).write_text("2\n")
        assert (code() != before) == (name != "show/plot.py")
    kept.code_of.cache_clear()


def test_outside_a_checkout_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    kept.factor(network(), torch.rand(3, 8, 8), RULES)
    assert not list(tmp_path.iterdir())
