"""Contrasts, themes, repair, shared hash codes, and the command `bilrp`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bilrp
from bilrp import collect
from bilrp.collect import cli, report
from tests import nets

RULES = bilrp.Gamma(0.1)


def model() -> nn.Module:
    return nets.cnn().float().requires_grad_(False)


def factors(n: int, seed: int = 0) -> list[bilrp.Factor]:
    x = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return bilrp.factor(model(), list(x), RULES, patch=4)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_contrast_is_the_difference_to_the_last_digit(similarity):
    query, hit, other = factors(3)
    c = collect.contrast(query, hit, other, similarity)
    e, e2 = (query.explain(f, similarity) for f in (hit, other))
    assert c.difference == e.similarity - e2.similarity
    scale = abs(e.similarity) + abs(e2.similarity)
    assert sum(c.owners.values()) == pytest.approx(c.difference, abs=1e-6 * scale)
    assert c.owners["input"] != pytest.approx(c.difference, rel=0.01)  # biases are there, too
    assert float(c.on_query.sum()) == pytest.approx(c.owners["input"], rel=1e-12)
    for n, name in enumerate(e.owners):  # as both ledgers have it
        part = float(e.ledger[n].sum() - e2.ledger[n].sum())
        assert c.owners[name] == pytest.approx(part, abs=1e-6 * scale)
    # a patch has what it shares with the other's patches, and with the other's biases
    norms = [
        1 if similarity == "dot" else float(query.features.norm() * f.features.norm())
        for f in (hit, other)
    ]
    with_biases = [
        query.dense() @ f.absorbed.sum(0) / n for f, n in zip((hit, other), norms, strict=True)
    ]
    expected = (e.matrix.sum(1) + with_biases[0]) - (e2.matrix.sum(1) + with_biases[1])
    torch.testing.assert_close(
        c.on_query.flatten(), expected.double(), rtol=1e-3, atol=1e-5 * scale
    )
    assert float(with_biases[0].abs().max()) > 1e-3 * scale
    said = report.contrasted(c, list(torch.rand(3, 3, 16, 16)), ("q", "a", "b"))
    rest = c.difference - float(c.on_query.sum())
    assert f"carry {float(c.on_query.sum()):.4g} and biases on the query" in said
    assert f"side {rest:.4g}." in said
    figure = c.plot(*torch.rand(3, 3, 16, 16))
    assert len(figure.axes) == 3
    with pytest.raises(ValueError, match="-l2"):
        collect.contrast(query, hit, other, "-l2")


def test_a_contrast_with_itself_is_nothing():
    query, hit = factors(2)
    c = collect.contrast(query, hit, hit)
    assert c.difference == 0
    assert float(c.on_query.abs().max()) == 0


class Spots(nn.Module):
    """Colours by convolution, averaged over the picture: what is where does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 6, 1, bias=False)
        weight = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        self.see.weight.data = torch.cat([weight, 0.5 * weight.abs()])[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.see(x)).mean((2, 3))


def spotted(colour: int, seed: int) -> torch.Tensor:
    """Grey noise with a spot of a colour, in a place and size of its own."""
    g = torch.Generator().manual_seed(seed)
    x = 0.3 + 0.1 * torch.rand(1, 16, 16, generator=g).repeat(3, 1, 1)
    side = int(torch.randint(4, 7, (1,), generator=g))
    row, column = torch.randint(0, 16 - side, (2,), generator=g).tolist()
    x[:, row : row + side, column : column + side] = torch.eye(3)[colour][:, None, None]
    return x


@pytest.fixture(scope="module")
def spots(tmp_path_factory) -> collect.Store:
    """A third each has a red, a green, a blue spot."""
    x = torch.stack([spotted(n % 3, n) for n in range(18)])
    path = tmp_path_factory.mktemp("spots")
    net = Spots().eval().requires_grad_(False)
    return collect.build(path, x, net, bilrp.LRP0(), patch=4, chunk=9)


def test_themes_find_what_pairs_have_in_common_wherever_it_is(spots):
    pairs = [(i, j) for i in range(18) for j in range(i + 1, 18) if (i - j) % 3 == 0]
    found = collect.find_themes(spots, pairs, count=3)
    assert sum(len(t.pairs) for t in found) == len(pairs)
    for theme in found:
        assert len({i % 3 for pair in theme.pairs for i in pair}) == 1
        assert theme.tightness > 0.9
        masks = [collect.strong_patches(*map(spots.factor, pair)) for pair in theme.pairs]
        sizes = [float(torch.cat(both).float().mean()) for both in masks]
        assert theme.patches == pytest.approx(np.median(sizes))
    assert [t.patches for t in found] == sorted(t.patches for t in found)
    again = collect.find_themes(spots, pairs, count=3)
    assert [t.pairs for t in again] == [t.pairs for t in found]
    assert all(i % 3 == j % 3 for i, j in collect.neighbours(spots, k=2))


def test_a_theme_has_its_most_typical_pair_first_and_a_median():
    angles = torch.tensor([0.5, 0, -0.1, 1.6, 1.4])
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    labels, pairs = torch.tensor([1, 1, 1, 0, 0]), [(n, n + 1) for n in range(5)]
    few, many = collect.grouped(pairs, rows, [0.5, 0.1, 0.2, 0.9, 0.3], labels)
    assert few.patches == 0.2
    assert many.patches == pytest.approx(0.6)  # of two, the middle
    cosines = torch.cosine_similarity(rows[:3], rows[:3].mean(0)[None])
    assert few.pairs == [pairs[n] for n in cosines.argsort(descending=True)]
    assert few.tightness == pytest.approx(float(cosines.mean()))


def test_a_signature_weighs_by_relevance_and_counts_no_negative():
    first, second = factors(2)
    a, b = first.dense(), second.dense()
    assert float((a @ b.T).min()) < -0.1 * float((a @ b.T).max())
    total = torch.zeros(a.shape[1])
    for row in a:
        for column in b:
            total += max(float(row @ column), 0.0) * row * column
    if len(first.feature_shape) == 3:  # summed over places
        total = total.view(first.feature_shape[0], -1).sum(1)
    torch.testing.assert_close(collect.signature(first, second), total / total.norm())
    tiny = replace(first, values=first.values * 1e-9), replace(second, values=second.values * 1e-9)
    torch.testing.assert_close(collect.signature(*tiny).norm(), torch.tensor(1.0))


def test_clusters_are_as_many_as_there_are_and_in_any_order_the_same():
    g = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(4, 30, generator=g)
    kind = torch.arange(60) % 4
    rows = centres[kind] + 0.3 * torch.randn(60, 30, generator=g)
    for order in (torch.arange(60), torch.randperm(60, generator=g)):
        labels = collect.cluster(rows[order])
        assert len(labels.unique()) == 4
        assert all(len(labels[kind[order] == k].unique()) == 1 for k in range(4))


def test_neighbours_need_others(spots):
    with pytest.raises(ValueError, match="from 1 to the 17 other inputs"):
        collect.neighbours(spots, k=18)


def test_every_row_of_a_ledger_counts_once():
    first, second = factors(2)
    e = first.explain(second)
    html = report.ledger(e, most=2)
    cells = re.findall(r'<td>([^<]*)</td><td class="number">([^<]*)</td><td>([^<]*)</td>', html)
    values = {name: float(value.replace(",", "")) for name, value, _ in cells}
    both, y = e.ledger, e.similarity
    assert values.pop("all, which is the similarity") == pytest.approx(y, rel=1e-3)
    assert sum(values.values()) == pytest.approx(y, rel=1e-2)
    assert values["pixels x pixels"] == pytest.approx(float(both[0, 0]), rel=1e-3)
    beside = float(both[0, 1:].sum())
    assert values["pixels of the first, biases on the second"] == pytest.approx(beside, rel=1e-3)
    rows = {n: float(both[k].sum()) for k, n in enumerate(e.owners) if k}
    largest = sorted(rows, key=lambda n: -abs(rows[n]))[:2]
    assert {n: values[n] for n in largest} == pytest.approx({n: rows[n] for n in largest}, rel=1e-3)
    assert cells[0][2] == f"{float(both[0, 0]) / y:.1%}"


def test_strong_patches_are_the_fewest_that_carry_half(spots):
    first, second = spots.factor(0), spots.factor(3)
    positive = (first.dense() @ second.dense().T).clamp(min=0)
    for side, mask in enumerate(collect.strong_patches(first, second)):
        share = positive.sum(1 - side)
        assert share[mask].sum() >= 0.5 * share.sum()
        assert share[mask].sum() - share[mask].min() < 0.5 * share.sum()
        assert share[mask].min() >= share[~mask].max()


def test_what_is_projected_out_no_longer_counts_and_is_still_explained(spots):
    reds = [(spots.factor(i), spots.factor(j)) for i, j in ((0, 3), (6, 9), (12, 15))]
    away = collect.directions(reds, 1)
    torch.testing.assert_close(away @ away.T, torch.eye(1))
    mended = collect.repaired(spots.model, away)
    x, x2 = spots.inputs.read(0), spots.inputs.read(3)
    with torch.no_grad():
        torch.testing.assert_close(mended(x[None]), collect.project_out(spots.model(x[None]), away))
    before = bilrp.explain(spots.model, x, x2, bilrp.LRP0(), patch=4)
    after = bilrp.explain(mended, x, x2, bilrp.LRP0(), patch=4)
    assert after.similarity < 0.5 * before.similarity
    masks = collect.strong_patches(*reds[0])
    assert collect.carried_by(before) == pytest.approx(1, rel=1e-5)  # no biases
    parts = [collect.carried_by(before, a, b) for a in (masks[0], ~masks[0]) for b in (None,)]
    assert sum(parts) == pytest.approx(1, rel=1e-5)
    assert parts[0] > 0.4
    with pytest.raises(ValueError, match="for 16 patches"):
        collect.carried_by(before, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"give mask\.bool\(\)"):
        collect.carried_by(before, torch.ones(16, dtype=torch.int64))
    with pytest.raises(ValueError, match="rank must be"):
        collect.directions(reds, 7)


def test_a_covered_patch_has_the_mean_colour():
    x = torch.rand(3, 8, 8)
    mask = torch.tensor([[True, False], [False, False]])
    y = collect.covered(x, mask)
    torch.testing.assert_close(y[:, :4, :4], x.mean((1, 2))[:, None, None].expand(3, 4, 4))
    assert torch.equal(y[:, 4:], x[:, 4:])


GROUPS = [slice(0, 16), slice(16, 40)]
ASKED = {
    "dot": collect.Weights(dot=1),
    "cosine": collect.Weights(cosine=1),
    "distance": collect.Weights(l2=1),
    "one group": [collect.Weights(dot=1), collect.Weights()],
    "a mixture": [collect.Weights(cosine=1, l2=0.02), collect.Weights(dot=0.03)],
}


@pytest.mark.parametrize("asked", ASKED)
def test_one_set_of_codes_serves_every_similarity(asked):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(400, 40, generator=g).relu() * torch.rand(400, 1, generator=g)
    query = features[:30] + 0.1 * torch.rand(30, 40, generator=g)
    weights = ASKED[asked]
    listed = weights if isinstance(weights, list) else [weights] * 2
    true = collect.mixed(query, features, GROUPS, listed).topk(10, 1).indices
    found = {}
    for bits in (64, 2048):
        for variant in ("concatenated", "augmented"):
            codes = collect.MultiHash(features, GROUPS, bits, variant)
            hits = codes.nearest(query, 40, weights)
            found[bits, variant] = collect.recall(hits.indices, true)
    chance = 40 / 400
    assert found[2048, "concatenated"] > 0.85
    assert found[2048, "concatenated"] > found[64, "concatenated"] > 2 * chance
    assert found[2048, "augmented"] > 3 * chance


def test_a_mixture_is_of_the_similarities_themselves():
    g = torch.Generator().manual_seed(0)
    base = 10 * torch.randn(1, 2000, generator=g)
    x, q = (base + 0.01 * torch.randn(n, 2000, generator=g) for n in (200, 3))
    found = collect.mixed(q, x, [slice(0, 2000)], [collect.Weights(l2=1)])
    true = -((q.double()[:, None] - x.double()) ** 2).sum(2)
    torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=0)


def test_codes_estimate_the_similarity_itself():
    features = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    codes = collect.MultiHash(features, GROUPS, 20_000)
    asked = ASKED["a mixture"]
    true = collect.mixed(features[:5], features, GROUPS, asked)
    assert float((codes.scores(features[:5], asked) - true).abs().max()) < 0.1
    assert codes.bytes == 20_000 // 8 + 8
    with pytest.raises(ValueError, match="each of the 40 features once"):
        collect.MultiHash(features, [slice(0, 20)])
    with pytest.raises(ValueError, match="3 weights for 2 groups"):
        codes.scores(features[:5], [collect.Weights()] * 3)
    with pytest.raises(ValueError, match=">= 0"):
        collect.Weights(dot=-1)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The command's networks replaced by a small one."""
    tiny = cli.Network("tiny", model, lambda: RULES, bilrp.normalize, 32, 8, {})
    real = cli.network
    monkeypatch.setattr(cli, "network", lambda name: tiny if name == "tiny" else real(name))


def folder(path: Path, count: int = 8) -> Path:
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(pixels).resize((70, 50)).save(path / f"<photo> {i}.jpg")
    return path


def offline(page: Path) -> str:
    """A page that is whole: nothing in it asks for anything else."""
    html = page.read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", html)
    assert all(link.startswith("data:") for link in links), links
    assert "import " not in re.sub(r"(?s)/\*.*?\*/|//[^\n]*", "", html).split("<script")[0]
    assert "<photo>" not in html  # names are escaped
    return html


def test_explain_index_search_themes(small, tmp_path, capsys):
    photos, store = folder(tmp_path / "photos"), tmp_path / "store"
    a, b = sorted(photos.iterdir())[:2]
    page = tmp_path / "page.html"
    tiny = ["--model", "tiny", "--size", "32"]
    assert cli.main(["explain", str(a), str(b), "-o", str(page), *tiny]) == 0
    html = offline(page)
    assert html.count("bilrp-explorer") >= 1
    assert "centre square" in html
    assert "The ledger" in html
    (photos / "broken.jpg").write_text("no")
    assert cli.main(["index", str(photos), "--store", str(store), *tiny]) == 0
    said = capsys.readouterr().out
    assert "8 photos are in" in said
    assert "left out: broken.jpg is not a picture" in said
    assert cli.main(["search", str(a), "--store", str(store), "-k", "3", "-o", str(page)]) == 0
    said = capsys.readouterr().out
    assert "<photo> 0.jpg is this very photo and is left out" in said
    assert re.search(r"(?m)^1  0\.\d+  <photo> [1-7]\.jpg$", said)
    html = offline(page)
    assert len(re.findall(r"<h2>Hit \d", html)) == 3
    assert "Why &lt;photo&gt; " in html
    assert cli.main(["themes", "--store", str(store), "--count", "2", "-o", str(page)]) == 0
    assert offline(page).count("<h2>Theme") == 2


@pytest.mark.weights
def test_index_by_the_workers_of_a_cluster(tmp_path, capsys):
    from distributed import Client, LocalCluster

    from bilrp.collect import building

    photos = folder(tmp_path / "photos", 6)
    index = ["index", str(photos), "--model", "vgg16:5", "--size", "32", "--chunk", "2"]
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        scheduler = ["--scheduler", cluster.scheduler_address]
        assert cli.main([*index, "--store", str(tmp_path / "two"), *scheduler]) == 0
        with Client(cluster) as client:
            made = client.run(lambda: len(building._MADE))
    assert sum(made.values()) >= 1  # the workers have made the network, not this process
    assert "6 photos are in" in capsys.readouterr().out
    assert cli.main([*index, "--store", str(tmp_path / "one")]) == 0
    one, two = (collect.Store(tmp_path / name) for name in ("one", "two"))
    assert two.check() == []
    assert one.about == two.about
    assert torch.equal(one.features(), two.features())


@pytest.mark.weights
def test_efficientnet_explains_indexes_and_searches(tmp_path, capsys):
    photos, store = folder(tmp_path / "photos"), tmp_path / "store"
    a, b = sorted(photos.iterdir())[:2]
    page = tmp_path / "page.html"
    lite = ["--model", "efficientnet_lite0", "--size", "64"]
    assert cli.main(["explain", str(a), str(b), "-o", str(page), *lite]) == 0
    said = capsys.readouterr().out
    html = offline(page)
    assert "efficientnet_lite0" in html
    net = bilrp.efficientnet_lite0()
    x, x2 = (bilrp.efficientnet_lite0_input(cli._photo(v, 64)) for v in (a, b))
    e = bilrp.explain(net, x, x2, patch=16, similarity="cosine")
    assert f"similarity {e.similarity:.4g};" in said
    assert cli.main(["index", str(photos), "--store", str(store), *lite]) == 0
    assert cli.main(["search", str(a), "--store", str(store), "-k", "2", "-o", str(page)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"(?m)^1  [0.\d]+  <photo> [1-7]\.jpg$", said)
    assert len(re.findall(r"<h2>Hit \d", offline(page))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "{no}", "{no}", "-o", "{page}"], "no.jpg is not there"),
        (["explain", "{bad}", "{bad}", "-o", "{page}"], "not a picture"),
        (["explain", "{small}", "{small}", "-o", "{page}"], "too small"),
        (["explain", "{good}", "{good}", "-o", "{no}/x.html"], "a folder that exists"),
        (["explain", "{good}", "{good}", "-o", "{page}", "--size", "50"], "multiple of 32"),
        (["explain", "{good}", "{good}", "-o", "{page}", "--model", "vgg19"], "vgg16:LAYER"),
        (["explain", "{good}", "{good}", "-o", "{page}", "--model", "vgg16:32"], "from 1 to 31"),
        (["explain", "{good}", "{small}", "-o", "{good}"], "ends in .html"),
        (["search", "{good}", "--store", "{no}", "-o", "{no}/store.json"], "ends in .html"),
        (["themes", "--store", "{no}", "-o", "{good}"], "ends in .html"),
        (["explain", "{good}", "{good}", "-o", "{page}", "--model", "vgg16:²"], "from 1 to 31"),
        (["index", "{no}", "--store", "{page}"], "no folder"),
        (["search", "{good}", "--store", "{no}", "-o", "{page}"], "is no store"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_left(tmp_path, capsys, arguments, said):
    places = {n: tmp_path / f"{n}.jpg" for n in ("no", "bad", "small", "good")}
    places["page"] = tmp_path / "page.html"
    places["bad"].write_text("hello")
    Image.new("RGB", (20, 20)).save(places["small"])
    Image.new("RGB", (200, 200)).save(places["good"])
    before = sorted(tmp_path.iterdir())
    assert cli.main([a.format(**places) for a in arguments]) == 1
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_store_of_another_version_or_model_is_refused(small, tmp_path, capsys):
    photos, store = folder(tmp_path / "photos"), tmp_path / "store"
    index = ["index", str(photos), "--store", str(store), "--model", "tiny"]
    assert cli.main([*index, "--size", "32"]) == 0
    assert cli.main([*index, "--size", "64"]) == 1
    assert "32 x 32" in capsys.readouterr().err
    manifest = store / "store.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    assert cli.main([*index, "--size", "32"]) == 1
    assert "store of format 2" in capsys.readouterr().err


def test_photos_that_have_moved_are_found_again(small, tmp_path, capsys):
    photos, store = folder(tmp_path / "photos"), tmp_path / "store"
    page = ["-o", str(tmp_path / "page.html")]
    index = ["--store", str(store), "--model", "tiny", "--size", "32"]
    assert cli.main(["index", str(photos), *index]) == 0
    moved = photos.rename(tmp_path / "moved")
    search = ["search", str(moved / "<photo> 0.jpg"), "--store", str(store), *page]
    assert cli.main(search) == 1
    assert "bilrp index NEW_FOLDER" in capsys.readouterr().err
    assert cli.main(["index", str(moved), *index]) == 0
    assert cli.main(search) == 0
    for name in sorted(moved.iterdir())[1:]:
        name.unlink()
    one = tmp_path / "one"
    assert cli.main(["index", str(moved), *index[2:], "--store", str(one)]) == 0
    capsys.readouterr()
    assert cli.main(["themes", "--store", str(one), *page]) == 1
    assert "only 1 can be used" in capsys.readouterr().err


def test_help_and_usage(capsys):
    with pytest.raises(SystemExit) as asked:
        cli.main(["--help"])
    assert asked.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("explain", "index", "search", "themes"))
    with pytest.raises(SystemExit) as wrong:
        cli.main(["search"])
    assert wrong.value.code == 2
