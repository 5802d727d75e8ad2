"""Exercises: each has a solution, and what checks a solution fails on the student's stub."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jupytext
import nbformat
import notebooks
import pytest
import student

from tests.conftest import ROOT

CHAPTERS = [p for p in notebooks.sources(ROOT / "chapters") if p.name[:2].isdigit()]
LABEL = re.compile(r"^:label: (\S+)$", re.MULTILINE)


def labels(text: str) -> list[str]:
    return [LABEL.search(match["body"])[1] for match in student.EXERCISE.finditer(text)]


def solved(text: str) -> list[str]:
    return [
        m["label"] for pattern in (student.SOLUTION, student.START) for m in pattern.finditer(text)
    ]


def checks(source: Path) -> list[tuple[str, str, str]]:
    """(label, solution, check) of each exercise that has a check."""
    found, label, solution = [], None, ""
    for cell in jupytext.read(source).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            label = student.without_solutions(cell.source, label)[1]
        elif "solution" in tags:
            solution = cell.source
        elif "check" in tags:
            found.append((label, solution, cell.source))
    return found


CHECKS = [(source, *check) for source in CHAPTERS for check in checks(source)]


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda p: p.stem)
def test_each_exercise_is_solved_and_one_can_be_checked(source):
    text = source.read_text(encoding="utf-8")
    assert len(labels(text)) >= 3
    assert sorted(labels(text)) == sorted(solved(text))
    assert checks(source), "no exercise of this chapter has a check cell"


def imports(source: Path) -> str:
    first = next(c.source for c in jupytext.read(source).cells if c.cell_type == "code")
    return _only(first, ast.Import | ast.ImportFrom)


def _only(code: str, kinds) -> str:
    return "\n".join(ast.unparse(n) for n in ast.parse(code).body if isinstance(n, kinds))


DEFINED = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef


@pytest.mark.parametrize(
    ("source", "label", "solution", "check"), CHECKS, ids=[label for _, label, _, _ in CHECKS]
)
def test_the_check_passes_on_the_solution_and_fails_on_the_stub(source, label, solution, check):
    assert label is not None, "this check stands outside of a solution"
    for answer, passes in (
        (_only(solution, DEFINED), True),
        (student.stub(solution, label), False),
    ):
        names: dict = {}
        exec(imports(source), names)
        exec(answer, names)
        if passes:
            exec(check, names)
        else:
            with pytest.raises(NotImplementedError, match=label):
                exec(check, names)


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda p: p.stem)
def test_the_students_notebook_has_no_solution(source):
    nb = student.student_notebook(source)
    nbformat.validate(nb)
    whole = "\n".join(cell.source for cell in nb.cells)
    text = source.read_text(encoding="utf-8")
    assert "{solution" not in whole
    assert "{exercise}" not in whole
    for label in labels(text):
        assert f"**Exercise** `{label}`" in whole
    for match in student.SOLUTION.finditer(text):
        assert max(match[0].splitlines(), key=len) not in whole
    for label, solution, check in checks(source):
        stub = student.stub(solution, label)
        assert stub in whole
        assert check in whole
        assert solution not in whole


def test_stubs_keep_signatures_and_docstrings_only():
    code = (
        "import math\nSIZE = 3\n\n\n"
        "@decorated\ndef f(x, y=2):\n    '''Adds.'''\n    return x + y\n\n\n"
        "def g(\n    z,\n):\n    return z\n\n\n"
        "class Head(Base):\n    '''A head.'''\n\n    def forward(self, a):\n        return a\n\n\n"
        "print(f(1))\n"
    )
    stubs = student.stub(code, "ex-00-a")
    assert "return" not in stubs
    assert "print" not in stubs
    assert "SIZE" not in stubs
    for kept in (
        "@decorated\ndef f(x, y=2):",
        "'''Adds.'''",
        "def g(\n    z,\n):",
        "'''A head.'''",
    ):
        assert kept in stubs
    assert stubs.count('raise NotImplementedError("ex-00-a') == 3
    compile(stubs, "stub", "exec")
    with pytest.raises(ValueError, match="ex-00-b defines no function"):
        student.stub("print(1)", "ex-00-b")


def test_a_solution_that_is_not_closed_is_found(tmp_path):
    page = tmp_path / "00.md"
    page.write_text(
        "---\nkernelspec:\n  name: python3\n  display_name: Python 3\n  language: python\n---\n\n"
        "```{solution-start} ex-00-a\n:class: dropdown\n```\n\nText.\n",
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="ex-00-a has no solution-end"):
        student.student_notebook(page)


def test_make_student_writes_notebooks_and_a_zip_that_needs_nothing_else(tmp_path):
    """The zip alone: the package is importable from it and finds its registry."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("chapters", "bilrp", "data", "pyproject.toml", "requirements.txt", "README.md"):
        (root / name).symlink_to(ROOT / name)
    assert student.main(root) == 0
    with zipfile.ZipFile(root / "_build" / "student.zip") as file:
        file.extractall(tmp_path)
    place = tmp_path / student.NAME
    assert {p.name for p in (place / "chapters").glob("*.ipynb")} == {
        p.with_suffix(".ipynb").name for p in notebooks.sources(ROOT / "chapters")
    }
    assert not list(place.rglob("*.md.orig")) + list(place.glob("chapters/*.md"))
    run = subprocess.run(
        [sys.executable, "-c", "from bilrp.book.data import names; print(names('cats'))"],
        cwd=place,
        env={"PYTHONPATH": str(place), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cats" in run.stdout, run.stderr
