"""Chapters in a live JupyterLab: text as on the pages, solutions folded, or gone for students."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import nbformat
import plain
import pytest
import student
from playwright.sync_api import Browser, Page, expect

from tests.conftest import ROOT
from tests.live import jupyterlab

pytestmark = pytest.mark.browser

# Propositions, proofs, exercises, citations, references into this and other chapters.
CHAPTER = "03_bilrp_rules"
RAW = re.compile(r"\$|\\(?:frac|sum|tag|begin)|\{[a-z:-]+\}|```|<details|<span|\]\(|\*\*|\)=")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    folder = tmp_path_factory.mktemp("lab")
    book, source = plain.Book(ROOT), ROOT / f"chapters/{CHAPTER}.md"
    nbformat.write(plain.reading_notebook(source, book), folder / "reading.ipynb")
    nbformat.write(student.student_notebook(source, book), folder / "student.ipynb")
    with jupyterlab(folder, whole=True) as address:
        yield address


@pytest.fixture
def opened(browser: Browser, lab: Callable[[str], str]) -> Iterator[Callable[[str], Page]]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(120_000)

    def open_(name: str) -> Page:
        page = context.new_page()
        page.goto(lab(name))
        page.wait_for_selector(".jp-Notebook mjx-container", state="attached")
        # the last cell is drawn, and no formula is waiting
        last = page.locator(".jp-Notebook .jp-MarkdownCell .jp-RenderedMarkdown").last
        expect(last).to_be_attached()
        page.wait_for_function(
            "![...document.querySelectorAll('.jp-RenderedMarkdown')].some("
            "e => /\\\\(frac|sum|tag)/.test(e.innerText))"
        )
        return page

    yield open_
    context.close()


def text_of(page: Page) -> str:
    """What is on the page in words, formulas and code aside."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.jp-RenderedMarkdown')].map(e => {
          const copy = e.cloneNode(true);
          copy.querySelectorAll('mjx-container, pre, code').forEach(x => x.remove());
          return copy.textContent;
        }).join('\\n')"""
    )


def test_a_chapter_reads_as_its_page_does(opened: Callable[[str], Page]) -> None:
    page = opened("reading.ipynb")
    text = text_of(page)
    raw = RAW.search(text)
    assert raw is None, text[max(0, raw.start() - 80) : raw.end() + 40]
    for said in ("Proposition", "Exercise 3.1", "Eberle et al. (2022)", "Proof."):
        assert said in text
    assert page.locator("mjx-merror").count() == 0
    link = page.locator('.jp-RenderedMarkdown a:text("Eberle et al. (2022)")').first
    assert link.get_attribute("href").startswith("https://doi.org/")
    # a reference leads to its heading
    target = page.locator('.jp-RenderedMarkdown a[href^="#"]').first.get_attribute("href")
    assert page.locator(f'[id="{target[1:]}"], [data-jupyter-id="{target[1:]}"]').count() == 1
    # solutions are folded until one opens them
    solution = page.locator("h4", has_text="Solution to Exercise 3.1")
    expect(solution).to_be_visible()
    cell = page.locator(".jp-Cell", has=solution)
    below = cell.locator("xpath=following-sibling::*[contains(@class, 'jp-Cell')][1]")
    expect(below).to_be_hidden()


def test_a_students_chapter_has_no_solution(opened: Callable[[str], Page]) -> None:
    page = opened("student.ipynb")
    text = text_of(page)
    assert RAW.search(text) is None
    assert "Solution" not in text
    exercises = page.locator("h3", has_text="Exercise 3.").count()
    assert exercises >= 3
    assert page.get_by_text("Your answer", exact=False).count() >= exercises
    assert "yours to write" in page.locator(".jp-CodeCell").all_inner_texts().__str__()
