"""The explorer's Python half: what it sends, how large and how exact that is, what it predicts."""

from __future__ import annotations

import base64
import builtins
import json
import re

import numpy as np
import pytest
import skimage.data
import torch
from skimage.transform import resize

import bilrp
from bilrp.show.explorer import WIDGET, Explorer, quantize
from tests import nets


def photo(name: str, side: int) -> torch.Tensor:
    """A photo that comes with scikit-image, (3, side, side) in [0, 1]."""
    image = getattr(skimage.data, name)()[:300, 80:380]
    return torch.tensor(resize(image, (side, side)).transpose(2, 0, 1)).float()


def drawing(side: int, seed: int) -> torch.Tensor:
    """Two soft spots on a slope, (3, side, side) in [0, 1]."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:side, :side] / side
    image = np.stack([0.3 + 0.4 * xx, 0.5 + 0 * xx, 0.7 - 0.4 * yy])
    for row, column, *colour in rng.random((2, 5)):
        spot = np.exp(-((yy - row) ** 2 + (xx - column) ** 2) / 0.02)
        image += (np.array(colour)[:, None, None] - image) * spot
    return torch.tensor(image).float()


def made_up(rows: int, columns: int | None = None, seed: int = 0) -> bilrp.Explanation:
    """An explanation with few strong pairs of both signs, many weak ones, and 10 % for biases."""
    rng = np.random.default_rng(seed)
    n, m = rows * (columns or rows), rows * rows
    scores = rng.gamma(0.1, 1.0, (n, m)) * rng.choice([1.0, 1.0, 1.0, -1.0], (n, m))
    scores[rng.random((n, m)) < 0.5] *= 1e-3
    y = scores.sum() / 0.9
    ledger = torch.tensor([[scores.sum(), 0], [0, y - scores.sum()]], dtype=torch.float64)
    relevance = torch.tensor(scores).reshape(rows, columns or rows, rows, rows)
    return bilrp.Explanation(relevance, float(y), ("input", "conv1"), ledger)


def explorer(side: int = 4, **options) -> Explorer:
    return made_up(side).explore(drawing(8 * side, 1), drawing(8 * side, 2), **options)


def sent(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])


def decoded(data: dict) -> np.ndarray:
    """What the browser makes of the scores."""
    kind = {16: "<i2", 8: "<i1"}[data["bits"]]
    codes = np.frombuffer(base64.b64decode(data["codes"]), kind).astype(float)
    scales = np.frombuffer(base64.b64decode(data["scales"]), "<f8")
    codes = codes.reshape(len(scales), -1)
    return codes * np.abs(codes) * scales[:, None]


@pytest.mark.parametrize(("side", "part"), [(16, 1 / 32767), (18, 1 / 126)])
def test_scores_are_sent_as_exactly_as_documented(side, part):
    scores = made_up(side).matrix.numpy()
    scores[3] *= 1e-6  # a weak row has a scale of its own
    scores[4] = 0
    codes, scales = quantize(scores)
    wide = codes.astype(float)
    error = np.abs(wide * np.abs(wide) * scales[:, None] - scores)
    assert (error <= part * np.abs(scores).max(1, keepdims=True)).all()
    assert codes.dtype == (np.int16 if side == 16 else np.int8)
    assert (codes[4] == 0).all()
    assert (np.abs(codes) <= np.iinfo(codes.dtype).max).all()
    # a score of a thousandth of the largest in its row is still there
    visible = np.abs(scores) > 1e-3 * np.abs(scores).max(1, keepdims=True)
    assert (codes[visible] != 0).all()


@pytest.mark.parametrize("side", [16, 18])
def test_numbers_on_the_page_are_within_one_per_cent_of_y(side):
    e = made_up(side)
    data = sent(e.explore(drawing(8 * side, 1), drawing(8 * side, 2)).html())
    matrix, got = e.matrix.numpy(), decoded(data)
    for axis, sums in zip((1, 0), data["sums"], strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(sums)), matrix.sum(axis))
    for least in (0, 0.01, 0.1, 0.5):  # shares of the shown partners
        for axis in (0, 1):
            want = (matrix * (np.abs(matrix) >= least * np.abs(matrix).max())).sum(axis)
            have = (got * (np.abs(matrix) >= least * np.abs(matrix).max())).sum(axis)
            assert np.abs(want - have).max() < 0.01 * abs(e.similarity)
    assert data["y"] == e.similarity
    assert data["bias"] == pytest.approx(0.1)
    assert data["grid"] == [side] * 4
    best = [e.matrix.flatten()[k].item() for k in data["strongest"]]
    assert abs(best[0]) == e.relevance.abs().max()
    assert {np.sign(v) for v in best} == {-1, 1}


def test_an_explorer_of_16_x_16_patches_adds_less_than_300_kb():
    ex = made_up(16).explore(photo("astronaut", 256), photo("chelsea", 256))
    assert len(ex.html().encode()) < 300_000
    small = made_up(16).explore(photo("astronaut", 128), photo("chelsea", 128))
    assert len(small.html().encode()) < 275_000


def test_28_x_28_patches_are_not_too_many():
    ex = made_up(28).explore(photo("astronaut", 224), photo("chelsea", 224))
    assert len(ex.html().encode()) < 1_000_000


def test_the_picture_is_determined_by_what_it_shows():
    assert explorer().html() == explorer().html()


def test_sides_may_have_different_grids():
    e = made_up(4, columns=6)
    data = sent(e.explore(drawing(48, 1)[:, :32], drawing(32, 2)).html())
    assert data["grid"] == [4, 6, 4, 4]
    assert [p["size"] for p in data["pictures"]] == [[48, 32], [32, 32]]
    np.testing.assert_allclose(decoded(data), e.matrix, atol=1e-3 * float(e.matrix.abs().max()))


def test_similarity_zero_and_scores_zero_can_be_shown():
    e = bilrp.Explanation(
        torch.zeros(2, 2, 2, 2), 0.0, ("input",), torch.zeros(1, 1, dtype=torch.float64)
    )
    data = sent(e.explore(drawing(16, 1), drawing(16, 2)).html())
    assert data["bias"] is None
    assert data["strongest"] == []
    assert (decoded(data) == 0).all()


# What is shown where


def test_a_notebook_gets_a_widget_and_a_page_gets_html():
    pytest.importorskip("anywidget")
    ex = explorer()
    bundle = ex._repr_mimebundle_()
    assert set(bundle) == {WIDGET, "text/html", "text/plain"}
    assert bundle["text/plain"].startswith("Explorer(Explanation(4 x 4 x 4 x 4")
    # shown twice, it is one widget; and its state, which pages save too, has no data in it
    assert ex._repr_mimebundle_()[WIDGET] == bundle[WIDGET]
    state = json.dumps(ex._widget.get_state())
    assert len(state) < 32_000  # the module, nearly all of it
    assert sent(ex.html())["codes"] not in state


def test_without_anywidget_there_is_html_everywhere(monkeypatch):
    real = builtins.__import__

    def no_anywidget(name, *args, **kwargs):
        if name.partition(".")[0] == "anywidget":
            raise ImportError("No module named 'anywidget'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_anywidget)
    bundle = explorer(similarity=lambda a, b: 0.0)._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "mountAll(" in bundle["text/html"]


def test_html_asks_for_nothing_from_outside():
    html = explorer().html()
    addresses = re.findall(r"""(?:src|href|url)["']?\s*[=:(]\s*["']?([a-z]+:[^"']{0,20})""", html)
    assert addresses
    assert all(a.startswith("data:image/jpeg;base64,"[: len(a)]) for a in addresses)
    assert not re.search(r"https?://|\bimport\b|\bfetch\(", html)


def test_whatever_the_user_writes_is_text():
    bad = '"></script><script>alert(1)</script><img src=x onerror="alert(2)">&'
    html = explorer(names=(bad, "b"), alt=bad).html()
    assert html.count("<script") == 2
    assert html.count("<img ") == 2  # the still picture, and the module's template
    assert "alert(1)</script>" not in html
    assert "&lt;script&gt;alert(1)" in html  # the alt text
    assert sent(html)["names"] == [bad, "b"]


def test_the_still_picture_is_described():
    assert 'alt="Two pictures side by side: First picture, Second picture.' in explorer().html()
    assert 'alt="Two cats"' in explorer(alt="Two cats").html()


# Covering patches

COVERS = [
    ([], []),
    ([(0, 0)], []),
    ([], [(3, 1), (2, 2)]),
    ([(0, 0), (1, 3), (1, 3)], [(0, 1), (3, 3)]),
    ([(r, c) for r in range(4) for c in range(4)], [(0, 0)]),
]


@pytest.mark.parametrize("cover", COVERS)
def test_predicted_change_takes_each_covered_pair_away_once(cover):
    ex = explorer()
    want = 0.0
    for i, j, k, m in np.ndindex(4, 4, 4, 4):
        if (i, j) in cover[0] or (k, m) in cover[1]:
            want -= float(ex.explanation.relevance[i, j, k, m])
    assert ex.predicted_change(*cover) == pytest.approx(want, abs=1e-9)


def linear(a: torch.Tensor, b: torch.Tensor) -> float:
    """A dot product of pixels: there, nothing but the covered pixels changes."""
    return float((a.double() * b.double()).sum())


def test_true_change_is_that_of_pictures_with_patches_in_their_mean_colour():
    ex = explorer(similarity=linear)
    x = ex.x.clone()
    x[:, 8:16, 24:32] = ex.x.mean((1, 2), keepdim=True)
    change = ex.true_change([(1, 3)])
    assert change == pytest.approx(linear(x, ex.x2) - linear(ex.x, ex.x2), abs=1e-9)
    assert change
    batched = made_up(4).explore(ex.x[None], ex.x2[None], linear)
    assert batched.true_change([(1, 3)]) == pytest.approx(change, abs=1e-9)
    assert ex.true_change() == 0


def test_on_a_model_prediction_and_truth_are_about_the_same_similarity():
    model, x, x2 = nets.cnn(bias=False), nets.image(1), nets.image(2)
    x, x2 = (v.sigmoid() for v in (x, x2))
    e = bilrp.explain(model, x, x2, bilrp.Gamma(0.1), patch=8)

    def similarity(a, b):
        return (model(a[None]) * model(b[None])).sum()

    ex = e.explore(x, x2, similarity)
    everywhere = [(r, c) for r in range(2) for c in range(2)]
    assert ex.predicted_change(everywhere) == pytest.approx(-e.similarity, rel=1e-6)
    flat = x.mean((1, 2), keepdim=True).expand_as(x)
    want = float((similarity(flat, x2) - similarity(x, x2)).detach())
    assert ex.true_change(everywhere) == pytest.approx(want, rel=1e-9)


class Kernel:
    """Stands for the widget: keeps what is sent."""

    def __init__(self):
        self.replies = []

    def send(self, reply):
        self.replies.append(reply)


def ask(ex: Explorer, **message) -> dict:
    kernel = Kernel()
    ex._answer(kernel, message, [])
    json.dumps(kernel.replies)
    return kernel.replies[0]


def test_the_kernel_answers_the_browser():
    ex = explorer(similarity=linear)
    reply = ask(ex, kind="data")
    assert reply["data"]["live"] is True
    assert {**sent(ex.html()), "live": True} == reply["data"]
    assert ask(explorer(), kind="data")["data"]["live"] is False
    reply = ask(ex, kind="true", ticket="t", cover=[[7], [0, 5]])
    assert reply["ticket"] == "t"
    assert reply["change"] == ex.true_change([(1, 3)], [(0, 0), (1, 1)])


def test_an_error_in_the_similarity_is_told_to_the_reader():
    def broken(a, b):
        raise RuntimeError("no <memory> left")

    reply = ask(explorer(similarity=broken), kind="true", ticket="t", cover=[[7], []])
    assert reply["error"] == "RuntimeError: no <memory> left"
    assert reply["change"] is None
    reply = ask(explorer(similarity=lambda a, b: np.nan), kind="true", ticket="t", cover=[[], []])
    assert "NaN" in reply["error"]
    reply = ask(explorer(similarity=linear), kind="true", ticket="t", cover=[[16], []])
    assert "no patch (4, 0)" in reply["error"]


# Bad input


def test_what_does_not_fit_is_refused():
    e, x = made_up(4), drawing(32, 1)
    with pytest.raises(ValueError, match=r"does not fit images of \(30, 32\) and \(32, 32\)"):
        e.explore(x[:, :30], x)
    with pytest.raises(ValueError, match=r"an image is \(3, H, W\).*\(1, 32, 32\)"):
        e.explore(x, x[:1])
    flat = bilrp.Explanation(e.matrix, e.similarity, e.owners, e.ledger)
    with pytest.raises(ValueError, match=r"the explanation \(16, 16\) does not fit images"):
        flat.explore(x, x)
    with pytest.raises(ValueError, match="names must be two strings"):
        e.explore(x, x, names=("a",))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_is_refused():
    e, x = made_up(4), drawing(32, 1)
    relevance = e.relevance.clone()
    relevance[1, 2, 3, 0] = torch.nan
    bad = bilrp.Explanation(relevance, e.similarity, e.owners, e.ledger)
    with pytest.raises(ValueError, match="NaN or infinite"):
        bad.explore(x, x)


def test_patches_outside_the_grid_and_a_missing_similarity_are_refused():
    ex = explorer()
    with pytest.raises(ValueError, match=r"no patch \(0, 4\) in a grid of \(4, 4\)"):
        ex.predicted_change([], [(0, 4)])
    with pytest.raises(ValueError, match="needs `similarity`"):
        ex.true_change([(0, 0)])


# Text


def of_tokens(n: int = 5, m: int = 4, seed: int = 0) -> bilrp.Explanation:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, m)) + 0.4
    y = scores.sum() / 0.9
    ledger = torch.tensor([[scores.sum(), 0], [0, y - scores.sum()]], dtype=torch.float64)
    return bilrp.Explanation(torch.tensor(scores), float(y), ("input", "bias"), ledger)


LINES = (["the", "cat", "sat", "<on>", "mats"], ["a", "dog", "“sat”", "down"])


def test_tokens_are_sent_as_they_are_read():
    e = of_tokens()
    data = sent(e.explore(tokens=LINES, names=("One", "Two")).html())
    assert [[w["text"] for w in line] for line in data["tokens"]] == [list(v) for v in LINES]
    assert data["grid"] == [1, 5, 1, 4]
    assert data["names"] == ["One", "Two"]
    np.testing.assert_allclose(decoded(data), e.matrix, atol=1e-4 * float(e.matrix.abs().max()))
    assert data["y"] == e.similarity
    assert data["bias"] == pytest.approx(0.1)
    assert "pictures" not in data


@pytest.mark.parametrize(
    ("tokens", "texts", "joined"),
    [
        (["▁the", "▁c", "at", "s"], ["the", "c", "at", "s"], [0, 0, 1, 1]),
        (["the", "Ġc", "at"], ["the", "c", "at"], [0, 0, 1]),
        (["em", "##bed", "##ding", "##"], ["em", "bed", "ding", "##"], [0, 1, 1, 0]),
        (["a", "", "\n", " "], ["a", "␣", "⏎", "␣"], [0, 0, 0, 0]),
    ],
)
def test_marks_of_tokenizers_are_read(tokens, texts, joined):
    from bilrp.show.text import shown

    assert [w["text"] for w in shown(tokens)] == texts
    assert [w["joined"] for w in shown(tokens)] == [bool(v) for v in joined]


def test_leaving_tokens_out_is_predicted_and_tried():
    e, asked = of_tokens(), []

    def similarity(a, b):
        asked.append((a, b))
        return float(len(a) * len(b))

    ex = e.explore(tokens=LINES, similarity=similarity)
    want = e.matrix[[0, 2, 4]][:, [0, 1, 2]].sum() - e.matrix.sum()
    assert ex.predicted_change([1, 3], [3]) == pytest.approx(float(want))
    assert ex.true_change([1, 3], [3]) == 3 * 3 - 5 * 4
    assert asked[0] == (["the", "sat", "mats"], ["a", "dog", "“sat”"])

    class Widget:
        def send(self, reply):
            self.reply = reply

    widget = Widget()
    ex._answer(widget, {"kind": "true", "ticket": "t", "cover": [[1, 3], [3]]})
    assert widget.reply == {"kind": "true", "ticket": "t", "change": -11.0}
    with pytest.raises(ValueError, match="no token 5 among 5"):
        ex.predicted_change([5])


def test_what_does_not_fit_a_text_is_refused():
    e = of_tokens()
    x = drawing(16, 1)
    for arguments, said in (
        (dict(tokens=(LINES[1], LINES[0])), r"\(5, 4\) does not fit 4 and 5 tokens"),
        (dict(tokens=("the cat", "a dog")), "two lists of strings"),
        (dict(tokens=(LINES[0], [1, 2, 3, 4])), "two lists of strings"),
        (dict(), "give two images, or for text tokens="),
        (dict(x=x), "give two images, or for text tokens="),
        (dict(x=x, x2=x, tokens=LINES), "give two images, or for text tokens="),
    ):
        with pytest.raises(ValueError, match=said):
            e.explore(**arguments)
    with pytest.raises(ValueError, match="5 and 4 owners, but 4 and 5 tokens"):
        e.plot(tokens=(LINES[1], LINES[0]))
    with pytest.raises(ValueError, match="give two images, or for text tokens="):
        e.plot(x)
    with pytest.raises(ValueError, match="does not fit"):
        made_up(2).explore(tokens=(["a"] * 4, ["b"] * 4))


def test_a_table_of_tokens_says_shares_in_per_cent():
    e = of_tokens()
    ax = e.plot(tokens=LINES)
    assert [t.get_text() for t in ax.get_yticklabels()] == LINES[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == LINES[1]
    written = [int(t.get_text()) for t in ax.texts]
    want = (100 * e.matrix / e.similarity).flatten().round().tolist()
    assert written == pytest.approx(want, abs=1)
    zero = bilrp.Explanation(torch.zeros(2, 2), 0.0, ("input",), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="y is 0"):
        zero.plot(tokens=(["a", "b"], ["c", "d"]))
    assert sent(zero.explore(tokens=(["a", "b"], ["c", "d"])).html())["strongest"] == []


def test_a_text_cannot_end_the_script_or_become_html():
    evil = "</script><img src=x onerror=alert(1)>"
    html = of_tokens(1, 1).explore(tokens=([evil], ["b"]), names=(evil, "b")).html()
    assert "<img src=x" not in html
    assert sent(html)["tokens"][0][0]["text"] == evil
