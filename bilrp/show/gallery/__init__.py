"""A gallery: many inputs, and any two of them explained in the browser, without a kernel.

R_pp' = sum_k A_pk A'_p'k is one matrix product of two stored factors, which a browser can do. But a
factor has tens of thousands of columns. All rows of all inputs together span much less: with an
orthonormal basis of what they have in common, the product of two factors is that of their short
rows of coordinates, and whole numbers of one byte will do for these. What that costs is measured,
for every pair, against the exact product.

What is written, as scripts, since a page opened from disk may load these but may not fetch:

    gallery.js, gallery.css     the page's code and look, from the files in this folder
    NAME.js                     of a collection: names, pictures, settings, and for each setting the
                                exact products of what all patches and all biases of two inputs own
    NAME-SETTING-KK.js          of one input under one setting: its coordinates
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bilrp._names import needs

HERE = Path(__file__).parent
SCRIPTS = ("data.js", "words.js", "draw.js", "ask.js")
THUMB = 88  # pixels of a picture to choose

# For each place of the features' map, the rows that are not zero there, and what they hold.
Rows = list[tuple[np.ndarray, np.ndarray]]


def rows_by_place(values: Tensor, absorbed: Tensor, channels: int) -> Rows:
    """A factor without its zeros: the cone of a patch reaches few places of a lower layer's map.

    Parameters
    ----------
    values : Tensor (patches, channels * places)
        A factor, as `Factor.dense` gives it.
    absorbed : Tensor (sinks, channels * places)
        What biases and other sinks own. They become one row, the last.
    channels : int
    """
    both = torch.cat([values, absorbed.sum(0, keepdim=True, dtype=torch.float64).to(values)])
    both = both.unflatten(1, (channels, -1)).permute(2, 0, 1)
    found = []
    for here in both:
        rows = here.any(1).nonzero()[:, 0]
        found.append((rows.numpy(), here[rows].numpy()))
    return found


def gram(inputs: Sequence[Rows], counts: Sequence[int]) -> Tensor:
    """Products of all rows of all inputs with each other, in float32; counts: rows of each."""
    starts = np.cumsum([0, *counts])
    total = torch.zeros(starts[-1], starts[-1])
    for places in zip(*inputs, strict=True):
        at = np.concatenate(
            [start + rows for start, (rows, _) in zip(starts, places, strict=False)]
        )
        a = torch.from_numpy(np.concatenate([values for _, values in places]))
        row = torch.from_numpy(at)
        total[row[:, None], row] += a @ a.T
    return total


@dataclass(frozen=True)
class Stored:
    """Short rows that stand for long ones: their products are nearly the same.

    Attributes
    ----------
    codes : list of ndarray of int16 (rows of an input, width)
    steps : ndarray of float32 (width,)
        By which the codes of a direction are multiplied.
    scales : ndarray of float32 (inputs,)
        By which all rows of an input are multiplied.
    owners : ndarray of float64 (2 inputs, 2 inputs)
        Exact products of the sums that the ledger is made of: of the patches of each input, then of
        its biases.
    met : ndarray of bool (patches, patches), or None
        Pairs of patches that some feature sees both of, where all inputs have the same grid; the
        scores of all others are zero, exactly, and need not be computed.
    errors : ndarray of float64 (inputs, inputs)
        Norm of the error of the scores of each pair, over the norm of the scores.
    """

    codes: list[np.ndarray]
    steps: np.ndarray
    scales: np.ndarray
    owners: np.ndarray
    met: np.ndarray | None
    errors: np.ndarray

    @property
    def width(self) -> int:
        return len(self.steps)

    def rows(self, k: int) -> Tensor:
        """The coordinates of an input's patches and, last, its biases, as the browser has them."""
        return torch.from_numpy(self.codes[k] * self.steps * self.scales[k])


def store(products: Tensor, counts: Sequence[int], width: int, most: float) -> Stored:
    """Coordinates of all rows in a basis that the inputs have in common, as whole numbers.

    Parameters
    ----------
    products : Tensor (rows, rows)
        As `gram` makes it.
    counts : sequence of int
        Rows of each input, its biases the last.
    width : int
        Directions to begin with; where these do not suffice, more are taken.
    most : float
        Error that no pair of inputs may exceed: norm of the error of all its scores, over the norm
        of the scores.

    Raises
    ------
    ValueError
        If that error cannot be reached, or two inputs have no scores to compare it with.

    Notes
    -----
    The directions are the principal axes of all rows, each input scaled so that the scores of all
    pairs have about the same norm, since errors are judged relative to that. An error
    e of one input along an axis meets the coordinates of the other: in the squares of the scores it
    counts as lambda e^2, with lambda their variance. For a given number of bits that sum is least
    where lambda e^2 is the same along all axes, so the steps are as 1 / sqrt(lambda): strong
    directions are stored finely, and the codes of weak ones are small and take few bits.
    """
    starts = np.cumsum([0, *counts])
    patches = [slice(a, b - 1) for a, b in itertools.pairwise(starts)]
    sizes = _sizes(products, patches)
    each = sizes.repeat_interleave(torch.tensor(counts))
    scaled, met = products / (each[:, None] * each), _met(products, counts)
    norms = torch.tensor([[float(scaled[p, q].norm()) for q in patches] for p in patches])
    if not (norms > 0).all() or not norms.isfinite().all():
        raise ValueError("the scores of some pair are all zero, or not finite")
    width = min(width, len(scaled))
    while True:
        axes = _coordinates(scaled, width)
        for part in (0.8, 0.65, 0.5, 0.3):
            codes, steps = _rounded(axes, part * most * float(norms.min()), counts, met)
            error = torch.addmm(scaled, codes * steps, (codes * steps).T, beta=-1)
            errors = _errors(error, patches, met) / norms
            if errors.max() <= most:
                return Stored(
                    codes=[c.to(torch.int16).numpy() for c in codes.split(list(counts))],
                    steps=steps.numpy(),
                    scales=sizes.numpy(),
                    owners=_owners(products, patches),
                    met=None if met is None else met.numpy(),
                    errors=errors.numpy(),
                )
        if width == len(scaled):
            raise ValueError(
                f"no pair may be off by more than {most}; one is by {errors.max():.4f}"
            )
        width = min(len(scaled), width + width // 4 + 1)


def _rounded(
    axes: Tensor, most: float, counts: Sequence[int], met: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Whole numbers and their steps, so that rounding adds about `most` to the norm of the scores.

    Rounding adds 2 lambda step^2 / 12 to the square of a score for each axis.
    """
    ends = np.cumsum(counts) - 1
    variance = axes[np.setdiff1d(np.arange(len(axes)), ends)].square().mean(0)
    scores = max(counts) ** 2 * (1.0 if met is None else float(met.float().mean()))
    steps = most / (scores * axes.shape[1] / 6 * variance.clamp(min=1e-12)).sqrt()
    steps = torch.maximum(steps, axes.abs().amax(0) / np.iinfo(np.int16).max)
    codes = (axes / steps).round()
    used = (codes != 0).any(0)
    return codes[:, used], steps[used]


def _errors(error: Tensor, patches: Sequence[slice], met: Tensor | None) -> Tensor:
    """Norms of the errors of all pairs of inputs, where their scores are not known to be zero."""

    def norm(block: Tensor) -> float:
        return float((block if met is None else block * met).norm())

    return torch.tensor([[norm(error[p, q]) for q in patches] for p in patches])


def _sizes(products: Tensor, patches: Sequence[slice]) -> Tensor:
    """Sizes of the inputs, s: the norm of the scores of a pair is about s_i s_j (least squares)."""
    logs = torch.tensor([[float(products[p, q].norm()) for q in patches] for p in patches]).log()
    n = len(patches)
    if n < 3:
        return (logs.diagonal() / 2).exp()
    sums = logs.sum(1) - logs.diagonal()  # of the pairs with others
    return ((sums - sums.sum() / (2 * (n - 1))) / (n - 2)).exp()


def _coordinates(products: Tensor, width: int) -> Tensor:
    """Rows (rows, width) whose products come near to these, on their principal axes."""
    if width * 4 > len(products):
        values, vectors = torch.linalg.eigh(products)
        return (vectors * values.clamp(min=0).sqrt()).flip(1)[:, :width]
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(products), width + 64, generator=generator)
    basis = torch.linalg.qr(products @ basis)[0]  # Halko et al. (2011), one round
    seen = products @ basis
    small = basis.T @ seen
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    return seen @ vectors / values.clamp(min=float(values[0]) * 1e-7).sqrt()


def _met(products: Tensor, counts: Sequence[int]) -> Tensor | None:
    """Which pairs of patches have a product that is not zero, in any pair of inputs."""
    if len(set(counts)) > 1:
        return None
    n = counts[0]
    blocks = products.unflatten(0, (-1, n)).unflatten(2, (-1, n))[:, : n - 1, :, : n - 1]
    return torch.stack([(row != 0).any(1) for row in blocks]).any(0)


def _owners(products: Tensor, patches: Sequence[slice]) -> np.ndarray:
    """Exact products of the sums of patches and of the biases of all inputs."""
    cells = [*patches, *(slice(p.stop, p.stop + 1) for p in patches)]
    sums = [[float(products[a, b].sum(dtype=torch.float64)) for b in cells] for a in cells]
    return np.array(sums)


# --- what is written ---


@dataclass(frozen=True)
class Setting:
    """One way to explain the pairs of a collection.

    Attributes
    ----------
    layer, gamma : str, int or float
        By which it is chosen.
    labels : (str, str)
        What these two are called on the page.
    stored : Stored
    """

    layer: str | int | float
    gamma: str | int | float
    labels: tuple[str, str]
    stored: Stored

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
                "layer": setting.layer,
                "gamma": setting.gamma,
                "label": dict(zip(("layer", "gamma"), setting.labels, strict=True)),
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


def write_code(folder: Path) -> None:
    """Write the page's script and style sheet, the same for every gallery."""
    parts = [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
    (folder / "gallery.js").write_text(script, encoding="utf-8")
    (folder / "gallery.css").write_bytes((HERE / "gallery.css").read_bytes())


def _write(folder: Path, name: str, version: str, data: dict) -> None:
    text = json.dumps({"version": version, **data}, separators=(",", ":"))
    (folder / f"{name}.js").write_text(
        f'bilrpGallery.receive("{name}",{text});\n', encoding="utf-8"
    )


# --- codes as text ---
ESCAPE = 24  # zeros that announce a number of 16 bits instead of a quotient


def expected(codes: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """How large codes are, by direction and by row of each input, as int8 logarithms to 2^(1/8).

    The mean size of a code of row p along direction m: 2^((row[p] + direction[m]) / 8) / 1.4.
    """
    sizes = [np.abs(c).astype(np.float64) for c in codes]
    means = np.concatenate(sizes).mean(0)

    def logarithm(values: np.ndarray) -> np.ndarray:
        return np.clip(np.round(8 * np.log2(np.maximum(values, 1e-4))), -127, 127).astype(np.int8)

    return logarithm(1.4 * means), [logarithm(s.sum(1) / max(means.sum(), 1e-9)) for s in sizes]


def rice(codes: np.ndarray, rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Codes as bits, (bits,) of 0 and 1: Rice's code, its parameter from what `expected` says.

    A code c becomes u = 2c - 1 or -2c; u becomes u >> k zeros, a one, and the lowest k bits of u,
    the lowest first; k = max(0, (row + direction + 4) >> 3). Row by row.
    """
    c = codes.astype(np.int64).ravel()
    u = np.where(c > 0, 2 * c - 1, -2 * c)
    k = np.maximum(0, (rows[:, None].astype(int) + directions + 4) >> 3).ravel()
    quotient = np.minimum(u >> k, ESCAPE)
    low = np.where(quotient == ESCAPE, 16, k)
    ends = np.cumsum(quotient + 1 + low)
    bits = np.zeros(ends[-1], np.uint8)
    first = ends - low
    bits[first - 1] = 1
    for b in range(int(low.max())):
        here = low > b
        bits[first[here] + b] = (u[here] >> b) & 1
    return bits


def text_of(bits: np.ndarray) -> str:
    """Bits as text: 13 of them, the lowest first, as two of the 91 characters # to ~ without \\."""
    padded = np.pad(bits, (0, -len(bits) % 13)).reshape(-1, 13).astype(np.int64)
    words = padded @ (1 << np.arange(13))
    digits = np.stack([words // 91, words % 91], 1).ravel() + 35
    return (digits + (digits >= 92)).astype(np.uint8).tobytes().decode("ascii")


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
