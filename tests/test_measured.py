"""Measured tables: written whole, read with where they come from, and measurable anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jupytext
import pytest

from bilrp import measured
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import measure

TABLES = sorted((ROOT / "assets").glob("*.csv"))


def test_a_table_comes_back(tmp_path: Path) -> None:
    rows = [{"name": "a, b", "n": 3, "x": 0.123456789}, {"name": "c", "n": 4, "x": 1e-9}]
    table = measured.write(tmp_path / "t.csv", rows, "do it")
    assert table.rows == [
        {"name": "a, b", "n": 3.0, "x": 0.123457},
        {"name": "c", "n": 4, "x": 1e-9},
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d, commit \w+, `do it`", table.about)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}]])
def test_a_table_needs_rows_of_one_kind(tmp_path: Path, rows: list) -> None:
    with pytest.raises(ValueError, match="columns"):
        measured.write(tmp_path / "t.csv", rows, "do it")
    assert not list(tmp_path.iterdir())


def test_a_table_without_origin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="does not begin"):
        measured.read(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError):
        measured.read(tmp_path / "none.csv")


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_each_table_of_a_chapter_names_its_command(path: Path) -> None:
    table = measured.read(path)
    match = re.search(r"`python tools/measure.py (\w+)`", table.about)
    if match is None:
        pytest.skip("measured by something else")
    text = (ROOT / "chapters" / f"{match[1]}.md").read_text(encoding="utf-8")
    assert f'"../assets/{path.name}"' in text
    assert text.count(measure.FLAG) == 1


def test_measuring_wants_a_chapter_with_tables(capsys: pytest.CaptureFixture) -> None:
    assert measure.main("no_such_chapter") == 1
    assert "name of a chapter" in capsys.readouterr().out
    without = next(
        p.stem
        for p in sorted((ROOT / "chapters").glob("0*.md"))
        if "measured.write(" not in jupytext.writes(jupytext.read(p), "md")
    )
    assert measure.main(without) == 1
    assert "no tables" in capsys.readouterr().out


@pytest.mark.book
def test_measuring_runs_the_chapter_with_the_flag_set(tmp_path: Path) -> None:
    (tmp_path / "chapters").mkdir()
    cells = [
        "MEASURE = False  # True: anew\nfrom bilrp import measured",
        "if MEASURE:\n    measured.write('t.csv', [{'n': 7}], 'by hand')",
        "raise RuntimeError('cells after the last table are not run')",
    ]
    front = "---\njupytext:\n  text_representation:\n    extension: .md\n    format_name: myst\n"
    front += "kernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n\n"
    text = front + "\n\n".join(f"```{{code-cell}} ipython3\n{c}\n```" for c in cells) + "\n"
    (tmp_path / "chapters/01_one.md").write_text(text)
    assert measure.main("01_one", tmp_path) == 0
    assert measured.read(tmp_path / "chapters/t.csv").rows == [{"n": 7.0}]
