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
import zlib
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
        at = torch.from_numpy(at)
        total[at[:, None], at] += a @ a.T
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


def store(products: Tensor, counts: Sequence[int], width: int, rounding: float) -> Stored:
    """Coordinates of all rows in a basis that the inputs have in common, as whole numbers.

    Parameters
    ----------
    products : Tensor (rows, rows)
        As `gram` makes it.
    counts : sequence of int
        Rows of each input, its biases the last.
    width : int
        Directions that are kept, at most.
    rounding : float
        Error that whole numbers may add: norm over the norm of the scores, for the pair of inputs
        whose scores are weakest. What the directions left out add is not in it.

    Notes
    -----
    The directions are the principal axes of all rows, each input scaled so that the scores of all
    pairs have about the same norm, since errors are judged relative to that. An error
    e of one input along an axis meets the coordinates of the other: in the squares of the scores it
    counts as lambda e^2, with lambda their variance. For a given number of bits that sum is least
    where lambda e^2 is the same along all axes, so the steps are as 1 / sqrt(lambda): strong
    directions are stored finely, and the codes of weak ones are mostly zeros, which deflate well.
    """
    starts = np.cumsum([0, *counts])
    blocks = [slice(a, b) for a, b in itertools.pairwise(starts)]
    patches = [slice(a, b - 1) for a, b in itertools.pairwise(starts)]
    norms = _sizes(products, patches)
    each = norms.repeat_interleave(torch.tensor(counts))
    scaled = products / (each[:, None] * each)
    axes = _coordinates(scaled, min(width, len(scaled)))
    inner = torch.cat([torch.arange(p.start, p.stop) for p in patches])
    variance = axes[inner].square().mean(0)
    met = _met(products, counts)
    weakest = min(float(scaled[p, q].norm()) for p in patches for q in patches)
    # Rounding adds 2 lambda step^2 / 12 to the square of a score for each axis.
    scores = max(counts) ** 2 * (1.0 if met is None else float(met.float().mean()))
    steps = rounding * weakest / (scores * axes.shape[1] / 6 * variance.clamp(min=1e-12)).sqrt()
    steps = torch.maximum(steps, axes.abs().amax(0) / np.iinfo(np.int16).max)
    codes = (axes / steps).round()
    used = (codes != 0).any(0)
    codes, steps = codes[:, used], steps[used]
    error = codes * steps
    error = torch.addmm(scaled, error, error.T, beta=-1)
    errors = [
        [
            float((error[p, q] if met is None else error[p, q] * met).norm() / scaled[p, q].norm())
            for q in patches
        ]
        for p in patches
    ]
    return Stored(
        codes=[codes[b].to(torch.int16).numpy() for b in blocks],
        steps=steps.numpy(),
        scales=norms.numpy(),
        owners=_owners(products, patches),
        met=None if met is None else met.numpy(),
        errors=np.array(errors),
    )


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
            for k, codes in enumerate(s.codes):
                one = {"scale": float(s.scales[k]), "codes": _packed(codes)}
                _write(folder, f"{key}-{k:02}", version, one)
            about = {
                "key": key,
                "layer": setting.layer,
                "gamma": setting.gamma,
                "label": dict(zip(("layer", "gamma"), setting.labels, strict=True)),
                "width": s.width,
                "steps": _base64(s.steps),
                "owners": _base64(s.owners),
                "met": None if s.met is None else _zipped(np.packbits(s.met, bitorder="little")),
                "biases": bool(s.owners[len(s.codes) :].any()),
                "errors": [round(float(e), 5) for e in s.errors.ravel()],
                "pairs": len(pairs),
                "median": float(np.median(pairs)),
                "worst": float(pairs.max()),
            }
            settings.append(about)
        about = {
            "name": self.name,
            "title": self.title,
            "names": self.names,
            "pictures": pictures,
            "grids": self.grids,
            "start": dict(zip("ij", self.start, strict=True)),
            "settings": settings,
        }
        _write(folder, self.name, version, about)


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


def _packed(codes: np.ndarray) -> str:
    """Direction by direction, all low bytes before all high ones: that deflates best."""
    planes = codes.T.astype("<i2", order="C").view(np.uint8).reshape(-1, 2).T
    return _zipped(planes)


def _zipped(numbers: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(numbers.tobytes(), 9)).decode()


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
