"""Notebooks for students: the chapters without the solutions, and a zip to hand out.

From the text of each chapter, `make student` writes _build/student/chapters/NAME.ipynb in which

- the text is plain Markdown, so that propositions, references and citations show in any notebook;
- solutions are gone, and a cell waits for an answer in words to each part;
- a solution in code has become a stub: the same functions, which raise NotImplementedError;
- numbers worked out by hand have become dots beside the same names, and beside the comment that
  says what each is. Their check computes them another way, so that it does not tell them;
- the cell that checks the solution is still there. It fails on the stub and passes on an answer.

The zip holds these notebooks with the package and the pins, so that it needs nothing else.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import sys
import tokenize
import zipfile
from pathlib import Path

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from notebooks import ROOT, sources
from plain import Block, Book, blocks, code_cell, exercise_cell, text_cells, whole

NAME = "explaining-deep-similarity-student"
# What the notebooks need to run, besides themselves.
PARTS = [
    "bilrp/**/*.py",
    "bilrp/**/*.js",
    "bilrp/py.typed",
    "assets/*.csv",
    "data/*",
    "assets/*.json",
    "assets/*.svg",
    "pyproject.toml",
    "requirements.txt",
    "LICENSE*",
    "README.md",
]
# Parts of an exercise that ask for an answer each: list items "(a)", "a)", "1.".
PART = re.compile(r"(?m)^(?:\*\*)?(?P<part>\([a-z]\)|[a-z]\)|\d+\.)(?:\*\*)? ")
HOW_TO = """# Notebooks for students

    python3 -m venv .venv
    .venv/bin/pip install -r requirements.txt
    .venv/bin/pip install --no-deps --no-build-isolation -e .
    .venv/bin/python -m bilrp.book.data   # photos, digits and weights
    .venv/bin/jupyter lab chapters

(On Windows, `.venv\\Scripts\\` in place of `.venv/bin/`.) Where a cell says NotImplementedError it
waits for you: write the function, run the cell, then run the check below it. Dots wait for a number
of yours. A check that says nothing has passed. Answers in words go into the cells that say so.
"""


def student_notebook(source: Path, book: Book) -> nbformat.NotebookNode:
    """A chapter without its solutions."""
    nb = jupytext.read(source)
    cells: list[nbformat.NotebookNode] = []
    label = ""  # of the solution that we are in
    parts: dict[str, list[str]] = {}
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            if not label or "check" in tags:
                cells.append(code_cell(cell))
            elif "solution" in tags:
                stubs = stub(cell.source, label)
                cells.append(new_code_cell(stubs, metadata={"tags": ["answer"]}))
            continue
        waiting: list[Block] = []
        for block in blocks(cell.source):
            if block.kind == "solution-start":
                label = block.argument
            if block.kind in ("exercise", "solution", "solution-start", "solution-end"):
                cells += text_cells(waiting, book, source.stem)
                waiting = []
            elif not label:
                waiting.append(block)
            if block.kind == "exercise":
                cells.append(exercise_cell(block, book, source.stem))
                parts[block.options["label"]] = [m["part"] for m in PART.finditer(block.body)]
            elif block.kind == "solution":
                cells += answers(parts.get(block.argument, []))
            elif block.kind == "solution-end":
                cells += answers(parts.get(label, []))
                label = ""
        cells += text_cells(waiting, book, source.stem)
    if label:
        raise ValueError(f"{source.name}: solution-start {label} has no solution-end")
    return whole(cells, nb, "student")


def answers(parts: list[str]) -> list[nbformat.NotebookNode]:
    """A cell for an answer in words to each part of an exercise."""
    asked = [f"*Your answer to {part}*" for part in parts] or ["*Your answer*"]
    return [new_markdown_cell(text, metadata={"tags": ["answer"]}) for text in asked]


def stub(code: str, label: str) -> str:
    """The functions, classes and names of a solution without what they do.

    Raises
    ------
    ValueError
        If the solution defines none: there would be nothing to write, and nothing to check.
    """
    lines = code.splitlines()
    nodes = ast.parse(code).body
    parts = [
        "\n".join(_stubbed(node, lines, label))
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    if parts:
        return "\n\n\n".join(parts)
    comments = _comments(code)
    dots = [
        f"{name.id} = ...  # {comments.get(node.end_lineno, f'{label}: yours to work out')}"
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    ]
    if not dots:
        raise ValueError(f"the solution of {label} defines no function and no name")
    return "\n".join(dots)


def _comments(code: str) -> dict[int, str]:
    """What is said at the end of each line: for numbers, what they are, not how they come out."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _stubbed(node: ast.FunctionDef | ast.ClassDef, lines: list[str], label: str) -> list[str]:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    body = node.body
    head = lines[first - 1 : body[0].lineno - 1] or lines[first - 1 : node.lineno]
    if ast.get_docstring(node) is not None:
        head = lines[first - 1 : body[0].end_lineno]
        body = body[1:]
    if isinstance(node, ast.ClassDef):
        for inner in body:
            if isinstance(inner, ast.FunctionDef):
                head += ["", *_stubbed(inner, lines, label)]
        return head
    indent = " " * (node.col_offset + 4)
    return [*head, f'{indent}raise NotImplementedError("{label}: yours to write")']


def main(root: Path = ROOT) -> int:
    """Write the notebooks and the zip, and say where they are."""
    folder = root / "_build" / "student"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "chapters").mkdir(parents=True)
    book = Book(root)
    for source in sources(root / "chapters"):
        target = folder / "chapters" / source.with_suffix(".ipynb").name
        nbformat.write(student_notebook(source, book), target)
    (folder / "STUDENTS.md").write_text(HOW_TO, encoding="utf-8")
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{NAME}/{path.relative_to(folder)}")
        for path in sorted(p for pattern in PARTS for p in root.glob(pattern) if p.is_file()):
            file.write(path, f"{NAME}/{path.relative_to(root)}")
    print(f"{folder}\n{target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
