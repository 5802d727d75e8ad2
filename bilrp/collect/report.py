"""Pages for a person with a folder of photos: whole in one file, and they need no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from bilrp._names import needs
from bilrp.collect.contrasts import Contrast
from bilrp.collect.records import write_whole
from bilrp.collect.themes import Theme
from bilrp.engine.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; line-height: 1.5;
  font-family: system-ui, sans-serif; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: white; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem .2rem 0; text-align: left;
  vertical-align: top; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } section { margin-top: 2.5rem; }
figure { margin: 1rem 0; }
.scroll > img { min-width: 34rem; }
summary { cursor: pointer; }
footer { margin-top: 3rem; font-size: .9em; }
"""


def page(path: str | Path, title: str, parts: Sequence[str]) -> Path:
    """Write a page whole or not at all; `parts` are HTML. Returns its path."""
    path = Path(path)
    body = "\n".join(parts)
    write_whole(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{body}</main></body></html>\n",
    )
    return path


def picture(figure: Figure, alt: str) -> str:
    """A figure of matplotlib as an image inside the page."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=150, pil_kwargs={"quality": 85})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'


def table(rows: Sequence[Sequence[str | float]], head: Sequence[str]) -> str:
    """A table; numbers stand on the right."""

    def cell(value: str | float) -> str:
        if isinstance(value, str):
            return f"<td>{escape(value)}</td>"
        return f'<td class="number">{value:,.4g}</td>'

    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{lines}</table></div>'


def ledger(e: Explanation, names: Mapping[str, str] | None = None, most: int = 12) -> str:
    """What the pictures and each bias carry of the similarity, largest first, as a table."""
    both = e.ledger
    rows = {name: float(both[n].sum()) for n, name in enumerate(e.owners)}
    first, *rest = rows.items()
    rest = sorted(rest, key=lambda row: -abs(row[1]))
    shown = [("pixels x pixels", float(both[0, 0]))]
    shown += [("pixels of the first, biases on the second", first[1] - float(both[0, 0]))]
    shown += [((names or {}).get(name, name), value) for name, value in rest[:most]]
    if rest[most:]:
        shown.append((f"{len(rest) - most} others", sum(v for _, v in rest[most:])))
    y = e.similarity
    cells = [(name, value, f"{value / y:.1%}" if y else "") for name, value in shown]
    cells.append(("all, which is the similarity", sum(v for _, v in shown), ""))
    return (
        "<details><summary>The ledger: who carries the similarity</summary>"
        "<p>Biases of the network carry a part that belongs to no patch of the first picture. "
        "Rows of biases are of the first picture, with everything on the second.</p>"
        + table(cells, ("owner", "part of y", "share"))
        + "</details>"
    )


def explained(
    e: Explanation, x: Tensor, x2: Tensor, names: tuple[str, str], layers: Mapping[str, str] | None
) -> str:
    """An explorer and the ledger."""
    return e.explore(x, x2, names=names).html() + ledger(e, layers)


def contrasted(c: Contrast, pictures: Sequence[Tensor], names: Sequence[str]) -> str:
    """Why the first hit and not the second: query, hit and other are given in this order."""
    query, hit, other = pictures
    figure = c.plot(query, hit, other)
    alt = (
        f"Three pictures: {names[1]}, the query, {names[2]}. Patches of the query that speak for "
        "the first are red, those for the second blue."
    )
    pixels = c.owners["input"]
    return (
        f"<p>The query is more similar to {escape(names[1])} than to {escape(names[2])} by "
        f"{c.difference:.4g}. Of this, patches of the query carry {pixels:.4g} and biases on the "
        f"query's side {c.difference - pixels:.4g}. On the query, red patches speak for "
        f"{escape(names[1])}, blue ones for {escape(names[2])}; the other two show which of their "
        "patches they are joined with.</p>" + f'<div class="scroll">{picture(figure, alt)}</div>'
    )


def theme(t: Theme, explained_pairs: Sequence[tuple[Explanation, Tensor, Tensor, str]]) -> str:
    """A theme and its typical pairs."""
    with needs("plot"):
        from matplotlib.figure import Figure

    from bilrp.show.plot import arcs

    parts = [
        f"<p>{len(t.pairs)} pairs. In the median, {t.patches:.0%} of the patches carry half of "
        f"what speaks for the similarity. Likeness within the theme: {t.tightness:.2f} (1 is "
        "equal).</p>"
    ]
    for e, x, x2, what in explained_pairs:
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        arcs(e, x, x2, ax=figure.add_subplot())
        parts.append(
            f"<figure>{picture(figure, f'{what}, joined by arcs where they are similar')}"
            f"<figcaption>{escape(what)}</figcaption></figure>"
        )
    return "\n".join(parts)
