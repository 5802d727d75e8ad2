"""Compute the data of the book's gallery: `make gallery`, and part of building the book.

Any two of 25 photos to VGG-16, at two layers with the paper's gammas and at layer 31 with another,
any two of six tables to the bigram network, and any Roman with any Arabic numeral of some, to the
two encoders of chapter 12. What is computed lies in _build/gallery and belongs
to one state of the code and of the data: it is computed anew only when that changes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from build_book import CODE, ROOT, digest, read
from doctor import cores
from filelock import FileLock
from torch import Tensor, nn

import bilrp
from bilrp import bigram, data, tables
from bilrp.models import numerals
from bilrp.show import gallery

OUT = ROOT / "_build" / "gallery"
LAYERS = {31: (512, 4, 4), 17: (256, 16, 16)}  # channels, rows and columns of the features
GAMMAS = {"paper": "the paper's", 0.02: "0.02"}
GAMMA_TABLES = 0.5  # as in chapter 10
SIZE, SHARP = 128, 416  # of a photo as the network sees it, and as it is shown
TABLE = (112, 152)


class TwoLayers(nn.Module):
    """VGG-16 with the features of layer 17 and of layer 31 as one vector.

    So one pass of the engine makes both factors: what is a patch's share below layer 17 is so for
    the layers above, too.
    """

    def __init__(self) -> None:
        super().__init__()
        whole = bilrp.vgg16(31)
        self.low, self.high = whole[:17], whole[17:]

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        return torch.cat([low.flatten(1), self.high(low).flatten(1)], 1)


@cache
def network(two: bool) -> nn.Module:
    return TwoLayers() if two else bilrp.vgg16(max(LAYERS))


def rules(gamma: float | str) -> dict:
    """The paper's rules, or z^B for the pixels and one gamma for all layers above."""
    paper = bilrp.vgg16_rules()
    return paper if gamma == "paper" else {1: paper[1], range(2, 32): bilrp.Gamma(float(gamma))}


@cache
def photos() -> tuple[list[str], list[str]]:
    """The files of the 25 photos of chapter 06, and what they are called."""
    files = [*data.names("imagenet"), *data.names("cats"), "photos/chelsea.png"]
    titles = [data.label(name) for name in files[:-1]] + ["ginger cat"]
    twice = {t for t in titles if titles.count(t) > 1}
    numbered = [
        f"{t} {titles[: k + 1].count(t)}" if t in twice else t for k, t in enumerate(titles)
    ]
    return files, [t[0].upper() + t[1:] for t in numbered]


def factor_of_photo(k: int, gamma: float | str) -> dict[int, gallery.Rows]:
    """The factors of a photo at the layers that are stored with this gamma, by layer."""
    torch.set_num_threads(1)  # as many processes as cores do this
    x = bilrp.normalize(data.photo(photos()[0][k], SIZE))[0]
    layers = [layer for layer, known in WIDTHS if known == gamma]
    f = bilrp.factor(network(len(layers) > 1), x, rules(gamma), patch=8)
    dense, found, start = f.dense(), {}, 0
    for layer in sorted(layers):  # as TwoLayers puts one after the other
        channels, rows, columns = LAYERS[layer]
        own = slice(start, start + channels * rows * columns)
        found[layer] = gallery.rows_by_place(dense[:, own], f.absorbed[:, own], channels)
        start = own.stop
    return found


def pages() -> dict[str, tables.Page]:
    """Six tables in the manner of chapter 10, by what each is called."""
    wide = tables.Style.random(
        11, face="times", old_style=True, rules="columns", uneven=0.4, gap=16
    )
    tight = tables.Style.random(12, face="slab", old_style=False, rules="rows", uneven=0.4, gap=14)
    content, other = tables.numbers(4, 3, seed=3), tables.numbers(4, 3, seed=8)
    turned = [list(column) for column in zip(*content, strict=True)]
    rolled = content[1:] + content[:1]
    one_new = [[a, b[0], c] for (a, _, c), b in zip(content, tables.numbers(4, 1, 99), strict=True)]
    return {
        "First table": tables.table(content, wide, 1, TABLE),
        "Its numbers, another layout": tables.table(turned, tight, 2, TABLE),
        "Its rows in another order": tables.table(rolled, wide, 3, TABLE),
        "One column of three new": tables.table(one_new, wide, 4, TABLE),
        "All numbers new": tables.table(other, wide, 5, TABLE),
        "All new, another layout": tables.table(other, tight, 6, TABLE),
    }


def factor_of_table(k: int) -> tuple[gallery.Rows, tuple[int, int]]:
    torch.set_num_threads(1)
    net, page = bigram.BigramNetwork.load(), list(pages().values())[k]
    f = bilrp.factor(net, page.image[0], bilrp.Gamma(GAMMA_TABLES), patch=8)
    dense = f.dense()
    return gallery.rows_by_place(dense, f.absorbed, dense.shape[1]), f.grid


# Directions to begin with, and what the page promises. With gamma 0.02, layer 17 would need 5,500
# directions for it: too many for a page, and minutes of computing.
WIDTHS: dict[tuple[int, float | str], int] = {
    (31, "paper"): 850,
    (31, 0.02): 2200,
    (17, "paper"): 2150,
}
MOST_ERROR, MOST_BYTES = 0.05, 30e6


def collection_of_photos(pool: ProcessPoolExecutor) -> gallery.Collection:
    files, titles = photos()
    patches = (SIZE // 8) ** 2
    found: dict[tuple, gallery.Setting] = {}
    everything = {g: pool.map(factor_of_photo, range(len(files)), repeat(g)) for g in GAMMAS}
    for gamma, label in GAMMAS.items():
        factors = list(everything.pop(gamma))
        for layer, width in ((at, w) for (at, g), w in WIDTHS.items() if g == gamma):
            counts = [patches + 1] * len(files)
            products = gallery.gram([f.pop(layer) for f in factors], counts)
            stored = gallery.store(products, counts, width, MOST_ERROR)
            found[layer, gamma] = gallery.Setting(layer, gamma, (str(layer), label), stored)
            print(f"  layer {layer}, gamma {label}: {said(found[layer, gamma])}", flush=True)
    return gallery.Collection(
        name="photos",
        title="Photos, by VGG-16",
        names=titles,
        pictures=list(data.photos(files, SHARP)),
        grids=[(SIZE // 8, SIZE // 8)] * len(files),
        start=(20, 24),
        settings=[found[key] for key in WIDTHS],
    )


def collection_of_tables(pool: ProcessPoolExecutor) -> gallery.Collection:
    sheets = pages()
    factors = list(pool.map(factor_of_table, range(len(sheets))))
    counts = [rows * columns + 1 for _, (rows, columns) in factors]
    products = gallery.gram([f for f, _ in factors], counts)
    stored = gallery.store(products, counts, width=100, most=0.01)
    setting = gallery.Setting("bigram", GAMMA_TABLES, ("bigram", str(GAMMA_TABLES)), stored)
    print(f"  tables: {said(setting)}", flush=True)
    return gallery.Collection(
        name="tables",
        title="Tables, by the bigram network",
        names=list(sheets),
        pictures=[page.image[0].expand(3, -1, -1) for page in sheets.values()],
        grids=[grid for _, grid in factors],
        start=(0, 2),
        settings=[setting],
    )


# Numerals to choose from: few letters and many, letters that are taken away, zeros, years, and
# those of chapter 12.
NUMBERS = [
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 16, 19, 40, 49, 50, 90, 99, 100, 101, 400, 444, 494, 500),
    *(616, 888, 900, 999, 1000, 1001, 1066, 1453, 1492, 1564, 1609, 1616, 1619, 1666, 1685, 1776),
    *(1789, 1815, 1848, 1888, 1905, 1916, 1945, 1968, 1969, 1984, 1989, 1990, 1999, 2000, 2001),
    *(2010, 2020, 2022, 2026, 2100, 2222, 2500, 3000, 3333, 3888, 3999),
]
GAMMAS_NUMERALS = {0: "0", 0.1: "0.1"}  # gates frozen, as in chapter 12


def factors_of_numerals(gamma: float) -> tuple[list[Tensor], list[Tensor]]:
    """The factors of all numerals, of the letters' and of the digits' encoder."""
    torch.set_num_threads(1)
    rule = bilrp.Gamma(gamma) if gamma else bilrp.LRP0()
    letters, digits = numerals.numeral_encoders()
    roman = [numerals.roman_tokens(numerals.roman(n)) for n in NUMBERS]
    arabic = [numerals.arabic_tokens(str(n)) for n in NUMBERS]
    found = [
        [gallery.factor_as_rows(f.dense(), f.absorbed) for f in bilrp.factor(net, lines, rule)]
        for net, lines in ((letters, roman), (digits, arabic))
    ]
    return found[0], found[1]


def collection_of_numerals(pool: ProcessPoolExecutor) -> gallery.Lines:
    names = [numerals.roman(n) for n in NUMBERS], [str(n) for n in NUMBERS]
    rows = pool.map(factors_of_numerals, GAMMAS_NUMERALS)
    at = NUMBERS.index(1616)
    return gallery.Lines(
        name="numerals",
        title="Numerals, by two encoders",
        names=names,
        tokens=([list(name) for name in names[0]], [list(name) for name in names[1]]),
        shelves=("Roman numeral", "Arabic numeral"),
        parts=(("letter", "letters"), ("digit", "digits")),
        whole="numeral",
        rest="biases and positions",
        start=(at, at),
        settings=[
            gallery.Whole("numerals", gamma, ("numerals", label), both)
            for (gamma, label), both in zip(GAMMAS_NUMERALS.items(), rows, strict=True)
        ],
    )


def said(setting: gallery.Setting) -> str:
    pairs = setting.pairs()
    return (
        f"{setting.width} directions, error {pairs.max():.2%} at most, "
        f"{np.median(pairs):.2%} in the median of {len(pairs)} pairs"
    )


def check(folder: Path) -> None:
    """The limits of size that the page is built for."""
    sizes = [path.stat().st_size for path in folder.iterdir()]
    print(f"  {sum(sizes) / 1e6:.1f} MB in all, {max(sizes) / 1e3:.0f} kB the largest file")
    if sum(sizes) > MOST_BYTES or 2 * max(sizes) > 2e6:
        print("  That is too much: 30 MB in all and 2 MB a pair are meant.", file=sys.stderr)


def errors(collections: Sequence[gallery.Collection | gallery.Lines]) -> list[dict]:
    """The table of the page: one line for each setting."""
    return [
        {
            "of": one.title,
            "layer": setting.labels[0],
            "gamma": setting.labels[1],
            "directions": setting.width,
            "pairs": len(pairs),
            "median": float(np.median(pairs)),
            "most": float(pairs.max()),
        }
        for one in collections
        for setting in one.settings
        for pairs in [setting.pairs()]
    ]


def state() -> str:
    """What the data depend on: not the page's own scripts, which cost nothing to write again."""
    code = [f"bilrp/{room}/**/*.py" for room in ("engine", "models", "book", "show/gallery")]
    return digest(ROOT, [*code, *CODE[1:], "tools/gallery.py"])[:16]


def finish(folder: Path, about: dict) -> dict:
    """Write the page's scripts, and what the book must know of the gallery."""
    gallery.write_code(folder)
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    return about


def make(out: Path = OUT) -> dict:
    """Compute what is not there yet; returns the version of the data and the table of errors."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{out}.lock"):
        version = state()
        about = json.loads(read(out / "about.json") or "{}")
        code = digest(ROOT, ["bilrp/show/**/*.js", "bilrp/show/**/*.css"])[:16]
        if about.get("version") == version:
            return finish(out, about | {"code": code})
        started = time.monotonic()
        print(
            "Computing the gallery: 25 photos, two layers, two gammas; some minutes.",
            flush=True,
        )
        new = out.with_name(f"{out.name}.new")
        for folder in (new, out):
            shutil.rmtree(folder, ignore_errors=True)
        new.mkdir()
        with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
            makers = collection_of_photos, collection_of_tables, collection_of_numerals
            collections = [make_one(pool) for make_one in makers]
        for one in collections:
            one.write(new, version)
        check(new)
        about = {
            "version": version,
            "code": code,
            "collections": [one.name for one in collections],
            "errors": errors(collections),
        }
        finish(new, about)
        new.rename(out)  # whole or not at all
        print(f"The gallery is computed: {time.monotonic() - started:.0f} s.", flush=True)
        return about


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    make(parser.parse_args().out)
    sys.exit(0)
