"""Rendered tables: what is printed is what is said to be printed."""

import numpy as np
import pytest
import torch

from bilrp.book import tables
from bilrp.book.tables import FACES, Style

CONTENT = [[12, 345, None], [7, 80, 61]]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("old_style", [True, False])
def test_there_is_ink_where_the_digits_are_and_nowhere_else(face, old_style):
    style = Style(face=face, old_style=old_style, rules="none", angle=0.8, faint=0, broken=0)
    page = tables.table(CONTENT, style, seed=1)
    dark = page.image[0, 0] < 0.55
    inside = torch.zeros_like(dark)
    for d in page.digits:
        top, left, bottom, right = d.box
        rows = slice(int(top) - 1, int(bottom) + 2)
        cols = slice(int(left) - 1, int(right) + 2)
        inside[rows, cols] = True
        assert int(dark[rows, cols].sum()) >= 6, d
        assert left < d.x < right
    assert int((dark & ~inside).sum()) == 0


def test_digits_spell_the_content_in_reading_order():
    page = tables.table(CONTENT, seed=2)
    assert "".join(str(d.value) for d in page.digits) == "1234578061"
    assert page.content == ((12, 345, None), (7, 80, 61))
    cells = {}
    for d in page.digits:
        cells[d.row, d.column] = 10 * cells.get((d.row, d.column), 0) + d.value
    assert cells == {(0, 0): 12, (0, 1): 345, (1, 0): 7, (1, 1): 80, (1, 2): 61}


def test_bigrams_are_pairs_within_a_number():
    counts = tables.table(CONTENT, seed=3).bigrams
    assert counts.nonzero()[:, 0].tolist() == [12, 34, 45, 61, 80]
    assert tables.table([[11, 111]]).bigrams[11] == 3
    assert tables.table([[1, 2], [3, 4]]).bigrams.sum() == 0


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_stand_a_pitch_apart_and_other_numbers_further(seed):
    style = Style.random(seed)
    page = tables.table(tables.numbers(4, 3, seed, 100, 999), style, seed)
    distance = [(b.x - a.x, abs(b.y - a.y)) for a, b in page.pairs]
    assert all(abs(dx - style.pitch) < 2.5 for dx, _ in distance)
    assert all(dy < 2.5 for _, dy in distance)
    gaps = [
        b.x - a.x
        for a in page.digits
        for b in page.digits
        if a.row == b.row and b.column == a.column + 1 and b.place == 0 and a.place == 2
    ]
    assert min(gaps) > style.pitch + 8


def test_the_same_seed_gives_the_same_page_and_another_one_another():
    a, b, c = (tables.table(CONTENT, Style.random(5), seed, words=True) for seed in (5, 5, 6))
    assert torch.equal(a.image, b.image)
    assert a.digits == b.digits
    assert not torch.equal(a.image, c.image)
    assert Style.random(5) == Style.random(5) != Style.random(6)
    assert tables.numbers(3, 3, 1) == tables.numbers(3, 3, 1) != tables.numbers(3, 3, 2)


def test_pages_are_pictures_in_bytes():
    for page in (tables.table(CONTENT), tables.text((48, 80))):
        x = page.image
        assert x.dtype == torch.float32
        assert x.shape[:2] == (1, 1)
        assert 0 <= float(x.min()) < float(x.max()) <= 1
        torch.testing.assert_close(x * 255, (x * 255).round(), atol=1e-4, rtol=0)
    assert all(n % 16 == 0 for n in tables.table(CONTENT).image.shape[2:])
    assert tables.table(CONTENT, size=(100, 203)).image.shape == (1, 1, 100, 203)


def test_text_has_ink_but_no_digits():
    page = tables.text((64, 96), seed=1)
    assert page.digits == ()
    assert page.content == ()
    assert float(page.bigrams.sum()) == 0
    assert float((page.image < 0.5).float().mean()) > 0.02


def test_rules_are_where_they_are_said_to_be():
    for seed in range(3):
        page = tables.table(CONTENT, Style(rules="all", faint=0, broken=0), seed)
        grey = page.image[0, 0]
        assert page.rules.any()
        assert float(grey[page.rules].mean()) < float(grey[~page.rules].mean()) - 0.3
    assert not tables.table(CONTENT, Style(rules="none")).rules.any()


def test_old_style_figures_are_of_three_kinds():
    page = tables.table([[1234567890]], Style(uneven=0, rules="none"), seed=0)
    tall = {d.value: d.box[2] - d.box[0] for d in page.digits}
    bottom = {d.value: d.box[2] for d in page.digits}
    assert all(tall[v] < 0.8 * tall[8] for v in (0, 1, 2))
    assert all(bottom[v] > bottom[8] + 2 for v in (3, 4, 5, 7, 9))
    assert len({round(d.y, 3) for d in page.digits}) == 1  # one line, one height


def test_dark_paper():
    page = tables.table(CONTENT, Style(paper=0.15, ink=0.9, rules="none"), seed=1)
    assert float(page.image.median()) < 0.3
    assert float(page.image.max()) > 0.6


@pytest.mark.parametrize("content", [[], [[]], [[1], [2, 3]], [[-1]], [[1.5]], [["12"]], [[True]]])
def test_tables_that_cannot_be_printed(content):
    with pytest.raises(ValueError, match=r"needs rows|whole and"):
        tables.table(content)


def test_a_page_too_small_says_what_is_needed():
    with pytest.raises(ValueError, match=r"32 x 32 pixels is too small.*needs"):
        tables.table(CONTENT, size=(32, 32))


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="face must be one of times"):
        Style(face="comic")
    with pytest.raises(ValueError, match="rules must be"):
        Style(rules="some")
    with pytest.raises(ValueError, match="pitch"):
        Style(pitch=0)
    with pytest.raises(ValueError, match="no colour"):
        Style.random(0, colour=1)
    with pytest.raises(ValueError, match="numbers needs"):
        tables.numbers(0, 3, seed=0)
    assert tables.table([[np.int64(12)]]).content == ((12,),)
