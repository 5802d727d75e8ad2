"""Exercises: each has a solution, and what checks a solution fails on the student's stub."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import jupytext
import nbformat
import notebooks
import plain
import pytest
import student
import torch

from bilrp.book.by_hand import agree
from tests.conftest import ROOT

CHAPTERS = [p for p in notebooks.sources(ROOT / "chapters") if p.name[:2].isdigit()]
BOOK = plain.Book(ROOT)


def found(source: Path, *kinds: str) -> list[plain.Block]:
    """The directives of these kinds in a chapter's text cells."""
    cells = (c.source for c in jupytext.read(source).cells if c.cell_type == "markdown")
    return [block for text in cells for block in plain.blocks(text) if block.kind in kinds]


def labels(source: Path) -> list[str]:
    return [block.options["label"] for block in found(source, "exercise")]


def solved(source: Path) -> list[str]:
    return [block.argument for block in found(source, "solution", "solution-start")]


def checks(source: Path) -> list[tuple[str, str, str]]:
    """(label, solution, check) of each exercise that has a check."""
    every, label, solution = [], "", ""
    for cell in jupytext.read(source).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            for block in plain.blocks(cell.source):
                if block.kind.startswith("solution-"):
                    label = block.argument
        elif "solution" in tags:
            solution = cell.source
        elif "check" in tags:
            every.append((label, solution, cell.source))
    return every


CHECKS = [
    # word vectors are fetched
    pytest.param(source, *check, marks=[pytest.mark.weights] * ("WordVectors.load" in check[2]))
    for source in CHAPTERS
    for check in checks(source)
]


# By hand, but proofs or sentences: there is no number to type.
IN_WORDS = {
    "ex-09-group",
    "ex-11-hand",
    "ex-11-gate",
    "ex-12-order",
    "ex-13-maps",
    "ex-13-occlusion",
    "ex-14-bound",
}


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda p: p.stem)
def test_each_exercise_is_solved_and_one_can_be_checked(source):
    assert len(labels(source)) >= 3
    assert sorted(labels(source)) == sorted(solved(source))
    in_code = {
        block.options["label"]
        for block in found(source, "exercise")
        if block.body.strip().startswith("*In code.*")
    }
    by_hand = {
        block.options["label"]
        for block in found(source, "exercise")
        if block.body.strip().startswith("*By hand.*")
    }
    assert by_hand - IN_WORDS <= {label for label, _, _ in checks(source)}, "no check of numbers"
    assert in_code, "no exercise of this chapter is in code"
    assert in_code <= {label for label, _, _ in checks(source)}, "an exercise in code has no check"


def imports(source: Path) -> str:
    first = next(c.source for c in jupytext.read(source).cells if c.cell_type == "code")
    return _only(first, ast.Import | ast.ImportFrom)


def _only(code: str, kinds) -> str:
    return "\n".join(ast.unparse(n) for n in ast.parse(code).body if isinstance(n, kinds))


DEFINED = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef


@pytest.mark.parametrize(
    ("source", "label", "solution", "check"), CHECKS, ids=[check.values[1] for check in CHECKS]
)
def test_the_check_passes_on_the_solution_and_fails_on_the_stub(source, label, solution, check):
    assert label, "this check stands outside of a solution"
    stub = student.stub(solution, label)
    # An exercise by hand has numbers for its solution. Dots are no number: the check stumbles.
    stops = NotImplementedError if "NotImplementedError" in stub else (TypeError, AssertionError)
    for answer, passes in (
        (_only(solution, DEFINED if stops is NotImplementedError else ast.stmt), True),
        (stub, False),
    ):
        names: dict = {}
        exec(imports(source), names)
        exec(answer, names)
        if passes:
            exec(check, names)
        else:
            with pytest.raises(stops, match=label if stops is NotImplementedError else None):
                exec(check, names)


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda p: p.stem)
def test_the_students_notebook_has_no_solution(source):
    nb = student.student_notebook(source, BOOK)
    nbformat.validate(nb)
    whole = "\n".join(cell.source for cell in nb.cells)
    for label in labels(source):
        assert f"### {BOOK.places[label].name}" in whole
    for block in found(source, "solution"):
        assert max(block.body.splitlines(), key=len) not in whole
    for label, solution, check in checks(source):
        stub = student.stub(solution, label)
        assert stub in whole
        assert check in whole
        assert solution not in whole
    # each exercise is followed by a cell for words, before the next one begins
    words = ["*Your answer" in cell.source for cell in nb.cells]
    starts = [n for n, cell in enumerate(nb.cells) if cell.source.startswith("### Exercise ")]
    assert len(starts) == len(labels(source))
    for start, end in pairwise([*starts, len(nb.cells)]):
        assert any(words[start:end])


MARKUP = re.compile(r"\{[a-z:-]+\}`|^[`:]{3,}\{|\]\{\.|^\([\w:-]+\)=|^:\w+:|\0", re.MULTILINE)


@pytest.mark.parametrize("source", notebooks.sources(ROOT / "chapters"), ids=lambda p: p.stem)
def test_notebooks_for_reading_hold_no_markup_that_they_cannot_show(source):
    for nb in (plain.reading_notebook(source, BOOK), student.student_notebook(source, BOOK)):
        nbformat.validate(nb)
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                text = "".join(b.body for b in plain.blocks(cell.source) if b.kind != "code")
                assert not MARKUP.search(text), cell.source
    code = [c.source for c in jupytext.read(source).cells if c.cell_type == "code"]
    reading = plain.reading_notebook(source, BOOK).cells
    assert [c.source for c in reading if c.cell_type == "code"] == code


def test_markup_becomes_markdown(tmp_path):
    """Numbers, labels, citations, folded answers, boxes, colours; what is unknown is refused."""
    text = (
        "# One\n\n(sec-a)=\n## A b\n\n$$\nx\n$$ (eq-a)\n\n"
        "````{prf:lemma} Small\n:label: le-a\n\nBy {eq}`eq-a`, $[a]{.pos}$.\n\n"
        "```{admonition} Answer\n:class: dropdown\nyes\n```\n````\n\n"
        "```{exercise}\n:label: ex-a\n\nSay.\n```\n"
    )
    (tmp_path / "chapters").mkdir()
    front = "---\nkernelspec:\n  name: python3\n---\n\n"
    for name in ("01_one", "02_two"):
        made = text.replace("-a", "-b").replace("A b", "C") if name == "02_two" else text
        (tmp_path / f"chapters/{name}.md").write_text(front + made)
    (tmp_path / "chapters/index.md").write_text("# Front\n")
    (tmp_path / "references.bib").write_text(
        '@book{k, author = {M{\\"u}ller, A. and Li, B.}, year = 2001, doi = {10.1/2}}\n'
    )
    (tmp_path / "_toc.yml").write_text(
        "root: chapters/index\nparts:\n- numbered: 1\n  chapters:\n"
        "  - file: chapters/01_one\n  - file: chapters/02_two\n"
    )
    book = plain.Book(tmp_path)

    def of(text: str) -> str:
        return plain.plain(text, book, "02_two")

    body = text.split("## A b\n\n")[1]
    assert plain.plain(body.split("```{exercise}")[0], book, "01_one") == (
        "$$\nx\n\\tag{1.1}\n$$\n\n**Lemma 1.1 (Small).** By (1.1), $[a]{.pos}$.\n\n"
        "<details><summary>Answer</summary>\n\nyes\n\n</details>"
    )
    assert of("{eq}`eq-b`, {prf:ref}`le-b`") == "(2.1), Lemma 2.1"
    assert of("[](ex-b), [this](ex-a)") == (
        "[Exercise 2.1](#Exercise-2.1), [this](01_one.ipynb#Exercise-1.1)"
    )
    assert of("[](sec-a) [x](01_one.md#le-a) [y](index.md)") == (
        "[A b](01_one.ipynb#A-b) [x](01_one.ipynb) y"
    )
    assert of("{cite:t}`k`") == "[Müller and Li (2001)](https://doi.org/10.1/2)"
    assert of("({cite:p}`k`)") == "(([Müller and Li, 2001](https://doi.org/10.1/2)))"
    assert 'color: #b2182b; font-weight: 600">Red</span>' in of("[Red]{.pos}")
    assert of("`[a]{.pos}` and `{eq}`") == "`[a]{.pos}` and `{eq}`"
    assert of("```{note}\nMind.\n```") == "> **Note.** Mind."
    for wrong, said in (
        ("[x](nowhere)", "nothing has the label 'nowhere'"),
        ("```{nothing}\n```", "does not know the directive 'nothing'"),
        ("{nothing}`x`", "does not know the role 'nothing'"),
        ("```{note}\nx", "not closed"),
    ):
        with pytest.raises(ValueError, match=said):
            of(wrong)
    plain_name = "```{prf:proposition} As in the paper\n:label: le-b\n:nonumber:\n\nSo.\n```"
    source = tmp_path / "chapters/02_two.md"
    source.write_text(source.read_text("utf-8") + plain_name.replace("le-b", "pr-b"))
    named = plain.plain(plain_name.replace("le-b", "pr-b"), plain.Book(tmp_path), "02_two")
    assert named == "> **Proposition (As in the paper).** So."


def test_what_a_reader_changed_is_not_written_over(tmp_path, capsys):
    for name in ("_toc.yml", "references.bib", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "chapters").mkdir()
    for path in (ROOT / "chapters").glob("*.md"):
        shutil.copy(path, tmp_path / "chapters")
    assert plain.main(tmp_path) == 0
    first, second = sorted((tmp_path / "notebooks").glob("*.ipynb"))[:2]
    nb = nbformat.read(first, as_version=4)
    nb.cells[0].source += "\nMine."
    nbformat.write(nb, first)
    ran = nbformat.read(second, as_version=4)  # run, but not changed
    next(c for c in ran.cells if c.cell_type == "code").execution_count = 1
    nbformat.write(ran, second)
    for page in (first, second):
        source = tmp_path / "chapters" / f"{page.stem}.md"
        source.write_text(source.read_text("utf-8") + "\nNew.\n", encoding="utf-8")
    capsys.readouterr()
    assert plain.main(tmp_path) == 0
    assert f"notebooks/{first.name} stays: it was changed here" in capsys.readouterr().out
    assert "Mine." in first.read_text("utf-8")
    assert "New." in second.read_text("utf-8")


def test_numbers_by_hand_become_dots():
    assert student.stub("share, other = 1, 2\nsum_of = share\n", "ex-a") == (
        "share = ...  # ex-a: yours to work out\n"
        "other = ...  # ex-a: yours to work out\n"
        "sum_of = ...  # ex-a: yours to work out"
    )
    assert student.stub("import math\na = math.pi", "ex-a").startswith("a = ...")
    told = "shares = [\n    1,\n    2,\n]  # patch 1, patch 2\nname = '#'"
    assert student.stub(told, "ex-a") == (
        "shares = ...  # patch 1, patch 2\nname = ...  # ex-a: yours to work out"
    )


def test_answers_by_hand_are_checked_and_not_told():
    agree([1 / 3, 2], torch.tensor([1 / 3, 2.0]), "shares")
    agree([0.33, 2], [1 / 3, 2], "shares")  # readers round
    agree(torch.tensor(5), 5, "count")
    for given, said in (
        (..., "a number is missing"),
        ([1 / 3, ...], "a number is missing"),
        ([[1], [2, 3]], "a number is missing"),
        (1 / 3, r"asked for 2, got 1 numbers"),
        ([0.3, 2], "1 of 2 not right yet"),
        ([float("nan"), 2], "1 of 2 not right yet"),
    ):
        with pytest.raises(AssertionError, match=f"^shares: {said}") as error:
            agree(given, [1 / 3, 2], "shares")
        assert "333" not in str(error.value)


def test_parts_get_a_cell_each():
    assert [c.source for c in student.answers([])] == ["*Your answer*"]
    parts = [m["part"] for m in student.PART.finditer("Say.\n\n(a) One.\n(b) Two.")]
    assert parts == ["(a)", "(b)"]
    assert [c.source for c in student.answers(parts)] == [
        "*Your answer to (a)*",
        "*Your answer to (b)*",
    ]


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
    with pytest.raises(ValueError, match="ex-00-b defines no function and no name"):
        student.stub("print(1)", "ex-00-b")


def test_a_solution_that_is_not_closed_is_found(tmp_path):
    page = tmp_path / "00.md"
    page.write_text(
        "---\nkernelspec:\n  name: python3\n  display_name: Python 3\n  language: python\n---\n\n"
        "```{solution-start} ex-00-a\n:class: dropdown\n```\n\nText.\n",
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="ex-00-a has no solution-end"):
        student.student_notebook(page, BOOK)


def test_make_student_writes_notebooks_and_a_zip_that_needs_nothing_else(tmp_path):
    """The zip alone: the package is importable from it and finds its registry."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("chapters", "bilrp", "data", "_toc.yml", "references.bib"):
        (root / name).symlink_to(ROOT / name)
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
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
