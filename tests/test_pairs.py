"""The sources: chapters and their notebooks in sync, the contents complete, code tidy."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import plain
import pytest
import yaml
from jupytext.compare import compare_notebooks

import bilrp
from tests.conftest import ROOT, toc_pages

CHAPTERS = ROOT / "chapters"
PAGES = sorted(CHAPTERS.glob("*.md"))
NOTEBOOKS = sorted(CHAPTERS.glob("*.ipynb"))


def is_notebook(page: Path) -> bool:
    text = page.read_text(encoding="utf-8")
    return text.startswith("---\n") and "kernelspec" in next(yaml.safe_load_all(text), {})


def sync(*args: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "notebooks.py"), "--root", str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_there_are_chapters() -> None:
    assert PAGES
    assert NOTEBOOKS


def test_each_page_with_code_has_a_notebook_and_no_notebook_is_alone() -> None:
    with_code = {p.stem for p in PAGES if is_notebook(p)}
    assert {p.stem for p in NOTEBOOKS} == with_code
    loose = [p.name for p in PAGES if "{code-cell}" in p.read_text("utf-8") and not is_notebook(p)]
    assert not loose, f"code cells but no kernelspec in the front matter: {loose}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_says_what_its_text_says(path: Path) -> None:
    text, notebook = jupytext.read(path.with_suffix(".md")), jupytext.read(path)
    compare_notebooks(notebook, text, "md:myst", compare_outputs=False, compare_ids=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_valid_and_carries_no_results(path: Path) -> None:
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]


def test_making_the_notebooks_again_changes_no_byte(tmp_path: Path) -> None:
    shutil.copytree(CHAPTERS, tmp_path / "chapters")
    for path in tmp_path.glob("chapters/*.ipynb"):
        path.unlink()
    for _ in range(2):
        made = sync(root=tmp_path)
        assert made.returncode == 0, made.stdout + made.stderr
        for path in NOTEBOOKS:
            assert (tmp_path / "chapters" / path.name).read_bytes() == path.read_bytes(), (
                f"{path.name}: run `make notebooks`"
            )


def test_an_edit_made_in_a_notebook_alone_is_not_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "chapters").mkdir()
    for suffix in (".md", ".ipynb"):
        shutil.copy(NOTEBOOKS[0].with_suffix(suffix), tmp_path / "chapters")
    path = tmp_path / "chapters" / NOTEBOOKS[0].name
    nb = nbformat.read(path, as_version=4)
    nb.cells[0].source += "\nAn edit."
    nbformat.write(nb, path)
    made = sync(root=tmp_path)
    assert made.returncode == 1
    assert "jupytext --to md:myst --update" in made.stdout
    assert "An edit." in path.read_text("utf-8")


def test_contents_list_every_page_once_and_nothing_else() -> None:
    listed = toc_pages()
    assert len(listed) == len(set(listed))
    assert set(listed) == {f"chapters/{page.stem}" for page in PAGES}


def test_chapters_are_numbered_in_the_order_of_their_files() -> None:
    numbers = {page.split("/")[1]: number for page, number in plain.pages(ROOT)}
    files = sorted(name for name in numbers if re.match(r"\d\d_", name))
    expected = {name: f"{place}." for place, name in enumerate(files, 1)}
    found = {name: number for name, number in numbers.items() if number}
    assert found == expected, "see numbered in _toc.yml"


@pytest.mark.parametrize("args", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(args: list[str]) -> None:
    """Over modules, tests, tools and the code cells of the notebooks; `make format` tidies."""
    command = [sys.executable, "-m", "ruff", *args, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_version() -> None:
    """pyproject.toml reads it from the package; the citation file and the page on citing agree."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bilrp.__version__
    cite = (ROOT / "chapters/cite.md").read_text(encoding="utf-8")
    assert re.search(r"package bilrp (\S+)}", cite)[1] == bilrp.__version__


SHARED = (["_names"], ["_pictures"], ["_checks"], ["_files"])


@pytest.mark.parametrize("room", ["engine", "compare", "show", "models", "book"])
def test_imports_between_rooms_run_one_way(room: str) -> None:
    """Other rooms than one's own and the engine are asked inside functions only."""
    wrong = []
    for path in sorted(ROOT.glob(f"bilrp/{room}/**/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "bilrp" and parts[1:2] not in ([room], ["engine"], *SHARED):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_collections_stand_on_top() -> None:
    """Nothing but a line of `_names` knows of them, and none of them the book, but in functions."""
    below = [p for p in ROOT.glob("bilrp/**/*.py") if p.parent.name != "collect"]
    assert not [
        p for p in below if re.search(r"(from|import) bilrp\.collect", p.read_text("utf-8"))
    ]
    above = "\n".join(p.read_text("utf-8") for p in ROOT.glob("bilrp/collect/*.py"))
    assert not re.search(r"(?m)^(from|import) bilrp\.book", above)
