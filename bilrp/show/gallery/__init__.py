"""A gallery: many inputs, and any two of them explained in the browser, without a kernel.

R_pp' = sum_k A_pk A'_p'k is one matrix product of two stored factors, which a browser can do. But a
factor has tens of thousands of columns. All rows of all inputs together span much less: with an
orthonormal basis of what they have in common, the product of two factors is that of their short
rows of coordinates, and whole numbers of one byte will do for these. What that costs is measured,
for every pair, against the exact product. Factors with few columns are stored as they are.

What is written, as scripts, since a page opened from disk may load these but may not fetch:

    gallery.js, gallery.css     the page's code and look, from the files in this folder
    NAME.js                     of a collection: names, pictures, settings, and for each setting the
                                exact products of what all patches and all biases of two inputs own
    NAME-SETTING-KK.js          of one input under one setting: its coordinates
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bilrp._names import needs
from bilrp.show.gallery.basis import Rows, Stored, gram, rows_by_place, store
from bilrp.show.gallery.codes import ESCAPE, expected, rice, text_of

HERE = Path(__file__).parent
SHARED = ("pair.js", "pair_line.js")  # with the explorer
SCRIPTS = ("data.js", "words.js", "draw.js", "ask.js")
THUMB = 88  # pixels of a picture to choose

__all__ = [
    "ESCAPE",
    "Collection",
    "Lines",
    "Rows",
    "Setting",
    "Stored",
    "Whole",
    "expected",
    "factor_as_rows",
    "gram",
    "rice",
    "rows_by_place",
    "store",
    "text_of",
    "write_code",
]


@dataclass(frozen=True)
class Choice:
    """What a way to explain pairs is chosen by.

    Attributes
    ----------
    layer, gamma : str, int or float
    labels : (str, str)
        What these two are called on the page.
    """

    layer: str | int | float
    gamma: str | int | float
    labels: tuple[str, str]

    def told(self) -> dict:
        """What the page must know of it."""
        label = dict(zip(("layer", "gamma"), self.labels, strict=True))
        return {"layer": self.layer, "gamma": self.gamma, "label": label}


@dataclass(frozen=True)
class Setting(Choice):
    """One way to explain the pairs of a collection.

    Attributes
    ----------
    stored : Stored
    """

    stored: Stored

    @property
    def width(self) -> int:
        return self.stored.width

    def pairs(self) -> np.ndarray:
        """Errors of all pairs, each once, inputs with themselves included."""
        return self.stored.errors[np.triu_indices(len(self.stored.errors))]


@dataclass(frozen=True)
class Collection:
    """Inputs that can be compared with each other.

    Attributes
    ----------
    name, title : str
        For programs, and on the page.
    names : list of str
    pictures : list of Tensor (3, H, W) in [0, 1]
        As they are shown; larger than the network sees them, if that is at hand.
    grids : list of (int, int)
        Rows and columns of patches.
    start : (int, int)
        The pair that is shown first.
    settings : list of Setting
        The first is the one that is shown first.
    """

    name: str
    title: str
    names: list[str]
    pictures: list[Tensor]
    grids: list[tuple[int, int]]
    start: tuple[int, int]
    settings: list[Setting]

    def write(self, folder: Path, version: str) -> None:
        """Write all files of this collection into a folder."""
        pictures = [_picture(x, folder, f"{self.name}-{k:02}") for k, x in enumerate(self.pictures)]
        settings = []
        for setting in self.settings:
            key = f"{self.name}-{setting.layer}-{setting.gamma}"
            s, pairs = setting.stored, setting.pairs()
            directions, rows = expected(s.codes)
            for k, codes in enumerate(s.codes):
                one = {
                    "scale": float(s.scales[k]),
                    "rows": _base64(rows[k]),
                    "codes": text_of(rice(codes, rows[k], directions)),
                }
                _write(folder, f"{key}-{k:02}", version, one)
            about = {
                "key": key,
                **setting.told(),
                "width": s.width,
                "steps": _base64(s.steps),
                "directions": _base64(directions),
                "owners": _base64(s.owners),
                "met": None if s.met is None else _base64(np.packbits(s.met, bitorder="little")),
                "biases": bool(s.owners[len(s.codes) :].any()),
                "errors": [round(float(e), 5) for e in s.errors.ravel()],
                "pairs": len(pairs),
                "median": float(np.median(pairs)),
                "worst": float(pairs.max()),
            }
            settings.append(about)
        contents = {
            "name": self.name,
            "title": self.title,
            "names": self.names,
            "pictures": pictures,
            "grids": self.grids,
            "start": {"i": self.start[0], "j": self.start[1]},
            "settings": settings,
        }
        _write(folder, self.name, version, contents)


@dataclass(frozen=True)
class Whole(Choice):
    """One way to explain the pairs of two encoders, with their factors as they are.

    Attributes
    ----------
    rows : two lists of Tensor (tokens + 1, features)
        Factors of the inputs of either encoder; the last row is what all sinks own together.
    """

    rows: tuple[list[Tensor], list[Tensor]]

    @property
    def width(self) -> int:
        return self.rows[0][0].shape[1]

    def pairs(self) -> np.ndarray:
        """Errors of all pairs: what is lost by sums in the precision that the engine stores."""
        patches = [torch.cat([rows[:-1] for rows in side]) for side in self.rows]
        error = (patches[0] @ patches[1].T).double() - patches[0].double() @ patches[1].double().T
        counts = [[len(rows) - 1 for rows in side] for side in self.rows]
        found = []
        for first, off in zip(self.rows[0], error.split(counts[0]), strict=True):
            for second, block in zip(self.rows[1], off.split(counts[1], 1), strict=True):
                exact = (first[:-1].double() @ second[:-1].double().T).norm()
                found.append(float(block.norm() / exact) if exact else float(block.norm()))
        return np.array(found)


def factor_as_rows(values: Tensor, absorbed: Tensor) -> Tensor:
    """A factor (tokens, features) with one row more: the sum of what sinks own."""
    return torch.cat([values, absorbed.sum(0, keepdim=True)]).float()


@dataclass(frozen=True)
class Lines:
    """Lines of tokens, those of one encoder against those of another.

    Attributes
    ----------
    name, title, start
        As of `Collection`.
    names, tokens : two lists, of str and of list of str
        What the inputs of either encoder are called, and are made of.
    shelves : (str, str)
        What either is called.
    parts : two pairs of str
        What one token is called, and several.
    whole, rest : str
        What an input is called, and all owners in the ledger that are no tokens.
    settings : list of Whole
    """

    name: str
    title: str
    names: tuple[list[str], list[str]]
    tokens: tuple[list[list[str]], list[list[str]]]
    shelves: tuple[str, str]
    parts: tuple[tuple[str, str], tuple[str, str]]
    whole: str
    rest: str
    start: tuple[int, int]
    settings: list[Whole]

    def write(self, folder: Path, version: str) -> None:
        """Write the one file of this collection into a folder."""
        from bilrp.show.text import shown

        settings = [
            {
                **setting.told(),
                "width": setting.width,
                "factors": [[_alive(rows) for rows in side] for side in setting.rows],
                "biases": any(bool(rows[-1].any()) for side in setting.rows for rows in side),
            }
            for setting in self.settings
        ]
        contents = {
            "name": self.name,
            "title": self.title,
            "names": self.names,
            "tokens": [[shown(line) for line in side] for side in self.tokens],
            "shelves": self.shelves,
            "called": {"parts": self.parts, "whole": self.whole, "rest": self.rest},
            "start": {"i": self.start[0], "j": self.start[1]},
            "settings": settings,
        }
        _write(folder, self.name, version, contents)


def _alive(rows: Tensor) -> dict:
    """A factor without the features that nobody owns a part of."""
    columns = rows.any(0).nonzero()[:, 0]
    return {"columns": columns.tolist(), "values": _base64(rows[:, columns].numpy())}


def write_code(folder: Path) -> None:
    """Write the page's script and style sheet, the same for every gallery."""
    files = [*(HERE.parent / name for name in SHARED), *(HERE / name for name in SCRIPTS)]
    parts = [file.read_text(encoding="utf-8") for file in files]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
    (folder / "gallery.js").write_text(script, encoding="utf-8")
    (folder / "gallery.css").write_bytes((HERE / "gallery.css").read_bytes())


def _write(folder: Path, name: str, version: str, data: dict) -> None:
    text = json.dumps({"version": version, **data}, separators=(",", ":"))
    (folder / f"{name}.js").write_text(
        f'bilrpGallery.receive("{name}",{text});\n', encoding="utf-8"
    )


def _base64(numbers: np.ndarray) -> str:
    little = numbers.astype(numbers.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def _picture(x: Tensor, folder: Path, name: str) -> dict:
    """Write a picture and a small one of it; what the page must know of them."""
    with needs("plot"):
        from PIL import Image

    pixels = (x.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(pixels)
    small = image.copy()
    small.thumbnail((THUMB, THUMB))
    for picture, kind in ((image, ""), (small, "-small")):
        picture.save(folder / f"{name}{kind}.jpg", quality=85, optimize=True)
    return {"url": f"{name}.jpg", "thumb": f"{name}-small.jpg", "size": list(image.size)}
