"""Measure anew the tables that a chapter reads: python tools/measure.py NAME, such as 06_vgg16.

Runs the chapter's own cells with MEASURE = True, up to the last one that writes a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from notebooks import ROOT

FLAG = "MEASURE = False"


def main(name: str, root: Path = ROOT) -> int:
    """Run one chapter and print what its cells print."""
    source = root / "chapters" / f"{name}.md"
    if not source.is_file():
        print(f"there is no {source}; give the name of a chapter, such as 06_vgg16")
        return 1
    nb = jupytext.read(source)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    writes = [k for k, cell in enumerate(cells) if "measured.write(" in cell.source]
    if not writes or sum(FLAG in cell.source for cell in cells) != 1:
        print(f"{source.name} has no tables to measure: no cell with {FLAG!r} and measured.write()")
        return 1
    nb.cells = cells[: writes[-1] + 1]
    for cell in nb.cells:
        cell.source = cell.source.replace(FLAG, "MEASURE = True")

    def show(cell, cell_index) -> None:
        text = "".join(o.get("text", "") for o in cell.outputs)
        print(f"[{cell_index + 1} of {len(nb.cells)}]\n{text}", flush=True)

    client = NotebookClient(
        nb, timeout=None, on_cell_executed=lambda **k: show(k["cell"], k["cell_index"])
    )
    client.resources = {"metadata": {"path": str(source.parent)}}
    client.execute()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter")
    sys.exit(main(parser.parse_args().chapter))
