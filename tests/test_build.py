"""The builder's judgement: what a result depends on, what is missing on a machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import doctor
import execute
import nbformat
import pytest
import torch
from jupyter_cache import get_cache
from torch import nn

import bilrp
from bilrp import data
from tests.conftest import ROOT


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with two rooms that every chapter uses, and three that it need not."""
    files = {
        "bilrp/__init__.py": "from bilrp.engine import api\n",
        "bilrp/_names.py": 'MODULES = {"plot": "show.plot", "shelf": "collect.store"}\n',
        "bilrp/engine/api.py": "def load():\n    from ..deep import inner\n",
        "bilrp/show/plot.py": "import torch\n",
        "bilrp/deep/inner.py": "X = 1\n",
        "bilrp/collect/store.py": "from bilrp.far import away\n",
        "bilrp/far/away.py": "Y = 1\n",
        "data/registry.toml": "",
        "requirements.txt": "torch==1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def cells(*sources: str, **metadata: object) -> nbformat.NotebookNode:
    made = [nbformat.v4.new_code_cell(s, metadata=metadata) for s in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def test_a_page_that_prints_a_warning_is_not_kept() -> None:
    page = cells("import this", "warn()")
    assert execute.warned(page) == ""
    page.cells[0].outputs = [nbformat.v4.new_output("stream", text="as it should")]
    page.cells[1].outputs = [nbformat.v4.new_output("stream", name="stderr", text="too many")]
    assert execute.warned(page).startswith("warn()")
    assert execute.warned(page).endswith("too many")
    page.cells[1].metadata["tags"] = ["remove-stderr"]
    assert execute.warned(page) == ""


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("import bilrp", {"deep"}),  # the engine imports it, in a function
        ("from bilrp.collect import store", {"deep", "collect", "far"}),  # and what it imports
        ("bilrp.shelf.open()", {"deep", "collect", "far"}),  # by its short name
        ("far = 2", {"deep", "far"}),  # in doubt, it is used
        ("!bilrp index", {"deep", "collect", "far"}),  # who knows what a command runs
        ("import subprocess", {"deep", "collect", "far"}),
    ],
)
def test_rooms_that_cells_use(package: Path, code: str, used: set[str]) -> None:
    assert set(execute.used_rooms(package, code)) == {*execute.ALWAYS, *used}


@pytest.mark.parametrize(
    ("file", "plain", "collecting"),
    [
        ("bilrp/__init__.py", True, True),
        ("bilrp/engine/api.py", True, True),
        ("bilrp/deep/inner.py", True, True),
        ("bilrp/collect/store.py", False, True),
        ("bilrp/far/away.py", False, True),
        ("data/registry.toml", True, True),
        ("requirements.txt", True, True),
    ],
)
def test_a_result_is_outdated_by_what_it_can_see(
    package: Path, file: str, plain: bool, collecting: bool
) -> None:
    pages = cells("import bilrp"), cells("import bilrp.collect")
    before = [execute.key_of(package, page) for page in pages]
    with (package / file).open("a") as stream:
        stream.write("\n# changed\n")
    after = [execute.key_of(package, page) for page in pages]
    assert [a != b for a, b in zip(after, before, strict=True)] == [plain, collecting]


def test_rooms_of_this_package_are_known() -> None:
    """Each room that is not counted for every chapter is found where a cell names it."""
    inner = execute.all_rooms(ROOT / "bilrp")
    for room in inner - set(execute.ALWAYS):
        assert room in execute.used_rooms(ROOT, f"from bilrp.{room.replace('/', '.')} import *")
    assert {*execute.ALWAYS, "collect", "show/gallery"} == inner


def test_a_room_within_a_room_counts_where_it_is_used(package: Path) -> None:
    inner = package / "bilrp/show/cellar"
    inner.mkdir()
    (inner / "__init__.py").write_text("Z = 1\n")
    (inner / "page.js").write_text("let a;\n")
    pages = cells("import bilrp"), cells("from bilrp.show import cellar")

    def changed(file: Path) -> list[bool]:
        before = [execute.key_of(package, page) for page in pages]
        file.write_text(file.read_text() + "\n// changed\n" * (file.suffix == ".js") + "\n")
        return [b != execute.key_of(package, p) for b, p in zip(before, pages, strict=True)]

    assert changed(inner / "page.js") == [False, True]
    assert changed(inner / "__init__.py") == [False, True]
    assert changed(package / "bilrp/show/plot.py") == [True, True]
    (package / "bilrp/show/plot.py").write_text("def f():\n    from . import cellar\n")
    assert changed(inner / "page.js") == [True, True]  # a room that counts for all imports it


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("import bilrp", set()),
        ('open("../assets/a.csv")', {"a.csv"}),
        ("A, B = '../assets/a.csv', '../assets/deep/b.json'", {"a.csv", "deep/b.json"}),
        ('Path("../assets/c.md").read_text()', {"c.md"}),
        ('open(f"../assets/{name}.csv")', None),  # in doubt, all
        ('open("../assets/" + name)', None),
        ('Path("../assets/a.csv").with_name(name)', None),
        ('open("../assets/no-such-file.csv")', None),
        ('Path("../assets/deep")', None),
        ('Path("..").glob("*/a.csv")', None),
        ("Path.cwd().parent.rglob('*.csv')", None),
        ("!cat a.csv", None),
        ("exec(code)", None),
        ("model.eval(); x[..., 0]; folder.glob('*')", set()),
    ],
)
def test_assets_that_cells_read(package: Path, code: str, used: set[str] | None) -> None:
    names = {"a.csv", "deep/b.json", "c.md"}
    (package / "assets/deep").mkdir(parents=True)
    for name in names:
        (package / "assets" / name).write_text("1\n")

    def found(code: str) -> set[str]:
        paths = execute.used_assets(package, code, list(execute.ALWAYS))
        return {path.relative_to(package / "assets").as_posix() for path in paths}

    wanted = names if used is None else used
    assert found(code) == wanted
    page = cells(code)
    for name in sorted(names):
        before = execute.key_of(package, page)
        with (package / "assets" / name).open("a") as stream:
            stream.write("2\n")
        assert (execute.key_of(package, page) != before) == (name in wanted)
    (package / "bilrp/engine/api.py").write_text('"""assets/."""\n')
    assert found(code) == wanted
    (package / "bilrp/engine/api.py").write_text('PATH = "../assets/a.csv"\n')
    assert found(code) == names  # the package reads them, who knows for which page


def test_no_page_of_this_book_reads_assets_unseen() -> None:
    enabled = ["colon_fence", "dollarmath"]
    for path in execute.sources(ROOT / "chapters"):
        notebook = execute.read(path, enabled)
        code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
        used = execute.used_assets(ROOT, code, execute.used_rooms(ROOT, code))
        assert len(used) < 5, path.name


def test_cells_shown_otherwise_are_not_run_again_and_others_are(package: Path) -> None:
    cache = get_cache(package / "cache")

    def chapter(notebook: nbformat.NotebookNode) -> execute.Chapter:
        page = package / "chapters/01.md"
        return execute.Chapter(page, notebook, execute.key_of(package, notebook))

    first = chapter(cells("print(1)"))
    assert not execute.is_cached(cache, first)
    ran = cells("print(1)")
    ran.cells[0].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    execute.keep(cache, first, ran, {"execution_seconds": 3.0, "key": first.key})
    assert execute.is_cached(cache, first)
    assert not execute.is_cached(cache, chapter(cells("print(2)")))

    hidden = chapter(cells("print(1)", tags=["hide-input"]))
    assert execute.is_cached(cache, hidden)
    shown = cache.merge_match_into_notebook(hidden.notebook)[1].cells[0]
    assert shown.metadata.tags == ["hide-input"]
    assert shown.outputs[0].text == "1\n"
    assert len(cache.list_cache_records()) == 1
    assert not execute.is_cached(cache, chapter(cells("print(1)", tags=["skip-execution"])))

    (package / "bilrp/engine/api.py").write_text("X = 2\n")
    assert not execute.is_cached(cache, chapter(cells("print(1)", tags=["hide-input"])))
    assert not cache.list_cache_records()  # an outdated result is not left for Sphinx to find


# --- doctor


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A fresh checkout: no environment, no data."""
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/registry.toml", tmp_path / "data")
    (tmp_path / "chapters").symlink_to(ROOT / "chapters")
    return tmp_path


def test_the_plan_names_what_will_be_downloaded(bare: Path) -> None:
    text = "\n".join(doctor.plan(bare))
    assert "about 5 GB" in text
    assert f"{doctor.downloads(bare) / 1e6:.0f} MB" in text
    assert 60e6 < doctor.downloads(bare) < 500e6
    for name in (".venv/.ready", "data/cache/.fetched"):
        (bare / name).parent.mkdir(parents=True)
        (bare / name).touch()
    assert doctor.plan(bare) == []


def test_the_doctor_finds_nothing_wrong_with_a_fresh_checkout(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([], bare) == 0
    said = capsys.readouterr().out
    assert "Nothing is in the way" in said
    assert "make book makes it" in said


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("python", "install Python 3.11 or newer"),
        ("venv", "apt-get install python3-venv"),
        ("disk", "free some space"),
    ],
)
def test_the_doctor_names_the_cure_and_fails(
    broken: str,
    said: str,
    bare: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if broken == "python":
        monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    elif broken == "venv":
        failed = subprocess.CompletedProcess([], 1, "", "")
        monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: failed)
    else:
        usage = shutil.disk_usage(bare)._replace(free=2 * 10**9)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor.main([], bare) == 1
    missing = [b for b in capsys.readouterr().out.split("\n") if b]
    at = next(i for i, line in enumerate(missing) if line.startswith("MISSING"))
    assert said in missing[at + 1]


def test_the_doctor_sees_wrong_packages_and_missing_data(bare: Path) -> None:
    """In an environment that has a package of another version, and an empty cache."""
    (bare / ".venv").symlink_to(Path(sys.prefix))
    (bare / "requirements.txt").write_text("pytest==0.0.1\npackaging==0.1\nno-such-package==1\n")
    (bare / "bilrp").symlink_to(ROOT / "bilrp")
    packages = doctor.packages(bare)
    assert not packages.good
    assert "pytest, packaging, no-such-package" in str(packages)
    assert "pip install -r requirements.txt" in packages.cure


@pytest.mark.slow
def test_the_doctor_sees_missing_and_damaged_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILRP_CACHE", str(tmp_path))
    (tmp_path / "clips").mkdir()
    found = doctor.data(ROOT)
    assert not found.good
    assert "not here or damaged" in found.what
    assert not found.needed  # make book fetches them


def test_few_pages_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(doctor, "machine_memory", lambda: 8e9)
    assert doctor.cores() == 2
    monkeypatch.setattr(doctor, "machine_memory", lambda: 1e9)
    assert doctor.cores() == 1


# --- the page "If something goes wrong" quotes what is said


def test_the_page_on_trouble_quotes_the_true_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = " ".join((ROOT / "chapters/trouble.md").read_text("utf-8").split())

    def quoted(error: BaseException, start: str, end: str) -> bool:
        said = " ".join(str(error).split())
        return said[said.index(start) : said.index(end) + len(end)] in page

    class Fourier(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft2(x).abs().flatten(1)

    with pytest.raises(NotImplementedError) as refused:
        bilrp.explain(Fourier(), torch.rand(1, 4, 4), torch.rand(1, 4, 4))
    assert quoted(refused.value, "has no relevance map", "Register a map")

    monkeypatch.setenv("BILRP_CACHE", str(tmp_path))
    name = data.names("cats")[0]
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"cut short")
    with pytest.raises(data.DataError) as damaged:
        data.photo(name)
    assert quoted(damaged.value, "(now removed", "another version)")
    assert not (tmp_path / name).exists()

    for code, said in {
        "Makefile": "is older than Python 3.11, which this book needs.",
        "tools/execute.py": "Often this means that memory ran out. One page at a time: make book",
        "tools/build_book.py": "The book was NOT built. What was wrong:",
        "tools/notebooks.py": "and says something else",
        "bilrp/book/fetch.py": "is not here and could not be fetched",
    }.items():
        assert said in (ROOT / code).read_text("utf-8"), code
        assert said in page, code
