"""The gallery in a browser: a page opened as a file, no network, no kernel.

`root.explain(i, j, {of, layer, gamma})` of the element with `data-gallery` resolves to
{similarity, relevance, ledger}: relevance is an array of P arrays of P' numbers, patches row by
row from the upper left; ledger has two rows and columns, patches and biases. Photos are numbered as
in chapter 06: `imagenet_photos`, `cats`, the ginger cat.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

import bilrp
from bilrp import data
from bilrp.engine.factors import combined
from bilrp.models import numerals
from bilrp.show import gallery
from tests.test_browser import PHONE, WIDE, Visit
from tests.test_explorer_browser import heat, numbers
from tests.test_gallery import LINES, SIDE, collection, lines, made_up

pytestmark = pytest.mark.browser

FACTORS = made_up()
PAGE = """<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Page</title>
<link rel="stylesheet" href="gallery.css"><body><main><h1>Gallery</h1>
<div class="bilrp-gallery" data-gallery="photos others numerals" data-version="v1">
<p>Needs scripts.</p></div>
<p><a href="?first=3&amp;second=2&amp;layer=17&amp;gamma=0.02">a pair</a></p></main>
<script src="gallery.js" defer></script></body></html>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up collections, written as the book's are."""
    folder = tmp_path_factory.mktemp("gallery")
    for one in (collection(FACTORS), collection(made_up(3, seed=1), "others"), lines()):
        one.write(folder, "v1")
    gallery.write_code(folder)
    return folder


@pytest.fixture
def show(browser: Browser, folder: Path, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens the gallery; afterwards, nothing must have gone wrong that the test did not expect."""
    opened, allowed = [], []

    def show(theme="light", spoil=None, wrong=(), search="", **options) -> Page:
        here = tmp_path / "page"
        shutil.copytree(folder, here, dirs_exist_ok=True)
        if spoil:
            spoil(here)
        (here / "page.html").write_text(PAGE.format(theme=theme), encoding="utf-8")
        options = {"viewport": WIDE, "reduced_motion": "reduce", "offline": True, **options}
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        visit = Visit(context)
        opened.append((context, visit))
        allowed.extend(wrong)
        visit.page.goto((here / "page.html").as_uri() + search)
        if not wrong and options.get("java_script_enabled", True):
            expect(visit.page.locator(".readout")).to_contain_text("y =")
        return visit.page

    yield show
    for context, visit in opened:
        context.close()
        rest = [w for w in visit.wrong if not any(a in w for a in allowed)]
        assert not rest, "\n".join(rest)


def spot(page: Page, side: int, row: int, column: int) -> tuple[float, float]:
    """The middle of a patch in the window, in pixels."""
    pic = page.locator(".pic").nth(side)
    pic.scroll_into_view_if_needed()
    box = pic.bounding_box()
    assert box is not None
    return (
        box["x"] + (column + 0.5) * box["width"] / SIDE,
        box["y"] + (row + 0.5) * box["height"] / SIDE,
    )


def exact(i: int, j: int) -> tuple[np.ndarray, float]:
    """All scores, (rows, columns, rows, columns), and y."""
    (a, b), (a2, b2) = FACTORS[i], FACTORS[j]
    y = float((a.sum(0) + b.sum(0)) @ (a2.sum(0) + b2.sum(0)))
    return (a @ a2.T).reshape(SIDE, SIDE, SIDE, SIDE).numpy(), y


def ask(page: Page, *arguments) -> dict:
    return page.evaluate(
        "a => document.querySelector('[data-gallery]').explain(...a)", list(arguments)
    )


def about(share: float):
    """A share as shown, and as near as whole numbers come."""
    return pytest.approx(share, abs=0.003)


def test_explain_answers_with_what_the_factors_say(show) -> None:
    page = show()
    for i, j in ((0, 1), (2, 2), (3, 0)):
        answer, (r, y) = ask(page, i, j, {"layer": 17, "gamma": 0.02}), exact(i, j)
        found = np.array(answer["relevance"])
        assert found.shape == (SIDE * SIDE, SIDE * SIDE)
        matrix = r.reshape(found.shape)
        assert np.linalg.norm(found - matrix) < 0.05 * np.linalg.norm(matrix)
        assert answer["similarity"] == pytest.approx(y, rel=1e-5)
        assert np.sum(answer["ledger"]) == pytest.approx(y, rel=1e-5)
        assert answer["ledger"][0][0] == pytest.approx(float(matrix.sum()), rel=1e-4)
    assert ask(page, 0, 1) == ask(page, 0, 1, {"of": "photos", "layer": 31, "gamma": "paper"})
    assert ask(page, 0, 1, {"of": "others"}) != ask(page, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 4), "numbered from 0 to 3; there is no 4"),
        ((0, 1, {"layer": 24}), "not stored for layer 24"),
        ((0, 1, {"layer": 31, "gamma": 0.02}), "there are {layer: 31"),
        ((0, 1, {"of": "songs"}), "photos and others and numerals, not songs"),
    ],
)
def test_what_is_not_stored_is_refused(show, arguments, said) -> None:
    page = show()
    with pytest.raises(Exception, match=re.escape(said)):
        ask(page, *arguments)


def test_pointing_shows_partners_and_a_click_keeps(show) -> None:
    page, (r, y) = show(), exact(0, 1)
    line = page.locator(".readout")
    page.mouse.move(*spot(page, 0, 2, 4))
    expect(line).to_contain_text("Drawing 0, row 3, column 5 (1.56 % of the picture)")
    assert numbers(line)[1] == about(r[2, 4].sum() / y)
    shown = heat(page, 1)[..., 3] > 0
    strong = np.abs(r[2, 4]) > 0.03 * np.abs(r).max()
    assert (shown | ~strong).all()
    assert not shown[4:].any()  # no feature sees both
    assert page.locator(".arcs path").count() > 5
    page.mouse.move(2, 2)
    expect(line).to_contain_text("Point at a patch")
    page.mouse.click(*spot(page, 1, 6, 1))
    page.mouse.move(*spot(page, 0, 5, 5))
    expect(line).to_contain_text("Drawing 1, row 7, column 2")
    expect(line).to_contain_text("With row 6, column 6:")
    page.get_by_role("button", name="Start again").click()
    expect(line).to_contain_text("Point at a patch")


def test_a_region_adds_up(show) -> None:
    page, (r, y) = show(), exact(0, 1)
    page.mouse.move(*spot(page, 0, 1, 2))
    page.mouse.down()
    page.mouse.move(*spot(page, 0, 3, 5), steps=8)
    page.mouse.up()
    line = page.locator(".readout")
    expect(line).to_contain_text("Drawing 0, rows 2 to 4, columns 3 to 6 (12 patches, 18.8 %")
    assert numbers(line)[1] == about(r[1:4, 2:6].sum() / y)
    assert page.get_by_role("radio", name="A region").is_checked()
    together = r[1:4, 2:6].sum((0, 1))
    gain = np.sort(together.clip(0), axis=None)[::-1]
    half = int(np.searchsorted(np.cumsum(gain), gain.sum() / 2) + 1)
    said = int(re.search(r"goes to (\d+) patch", line.inner_text())[1])
    assert abs(said - half) <= 1


def test_two_partners_are_compared(show) -> None:
    page, (r, y) = show(theme="dark"), exact(0, 1)
    page.get_by_role("radio", name="Two partners").check()
    line = page.locator(".readout")
    page.mouse.click(*spot(page, 0, 2, 4))
    expect(line).to_contain_text("Now choose B")
    page.mouse.click(*spot(page, 1, 1, 1))
    expect(line).to_contain_text("Now choose C")
    page.mouse.click(*spot(page, 1, 3, 6))
    expect(line).to_contain_text("B over C")
    b, c = r[:, :, 1, 1], r[:, :, 3, 6]
    text = line.inner_text().replace("−", "-")
    at_a = re.search(r"A with B .*?: \+?(-?[\d.]+) %, A with C .*?: \+?(-?[\d.]+) %", text)
    assert [float(v) / 100 for v in at_a.groups()] == [about(b[2, 4] / y), about(c[2, 4] / y)]
    over = float(re.search(r"B over C: \+?(-?[\d.]+) %", text)[1]) / 100
    assert over == about((b[2, 4] - c[2, 4]) / y)
    pixels, more = heat(page, 0), b - c
    clear = np.abs(more) > 0.2 * np.abs(more).max()
    assert ((pixels[..., 0] > pixels[..., 2]) == (more > 0))[clear].all()
    letters = page.locator(".patch:visible").evaluate_all("all => all.map(e => e.dataset.letter)")
    assert letters == ["A", "B", "C"]


def test_the_keyboard_is_enough(show) -> None:
    page = show()
    line, pic = page.locator(".readout"), page.locator(".pic").first
    pic.focus()
    page.keyboard.press("ArrowUp")
    expect(line).to_contain_text("row 4, column 5")
    label = page.evaluate(
        "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
        ".getAttribute('aria-label')"
    )
    assert label == "Drawing 0, row 4, column 5"
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowRight")
    expect(line).to_contain_text("rows 4 to 5, columns 5 to 6 (4 patches")
    page.keyboard.press("Escape")
    expect(line).to_contain_text("Draw a box")
    page.get_by_role("radio", name="Two partners").check()
    pic.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(line).to_contain_text("B over C")
    page.get_by_role("group", name="Second picture").get_by_role("radio").nth(3).focus()
    page.keyboard.press("ArrowLeft")
    expect(line).to_contain_text("Drawing 0 and Drawing 2")


def test_the_reader_chooses_pictures_layer_gamma_and_collection(show) -> None:
    page = show()
    page.get_by_role("group", name="First picture").get_by_role("radio", name="Drawing 2").check()
    expect(page.locator(".readout")).to_contain_text("Drawing 2 and Drawing 1")
    page.get_by_role("radio", name="17").check()
    page.get_by_role("radio", name="0.02").check()
    y = exact(2, 1)[1]
    text = page.locator(".ledger").inner_text()
    assert float(re.search(r"y = (\S+)", text)[1].replace(",", "")) == pytest.approx(y, rel=1e-3)
    assert sum(numbers(page.locator(".ledger table"))) == pytest.approx(1, abs=0.002)
    assert "add up to 100.0 %" in text
    page.get_by_role("button", name="Swap").click()
    expect(page.locator(".readout")).to_contain_text("Drawing 1 and Drawing 2")
    page.get_by_role("radio", name="Others").check()
    expect(page.locator(".readout")).to_contain_text("Drawing 0 and Drawing 1")
    assert page.get_by_role("radio", name="31").is_checked()
    page.get_by_role("button", name="Surprise me").click()
    page.get_by_role("link", name="a pair").click()
    expect(page.locator(".readout")).to_contain_text("Drawing 3 and Drawing 2")
    assert page.get_by_role("radio", name="0.02").is_checked()


def test_an_address_names_a_pair(show) -> None:
    page = show(search="?first=3&second=0&layer=17")
    expect(page.locator(".readout")).to_contain_text("Drawing 3 and Drawing 0")
    assert page.get_by_role("radio", name="17").is_checked()


def missing(here: Path) -> None:
    (here / "photos-31-paper-01.js").unlink()


def cut(here: Path) -> None:
    path = here / "photos-31-paper-01.js"
    text = path.read_text("utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")


def shortened(here: Path) -> None:
    path = here / "photos-31-paper-01.js"
    path.write_text(path.read_text("utf-8").replace('"});', '"});')[:-200] + '"});', "utf-8")


def of_another_build(here: Path) -> None:
    path = here / "photos-31-paper-01.js"
    path.write_text(path.read_text("utf-8").replace('"v1"', '"v0"'), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (missing, "is missing or cannot be read"),
        (cut, "is damaged"),
        (shortened, "is damaged"),
        (of_another_build, "is of another build"),
    ],
)
def test_a_wrong_data_file_is_named(show, spoil, said) -> None:
    page = show(spoil=spoil, wrong=("photos-31-paper-01", "ERR_FILE", "script error"))
    trouble = page.locator(".trouble")
    expect(trouble).to_contain_text("photos-31-paper-01.js")
    expect(trouble).to_contain_text(said)
    expect(trouble).to_contain_text("make book")
    assert page.locator(".arcs path").count() == 0
    page.get_by_role("group", name="Second picture").get_by_role("radio", name="Drawing 2").check()
    expect(page.locator(".readout")).to_contain_text("Drawing 0 and Drawing 2")
    expect(trouble).to_be_hidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_a_tap_shows_the_partners_and_says_so(show, theme) -> None:
    page = show(theme=theme, viewport=PHONE, has_touch=True, is_mobile=True)
    page.touchscreen.tap(*spot(page, 0, 1, 6))
    page.wait_for_timeout(300)
    expect(page.locator(".readout")).to_contain_text("row 2, column 7")
    for part in (page.locator(".pic").nth(1), page.locator(".readout")):
        box = part.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= PHONE["height"] + 1
    pic, words = (page.locator(c).last.bounding_box() for c in (".pic", ".readout"))
    assert pic["y"] + pic["height"] <= words["y"] + 1  # not behind the words
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("search", ["", "?of=numerals&first=CDE&second=12"])
def test_axe_finds_nothing(show, theme, search) -> None:
    page = show(theme=theme, search=search)
    expect(page.locator(".readout")).to_contain_text("y =")
    if search:
        page.locator(".line .words span").first.click()
    else:
        page.mouse.click(*spot(page, 0, 2, 4))
    page.locator("summary").click()
    # axe would ask for the style sheets once more, which a browser refuses for pages from disk
    found = Axe().run(page, options={"preload": False}).response
    serious = [v["id"] for v in found["violations"] if v["impact"] in ("serious", "critical")]
    nodes = [(v["id"], [n["html"] for n in v["nodes"]][:4]) for v in found["violations"]]
    assert not serious, nodes


def two_lines(i: int, j: int, setting: int = 0) -> tuple[np.ndarray, float]:
    """All scores, (letters, digits), and y."""
    a, b = (side[k] for side, k in zip(lines().settings[setting].rows, (i, j), strict=True))
    return (a[:-1] @ b[:-1].T).numpy(), float(a.sum(0) @ b.sum(0))


def test_explain_answers_for_all_pairs_of_two_encoders(show) -> None:
    page = show()
    for gamma in (0, 0.1):
        for i, first in enumerate(LINES[0]):
            for j, second in enumerate(LINES[1]):
                answer = ask(page, i, j, {"of": "numerals", "gamma": gamma})
                r, y = two_lines(i, j, int(gamma > 0))
                np.testing.assert_allclose(answer["relevance"], r, rtol=1e-5, atol=1e-6)
                assert answer["similarity"] == pytest.approx(y, rel=1e-5, abs=1e-6)
                assert np.sum(answer["ledger"]) == pytest.approx(y, rel=1e-5, abs=1e-6)
                assert answer == ask(page, first, second, {"of": "numerals", "gamma": gamma})
    with pytest.raises(Exception, match=re.escape("numbered from 0 to 1; there is no 2")):
        ask(page, 0, 2, {"of": "numerals"})


def test_lines_are_asked_by_pointer_and_keyboard(show) -> None:
    page, (r, y) = show(search="?of=numerals&first=CDE&second=12&gamma=0"), two_lines(1, 0)
    line, words = page.locator(".readout"), page.locator(".line .words")
    expect(line).to_contain_text("CDE and 12: y =")
    expect(line).to_contain_text("Letters and digits carry")
    expect(line).to_contain_text("Point at a letter or a digit")
    words.first.locator("span").nth(1).click()
    expect(line).to_contain_text("CDE, letter 2 “D” (33.3 % of the numeral)")
    assert numbers(line)[1] == pytest.approx(r[1].sum() / y, abs=0.001)
    assert page.locator(".arcs path").count() == np.count_nonzero(r[1])
    page.get_by_role("button", name="Start again").click()
    page.locator(".line").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    expect(line).to_contain_text("letters 1 to 2 “C D” (2 letters, 66.7 % of the numeral)")
    assert numbers(line)[1] == pytest.approx(r[:2].sum() / y, abs=0.001)
    menu = page.get_by_role("combobox", name="Arabic numeral")
    menu.focus()
    menu.select_option("3")
    expect(line).to_contain_text("CDE and 3: y =")
    expect(menu).to_be_focused()
    page.get_by_role("radio", name="0.1").check()
    assert "CDE" in page.locator(".line").first.get_attribute("aria-label").replace(" ", "")
    page.get_by_role("radio", name="Photos").check()
    expect(line).to_contain_text("Drawing 0 and Drawing 1")
    expect(page.locator(".pic img")).to_have_count(2)


def test_inputs_that_share_nothing_have_nothing_to_show(show) -> None:
    page = show(search="?of=numerals&first=F&second=12&gamma=0")
    expect(page.locator(".readout")).to_contain_text("F and 12: y = 0")
    assert page.locator(".arcs path").count() == 0
    page.locator(".line .words span").first.click()
    expect(page.locator(".readout")).to_contain_text("Nothing in the other numeral speaks for it")


def test_the_focus_stays_on_what_was_chosen(show) -> None:
    page = show()
    page.get_by_role("group", name="Second picture").get_by_role("radio").nth(3).focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("Drawing 0 and Drawing 1")


def test_without_scripts_a_sentence_says_what_is_missing(show) -> None:
    page = show(java_script_enabled=False)
    expect(page.locator("[data-gallery]")).to_contain_text("Needs scripts")


@pytest.mark.parametrize(("viewport", "shown"), [(PHONE, False), (WIDE, True)])
def test_the_themes_button_does_not_lie_over_the_read_out(show, viewport, shown) -> None:
    page = show(viewport=viewport)
    button = """<button id="pst-back-to-top" style="position: fixed; top: 90vh; display: block">
        Back to top</button>"""
    page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", button)
    expect(page.locator("#pst-back-to-top")).to_be_visible(visible=shown)


# --- the book's own gallery, against the engine


@pytest.fixture(scope="module")
def book(browser: Browser, html: Path) -> Iterator[Page]:
    context = browser.new_context(viewport=WIDE, offline=True)
    visit = Visit(context)
    page = visit.open(html / "chapters" / "gallery.html")
    expect(page.locator(".readout")).to_contain_text("y =", timeout=60_000)
    yield page
    context.close()
    assert not visit.wrong, "\n".join(visit.wrong)


# What either side's numerals are called, and the answers for all pairs of them.
NAMES = """async () => {
  const root = document.querySelector('[data-gallery]');
  root.querySelector('input[value="numerals"]').click();
  await new Promise((done) => setTimeout(done, 500));
  return ['i', 'j'].map((k) => [...root.querySelectorAll(`.menu.${k} option`)].map((o) => o.text));
}"""
EVERY_PAIR = """([n, n2, gamma]) => Promise.all(Array.from({ length: n }, (_, i) =>
  Promise.all(Array.from({ length: n2 }, (_, j) => document.querySelector('[data-gallery]')
    .explain(i, j, { of: "numerals", gamma })))))"""


def photos() -> torch.Tensor:
    several = data.imagenet_photos(128)[0], data.cats(128)[0], data.photo("photos/chelsea.png")
    return bilrp.normalize(torch.cat(several))


def rules(gamma: float | str) -> dict:
    paper = bilrp.vgg16_rules()
    return paper if gamma == "paper" else {1: paper[1], range(2, 32): bilrp.Gamma(gamma)}


def compare(page: Page, factors: dict[int, bilrp.Factor], layer: int, gamma: float | str) -> None:
    """All pairs of these photos: the promised 5 %, the exact similarity and ledger."""
    worst = 0.0
    for i in factors:
        for j in (j for j in factors if j >= i):
            e = factors[i].explain(factors[j])
            answer = ask(page, i, j, {"layer": layer, "gamma": gamma})
            found = torch.tensor(answer["relevance"])
            worst = max(worst, float((found - e.matrix).norm() / e.matrix.norm()))
            assert answer["similarity"] == pytest.approx(e.similarity, rel=1e-4)
            parts = e.ledger[0, 0], e.ledger[0, 1:].sum(), e.ledger[1:, 0].sum()
            parts = torch.stack([*parts, e.ledger[1:, 1:].sum()])
            said = torch.tensor(answer["ledger"]).flatten()
            assert float((said - parts).abs().max()) < 1e-3 * float(parts.abs().sum())
    assert worst <= 0.05


@pytest.mark.slow
@pytest.mark.weights
def test_all_pairs_of_photos_are_those_of_the_engine(book: Page) -> None:
    net = bilrp.vgg16(31)
    compare(
        book, {k: bilrp.factor(net, x, rules("paper")) for k, x in enumerate(photos())}, 31, "paper"
    )


@pytest.mark.weights
@pytest.mark.parametrize(("layer", "gamma"), [(17, "paper"), (31, "paper"), (31, 0.02)])
def test_some_pairs_under_every_setting_are_those_of_the_engine(book: Page, layer, gamma) -> None:
    net, x = bilrp.vgg16(layer), photos()
    compare(book, {k: bilrp.factor(net, x[k], rules(gamma)) for k in (6, 24)}, layer, gamma)


@pytest.mark.parametrize("gamma", [0, 0.1])
def test_all_pairs_of_numerals_are_those_of_the_engine(book: Page, gamma) -> None:
    nets, names = bilrp.numeral_encoders(), book.evaluate(NAMES)
    readers = numerals.roman_tokens, numerals.arabic_tokens
    rule = bilrp.Gamma(gamma) if gamma else bilrp.LRP0()
    first, second = (
        bilrp.factor(net, [read(name) for name in side], rule)
        for net, read, side in zip(nets, readers, names, strict=True)
    )
    answers = book.evaluate(EVERY_PAIR, [len(first), len(second), gamma])
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            e, answer = combined(a, b, "dot", encoders=True), answers[i][j]
            found = torch.tensor(answer["relevance"]).float()
            torch.testing.assert_close(found, e.matrix.float(), rtol=1e-4, atol=1e-5)
            assert answer["similarity"] == pytest.approx(e.similarity, rel=1e-4, abs=1e-5)
            parts = e.ledger[0, 0], e.ledger[0, 1:].sum(), e.ledger[1:, 0].sum()
            parts = torch.stack([*parts, e.ledger[1:, 1:].sum()]).float()
            said = torch.tensor(answer["ledger"]).float().flatten()
            torch.testing.assert_close(said, parts, rtol=1e-4, atol=1e-5)


def test_the_books_gallery_is_small_enough(html: Path) -> None:
    files = list((html / "_static" / "gallery").iterdir())
    assert sum(f.stat().st_size for f in files) <= 30e6
    assert 2 * max(f.stat().st_size for f in files) <= 2e6
