"""Make chapters/NAME.ipynb from chapters/NAME.md. The text is the only source.

A notebook depends on its text and nothing else: no outputs, no run counters, and cell ids that
follow from the cells, so that making it again gives the same bytes.

    python tools/notebooks.py           write what differs
    python tools/notebooks.py --check   write nothing; exit 1 if something differs
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from jupytext.compare import NotebookDifference, compare_notebooks

ROOT = Path(__file__).resolve().parents[1]


def sources(chapters: Path) -> list[Path]:
    """The pages that are notebooks: those whose front matter names a kernel."""
    return [p for p in sorted(chapters.glob("*.md")) if "\nkernelspec:" in front_matter(p)]


def front_matter(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text.split("\n---", 1)[0] if text.startswith("---\n") else ""


def notebook(source: Path) -> nbformat.NotebookNode:
    nb = jupytext.read(source)
    nb.nbformat, nb.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in nb.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        cell.id = f"{digest}-{seen[digest]}"
        seen[digest] += 1
    return nb


def as_text(nb: nbformat.NotebookNode) -> str:
    return jupytext.writes(nb, fmt="ipynb").rstrip("\n") + "\n"


def edited_elsewhere(source: Path, target: Path, new: nbformat.NotebookNode) -> bool:
    """Whether the notebook is newer than its text and says something else."""
    if target.stat().st_mtime <= source.stat().st_mtime:
        return False
    try:
        old = jupytext.read(target)
        compare_notebooks(old, new, "md:myst", compare_outputs=False)
    except NotebookDifference:
        return True
    return False


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args(argv)
    chapters = args.root / "chapters"
    status = 0
    expected = set()
    for source in sources(chapters):
        target = source.with_suffix(".ipynb")
        expected.add(target)
        nb = notebook(source)
        text = as_text(nb)
        name = target.relative_to(args.root)
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        if args.check:
            print(f"{name} is not what its text gives; run: make notebooks")
            status = 1
        elif target.exists() and edited_elsewhere(source, target, nb):
            md = source.relative_to(args.root)
            print(
                f"{name} is newer than {md} and says something else. To take its cells over:\n"
                f"    .venv/bin/jupytext --to md:myst --update {name}\n"
                f"To drop them: touch {md}"
            )
            status = 1
        else:
            target.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    for stray in sorted(set(chapters.glob("*.ipynb")) - expected):
        print(f"{stray.relative_to(args.root)} has no text of the same name")
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
