"""The book as its readers see it: Chromium, pages opened as files, no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page

from tests.conftest import ROOT, toc_pages

pytestmark = pytest.mark.browser

PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1400, "height": 900}
LAPTOP = {"width": 1300, "height": 900}
SHOTS = ROOT / "_build" / "screenshots"

# What is on the page, formulas and code aside, as a reader sees it.
PROSE = """() => {
  const copy = document.querySelector('article').cloneNode(true);
  copy.querySelectorAll('mjx-container, pre, code, script, style').forEach(e => e.remove());
  return copy.textContent;
}"""
RAW_TEX = re.compile(r"\\\(|\\\[|\$\$|\\(?:frac|sum|begin|langle|rho|gamma|mathrm|phi)\b")

# The elements that stick out to the right of the window and are not in a box that scrolls.
WIDE_ELEMENTS = """() => {
  const scrolls = e => {
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(p).overflowX)) return true;
    return false;
  };
  return [...document.querySelectorAll('article *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e))
    .map(e => `<${e.tagName.toLowerCase()} class="${e.getAttribute('class') || ''}">`).slice(0, 5);
}"""


# Cells and what they print, as far as they are wider than the room that they have.
CUT = """() => [...document.querySelectorAll('article .cell pre')]
  .filter(e => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent.trim().split('\\n').reduce((a, b) => a.length > b.length ? a : b))"""


class Visit:
    """A browser window that is offline, and that notes what a page does wrong."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.wrong: list[str] = []
        self.page.on("request", self._request)
        self.page.on("requestfailed", lambda r: self.wrong.append(f"failed: {r.url}"))
        self.page.on("pageerror", lambda e: self.wrong.append(f"script error: {e}"))
        self.page.on("console", self._console)

    def _request(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(f"asked the network for {request.url}")

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console {message.type}: {message.text}")

    def open(self, path: Path) -> Page:
        self.page.goto(path.as_uri(), wait_until="load")
        self.page.wait_for_function("document.readyState === 'complete'")
        return self.page

    def settle(self) -> None:
        """Scroll through, so that lazy pictures load, and let formulas finish."""
        self.page.evaluate(
            """async () => {
              for (const d of document.querySelectorAll('details')) d.open = true;
              for (const b of document.querySelectorAll('.toggle-hidden'))
                b.classList.remove('toggle-hidden');
              for (const i of document.images) i.loading = 'eager';
              if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
              await Promise.all([...document.images].map(i => i.decode().catch(() => {})));
              await document.fonts.ready;
            }"""
        )


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(viewport=WIDE, offline=True)
    context.set_default_timeout(60_000)
    yield Visit(context)
    context.close()


@pytest.mark.parametrize("name", toc_pages())
def test_page_is_whole(name: str, html: Path, visit: Visit) -> None:
    """One visit a page: no errors, no network, formulas set, pictures shown, nothing too wide."""
    page = visit.open(html / f"{name}.html")
    visit.settle()

    unset = page.locator("article .math:not(:has(mjx-container))").all_inner_texts()
    assert not unset, f"formulas that are not set: {unset[:3]}"
    # an unknown macro or a formula that MathJax cannot read
    wrong = page.locator('article mjx-merror, article mtext[mathcolor="red"]')
    assert wrong.count() == 0, wrong.all_text_contents()
    raw = RAW_TEX.search(page.evaluate(PROSE))
    assert raw is None, f"raw TeX on the page: {raw}"

    empty = page.evaluate(
        "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.src)"
    )
    assert not empty

    SHOTS.mkdir(parents=True, exist_ok=True)
    for label, size in (("wide", WIDE), ("laptop", LAPTOP), ("phone", PHONE)):
        page.set_viewport_size(size)
        page.wait_for_timeout(200)  # let the layout follow the new width
        width = page.evaluate("document.documentElement.scrollWidth")
        stick_out = page.evaluate(WIDE_ELEMENTS)
        assert width <= size["width"] + 1, f"{label}: the page scrolls sideways: {stick_out}"
        assert not stick_out, f"{label}: sticks out of the page: {stick_out}"
        cut = page.evaluate(CUT) if label != "phone" else []
        assert not cut, f"{label}: lines that are cut in cells: {cut[:5]}"
        file = SHOTS / f"{name.replace('/', '_')}_{label}.png"
        page.screenshot(path=str(file), full_page=True)
    assert not visit.wrong, "\n".join(visit.wrong)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", toc_pages())
def test_page_is_accessible(name: str, theme: str, html: Path, visit: Visit) -> None:
    """axe-core finds nothing serious: names, roles, contrast, order of headings."""
    page = visit.open(html / f"{name}.html")
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    visit.settle()
    page.wait_for_timeout(300)  # colours fade over to the theme's
    # Pictures inside of an explorer have no words of their own, and are greyed by its own design.
    veiled = page.evaluate(
        "[...document.querySelectorAll('article .cell_output img')]"
        ".filter(i => i.alt && getComputedStyle(i).filter !== 'none').map(i => i.alt)"
    )
    assert not veiled, f"pictures in colours that are not theirs: {veiled}"
    found = Axe().run(page).response
    assert found["passes"], "axe looked at nothing"
    serious = [
        f"{v['id']}: {v['help']}: {[node['target'] for node in v['nodes'][:3]]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)


EXPLORED = ["index", *(page.split("/")[1] for page in toc_pages() if "/0" in page or "/1" in page)]
EXPLORED = [name for name in EXPLORED if name == "index" or name[:2] >= "05"]


@pytest.mark.parametrize("name", EXPLORED)
def test_pictures_answer_on_the_built_page(name: str, html: Path, visit: Visit) -> None:
    """Pointing, and a key, change each explorer's numbers and picture; none disturbs another."""
    page = visit.open(html / "chapters" / f"{name}.html")
    explorers = page.locator(".bilrp-explorer")
    assert explorers.count() >= 1
    for explorer in explorers.all():
        explorer.scroll_into_view_if_needed()
        line, picture = explorer.locator(".numbers"), explorer.locator(".pic").first
        before, still = line.inner_text(), explorer.locator(".stage").screenshot()
        tokens = picture.locator(".words > span")  # of a line of text, not of a picture
        box = (tokens.first if tokens.count() else picture).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        pointed = line.inner_text()
        assert ("token" if tokens.count() else "row") in pointed != before
        assert explorer.locator(".stage").screenshot() != still
        page.mouse.move(2, 2)
        picture.focus()
        page.keyboard.press("ArrowRight")
        name = "token" if tokens.count() else "column"
        assert name in line.inner_text() not in (before, pointed)
        page.keyboard.press("Escape")
        page.evaluate("document.activeElement.blur()")
    assert not visit.wrong, "\n".join(visit.wrong)


@pytest.mark.parametrize("name", [name for name in EXPLORED if name[:2] in ("05", "07", "08")])
def test_sliders_and_menus_move_the_figure(name: str, html: Path, visit: Visit) -> None:
    page = visit.open(html / "chapters" / f"{name}.html")
    figures = page.locator(".bilrp-frames")
    assert figures.count() >= 1
    for figure in figures.all():
        image = figure.locator("img")
        for control in figure.locator("input, select").all():
            before = image.get_attribute("src"), image.get_attribute("alt")
            if control.evaluate("e => e.tagName") == "SELECT":
                control.select_option(index=1)
            else:
                control.focus()
                page.keyboard.press("End")
                page.keyboard.press("ArrowLeft")
            after = image.get_attribute("src"), image.get_attribute("alt")
            assert all(old != new for old, new in zip(before, after, strict=True))
            page.wait_for_function(
                "i => i.complete && i.naturalWidth > 0", arg=image.element_handle()
            )
    assert not visit.wrong, "\n".join(visit.wrong)


@pytest.mark.parametrize("name", EXPLORED)
def test_without_scripts_there_are_pictures(name: str, html: Path, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True, viewport=WIDE)
    page = context.new_page()
    page.goto((html / "chapters" / f"{name}.html").as_uri())
    stills = page.locator(".bilrp-explorer > img, .bilrp-frames > img")
    assert stills.count() == page.locator(".bilrp-explorer, .bilrp-frames").count() >= 1
    for still in stills.all():
        box = still.bounding_box()
        assert box["width"] > 200
        assert len(still.get_attribute("alt")) >= 15
    assert page.locator(".bilrp-explorer button, .bilrp-frames input").count() == 0
    context.close()


def test_some_page_has_formulas_and_pictures(html: Path, visit: Visit) -> None:
    """The checks above have something to check."""
    formulas = pictures = 0
    for name in toc_pages():
        page = visit.open(html / f"{name}.html")
        visit.settle()
        formulas += page.locator("article mjx-container mjx-math").count()
        pictures += page.locator("article img").count()
    assert formulas
    assert pictures


def test_the_address_of_the_book_opens_its_front_page(html: Path, visit: Visit) -> None:
    page = visit.open(html / "index.html")
    page.wait_for_url(f"**/{toc_pages()[0]}.html")
    page.wait_for_selector("article h1")
    assert not visit.wrong, "\n".join(visit.wrong)


def test_search_finds_relevance(html: Path, visit: Visit) -> None:
    page = visit.open(html / "search.html")
    page.goto((html / "search.html").as_uri() + "?q=relevance")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    links = page.locator("#search-results ul.search li a")
    targets = links.evaluate_all("links => links.map(a => a.href.split(/[?#]/)[0])")
    assert any("/chapters/" in target for target in targets), targets
    links.first.click()
    page.wait_for_selector("article h1")
    assert not visit.wrong, "\n".join(visit.wrong)


def test_the_dark_theme_is_dark(html: Path, visit: Visit) -> None:
    page = visit.open(html / f"{toc_pages()[0]}.html")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_timeout(400)
    red, green, blue = map(
        int,
        re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3],
    )
    assert max(red, green, blue) < 80
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / "front_dark.png"))
    assert not visit.wrong, "\n".join(visit.wrong)


def test_four_pictures_stand_two_by_two(html: Path, visit: Visit) -> None:
    page = visit.open(html / "chapters" / "06_vgg16.html")
    page.set_viewport_size(LAPTOP)
    visit.settle()
    tops = page.evaluate(
        "[...document.querySelectorAll('.cell.tag_row .cell_output')]"
        ".map(e => [...e.querySelectorAll(':scope > img')].map(i => Math.round(i.offsetTop)))"
    )
    four = [row for row in tops if len(row) == 4]
    assert four
    for row in four:
        assert row[0] == row[1] < row[2] == row[3]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_table_that_is_cut_shows_it(theme: str, html: Path, visit: Visit) -> None:
    """On a phone there is a shadow over the cells at the edge that hides some."""
    page = visit.open(html / "chapters" / "zoo.html")
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(300)
    head = page.locator(".pst-scrollable-table-container thead").first
    head.scroll_into_view_if_needed()
    around = page.locator(".pst-scrollable-table-container").first.bounding_box()
    top = head.bounding_box()["y"]
    edge = {"x": around["x"] + around["width"] - 12, "y": top + 2, "width": 12, "height": 20}
    shown = page.screenshot(clip=edge)
    page.add_style_tag(
        content=".bd-article .pst-scrollable-table-container { background: none !important; }"
    )
    assert page.screenshot(clip=edge) != shown
