"""The built book: a clean strict build, whole pages, and nothing fetched from outside."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import plain
import pytest
from bs4 import BeautifulSoup

from tests.conftest import ROOT, toc_pages

pytestmark = pytest.mark.book

ELSEWHERE = re.compile(r"^(?:https?:)?//", re.IGNORECASE)
CSS_LINK = re.compile(r"""(?:url\(|@import)\s*(?:url\()?\s*['"]?([^'")\s;]+)""")
# Words that say nothing about what a picture shows; myst-nb's own default is its file's path.
EMPTY_ALT = re.compile(r"^(?:image|figure|picture|plot|.*\.(?:png|svg|jpe?g))?$", re.IGNORECASE)


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[str, BeautifulSoup]:
    """Every page of the book, by its path; special pages such as the search included."""
    found = sorted(html.rglob("*.html"))
    found = [p for p in found if not p.is_relative_to(html / "_static")]
    return {
        p.relative_to(html).as_posix(): BeautifulSoup(p.read_text("utf-8"), "html.parser")
        for p in found
    }


def test_the_strict_build_succeeds(built: subprocess.CompletedProcess[str]) -> None:
    assert built.returncode == 0, built.stdout[-6000:] + built.stderr[-2000:]
    last = built.stdout.strip().splitlines()[-1]
    assert last == (ROOT / "_build/html/index.html").as_uri()
    log = (ROOT / "_build/book.log").read_text("utf-8")
    assert "build succeeded." in log
    assert not re.findall(r"^.*(?:WARNING:|ERROR:).*$", log, re.MULTILINE)


def test_every_page_in_the_contents_is_there(pages: dict[str, BeautifulSoup]) -> None:
    for name in toc_pages():
        page = pages.get(f"{name}.html")
        assert page is not None, name
        assert page.select_one("article h1"), name
        # and can be reached from the sidebar of every other one
        for other in toc_pages():
            here = pages[f"{other}.html"].select("nav.bd-links a[href]")
            assert [
                a
                for a in here
                if a["href"].endswith(f"{Path(name).name}.html")
                or (name == other and a["href"] == "#")
            ], (name, other)


def test_pages_and_notebooks_have_the_same_numbers(pages: dict[str, BeautifulSoup]) -> None:
    """Of chapters, in titles and in the sidebar; of exercises, propositions and formulas."""
    book = plain.Book(ROOT)
    numbered = 0
    for name, number in plain.pages(ROOT):
        page = pages[f"{name}.html"]
        title = page.select_one("article h1").get_text().strip()
        assert title.startswith(number)
        assert bool(re.match(r"\d+\. ", title)) == bool(number), title
        here = [a.get_text() for a in page.select("nav.bd-links a.current")]
        assert here == [] or here[-1].strip().startswith(number)
        numbered += bool(number)
        stem = name.split("/")[1]
        own = [place.name for place in book.places.values() if place.page == stem]
        for pattern, selector in {
            r"Exercise [\d.]+": ".admonition.exercise > .admonition-title",
            r"(?:Proposition|Lemma|Theorem|Definition) [\d.]+": ".proof > .admonition-title",
            r"\([\d.]+\)": "article .eqno",
        }.items():
            shown = [re.match(pattern, tag.get_text().strip()) for tag in page.select(selector)]
            expected = [text for text in own if re.fullmatch(pattern, text)]
            assert [m[0] for m in shown if m] == expected, name
    assert numbered >= 10


def test_the_address_printed_leads_to_the_front_page(pages: dict[str, BeautifulSoup]) -> None:
    refresh = pages["index.html"].select_one('meta[http-equiv="Refresh" i]')
    assert refresh["content"].split("url=")[1] == f"{toc_pages()[0]}.html"


def test_every_internal_link_and_picture_leads_somewhere(
    html: Path, pages: dict[str, BeautifulSoup]
) -> None:
    ids = {
        name: {tag.get("id") for tag in page.select("[id]")}
        | {tag["name"] for tag in page.select("a[name]")}
        for name, page in pages.items()
    }
    broken, checked = [], 0
    for name, page in pages.items():
        for tag, attribute in ((t, a) for t in page.find_all(True) for a in ("href", "src")):
            url = tag.get(attribute)
            if url is None or urlsplit(url).scheme or ELSEWHERE.match(url):
                continue
            checked += 1
            parts = urlsplit(url)
            target = (html / name).parent / unquote(parts.path) if parts.path else html / name
            inside = target.resolve().relative_to(html.resolve()).as_posix()
            if not target.is_file():
                broken.append(f"{name}: {url}")
            elif (
                parts.fragment
                and tag.name == "a"
                and inside in ids
                and unquote(parts.fragment) not in ids[inside]
            ):
                broken.append(f"{name}: {url} (no such place on the page)")
    assert checked > 50
    assert not broken, "\n".join(broken)


def test_every_picture_has_words_for_those_who_do_not_see_it(
    pages: dict[str, BeautifulSoup],
) -> None:
    poor, seen = [], 0
    for name, page in pages.items():
        for image in page.select("article img"):
            seen += 1
            alt = (image.get("alt") or "").strip()
            if EMPTY_ALT.match(alt) or len(alt) < 15:
                poor.append(f"{name}: {image.get('src', '')[-50:]}: alt={alt!r}")
        for image in page.select("article svg"):
            if image.get("aria-hidden") != "true" and image.find_parent("svg") is None:
                label = image.get("aria-label") or (image.title and image.title.string) or ""
                labelled = len(label.strip()) >= 15 or image.find_parent(attrs={"aria-label": True})
                if not labelled and "sd-octicon" not in " ".join(image.get("class", [])):
                    poor.append(f"{name}: an svg without aria-label or title")
    assert seen
    assert not poor, "\n".join(poor)


def test_nothing_is_loaded_from_outside(html: Path, pages: dict[str, BeautifulSoup]) -> None:
    outside = []
    for name, page in pages.items():
        for tag in page.select("script, img, iframe, source, video, audio, embed, object, link"):
            if tag.name == "link" and {"canonical", "search"} & set(tag.get("rel", [])):
                continue
            for attribute in ("src", "href", "data", "srcset", "poster"):
                if ELSEWHERE.match(tag.get(attribute) or ""):
                    outside.append(f"{name}: <{tag.name}> {tag[attribute]}")
        css = [style.string or "" for style in page.select("style")]
        css += [tag["style"] for tag in page.select("[style]")]
        outside += [f"{name}: {u}" for u in CSS_LINK.findall("\n".join(css)) if ELSEWHERE.match(u)]
        assert "require.min.js" not in str(page), name
    sheets = list(html.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        for url in CSS_LINK.findall(sheet.read_text("utf-8", errors="replace")):
            if ELSEWHERE.match(url):
                outside.append(f"{sheet.relative_to(html)}: {url}")
    assert not outside, "\n".join(outside)


def test_no_page_prints_what_a_drawing_call_returns(pages: dict[str, BeautifulSoup]) -> None:
    """The last line of a cell that draws ends with a semicolon."""
    for name, page in pages.items():
        for output in page.select(".output.text_plain pre"):
            assert not re.match(r"\[?(Text\(|<matplotlib|\(np\.|array\()", output.text), name


def test_pages_show_neither_errors_nor_raw_markup(pages: dict[str, BeautifulSoup]) -> None:
    for name, page in pages.items():
        article = page.select_one("article") or page
        outputs = "\n".join(o.get_text() for o in article.select(".cell_output"))
        assert "Traceback (most recent call last)" not in outputs, name
        assert not article.select(".cell_output .stderr, .system-message, .problematic"), name
        for code in article.select("pre, code, script, style, .math"):
            code.decompose()
        text = article.get_text()
        for raw in ("$$", "{cite", "{eq}", "{numref}", "{ref}", "{doc}", "```", ":::"):
            assert raw not in text, f"{name} shows {raw}"


# --- the builder itself, on a book of one page


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A copy of this book's settings around one page that prints a value from a module."""
    for name in ("_config.yml", "references.bib", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "assets", tmp_path / "assets")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: chapters/index\n")
    (tmp_path / "bilrp").mkdir()
    (tmp_path / "bilrp/value.py").write_text("VALUE = 'first value'\n")
    (tmp_path / "chapters").mkdir()
    write_page(tmp_path, "Some text.")
    return tmp_path


def write_page(root: Path, text: str, cell: str = "print(runpy.run_path(path)['VALUE'])") -> None:
    (root / "chapters/index.md").write_text(
        "---\njupytext:\n  text_representation:\n    extension: .md\n    format_name: myst\n"
        "kernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n\n"
        f"# A page\n\n{text}\n\n```{{code-cell}} ipython3\nimport runpy\n"
        f"path = '../bilrp/value.py'\n{cell}\n```\n"
    )


def build(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/build_book.py"), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def page_text(root: Path, selector: str = "article") -> str:
    text = (root / "_build/html/chapters/index.html").read_text("utf-8")
    return BeautifulSoup(text, "html.parser").select_one(selector).get_text()


def shown(root: Path) -> str:
    return page_text(root, ".cell_output")


def test_a_change_in_a_module_runs_the_cells_again(small: Path) -> None:
    first = build(small)
    assert first.returncode == 0, first.stdout[-3000:]
    assert "first value" in shown(small)
    # a line for the page and a few around it; the log is in the file
    assert re.search(r"Running 1 page with code.*\n +1/1 +index +\d+ s", first.stdout)
    assert len(first.stdout.splitlines()) < 10
    assert "build succeeded." in (small / "_build/book.log").read_text("utf-8")
    again = build(small)
    assert again.returncode == 0
    assert "up to date" in again.stdout
    write_page(small, "Some other text.")
    edited = build(small)
    assert edited.returncode == 0
    assert "Running" not in edited.stdout
    assert "Some other text." in (small / "_build/html/chapters/index.html").read_text("utf-8")
    assert re.search(r"took \d+ s of processor time", page_text(small))
    (small / "bilrp/value.py").write_text("VALUE = 'second value'\n")
    assert build(small).returncode == 0
    assert "second value" in shown(small)


@pytest.mark.parametrize(
    ("text", "cell", "said"),
    [
        ("See {ref}`no-such-place`.", "1", "no-such-place"),
        ("Some text.", "assert 1 == 2, 'wrong number'", "wrong number"),
        ("Some text.", "import warnings; warnings.warn('mind this')", "printed a warning"),
    ],
    ids=["reference", "assertion", "warning"],
)
def test_a_wrong_page_fails_the_build_every_time(
    small: Path, text: str, cell: str, said: str
) -> None:
    write_page(small, text, cell)
    for _ in range(2):
        done = build(small)
        assert done.returncode != 0
        assert said in done.stdout.split("NOT built")[1]
