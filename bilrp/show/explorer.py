"""The picture that answers: point at a patch of one image, see its partners in the other.

The drawing is done by one ES module, made of the files in `MODULES`. In a live notebook it runs as
a widget (through anywidget) and can ask the kernel for the true effect of covering patches; in a
page of the book, or where anywidget is missing, the same module is part of the HTML, beside its
data. For text instead of pictures, see `bilrp.show.text`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bilrp._names import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bilrp.engine.explanation import Explanation

WIDGET = "application/vnd.jupyter.widget-view+json"
WIDEST = 416  # pixels: no picture is shown wider, so none is sent wider
FINE = 2**16  # up to so many pairs, a score takes two bytes; beyond, one
STRONGEST = 60  # pairs of each sign that may be drawn before a patch is pointed at

MODULES = ("pair.js", "pair_line.js", "explorer.js")

Cover = Iterable[tuple[int, int]]


class Explorer:
    """An explanation to explore; a cell that ends with it shows it. Made by `Explanation.explore`.

    Parameters
    ----------
    explanation : Explanation
        Of images: relevance (H/p, W/p, H'/p, W'/p).
    x, x2 : Tensor (3, H, W) or (1, 3, H, W)
        Pixels in [0, 1].
    similarity : callable (x, x2) -> float, optional
        The similarity of two such images, in the units of the explanation; it gives the true
        effect of covering patches, in a live notebook. Default: only the predicted effect.
    names : (str, str)
        What the two images are called.
    alt : str, optional
        Describes the still picture that is shown where scripts are off. Default: made from the
        names and the similarity.

    Attributes
    ----------
    explanation, x, x2, similarity, names, alt
        As given.

    Raises
    ------
    ValueError
        If the explanation is not of images of these sizes, or is not finite.
    """

    def __init__(
        self,
        explanation: Explanation,
        x: Any,  # of the subclass for text: its tokens
        x2: Any,
        similarity: Callable[[Any, Any], float] | None = None,
        names: tuple[str, str] = ("First picture", "Second picture"),
        alt: str | None = None,
    ) -> None:
        if len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise ValueError(f"names must be two strings, got {names!r}")
        self.explanation, self.similarity = explanation, similarity
        self.x: Any = x  # lists of tokens in a subclass
        self.x2: Any = x2
        self.names = tuple(names)
        self.alt = alt or self._described()
        self._still = self._drawn()  # also checks that the inputs fit
        numbers = (explanation.matrix, explanation.ledger, torch.tensor(explanation.similarity))
        if not all(torch.isfinite(values).all() for values in numbers):
            raise ValueError("the explanation holds NaN or infinite scores; nothing can be drawn")
        self._data = _data(explanation) | {"names": list(names)} | self._shown()
        self._widget: Any = None

    def __repr__(self) -> str:
        return f"Explorer({self.explanation!r})"

    def predicted_change(self, patches: Cover = (), patches2: Cover = ()) -> float:
        """What covering patches should do to y, going by the explanation alone.

        It takes away the relevance of every pair with a covered patch, on either side, once:
        minus the sum of R over (A, all) and (all, B), plus the sum over (A, B).

        Parameters
        ----------
        patches, patches2 : iterable of (row, column), from 0
            Patches A of x and B of x' to cover.

        Returns
        -------
        float
            In units of the similarity.

        Raises
        ------
        ValueError
            For a patch outside the grid.
        """
        matrix = self.explanation.matrix.cpu().double()
        keep, keep2 = (~mask.flatten().cpu() for mask in self._masks(patches, patches2))
        return float(matrix[keep][:, keep2].sum() - matrix.sum())

    def true_change(self, patches: Cover = (), patches2: Cover = ()) -> float:
        """What covering patches does to y: each is painted over with its picture's mean colour.

        Parameters and errors are those of `predicted_change`.

        Raises
        ------
        ValueError
            If the explorer was made without `similarity`.
        """
        if self.similarity is None:
            raise ValueError("the true change needs `similarity`: explore(x, x2, similarity=...)")
        masks = self._masks(patches, patches2)
        covered = [self._without(v, m) for v, m in zip((self.x, self.x2), masks, strict=True)]
        with torch.no_grad():
            return float(self.similarity(*covered)) - float(self.similarity(self.x, self.x2))

    def html(self) -> str:
        """The picture as HTML that needs nothing else: no kernel, no network, no other script."""
        # "<" could end the script element early
        data = json.dumps(self._data, separators=(",", ":")).replace("<", "\\u003c")
        return (
            f'<div class="bilrp-explorer" data-version="{_version()}">'
            f'<img src="{self._still}" alt="{escape(self.alt)}" style="max-width: 100%">'
            f'<script type="application/json">{data}</script></div>\n'
            f'<script type="module">{_module()}\nmountAll("{_version()}");</script>'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """A widget for JupyterLab, HTML for pages, a line of text for terminals."""
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self.html()}
        if self._widget is None and (live := _live()) is not None:
            self._widget = live()
            self._widget.on_msg(self._answer)
        if self._widget is not None:
            bundle[WIDGET] = self._widget._repr_mimebundle_()[0][WIDGET]
        return bundle

    def _answer(self, widget: Any, message: dict[str, Any], buffers: Any = None) -> None:
        """Answer the module in the browser.

        The data travel by message, not as the widget's state: state is saved into notebooks and
        pages, which have the HTML already.
        """
        reply: dict[str, Any] = {"kind": message.get("kind")}
        if reply["kind"] == "data":
            reply["data"] = {**self._data, "live": self.similarity is not None}
        else:
            reply["ticket"] = message.get("ticket")  # which question of which view this answers
            try:
                cover = [
                    [self._place(side, int(patch)) for patch in message["cover"][side]]
                    for side in (0, 1)
                ]
                reply["change"] = self.true_change(*cover)
                if not np.isfinite(reply["change"]):
                    raise ValueError("similarity returned NaN or infinity")
            except Exception as error:  # whatever the caller's similarity raises is for the reader
                reply["change"], reply["error"] = None, f"{type(error).__name__}: {error}"
        widget.send(reply)

    # What a subclass for other inputs says in its own way.

    def _described(self) -> str:
        return (
            f"Two pictures side by side: {self.names[0]}, {self.names[1]}. Arcs join the patches "
            "that make them similar (red) and those that speak against it (blue); "
            f"y = {self.explanation.similarity:.4g}."
        )

    def _drawn(self) -> str:
        """The picture for readers without scripts, as a data URL."""
        from bilrp.show.plot import arcs

        return still(lambda ax: arcs(self.explanation, self.x, self.x2, ax=ax))

    def _shown(self) -> dict[str, Any]:
        """What the browser needs to know of the inputs."""
        return {"pictures": [_picture(image) for image in (self.x, self.x2)]}

    def _place(self, side: int, number: int) -> Any:
        return divmod(number, self._data["grid"][2 * side + 1])

    def _without(self, x: Tensor, mask: Tensor) -> Tensor:
        return _covered(x, mask)

    def _masks(self, *cover: Cover) -> list[Tensor]:
        """Covered patches as bool (H/p, W/p) for each side."""
        masks = []
        for side, patches in enumerate(cover):
            shape = tuple(self.explanation.relevance.shape[2 * side : 2 * side + 2])
            mask = torch.zeros(shape, dtype=torch.bool)
            for row, column in patches:
                if not (0 <= row < shape[0] and 0 <= column < shape[1]):
                    raise ValueError(f"there is no patch {(row, column)} in a grid of {shape}")
                mask[row, column] = True
            masks.append(mask)
        return masks


def quantize(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores as whole numbers c with a square-root scale: score = c |c| scale[row].

    The square root spends the numbers on the small scores, of which there are many. A score is
    off by no more than 1/32767 of the largest in its row, or 1/126 where there are more than
    65,536 pairs. Sums are sent as they are, so totals do not add up errors.

    Parameters
    ----------
    scores : (patches of x, patches of x')

    Returns
    -------
    codes : (patches of x, patches of x') of int16 or int8
    scales : (patches of x,) of float64
    """
    kind = np.int16 if scores.size <= FINE else np.int8
    full = np.iinfo(kind).max
    most = np.abs(scores).max(1)
    part = np.abs(scores) / np.where(most > 0, most, 1)[:, None]
    codes = np.sign(scores) * np.rint(full * np.sqrt(part))
    return codes.astype(kind), most / full**2


def _data(explanation: Explanation) -> dict[str, Any]:
    """What the module in the browser needs to know of the scores, ready for JSON."""
    scores = explanation.matrix.detach().cpu().double().numpy()
    codes, scales = quantize(scores)
    y = explanation.similarity
    order = np.argsort(scores, axis=None, kind="stable")
    ends = np.concatenate([order[::-1][:STRONGEST], order[:STRONGEST]])
    signs = np.repeat([1, -1], len(ends) // 2)
    ends = ends[scores.ravel()[ends] * signs > 0]
    ends = ends[np.argsort(-np.abs(scores.ravel()[ends]), kind="stable")]
    shape = list(explanation.relevance.shape)
    return {
        "grid": shape if len(shape) == 4 else [1, scores.shape[0], 1, scores.shape[1]],
        "y": y,
        "bias": 1 - float(explanation.ledger[0, 0]) / y if y else None,
        "bits": 8 * codes.itemsize,
        "codes": _base64(codes),
        "scales": _base64(scales),
        "sums": [_base64(scores.sum(1)), _base64(scores.sum(0))],
        "strongest": [int(pair) for pair in ends],
    }


def _base64(numbers: np.ndarray) -> str:
    little = numbers.astype(numbers.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def _picture(x: Tensor) -> dict:
    """An image as a data URL, with its size and its mean colour."""
    with needs("plot"):
        from PIL import Image

    from bilrp.show.plot import _pixels

    pixels = _pixels(x)
    image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    if max(image.size) > WIDEST:
        image.thumbnail((WIDEST, WIDEST))
    file = io.BytesIO()
    image.save(file, "jpeg", quality=82, subsampling=0, optimize=True)
    return {
        "url": _jpeg(file),
        "size": [pixels.shape[1], pixels.shape[0]],
        "mean": [round(255 * float(c)) for c in pixels.mean((0, 1))],
    }


def still(draw: Callable[[Axes], Any], size: tuple[float, float] = (5.2, 2.6)) -> str:
    """A picture as a data URL, drawn by `draw(ax)`; size in inches."""
    with needs("plot"):
        from matplotlib.figure import Figure

    # not through pyplot: the notebook must not show it, too
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    draw(figure.add_subplot())
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", pil_kwargs={"quality": 75, "optimize": True})
    return _jpeg(file)


def _jpeg(file: io.BytesIO) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _covered(x: Tensor, mask: Tensor) -> Tensor:
    """The image with the patches of a mask (H/p, W/p) in the image's mean colour."""
    tall, wide = x.shape[-2] // mask.shape[0], x.shape[-1] // mask.shape[1]
    pixels = mask.repeat_interleave(tall, 0).repeat_interleave(wide, 1).to(x.device)
    return torch.where(pixels, x.mean((-2, -1), keepdim=True), x)


@cache
def _module() -> str:
    here = Path(__file__)
    return "\n".join(here.with_name(n).read_text(encoding="utf-8") for n in MODULES)


@cache
def _version() -> str:
    return hashlib.sha256(_module().encode()).hexdigest()[:12]


def _live() -> type | None:
    """The widget class, or None where anywidget is not installed."""
    try:
        import anywidget
    except ImportError:
        return None
    return _widget_class(anywidget.AnyWidget)


@cache
def _widget_class(base: type) -> type:
    return type("LiveExplorer", (base,), {"_esm": _module(), "__module__": __name__})
