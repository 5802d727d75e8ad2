"""Chapters as notebooks in plain Markdown, which any live notebook shows as the pages do.

The text of the book is MyST: exercises, propositions, citations, references. JupyterLab alone shows
these as they are written. Here they become Markdown, with the numbers that they have on the pages.

    python tools/plain.py     write notebooks/NAME.ipynb; what a reader changed there is kept
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jupytext
import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell
from notebooks import ROOT, sources
from pybtex.database import parse_file

FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<info>.*)$")
OPTION = re.compile(r"^:(?P<key>[\w-]+):[ ]*(?P<value>.*)$")
HEADING = re.compile(r"^(#{1,6}) +(.*?) *$")
TARGET = re.compile(r"^\((?P<label>[\w:.-]+)\)=\s*$")
ROLE = re.compile(r"\{(?P<role>[a-z]+(?::[a-z]+)*)\}`(?P<text>[^`]*)`")
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<to>[^()\s]+)\)")
SPAN = re.compile(r"\[(?P<text>[^\[\]]+)\]\{\.(?P<kind>[\w-]+)\}")
EQUATION = re.compile(r"(?ms)^\$\$\n(?P<body>.*?)^\$\$(?:[ ]+\((?P<label>[\w:.-]+)\))?[ ]*$")
# What is not to be touched: code in the line, and formulas.
OPAQUE = re.compile(r"(?ms)^\$\$\n.*?^\$\$[ ]*$|(?<!\\)\$[^$\n]+(?:\n[^$\n]+)?\$|(`+)[^`]+\1")
COLOURS = {"pos": "#b2182b", "neg": "#2166ac"}  # as in assets/book.css
# Directives with a title of their own.
BOXES = ("note", "tip", "hint", "important", "warning", "caution", "seealso", "margin", "sidebar")


class Block(NamedTuple):
    """A piece of a text cell: ``kind`` is "text", "code", or the name of a directive."""

    kind: str
    argument: str
    options: dict[str, str]
    body: str  # of a directive, without its options; of code, with its fence

    @property
    def folded(self) -> bool:
        return "dropdown" in self.options.get("class", "").split() or self.kind in (
            "dropdown",
            "toggle",
        )


def blocks(text: str) -> Iterator[Block]:
    """Split MyST Markdown at its fences; what is inside of a directive stays text.

    Raises
    ------
    ValueError
        If a fence is not closed.
    """
    plain: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        start = FENCE.match(line)
        if start is None:
            plain.append(line)
            continue
        if "\n".join(plain).strip():
            yield Block("text", "", {}, "\n".join(plain))
        plain = []
        inside = list(_until_closed(lines, start["fence"], line))
        info = re.match(r"^\{([\w:-]+)\}\s*(.*)$", start["info"].strip())
        if info is None:
            yield Block("code", "", {}, "\n".join([line, *inside, start["fence"]]))
            continue
        options, body = _options(inside)
        yield Block(info[1], info[2].strip(), options, "\n".join(body))
    if "\n".join(plain).strip():
        yield Block("text", "", {}, "\n".join(plain))


def _until_closed(lines: Iterator[str], fence: str, opening: str) -> Iterator[str]:
    for line in lines:
        bare = line.rstrip()
        if len(bare) >= len(fence) and set(bare) == {fence[0]}:
            return
        yield line
    raise ValueError(f"this fence is not closed: {opening}")


def _options(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of a directive, as lines with colons or as YAML, and its body."""
    if lines and lines[0].strip() == "---":
        end = next(i for i, line in enumerate(lines[1:], 1) if line.strip() == "---")
        read = yaml.safe_load("\n".join(lines[1:end])) or {}
        return {key: str(value) for key, value in read.items()}, lines[end + 1 :]
    options: dict[str, str] = {}
    for number, line in enumerate(lines):
        found = OPTION.match(line)
        if found is None:
            return options, lines[number:]
        options[found["key"]] = found["value"].strip()
    return options, []


# --- the book: numbers, labels, citations


@dataclass
class Place:
    """Where a label is, and what a reference to it says."""

    page: str
    name: str  # "Exercise 3.2", "(3.5)", or a section's title
    heading: str = ""  # that a notebook can jump to


@dataclass
class Book:
    """What references in the text lead to, with the numbers of the built pages."""

    root: Path = ROOT
    places: dict[str, Place] = field(default_factory=dict)
    notebooks: set[str] = field(default_factory=set)
    titles: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cited = parse_file(str(self.root / "references.bib")).entries
        self.notebooks = {path.stem for path in sources(self.root / "chapters")}
        counts: Counter[str] = Counter()  # of pages without a number of their own
        for page, number in pages(self.root):
            path = self.root / f"{page}.md"
            if path.exists():
                own = Counter() if number else counts
                self._read(path.stem, path.read_text(encoding="utf-8"), number, own)

    def _read(self, page: str, text: str, number: str, counts: Counter[str]) -> None:
        waiting: list[str] = []  # labels of the heading to come
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)

        def numbered(what: str) -> str:
            counts[what] += 1
            return f"{number}{counts[what]}"

        def walk(text: str) -> None:
            for block in blocks(text):
                label = block.options.get("label", "")
                if block.kind == "text":
                    self._read_text(page, block.body, numbered, waiting)
                elif block.kind == "exercise":
                    name = f"Exercise {numbered('exercise')}"
                    self.places[label] = Place(page, name, name)
                elif block.kind.startswith("prf:") and block.kind != "prf:proof":
                    kind = block.kind.removeprefix("prf:")
                    name = kind.title()
                    if "nonumber" not in block.options:
                        name += f" {numbered(kind)}"
                    self.places[label or f"{page}-{kind}-{counts[kind]}"] = Place(page, name)
                elif block.kind == "math" and label:
                    self.places[label] = Place(page, f"({numbered('equation')})")
                if block.kind not in ("text", "code", "code-cell", "math", "eval-rst"):
                    walk(block.body)

        walk(text)

    def _read_text(
        self, page: str, text: str, numbered: Callable[[str], str], waiting: list[str]
    ) -> None:
        for match in EQUATION.finditer(text):
            if match["label"]:
                self.places[match["label"]] = Place(page, f"({numbered('equation')})")
        for line in text.splitlines():
            target, heading = TARGET.match(line), HEADING.match(line)
            if target:
                waiting.append(target["label"])
            elif heading:
                self.titles.setdefault(page, heading[2])
                for label in waiting:
                    self.places[label] = Place(page, heading[2], heading[2])
                waiting.clear()
            elif line.strip():
                for label in waiting:  # of a paragraph or a picture
                    self.places[label] = Place(page, "here")
                waiting.clear()

    def cite(self, keys: str, textual: bool) -> str:
        """Authors and years, with a link to each work."""
        made = []
        for key in (key.strip() for key in keys.split(",")):
            entry = self.cited[key]
            last = [
                " ".join(map(str, [*p.rich_prelast_names, *p.rich_last_names]))
                for p in entry.persons["author"]
            ]
            who = last[0] if len(last) == 1 else " and ".join(last)
            who = f"{last[0]} et al." if len(last) > 2 else who
            text = (
                f"{who} ({entry.fields['year']})" if textual else f"{who}, {entry.fields['year']}"
            )
            to = entry.fields.get("url", "")
            to = f"https://doi.org/{entry.fields['doi']}" if "doi" in entry.fields else to
            made.append(f"[{text}]({quote(to, safe=':/')})" if to else text)
        return ", ".join(made) if textual else f"({'; '.join(made)})"

    def link(self, page: str, text: str, to: str) -> str:
        """A link to a page or a label of the book; text alone where it leads to no notebook."""
        if re.match(r"[a-z]+:", to) or to.startswith("#"):
            return f"[{text}]({to})"
        name, _, label = to.partition("#")
        if name.endswith(".md"):
            stem = Path(name).stem
            place = self.places.get(label) or Place(stem, self.titles.get(stem, stem))
        elif to in self.places:
            place = self.places[to]
        elif Path(to).suffix:
            return f"[{text}]({to})"  # a file
        else:
            raise ValueError(f"{page}: nothing has the label {to!r}")
        text = text or place.name
        address = f"{place.page}.ipynb" if place.page != page else ""
        if place.page not in self.notebooks:
            return text
        if place.heading and not re.search(r"[$`*{\[]", place.heading):
            address += "#" + quote(place.heading.replace(" ", "-"))
        return f"[{text}]({address})" if address else text


def pages(root: Path) -> Iterator[tuple[str, str]]:
    """Each page in reading order, and what its numbers begin with: "3." in chapter 3, or ""."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    yield toc["root"], ""
    chapter = 0
    groups = toc.get("parts") or [{"chapters": toc.get("chapters", [])}]
    for part in groups:
        numbered = part.get("numbered") or toc.get("options", {}).get("numbered")
        for entry in part["chapters"]:
            chapter += bool(numbered)
            yield entry["file"], f"{chapter}." if numbered else ""


# --- text


def plain(text: str, book: Book, page: str) -> str:
    """MyST Markdown as Markdown that a notebook shows without help.

    Raises
    ------
    ValueError
        For a directive or role that is not known here, and for a label that nothing has.
    """
    return "\n\n".join(_block(block, book, page) for block in blocks(text)).strip()


def _block(block: Block, book: Book, page: str) -> str:
    if block.kind == "text":
        return _inline(block.body, book, page).strip("\n")
    if block.kind == "code":
        return block.body
    if block.kind == "math":
        label = block.options.get("label")
        tag = f"\\tag{{{book.places[label].name.strip('()')}}}\n" if label else ""
        return f"$$\n{block.body}\n{tag}$$"
    if block.kind == "include":
        included = (book.root / "chapters" / block.argument).read_text(encoding="utf-8")
        return plain(included, book, page)
    inside = plain(block.body, book, page)
    if block.kind in ("figure", "image"):
        picture = f"![{block.options.get('alt', '')}]({block.argument})"
        return f"{picture}\n\n{inside}".strip()
    if block.kind == "container":
        return inside
    if block.kind == "raw" and block.argument == "html":
        return block.body
    title = _title(block, book, page)
    if block.folded:
        return f"<details><summary>{title}</summary>\n\n{inside}\n\n</details>"
    end = " ∎" if block.kind == "prf:proof" else ""
    return _quoted(f"**{title}** {inside}{end}" if title else inside)


def _title(block: Block, book: Book, page: str) -> str:
    argument = _inline(block.argument, book, page)
    if block.kind == "prf:proof":
        return argument or "Proof."
    if block.kind.startswith("prf:"):
        label = block.options.get("label")
        if not label:
            raise ValueError(f"{page}: {block.kind} has no label, so that it has no number here")
        return f"{book.places[label].name}{f' ({argument})' if argument else ''}."
    if block.kind in ("admonition", "dropdown", "toggle"):
        title = argument or "Show"
    elif block.kind in BOXES:
        title = argument or block.kind.title()
    else:
        raise ValueError(f"{page}: tools/plain.py does not know the directive {block.kind!r}")
    return title if block.folded or title[-1] in ".:?!" else f"{title}."


def _quoted(text: str) -> str:
    """In a box, unless there are formulas: JupyterLab would read the marks of the box as theirs."""
    return text if "$" in text else "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _inline(text: str, book: Book, page: str) -> str:
    """One stretch of text without fences."""
    kept: list[str] = []

    def keep(text: str) -> str:
        kept.append(text)
        return f"\0{len(kept) - 1}\0"

    def equation(match: re.Match[str]) -> str:
        tag = ""
        if match["label"]:
            tag = f"\\tag{{{book.places[match['label']].name.strip('()')}}}\n"
        return keep(f"$$\n{match['body']}{tag}$$")

    text = "\n".join(
        line for line in text.splitlines() if not TARGET.match(line) and not line.startswith("%")
    )
    text = EQUATION.sub(equation, text)
    text = ROLE.sub(lambda m: _role(m["role"], m["text"], book, page, keep), text)
    text = OPAQUE.sub(lambda m: keep(m[0]), text)
    text = LINK.sub(lambda m: book.link(page, m["text"], m["to"]), text)
    text = SPAN.sub(_coloured, text)
    while "\0" in text:  # what was kept may hold what was kept before
        text = re.sub(r"\0(\d+)\0", lambda m: kept[int(m[1])], text)
    return text


def _coloured(match: re.Match[str]) -> str:
    colour = COLOURS.get(match["kind"])
    style = f' style="color: {colour}; font-weight: 600"' if colour else ""
    return f"<span{style}>{match['text']}</span>"


def _role(role: str, text: str, book: Book, page: str, keep: Callable[[str], str]) -> str:
    titled = re.match(r"^(?P<title>.*?)\s*<(?P<to>[^<>]+)>$", text)
    title, to = (titled["title"], titled["to"]) if titled else ("", text)
    if role in ("cite:t", "cite"):
        return keep(book.cite(text, textual=True))
    if role == "cite:p":
        return keep(book.cite(text, textual=False))
    if role == "eq":
        return book.places[text].name
    if role in ("prf:ref", "ref", "numref"):
        return keep(book.link(page, title, to))
    if role == "doc":
        return keep(book.link(page, title, f"{to}.md"))
    if role == "term":
        return title or to
    if role == "math":
        return keep(f"${text}$")
    raise ValueError(f"{page}: tools/plain.py does not know the role {role!r}")


# --- notebooks


def reading_notebook(source: Path, book: Book) -> nbformat.NotebookNode:
    """A chapter for readers: cells that the page folds are folded, and so are solutions."""
    nb = jupytext.read(source)
    cells: list[nbformat.NotebookNode] = []
    for cell in nb.cells:
        if cell.cell_type == "code":
            cells.append(code_cell(cell))
            continue
        waiting: list[Block] = []
        for block in blocks(cell.source):
            if block.kind not in ("exercise", "solution", "solution-start", "solution-end"):
                waiting.append(block)
                continue
            cells += text_cells(waiting, book, source.stem)
            waiting = []
            if block.kind == "exercise":
                cells.append(exercise_cell(block, book, source.stem))
            elif block.kind != "solution-end":
                cells += solution_cells(block, book, source.stem)
        cells += text_cells(waiting, book, source.stem)
    return whole(cells, nb, "reading")


def text_cells(found: list[Block], book: Book, page: str) -> list[nbformat.NotebookNode]:
    """One cell with these blocks, or none."""
    text = "\n\n".join(_block(block, book, page) for block in found).strip()
    return [new_markdown_cell(text)] if text else []


def exercise_cell(block: Block, book: Book, page: str) -> nbformat.NotebookNode:
    name = book.places[block.options["label"]].name
    title = f" ({_inline(block.argument, book, page)})" if block.argument else ""
    return new_markdown_cell(f"### {name}{title}\n\n{plain(block.body, book, page)}")


def solution_cells(block: Block, book: Book, page: str) -> list[nbformat.NotebookNode]:
    """The heading of a solution, which folds what is below it, and the solution's first text."""
    heading = f"#### Solution to {book.places[block.argument].name}"
    text = plain(block.body, book, page)
    folding = new_markdown_cell(heading, metadata={"jp-MarkdownHeadingCollapsed": True})
    return [folding, *([new_markdown_cell(text)] if text else [])]


def code_cell(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    tags = cell.metadata.get("tags", [])
    metadata: dict[str, object] = {"tags": tags} if tags else {}
    if {"hide-input", "hide-cell", "remove-input"} & set(tags):
        metadata["jupyter"] = {"source_hidden": True}
    return new_code_cell(cell.source, metadata=metadata)


def whole(
    cells: list[nbformat.NotebookNode], nb: nbformat.NotebookNode, kind: str
) -> nbformat.NotebookNode:
    """A notebook of these cells, the same bytes each time."""
    for number, cell in enumerate(cells):
        cell.id = f"{kind}-{number}"
    metadata = {"kernelspec": nb.metadata["kernelspec"], "jupytext": {"formats": "ipynb"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def main(root: Path = ROOT) -> int:
    """Write what is new; keep, and name, the notebooks that a reader has changed."""
    folder = root / "notebooks"
    folder.mkdir(exist_ok=True)
    record = folder / ".written.json"
    written = json.loads(record.read_text("utf-8")) if record.exists() else {}
    book = Book(root)
    for source in sources(root / "chapters"):
        target = folder / f"{source.stem}.ipynb"
        text = nbformat.writes(reading_notebook(source, book))
        new = hashlib.sha256(text.encode()).hexdigest()
        if target.exists() and written.get(target.name) == new:
            continue
        if target.exists() and cells_of(target) != written.get(f"{target.name} cells"):
            print(f"notebooks/{target.name} stays: it was changed here. Delete it for a new one.")
            continue
        target.write_text(text, encoding="utf-8")
        written[target.name], written[f"{target.name} cells"] = new, cells_of(target)
    record.write_text(json.dumps(written, indent=1), encoding="utf-8")
    return 0


def cells_of(path: Path) -> str:
    """A hash over what is written in the cells; running them does not change it."""
    cells = nbformat.read(path, as_version=4).cells
    sources = json.dumps([[cell.cell_type, cell.source] for cell in cells])
    return hashlib.sha256(sources.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
