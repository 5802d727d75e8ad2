"""Rendered pages of old printed tables whose content is known digit by digit.

`table` sets numbers in type, prints and ages them; `text` does the same with words, for pages
without digits. The same arguments give the same page.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bilrp._names import needs

with needs("book"):
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import gaussian_filter, zoom

FINE = 4  # the page is drawn this many times larger and reduced at the end
X_HEIGHT = 0.68  # of small old-style figures, in units of the tall ones

# Typefaces that come with matplotlib. In cmmi10 the figures are old-style by design.
FACES = {
    "times": "STIXGeneral.ttf",
    "times bold": "STIXGeneralBol.ttf",
    "times italic": "STIXGeneralItalic.ttf",
    "modern": "cmr10.ttf",
    "modern bold": "cmb10.ttf",
    "modern old-style": "cmmi10.ttf",
    "slab": "DejaVuSerif.ttf",
}
TEXT_FACES = ("times", "times bold", "times italic", "modern", "modern bold", "slab")
_LATIN = """
tabula climatum secundum recentiores altitudo poli maxima dies princip. medium finis per Meroen
Syenen Alexandriam Rhodum Babilonum Romam Venetias Mediolanum Podoliam Tartariam Rostochium
Hyberniam Moscoviam Noruegiae de sphaera mundi circulus aequinoctialis zodiacus horizon meridianus
tropicus Cancri Capricorni Solis Lunae stellarum I. II. III. IIII. VI. VII. XI. & gradus minuta
hora Ioannis de Sacro Bosco commentarius in quo ostenditur terram esse rotundam globosam signum
orbis caelum axis Zenith G. M. H. S. ad quod sic Basilea Lugduni OBSERVATIO BOREALIS DISTANTIA
"""
WORDS = tuple(_LATIN.split())


@dataclass(frozen=True)
class Style:
    """How a page is set, printed and aged. Lengths in pixels, others are shares of 0..1.

    Attributes
    ----------
    face : str
        One of `FACES`.
    old_style : bool
        Figures of unequal height, as books had before 1800: 0 1 2 small, 3 4 5 7 9 hanging low.
    roman_one : bool
        With old style, a 1 that is a small I.
    height, pitch : float
        Of a tall figure; distance of neighbouring figures.
    leading, gap : float
        Distance of lines; least distance of columns.
    rules : str
        Lines of the table: "none", "columns", "rows" or "all".
    uneven : float
        How far sorts, lines and columns stray.
    angle : float
        Rotation of the page, in degrees.
    spread, faint, broken : float
        How far ink spreads (negative: it shrinks); how faint some regions are; how much strokes
        are interrupted.
    paper, ink : float
        Greys, 0 black, 1 white. A light ink on dark paper is possible.
    stains, through, grain, blur : float
        Shade of the paper; what shows through of the page behind; noise; the camera's blur.
    """

    face: str = "times"
    old_style: bool = True
    roman_one: bool = True
    height: float = 13.5
    pitch: float = 10.0
    leading: float = 20.0
    gap: float = 16.0
    rules: str = "columns"
    uneven: float = 0.5
    angle: float = 0.0
    spread: float = 0.1
    faint: float = 0.2
    broken: float = 0.2
    paper: float = 0.86
    ink: float = 0.2
    stains: float = 0.05
    through: float = 0.05
    grain: float = 0.02
    blur: float = 0.5

    def __post_init__(self) -> None:
        if self.face not in FACES:
            raise ValueError(f"face must be one of {', '.join(FACES)}; got {self.face!r}")
        if self.rules not in ("none", "columns", "rows", "all"):
            raise ValueError(f"rules must be none, columns, rows or all; got {self.rules!r}")
        for name in ("height", "pitch", "leading"):
            if not 4 <= getattr(self, name) <= 200:
                raise ValueError(f"{name} must be 4 to 200 pixels, got {getattr(self, name)}")

    @classmethod
    def random(cls, seed: int, faces: Sequence[str] = tuple(FACES), **fixed) -> Style:
        """A style drawn from the range of real pages; `fixed` sets single fields."""
        rng = np.random.default_rng([seed, 1])
        face = str(rng.choice(list(faces)))
        drawn = cls(
            face=face,
            old_style=bool(rng.random() < 0.65),
            roman_one=bool(rng.random() < 0.6),
            height=rng.uniform(12.5, 14.5),
            pitch=rng.uniform(9.0, 11.0),
            leading=rng.uniform(18, 23),
            gap=rng.uniform(13, 24),
            rules=str(rng.choice(["none", "columns", "rows", "all"])),
            uneven=rng.uniform(0.2, 1.0),
            angle=rng.uniform(-1.2, 1.2),
            spread=rng.uniform(-0.15, 0.5),
            faint=rng.uniform(0, 0.5),
            broken=rng.uniform(0, 0.6),
            paper=rng.uniform(0.7, 0.95),
            ink=rng.uniform(0.05, 0.35),
            stains=rng.uniform(0.0, 0.06),
            through=rng.uniform(0.0, 0.12),
            grain=rng.uniform(0.005, 0.04),
            blur=rng.uniform(0.3, 0.9),
        )
        unknown = set(fixed) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a Style has no {', '.join(sorted(unknown))}")
        return replace(drawn, **fixed)


@dataclass(frozen=True)
class Digit:
    """One printed figure. Pixels: y grows downwards; pixel (0, 0) covers 0 <= y, x < 1.

    Attributes
    ----------
    value : int
    y, x : float
        Middle of its place in the line: across, the middle of the figure; down, that of the line,
        which is the same for all figures of a number, whether they stand tall or hang low.
    box : tuple of float
        Top, left, bottom and right of its ink.
    row, column, place : int
        Cell of the table, and position in the number, from 0.
    """

    value: int
    y: float
    x: float
    box: tuple[float, float, float, float]
    row: int
    column: int
    place: int


@dataclass(frozen=True)
class Page:
    """A page and all that stands on it.

    Attributes
    ----------
    image : Tensor (1, 1, H, W)
        float32 in [0, 1].
    digits : tuple of Digit
        Line by line, from left to right.
    content : tuple of tuple of (int or None)
        The table by rows; None is an empty cell. Empty for a page of text.
    rules : Tensor (H, W) of bool
        Pixels of ruled lines.
    """

    image: Tensor
    digits: tuple[Digit, ...]
    content: tuple[tuple[int | None, ...], ...]
    rules: Tensor

    @property
    def pairs(self) -> list[tuple[Digit, Digit]]:
        """Neighbours within one number."""
        neighbours = zip(self.digits, self.digits[1:], strict=False)
        return [
            (a, b)
            for a, b in neighbours
            if (a.row, a.column, a.place + 1) == (b.row, b.column, b.place)
        ]

    @property
    def bigrams(self) -> Tensor:
        """How often digit j is followed by digit k within a number: (100,), at 10 j + k."""
        counts = torch.zeros(100)
        for a, b in self.pairs:
            counts[10 * a.value + b.value] += 1
        return counts


def numbers(rows: int, columns: int, seed: int, low: int = 10, high: int = 99) -> list[list[int]]:
    """A table of random numbers, low to high inclusive."""
    if rows < 1 or columns < 1 or not 0 <= low <= high:
        raise ValueError(
            f"numbers needs rows, columns >= 1 and 0 <= low <= high; got {rows}, {columns}, "
            f"{low}, {high}"
        )
    return np.random.default_rng([seed, 2]).integers(low, high + 1, (rows, columns)).tolist()


def table(
    content: Sequence[Sequence[int | None]],
    style: Style | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    words: bool = False,
) -> Page:
    """Print a table of whole numbers.

    Parameters
    ----------
    content : sequence of rows of int or None
        Non-negative numbers, rows of one length; None leaves a cell empty.
    style : Style, optional
        Default: `Style()`.
    seed : int
        Of everything that strays, spreads and stains.
    size : (int, int), optional
        Height and width of the page in pixels. Default: what the table needs, rounded up to
        multiples of 16.
    words : bool
        Add a heading and a first column of words.

    Raises
    ------
    ValueError
        If there is nothing to print, rows differ in length, a number is negative or not whole, or
        the page is too small for the table.
    """
    rows = _checked(content)
    sheet = _Sheet(style or Style(), seed)
    s, rng = sheet.style, sheet.rng
    leading = s.leading * (1.12 if s.rules in ("rows", "all") else 1)  # room for the rules
    columns = list(zip(*rows, strict=True))
    digits = [max(len(str(v)) if v is not None else 1 for v in column) for column in columns]
    # Columns stay so far apart that no two numbers read as one.
    gaps = [s.gap + s.uneven * rng.uniform(0, 8) for _ in columns]
    first = 6.5 * s.height if words else 0.0
    top = leading * (1.5 if words else 0.5) + 3
    width = first + sum(n * s.pitch + g for n, g in zip(digits, gaps, strict=True)) + 10
    height = top + leading * len(rows) + 6
    sheet.start(size, (height, width), "table")
    left = (sheet.size[1] - width) / 2 + 5
    top += (sheet.size[0] - height) / 2
    edges = []
    if words:
        sheet.words(left, top - leading * 0.85, left + width - 10)
        for i in range(len(rows)):
            sheet.word(left + 4, top + leading * (i + 0.7), str(rng.choice(WORDS)), first - 8)
    x = left + first
    for j, column in enumerate(columns):
        edges.append(x)
        x += gaps[j] / 2
        drift, slope = s.uneven * rng.normal(0, 0.8), s.uneven * rng.normal(0, 0.05)
        for i, value in enumerate(column):
            base = top + leading * (i + 0.7) + drift * 0.5 + s.uneven * rng.normal(0, 0.4)
            if value is not None:
                right = x + digits[j] * s.pitch + slope * i
                sheet.number(right, base, str(value), i, j)
        x += digits[j] * s.pitch + gaps[j] / 2
    edges.append(x)
    sheet.lines([left, *edges] if words else edges, top, leading, len(rows))
    return sheet.printed(tuple(tuple(row) for row in rows))


def text(size: tuple[int, int], style: Style | None = None, seed: int = 0) -> Page:
    """Print a page of words without digits, ruled as the style says."""
    sheet = _Sheet(style or Style(), seed)
    s, rng = sheet.style, sheet.rng
    sheet.start(size, (s.leading, 4 * s.height), "line of text")
    y = rng.uniform(0.2, 1) * s.leading
    while y < sheet.size[0] + s.leading / 2:
        sheet.words(rng.uniform(-3, 6), y, sheet.size[1])
        y += s.leading * rng.uniform(0.95, 1.1)
    edges = np.sort(rng.uniform(0, sheet.size[1], 3)).tolist()
    sheet.lines(edges, rng.uniform(0, s.leading), s.leading, int(sheet.size[0] / s.leading))
    return sheet.printed(())


class _Sheet:
    """The forme (type and rules, drawn `FINE` times larger) and the press."""

    def __init__(self, style: Style, seed: int) -> None:
        self.style, self.rng = style, np.random.default_rng([seed, 3])
        self.digits: list[Digit] = []

    def start(self, size: tuple[int, int] | None, needed: tuple[float, float], what: str) -> None:
        """Take a sheet of a size that holds what is needed."""
        height, width = size or [int(-(-n // 16) * 16) for n in needed]
        if height < needed[0] or width < needed[1]:
            raise ValueError(
                f"a page of {height} x {width} pixels is too small: this {what} needs "
                f"{needed[0]:.0f} x {needed[1]:.0f}"
            )
        self.size = (height, width)
        big = (width * FINE, height * FINE)
        self.type, self.ruled = Image.new("L", big), Image.new("L", big)

    def number(self, right: float, base: float, value: str, row: int, column: int) -> None:
        s, rng = self.style, self.rng
        middle = base - s.height * (X_HEIGHT if s.old_style else 1.0) / 2
        for place, c in enumerate(value):
            x = right - s.pitch * (len(value) - place - 0.5) + s.uneven * rng.normal(0, 0.3)
            y = base + s.uneven * rng.normal(0, 0.3)
            mask, (above, wide, tall) = _figure(s.face, c, s.old_style, s.roman_one)
            # Wide faces are condensed, so that neighbours do not touch.
            w = max(1, round(FINE * min(wide * s.height, 0.95 * s.pitch)))
            h = max(1, round(FINE * tall * s.height))
            corner = (round(FINE * x - w / 2), round(FINE * (y - above * s.height)))
            self.type.paste(255, corner, mask.resize((w, h), Image.Resampling.BOX))
            top, left = corner[1] / FINE, corner[0] / FINE
            box = (top, left, (corner[1] + h) / FINE, (corner[0] + w) / FINE)
            self.digits.append(Digit(int(c), middle + y - base, x, box, row, column, place))

    def word(self, x: float, base: float, word: str, most: float = 1e9) -> float:
        """Set a word, shortened to fit; returns where it ends."""
        face = self.style.face if self.style.face in TEXT_FACES else "times"
        # Capitals as tall as figures.
        size = self.style.height * FINE / _tall(face)
        font = _font(face, round(size))
        while len(word) > 1 and font.getlength(word) > most * FINE:
            word = word[:-1]
        ImageDraw.Draw(self.type).text((x * FINE, base * FINE), word, 255, font, anchor="ls")
        return x + font.getlength(word) / FINE

    def words(self, x: float, base: float, right: float) -> None:
        while x < right - 2 * self.style.height:
            x = self.word(x, base, str(self.rng.choice(WORDS)), right - x)
            x += self.style.height * self.rng.uniform(0.35, 0.7)

    def lines(self, edges: list[float], top: float, leading: float, rows: int) -> None:
        s, rng = self.style, self.rng
        bottom = top + leading * rows
        if s.rules in ("columns", "all"):
            double = rng.random() < 0.3
            for x in edges:
                self._line((x, top), (x + s.uneven * rng.normal(0, 0.8), bottom))
                if double:
                    self._line((x + 3, top), (x + 3, bottom))
        if s.rules in ("rows", "all"):
            every = int(rng.integers(2, 5))
            for i in {0, rows, *range(0, rows, every)}:
                y = top + leading * i - 0.5
                self._line((edges[0], y), (edges[-1], y + s.uneven * rng.normal(0, 0.8)))

    def _line(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """A rule of several pieces of metal, with gaps between them."""
        rng, draw = self.rng, ImageDraw.Draw(self.ruled)
        a, b = np.array(start), np.array(stop)
        length, at = float(np.linalg.norm(b - a)), 0.0
        width = round(FINE * rng.uniform(0.8, 1.8))
        while at < length:
            end = min(length, at + rng.uniform(30, 90))
            ends = [tuple((a + (b - a) * t / length) * FINE) for t in (at, end)]
            draw.line(ends, 255, width)
            at = end + rng.choice([0.0, 2.0, 4.0], p=[0.4, 0.3, 0.3])

    def printed(self, content: tuple[tuple[int | None, ...], ...]) -> Page:
        """Ink the forme, press it on paper, let it age, take a photograph."""
        s, rng = self.style, self.rng
        type_, ruled = (
            np.asarray(im.rotate(s.angle, Image.Resampling.BICUBIC), np.float32) / 255
            for im in (self.type, self.ruled)
        )
        shape = type_.shape
        inked = gaussian_filter(np.maximum(type_, ruled), 0.28 * FINE)
        # Where the threshold is high, strokes get thin, then break.
        threshold = 0.45 - 0.4 * s.spread + 0.25 * s.broken * _clouds(rng, shape, 2.5 * FINE)
        inked = 1 / (1 + np.exp(-(inked - np.clip(threshold, 0.12, 0.85)) / 0.07))
        inked = _reduced(inked)
        small = inked.shape
        inked = inked * (1 - s.faint * np.clip(0.5 * _clouds(rng, small, 25) + 0.4, 0, 1))
        behind = gaussian_filter(inked[:, ::-1], 1.2)
        paper = s.paper + s.stains * 0.5 * (_clouds(rng, small, 40) + 0.2 * _clouds(rng, small, 8))
        depth = s.paper - s.ink
        grey = paper - depth * np.maximum(inked, s.through * np.roll(behind, 5, 0))
        grey = gaussian_filter(grey, s.blur) + s.grain * rng.normal(0, 0.7, small)
        grey = np.round(np.clip(grey, 0, 1) * 255) / 255
        return Page(
            image=torch.from_numpy(grey.astype(np.float32))[None, None],
            digits=tuple(self._turned(d) for d in sorted(self.digits, key=_reading_order)),
            content=content,
            rules=torch.from_numpy(_reduced(ruled) > 0.3),
        )

    def _turned(self, d: Digit) -> Digit:
        """A digit where the rotation of the page has brought it."""
        t = np.deg2rad(self.style.angle)
        cy, cx = self.size[0] / 2, self.size[1] / 2

        def turn(y: float, x: float) -> tuple[float, float]:
            # As PIL rotates: counter-clockwise as seen, with y downwards.
            y, x = y - cy, x - cx
            return cy + y * np.cos(t) - x * np.sin(t), cx + x * np.cos(t) + y * np.sin(t)

        y, x = turn(d.y, d.x)
        top, left, bottom, right = d.box
        corners = np.array([turn(v, w) for v in (top, bottom) for w in (left, right)])
        box = (*corners.min(0).tolist(), *corners.max(0).tolist())
        return replace(d, y=float(y), x=float(x), box=box)


def _reading_order(d: Digit) -> tuple[int, int, int]:
    return d.row, d.column, d.place


def _checked(content: Sequence[Sequence[int | None]]) -> list[list[int | None]]:
    rows = [list(row) for row in content]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"a table needs rows of one length >= 1, got the lengths {[len(r) for r in rows]}"
        )
    for value in (v for row in rows for v in row if v is not None):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
            raise ValueError(f"numbers must be whole and >= 0, or None; got {value!r}")
    return [[None if v is None else int(v) for v in row] for row in rows]


@functools.lru_cache(maxsize=64)
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / FACES[face]), size)


def _tall(face: str) -> float:
    """Height of a tall figure, in ems."""
    box = _font(face, 200).getbbox("8", anchor="ls")
    return (box[3] - box[1]) / 200


@functools.lru_cache(maxsize=512)
def _figure(
    face: str, c: str, old_style: bool, roman_one: bool
) -> tuple[Image.Image, tuple[float, float, float]]:
    """Mask of a figure, and its ascent, width and height in units of a tall figure."""
    native = face == "modern old-style"
    if native and not old_style:
        face, native = "modern", False
    small_i = c == "1" and old_style and roman_one
    font, letter = _font(face, 200), "I" if small_i else c
    if small_i and native:
        font = _font("modern", 200)
    left, top, right, bottom = font.getbbox(letter, anchor="ls")
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), letter, 255, font, anchor="ls")
    unit = 200 * _tall(face)
    above, wide, tall = -top / unit, (right - left) / unit, (bottom - top) / unit
    if old_style and c in "012" and (not native or small_i):
        above, wide, tall = above * X_HEIGHT, wide * 0.5 * (1 + X_HEIGHT), tall * X_HEIGHT
    elif old_style and not native and c in "34579":
        above -= 1 - X_HEIGHT
    return mask, (above, wide, tall)


def _clouds(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Smooth noise of unit variance with structures of about `scale` pixels."""
    coarse = rng.normal(size=[max(2, round(n / scale) + 2) for n in shape])
    fine = zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1)
    return fine / 0.7


def _reduced(fine: np.ndarray) -> np.ndarray:
    """Mean over FINE x FINE pixels."""
    h, w = fine.shape
    return fine.reshape(h // FINE, FINE, w // FINE, FINE).mean((1, 3))
