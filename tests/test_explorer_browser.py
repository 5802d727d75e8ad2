"""The explorer in a browser: a page opened as a file, and a live JupyterLab."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import jupytext
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bilrp.show.explorer import Explorer
from tests.conftest import ROOT, missing
from tests.live import jupyterlab
from tests.test_browser import PHONE, SHOTS, WIDE, Visit
from tests.test_explorer import drawing, made_up

pytestmark = pytest.mark.browser

SIDE = 8  # patches, of 8 x 8 pixels


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens explorers in a page of their own; afterwards, nothing must have gone wrong there."""
    visits, contexts = [], []

    def show(*explorers: Explorer, theme: str = "light", css: str = "", **options) -> Page:
        options = {"viewport": WIDE, "reduced_motion": "reduce", **options}
        context = browser.new_context(offline=True, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        visits.append(Visit(context))
        file = tmp_path / f"{len(visits)}.html"
        cells = "<p>Between.</p>".join(
            f'<div class="cell_output"><div class="output text_html">{html}</div></div>'
            for html in (e._repr_mimebundle_()["text/html"] for e in explorers)
        )  # as in the book
        file.write_text(
            f'<!doctype html><html data-theme="{theme}"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width"><title>Page</title>'
            f'<style>{css}</style><body class="bd-content" style="max-width: 800px; margin: auto">'
            f"{cells}</body></html>",
            encoding="utf-8",
        )
        page = visits[-1].open(file)
        if options.get("java_script_enabled", True):
            expect(page.locator(".pic")).to_have_count(2 * len(explorers))
            expect(page.locator(".numbers").last).to_contain_text("y =")
        return page

    yield show
    for context, visit in zip(contexts, visits, strict=True):
        context.close()
        assert not visit.wrong, "\n".join(visit.wrong)


def explorer(seed: int = 0, side: int = SIDE, **options) -> Explorer:
    return made_up(side, seed=seed).explore(drawing(8 * side, 1), drawing(8 * side, 2), **options)


def spot(page: Page, side: int, row: int, column: int, grid: int = SIDE) -> tuple[float, float]:
    """The middle of a patch in the window, in pixels."""
    pic = page.locator(".pic").nth(side)
    pic.scroll_into_view_if_needed()
    box = pic.bounding_box()
    assert box is not None
    return (
        box["x"] + (column + 0.5) * box["width"] / grid,
        box["y"] + (row + 0.5) * box["height"] / grid,
    )


def numbers(locator: Locator) -> list[float]:
    """The signed percentages in a line, as shares."""
    text = locator.inner_text().replace("−", "-")
    return [float(n) / 100 for n in re.findall(r"([+-]?\d+\.\d+) %", text)]


def near(share: float):
    """As shown: two decimals of a per cent below 10 %, else one."""
    return pytest.approx(share, abs=0.00051 if abs(share) >= 0.0995 else 0.000051)


def heat(page: Page, side: int) -> np.ndarray:
    """The pixels of a picture's canvas, (rows, columns, RGBA): one for each patch."""
    values = (
        page.locator(".pic canvas")
        .nth(side)
        .evaluate(
            """c => {
          const copy = new OffscreenCanvas(c.width, c.height);
          const context = copy.getContext('2d', { willReadFrequently: true });
          context.drawImage(c, 0, 0);
          return [c.width, ...context.getImageData(0, 0, c.width, c.height).data];
        }"""
        )
    )
    return np.array(values[1:]).reshape(-1, values[0], 4)


def check_point(page: Page, ex: Explorer, side: int, row: int, column: int, least=0.01) -> None:
    """The numbers, the heat and the arcs are those of the patch."""
    r, y = ex.explanation.relevance.numpy(), ex.explanation.similarity
    partners = r[row, column] if side == 0 else r[:, :, row, column]
    sent = np.abs(partners) >= 2.4e-10 * np.abs(partners).max()  # smaller ones arrive as zero
    shown = np.where(sent & (np.abs(partners) >= least * np.abs(r).max()), partners, 0)
    line = page.locator(".numbers")
    expect(line).to_contain_text(f"{ex.names[side]}, row {row + 1}, column {column + 1}:")
    share, of_partners, biases = numbers(line)[:3]
    assert share == near(partners.sum() / y)
    assert of_partners == near(shown.sum() / y)
    assert biases == near(0.1)
    assert f"{np.count_nonzero(shown)} partner" in line.inner_text()

    pixels = heat(page, 1 - side)
    assert (pixels[..., 3] > 0).tolist() == (
        np.abs(shown) > (0.5 / 230) ** 2 * np.abs(r).max()
    ).tolist()
    red, blue, clear = pixels[..., 0], pixels[..., 2], pixels[..., 3] > 40  # not all but rounded
    assert (red > blue)[clear & (shown > 0)].all()
    assert (red < blue)[clear & (shown < 0)].all()
    assert not heat(page, side).any()
    arcs = page.locator(".arcs path")
    assert arcs.count() == min(40, np.count_nonzero(shown))
    assert page.locator(".arcs path.neg").count() <= np.count_nonzero(shown < 0)


def test_pointing_at_a_patch_shows_its_partners(show):
    ex = explorer()
    page = show(ex)
    line = page.locator(".numbers")
    assert numbers(line) == [near(0.9), near(0.1)]
    assert heat(page, 0).any()
    other = page.locator(".pic").nth(1)
    before = other.screenshot()
    page.mouse.move(*spot(page, 0, 2, 4))
    check_point(page, ex, 0, 2, 4)
    assert other.screenshot() != before
    page.mouse.move(*spot(page, 1, 7, 0))
    check_point(page, ex, 1, 7, 0)
    page.mouse.move(2, 2)
    expect(line).to_contain_text("Point at a patch")


def test_a_click_locks_a_patch_and_the_other_picture_tells_single_pairs(show):
    ex = explorer()
    page = show(ex)
    page.mouse.click(*spot(page, 0, 2, 4))
    expect(page.locator(".numbers")).to_contain_text("locked")
    page.mouse.move(*spot(page, 0, 4, 4))
    check_point(page, ex, 0, 2, 4)
    page.mouse.move(*spot(page, 1, 3, 6))
    expect(page.locator(".numbers")).to_contain_text("with row 4, column 7:")
    want = float(ex.explanation.relevance[2, 4, 3, 6]) / ex.explanation.similarity
    assert numbers(page.locator(".numbers"))[-1] == near(want)
    page.mouse.move(2, 2)
    check_point(page, ex, 0, 2, 4)
    page.mouse.click(*spot(page, 0, 2, 4))
    expect(page.locator(".numbers")).not_to_contain_text("locked")


def test_the_keyboard_is_enough(show):
    ex = explorer()
    page = show(ex)
    page.keyboard.press("Tab")
    check_point(page, ex, 0, 4, 4)
    grid = page.locator(".pic").first
    assert grid.get_attribute("role") == "grid"
    assert "8 by 8 patches" in grid.get_attribute("aria-label")
    assert grid.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    check_point(page, ex, 0, 3, 3)
    active = page.evaluate(
        "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
        ".getAttribute('aria-label')"
    )
    assert active == "row 4, column 4"
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    check_point(page, ex, 0, 3, 0)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # the other picture has the focus, the patch stays
    check_point(page, ex, 0, 3, 0)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowUp")
    check_point(page, ex, 1, 3, 4)
    for role, name in (("slider", "Hide below"), ("combobox", "Sign"), ("combobox", "Draw")):
        assert page.get_by_role(role, name=name).count() == 1
    seen = []
    for _ in range(7):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.tagName.toLowerCase()"))
    assert seen == ["input", "select", "select", "input", "button", "button", "summary"]


def test_a_tap_shows_and_keeps(show):
    ex = explorer()
    page = show(ex, viewport=PHONE, has_touch=True, is_mobile=True)
    page.touchscreen.tap(*spot(page, 0, 1, 6))
    check_point(page, ex, 0, 1, 6)
    page.touchscreen.tap(*spot(page, 1, 5, 2))
    check_point(page, ex, 1, 5, 2)
    expect(page.locator(".numbers")).to_contain_text("locked")


def test_threshold_sign_and_drawing(show):
    ex = explorer()
    page = show(ex)
    page.mouse.click(*spot(page, 0, 2, 4))
    page.get_by_label("Hide below").fill("50")
    check_point(page, ex, 0, 2, 4, least=0.25)
    page.get_by_label("Hide below").fill("0")
    check_point(page, ex, 0, 2, 4, least=0)
    page.get_by_label("Sign").select_option("negative")
    partners, y = ex.explanation.relevance[2, 4].numpy(), ex.explanation.similarity
    assert numbers(page.locator(".numbers"))[1] == near(partners.clip(max=0).sum() / y)
    assert page.locator(".arcs path.pos").count() == 0
    assert page.locator(".arcs path.neg").count() > 0
    dashes = page.locator(".arcs path.neg").first.evaluate(
        "e => getComputedStyle(e).strokeDasharray"
    )
    assert dashes != "none"
    page.get_by_label("Sign").select_option("positive")
    assert page.locator(".arcs path.neg").count() == 0
    page.get_by_label("Draw").select_option("heat")
    assert page.locator(".arcs path").count() == 0
    assert heat(page, 1).any()
    page.get_by_label("Draw").select_option("arcs")
    assert page.locator(".arcs path").count() > 0
    assert not heat(page, 1).any()
    page.get_by_role("button", name="Reset").click()
    expect(page.locator(".numbers")).to_contain_text("Point at a patch")
    page.mouse.click(*spot(page, 0, 2, 4))
    check_point(page, ex, 0, 2, 4)


def test_swap_changes_places_and_nothing_else(show):
    ex = explorer()
    page = show(ex)
    page.get_by_role("button", name="Swap").click()
    assert page.locator(".pic").first.get_attribute("aria-label").startswith("Second picture")
    page.mouse.move(*spot(page, 0, 2, 4))
    expect(page.locator(".numbers")).to_contain_text("Second picture, row 3, column 5")
    want = float(ex.explanation.relevance[:, :, 2, 4].sum()) / ex.explanation.similarity
    assert numbers(page.locator(".numbers"))[0] == near(want)


def test_covering_predicts(show):
    ex = explorer(similarity=lambda a, b: 0.0)
    page = show(ex)
    y = ex.explanation.similarity
    page.get_by_role("checkbox", name="Cover").check()
    page.mouse.move(*spot(page, 0, 2, 2))
    page.mouse.down()
    page.mouse.move(*spot(page, 0, 2, 5), steps=12)  # paints four
    page.mouse.up()
    line = page.locator(".predicted")
    row = [(2, c) for c in range(2, 6)]
    expect(line).to_contain_text("4 patches covered")
    assert numbers(line) == [near(ex.predicted_change(row) / y)]
    page.mouse.click(*spot(page, 1, 6, 1))
    page.mouse.click(*spot(page, 0, 2, 3))  # uncovers
    page.locator(".pic").nth(1).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    left = [(2, 2), (2, 4), (2, 5)], [(6, 1), (6, 2)]
    expect(line).to_contain_text("5 patches covered")
    assert numbers(line) == [near(ex.predicted_change(*left) / y)]
    assert f"→ {y + ex.predicted_change(*left):.4g})" in line.inner_text()
    mean = (255 * ex.x.mean((1, 2))).round().tolist()
    assert heat(page, 0)[2, 4].tolist() == [*mean, 255]
    assert page.get_by_role("button", name="True change").count() == 0  # there is no kernel

    # pairs with a covered patch are gone from the picture, too
    page.get_by_role("checkbox", name="Cover").uncheck()
    page.mouse.move(*spot(page, 0, 7, 7))
    r = ex.explanation.relevance.numpy()
    partners = r[7, 7].copy()
    partners[6, 1:3] = 0
    shown = partners * (np.abs(partners) >= 0.01 * np.abs(r).max())
    assert numbers(page.locator(".numbers"))[1] == near(shown.sum() / y)
    page.get_by_role("button", name="Reset").click()
    expect(page.locator(".cover")).to_be_hidden()


def test_a_finger_covers(show):
    ex = explorer()
    page = show(ex, viewport=PHONE, has_touch=True, is_mobile=True)
    page.get_by_role("checkbox", name="Cover").tap()
    page.touchscreen.tap(*spot(page, 1, 5, 2))
    expect(page.locator(".predicted")).to_contain_text("1 patch covered")
    want = ex.predicted_change([], [(5, 2)]) / ex.explanation.similarity
    assert numbers(page.locator(".predicted")) == [near(want)]


def test_the_table_lists_the_strongest_pairs(show):
    ex = explorer()
    page = show(ex)
    page.locator("summary").click()
    rows = page.locator("table tr")
    expect(rows).to_have_count(11)
    r = ex.explanation.relevance.numpy()
    best = np.argsort(-np.abs(r), axis=None)[:10]
    for k, index in enumerate(best):
        a, b, c, d = np.unravel_index(index, r.shape)
        cells = rows.nth(k + 1).locator("td")
        assert cells.nth(0).inner_text() == f"row {a + 1}, column {b + 1}"
        assert cells.nth(1).inner_text() == f"row {c + 1}, column {d + 1}"
        assert numbers(cells.nth(2)) == [near(r[a, b, c, d] / ex.explanation.similarity)]


def test_explorers_do_not_disturb_each_other(show):
    one, two = explorer(0), explorer(1)
    page = show(one, two, one)
    roots = page.locator(".bilrp-explorer")
    before = roots.nth(0).screenshot(), roots.nth(2).screenshot()
    page.mouse.click(*spot(page, 2, 2, 4))
    r, y = two.explanation.relevance, two.explanation.similarity
    assert numbers(page.locator(".numbers").nth(1))[0] == near(float(r[2, 4].sum()) / y)
    for k in (0, 2):
        expect(page.locator(".numbers").nth(k)).to_contain_text("Point at a patch")
    assert (roots.nth(0).screenshot(), roots.nth(2).screenshot()) == before
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == 6


def test_a_cell_that_is_run_again_shows_again(show):
    """Notebooks put new HTML into a page and run its scripts."""
    page = show(explorer(0))
    page.evaluate(
        """html => {
          document.body.innerHTML = html;
          for (const old of document.querySelectorAll('script')) {
            const script = document.createElement('script');
            for (const a of old.attributes) script.setAttribute(a.name, a.value);
            script.textContent = old.textContent;
            old.replaceWith(script);
          }
        }""",
        explorer(1).html(),
    )
    expect(page.locator(".pic")).to_have_count(2)
    page.mouse.click(*spot(page, 0, 2, 4))
    check_point(page, explorer(1), 0, 2, 4)


def test_names_are_text(show):
    bad = '"><img src=x onerror="document.title=1">'
    page = show(explorer(names=(bad, "</script><b>b</b>")))
    page.mouse.move(*spot(page, 0, 1, 1))
    expect(page.locator(".numbers")).to_contain_text(bad)
    page.locator("summary").click()
    assert page.locator("th").nth(1).inner_text() == "</script><b>b</b>"
    assert page.title() == "Page"


def test_similarity_zero(show):
    e = made_up(4)
    e = type(e)(e.relevance - e.relevance.mean(), 0.0, e.owners, e.ledger)
    page = show(e.explore(drawing(32, 1), drawing(32, 2)))
    page.mouse.move(*spot(page, 0, 1, 2, grid=4))
    text = page.locator(".numbers").inner_text().replace("−", "-")
    assert "%" not in text
    assert float(re.search(r"3: \+?(\S+)", text)[1]) == pytest.approx(
        float(e.relevance[1, 2].sum()), rel=1e-3
    )


def test_in_the_books_dark_theme_the_explorer_is_dark(show):
    """The theme puts outputs on a light card, pictures in a frame, and dims them."""
    card = "html[data-theme=dark] .bd-content div.cell_output"
    page = show(
        explorer(),
        theme="dark",
        css=f"""body {{ background: #121212; color: #ced6dd }}
        {card} .text_html:not(:has(table.dataframe)), {card} img {{
          background-color: #ced6dd; border-radius: .25rem; color: #222832; padding: .5rem }}
        html[data-theme=dark] img:not(.only-dark,.dark-light) {{ filter: brightness(.8) }}""",
    )
    ink = page.locator(".numbers").evaluate("e => getComputedStyle(e).color")
    paper = page.locator(".text_html").evaluate("e => getComputedStyle(e).backgroundColor")
    assert (ink, paper) == ("rgb(206, 214, 221)", "rgba(0, 0, 0, 0)")
    page.mouse.move(*spot(page, 0, 2, 4))
    image = page.locator(".pic img").first
    assert image.evaluate("e => getComputedStyle(e).filter") == "none"
    assert image.evaluate("e => getComputedStyle(e).padding") == "0px"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(show, theme):
    page = show(explorer(), theme=theme, viewport=PHONE, has_touch=True, is_mobile=True)
    page.touchscreen.tap(*spot(page, 0, 3, 3))
    page.locator("summary").tap()
    page.get_by_role("checkbox", name="Cover").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    box = page.locator(".pic").first.bounding_box()
    assert box["width"] >= 300
    ink = page.locator(".numbers b").first.evaluate("e => getComputedStyle(e).color")
    assert (
        ink
        in {
            "light": ("rgb(178, 24, 43)", "rgb(33, 102, 172)"),
            "dark": ("rgb(244, 165, 130)", "rgb(146, 197, 222)"),
        }[theme]
    )


def test_pictures_are_large(show):
    page = show(explorer())
    assert page.locator(".pic").first.bounding_box()["width"] >= 256


def test_without_scripts_there_is_a_picture(show):
    page = show(explorer(alt="Two <drawings>"), java_script_enabled=False)
    image = page.get_by_alt_text("Two <drawings>")
    expect(image).to_be_visible()
    assert image.bounding_box()["width"] > 400
    assert page.locator("body").inner_text().strip() == ""


def test_28_x_28_patches_answer_at_once(show):
    ex = explorer(side=28)
    page = show(ex)
    times = page.evaluate(
        """() => [...document.querySelectorAll('.pic')].flatMap(pic => {
          const box = pic.getBoundingClientRect(), times = [];
          for (let k = 0; k < 28; k++) {
            const start = performance.now();
            pic.dispatchEvent(new PointerEvent('pointermove', {
              clientX: box.left + box.width * (k + 0.5) / 28, clientY: box.top + 100 }));
            document.body.getBoundingClientRect(); // with the layout
            times.push(performance.now() - start);
          }
          return times;
        })"""
    )
    assert sorted(times)[len(times) // 2] < 50
    page.mouse.move(*spot(page, 0, 2, 4, grid=28))
    r, y = ex.explanation.relevance[2, 4].numpy(), ex.explanation.similarity
    share, partners, _ = numbers(page.locator(".numbers"))
    assert share == near(r.sum() / y)
    shown = r * (np.abs(r) >= 0.01 * float(ex.explanation.relevance.abs().max()))
    assert partners == pytest.approx(shown.sum() / y, abs=0.01)


# With a kernel

SLIDER = """\
def draw(power):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1], [0, power])
    drawn.append(power)
    return fig

drawn = []
bilrp.interact_frames(
    draw, lambda power: f"power {power}, drawn {len(drawn)} times", power=[1, 2, 3]
)"""


def first_cells() -> str:
    """Chapter 06 from its imports to its explorer, as one cell."""
    code = []
    for cell in jupytext.read(ROOT / "chapters" / "06_vgg16.md").cells:
        if cell.cell_type == "code":
            code.append(cell.source)
            if ".explore(" in cell.source:
                return "\n\n".join(code)
    raise AssertionError("chapter 06 has no explorer")


def run(code: str) -> tuple[dict, Explorer]:
    """The names that a cell leaves, and its last value."""
    tree = ast.parse(code.replace("plot.book_style()", ""))  # that is for notebooks
    names: dict = {}
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    exec(compile(tree, "cell", "exec"), names)
    return names, eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """A notebook of two cells in a JupyterLab on this machine: its address, with the token."""
    if not find_spec("anywidget") or not find_spec("jupyterlab"):
        missing("the explorer's live test needs anywidget and jupyterlab: see requirements.txt")
    cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    notebook = {
        "cells": [
            {**cell, "id": "one", "source": first_cells()},
            {**cell, "id": "two", "source": SLIDER},
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "live.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with jupyterlab(tmp_path) as address:
        yield address("live.ipynb")


@pytest.mark.weights
def test_in_jupyterlab_the_kernel_answers(browser: Browser, lab: str) -> None:
    """The true change of a cover-up in chapter 06, and a figure that is drawn anew."""
    names, ex = run(first_cells())
    e = names["e"]
    y = e.similarity

    context = browser.new_context(viewport={"width": 1400, "height": 1600})
    context.set_default_timeout(90_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(lab)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=90_000)
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Control+Enter")
    line = page.locator(".numbers")
    expect(line).to_contain_text("y =", timeout=90_000)
    assert page.locator(".bilrp-explorer").count() == 1  # the widget, and not the page's HTML, too

    nose = (11, 11)
    page.mouse.move(*spot(page, 0, *nose, grid=16))
    expect(line).to_contain_text("Tabby, row 12, column 12")
    assert numbers(line)[0] == near(float(e.relevance[nose].sum()) / y)
    page.mouse.click(*spot(page, 1, 3, 0, grid=16))
    page.keyboard.press("ArrowUp")  # not a key of the notebook, here
    expect(line).to_contain_text("Ginger cat, row 3, column 1")

    page.get_by_role("checkbox", name="Cover").check()
    page.mouse.click(*spot(page, 0, *nose, grid=16))
    expect(page.locator(".predicted")).to_contain_text("1 patch covered")
    assert numbers(page.locator(".predicted")) == [near(ex.predicted_change([nose]) / y)]
    page.get_by_role("button", name="True change").click()
    expect(page.locator(".true")).to_contain_text("true change", timeout=30_000)
    true = ex.true_change([nose])
    assert abs(true / y) > 0.02, "a change too small to tell from none"
    assert numbers(page.locator(".true")) == [near(true / y)]
    covered = names["tabby"].clone()
    rows, columns = (slice(8 * k, 8 * k + 8) for k in nose)
    covered[:, rows, columns] = names["tabby"].mean((1, 2))[:, None, None]
    directly = names["similarity"](covered, names["ginger"]) - y
    assert true == pytest.approx(directly, abs=1e-3 * y)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / "explorer_live.png"))
    page.mouse.click(*spot(page, 0, 1, 1, grid=16))
    expect(page.locator(".true")).to_be_empty()  # that was for other patches

    figure = page.locator(".jp-OutputArea img[alt^=power]")
    expect(figure).to_have_attribute("alt", re.compile("power 1, drawn 4 times"))
    page.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    expect(figure).to_have_attribute("alt", re.compile("power 2, drawn 5 times"))
    page.screenshot(path=str(SHOTS / "slider_live.png"))
    context.close()
    assert not wrong, "\n".join(wrong)
