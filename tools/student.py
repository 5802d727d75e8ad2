"""Notebooks for students: the chapters without the solutions, and a zip to hand out.

From the text of each chapter, `make student` writes _build/student/chapters/NAME.ipynb in which

- solutions are gone, and a cell waits for an answer in words;
- a solution in code has become a stub: the same functions, which raise NotImplementedError;
- the cell that checks the solution is still there. It fails on the stub and passes on an answer.

The zip holds these notebooks with the package and the pins, so that it needs nothing else.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
import zipfile
from pathlib import Path

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from notebooks import ROOT, sources

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
EXERCISE = re.compile(r"(?ms)^(?P<fence>`{3,})\{exercise\}[^\n]*\n(?P<body>.*?)^(?P=fence)[ \t]*$")
SOLUTION = re.compile(r"(?ms)^(?P<fence>`{3,})\{solution\} (?P<label>\S+)\n.*?^(?P=fence)[ \t]*\n?")
START = re.compile(r"(?ms)^```\{solution-start\} (?P<label>\S+)\n.*?^```[ \t]*$")
END = re.compile(r"(?m)^```\{solution-end\}\n```[ \t]*$")
ANSWER = "*Your answer:*\n"
HOW_TO = """# Notebooks for students

    python3 -m venv .venv
    .venv/bin/pip install -r requirements.txt
    .venv/bin/pip install --no-deps --no-build-isolation -e .
    .venv/bin/python -m bilrp.book.data   # photos, digits and weights
    .venv/bin/jupyter lab chapters

(On Windows, `.venv\\Scripts\\` in place of `.venv/bin/`.) Where a cell says NotImplementedError it
waits for you: write the function, run the cell, then run the check below it.
"""


def student_notebook(source: Path) -> nbformat.NotebookNode:
    """A chapter without its solutions."""
    nb = jupytext.read(source)
    cells, label = [], None  # label: of the solution that we are in
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            text, label = without_solutions(cell.source, label)
            if text.strip():
                cells.append(new_markdown_cell(text.strip()))
        elif label is None or "check" in tags:
            cells.append(new_code_cell(cell.source, metadata={"tags": tags} if tags else {}))
        elif "solution" in tags:
            cells.append(new_code_cell(stub(cell.source, label), metadata={"tags": ["answer"]}))
    if label is not None:
        raise ValueError(f"{source.name}: solution-start {label} has no solution-end")
    for number, cell in enumerate(cells):
        cell.id = f"student-{number}"
    metadata = {"kernelspec": nb.metadata["kernelspec"], "jupytext": {"formats": "ipynb"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def without_solutions(text: str, label: str | None) -> tuple[str, str | None]:
    """Markdown with exercises as plain text and without solutions; which one is open at its end."""
    kept = []
    while text:
        if label is not None:
            end = END.search(text)
            if end is None:
                break
            text, label = text[end.end() :], None
        start = START.search(text)
        kept.append(text if start is None else text[: start.start()])
        if start is None:
            break
        text, label = text[start.end() :], start["label"]
    plain = SOLUTION.sub(ANSWER, "".join(kept))
    return EXERCISE.sub(_as_plain_text, plain), label


def _as_plain_text(match: re.Match) -> str:
    lines = match["body"].strip().splitlines()
    label = next(line.split()[-1] for line in lines if line.startswith(":label:"))
    text = "\n".join(line for line in lines if not line.startswith(":")).strip()
    return f"**Exercise** `{label}`\n\n{text}"


def stub(code: str, label: str) -> str:
    """The functions and classes of a solution without what they do.

    Raises
    ------
    ValueError
        If the solution defines none: there would be nothing to write, and nothing to check.
    """
    lines = code.splitlines()
    parts = [
        "\n".join(_stubbed(node, lines, label))
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    if not parts:
        raise ValueError(f"the solution of {label} defines no function")
    return "\n\n\n".join(parts)


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
    for source in sources(root / "chapters"):
        target = folder / "chapters" / source.with_suffix(".ipynb").name
        nbformat.write(student_notebook(source), target)
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
