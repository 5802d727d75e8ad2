"""Tidy the code with ruff: modules, tests and the code cells of the chapters.

Ruff reads notebooks, people edit the text they are made from. So: make the notebooks, let ruff
work on them, and take their cells back into the text.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jupytext
import notebooks

ROOT = Path(__file__).resolve().parents[1]


def ruff(*args: str) -> int:
    return subprocess.call([sys.executable, "-m", "ruff", *args], cwd=ROOT)


def main() -> int:
    if notebooks.main([]):
        return 1
    status = ruff("check", "--fix")
    status |= ruff("format")
    for source in notebooks.sources(ROOT / "chapters"):
        before, after = notebooks.notebook(source), jupytext.read(source.with_suffix(".ipynb"))
        text = source.read_text(encoding="utf-8")
        for old, new in zip(before.cells, after.cells, strict=True):
            if old.source != new.source:
                if text.count(f"\n{old.source}\n```") != 1:
                    print(f"{source.name}: tidy this cell by hand:\n{new.source}")
                    status = 1
                text = text.replace(f"\n{old.source}\n```", f"\n{new.source}\n```", 1)
        source.write_text(text, encoding="utf-8")
    return status | notebooks.main([])


if __name__ == "__main__":
    sys.exit(main())
