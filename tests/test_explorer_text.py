"""The explorer for text in a browser: two lines of tokens to point at."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from bilrp.show.text import TextExplorer
from tests.test_browser import PHONE, SHOTS
from tests.test_explorer import LINES, of_tokens
from tests.test_explorer_browser import near, numbers, show  # noqa: F401  (a fixture)

pytestmark = pytest.mark.browser


def explorer(**options) -> TextExplorer:
    return of_tokens().explore(tokens=LINES, names=("One", "Two"), **options)


def word(page: Page, side: int, k: int):
    return page.locator(".line").nth(side).locator(".words span").nth(k)


def grounds(page: Page, side: int) -> np.ndarray:
    """Red minus blue, times opacity, of each token's ground: (T,)."""
    found = page.locator(".line").nth(side).locator(".words span").evaluate_all(
        "all => all.map(e => getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number))"
    )  # fmt: skip
    return np.array([(c[0] - c[2]) * (c[3] if len(c) > 3 else 1) for c in found])


def check_point(page: Page, ex: TextExplorer, side: int, k: int, least: float = 0.01) -> None:
    """Numbers, grounds and arcs are those of the token."""
    r, y = ex.explanation.matrix.numpy(), ex.explanation.similarity
    partners = r[k] if side == 0 else r[:, k]
    shown = np.where(np.abs(partners) >= least * np.abs(r).max(), partners, 0)
    line = page.locator(".numbers")
    expect(line).to_contain_text(f"{ex.names[side]}, token {k + 1} “{LINES[side][k]}”:")
    share, of_partners, biases = numbers(line)[:3]
    assert share == near(partners.sum() / y)
    assert of_partners == near(shown.sum() / y)
    assert biases == near(0.1)
    assert (np.sign(grounds(page, 1 - side)) == np.sign(shown)).all()
    assert not grounds(page, side).any()
    assert page.locator(".arcs path").count() == np.count_nonzero(shown)
    assert page.locator(".arcs path.neg").count() == (shown < 0).sum()


def test_pointing_at_a_token_shows_its_partners(show):  # noqa: F811
    ex = explorer()
    page = show(ex)
    assert numbers(page.locator(".numbers")) == [near(0.9), near(0.1)]
    assert grounds(page, 0).any()
    word(page, 0, 1).hover()
    check_point(page, ex, 0, 1)
    word(page, 1, 3).hover()
    check_point(page, ex, 1, 3)
    page.mouse.move(2, 2)
    expect(page.locator(".numbers")).to_contain_text("Point at a token")
    assert word(page, 0, 3).inner_text() == "<on>"


def test_a_click_locks_and_the_other_line_tells_single_pairs(show):  # noqa: F811
    ex = explorer()
    page = show(ex)
    word(page, 0, 2).click()
    expect(page.locator(".numbers")).to_contain_text("locked")
    word(page, 1, 1).hover()
    expect(page.locator(".numbers")).to_contain_text("with token 2 “dog”:")
    want = float(ex.explanation.matrix[2, 1]) / ex.explanation.similarity
    assert numbers(page.locator(".numbers"))[-1] == near(want)


def test_arcs_run_from_line_to_line_between_the_tokens(show):  # noqa: F811
    page = show(explorer())
    word(page, 0, 0).click()
    frame = page.locator(".line .patch").first.bounding_box()
    assert frame == pytest.approx(word(page, 0, 0).bounding_box(), abs=1)
    ends = page.locator(".arcs path").evaluate_all(
        """all => all.map(e => { const stage = e.closest('.stage').getBoundingClientRect();
        return [0, e.getTotalLength()].map(l => { const p = e.getPointAtLength(l);
          return [p.x + stage.left, p.y + stage.top]; }); })"""
    )
    box = word(page, 0, 0).bounding_box()
    for (ax, ay), (bx, by) in ends:
        assert ax == pytest.approx(box["x"] + box["width"] / 2, abs=1.5)
        assert ay == pytest.approx(box["y"] + box["height"], abs=1.5)
        others = [word(page, 1, k).bounding_box() for k in range(4)]
        assert min(abs(o["x"] + o["width"] / 2 - bx) + abs(o["y"] - by) for o in others) < 3


def test_the_keyboard_is_enough(show):  # noqa: F811
    ex = explorer()
    page = show(ex)
    page.keyboard.press("Tab")
    check_point(page, ex, 0, 0)
    grid = page.locator(".line").first
    assert grid.get_attribute("role") == "grid"
    label = grid.get_attribute("aria-label")
    assert "One: the cat sat <on> mats. 5 tokens" in label
    assert grid.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    check_point(page, ex, 0, 1)
    active = page.evaluate(
        "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
        ".getAttribute('aria-label')"
    )
    assert active == "token 2 “cat”"
    page.keyboard.press("End")
    check_point(page, ex, 0, 4)
    page.keyboard.press("ArrowRight")  # there is no further one
    check_point(page, ex, 0, 4)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # the other line has the focus, the token stays
    check_point(page, ex, 0, 4)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    check_point(page, ex, 1, 1)
    page.get_by_role("checkbox", name="Leave out").check()
    page.locator(".line").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    expect(page.locator(".predicted")).to_contain_text("1 token left out")
    want = ex.predicted_change([0]) / ex.explanation.similarity
    assert numbers(page.locator(".predicted")) == [near(want)]
    assert word(page, 0, 0).evaluate("e => getComputedStyle(e).textDecorationLine") == (
        "line-through"
    )


def test_what_a_screen_reader_is_told(show):  # noqa: F811
    page = show(explorer())
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    tree = page.locator(".bilrp-explorer").aria_snapshot()
    assert 'grid "One: the cat sat <on> mats' in tree
    assert 'gridcell "token 2 “cat”" [selected]' in tree
    assert tree.count("gridcell") == 1
    assert page.locator(".numbers").get_attribute("aria-live") == "polite"


def test_long_lines_wrap_on_a_phone_and_a_tap_keeps(show):  # noqa: F811
    n, m = 40, 30
    tokens = [f"▁word{k}" for k in range(n)], [f"▁other{k}" for k in range(m)]
    ex = of_tokens(n, m).explore(tokens=tokens)
    page = show(ex, viewport=PHONE, has_touch=True, is_mobile=True)
    word(page, 0, 25).tap()
    expect(page.locator(".numbers")).to_contain_text("token 26 “word25”")
    expect(page.locator(".numbers")).to_contain_text("locked")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    frame = page.locator(".line .patch").first.bounding_box()
    assert frame == pytest.approx(word(page, 0, 25).bounding_box(), abs=1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tokens_can_be_read_on_their_ground(show, theme):  # noqa: F811
    """Contrast of ink and ground at least 4.5, the strongest token's too."""
    css = "html[data-theme=dark] body { background: #121212; color: #ced6dd }"
    page = show(explorer(), theme=theme, css=css)
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/explorer-text-{theme}.png", full_page=True)
    worst = page.evaluate(
        """() => {
      const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (c) => c.slice(0, 3).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
      const page = rgb(getComputedStyle(document.body).backgroundColor);
      const under = page[3] === 0 ? [255, 255, 255] : page;
      return Math.min(...[...document.querySelectorAll('.words span')].map(e => {
        const style = getComputedStyle(e), [r, g, b, a = 1] = rgb(style.backgroundColor);
        const ground = light([r, g, b].map((v, k) => a * v + (1 - a) * under[k]));
        const ink = light(rgb(style.color));
        return (Math.max(ground, ink) + .05) / (Math.min(ground, ink) + .05);
      }));
    }"""
    )
    assert worst >= 4.5


def test_pictures_and_texts_live_on_one_page(show):  # noqa: F811
    from tests.test_explorer_browser import explorer as pictures

    page = show(pictures(), explorer())
    word(page, 0, 0).scroll_into_view_if_needed()
    word(page.locator(".bilrp-explorer").nth(1).page, 0, 1)
    page.locator(".bilrp-explorer").nth(1).locator(".words span").nth(1).hover()
    expect(page.locator(".numbers").nth(1)).to_contain_text("token 2 “cat”")
    expect(page.locator(".numbers").nth(0)).to_contain_text("Point at a patch")


def test_without_scripts_there_is_a_table(show):  # noqa: F811
    page = show(explorer(), java_script_enabled=False)
    picture = page.locator(".bilrp-explorer img")
    assert "token by token" in picture.get_attribute("alt")
    assert picture.bounding_box()["height"] > 50
