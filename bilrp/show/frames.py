"""A figure with sliders: redrawn in a live notebook, shown from frames in a page of the book."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

from bilrp._names import needs
from bilrp.show.explorer import WIDGET

MOST = 200  # frames in a page


class Frames:
    """A figure that follows its controls; made by `bilrp.interact_frames`.

    A cell that ends with it shows it: as ipywidgets in a live notebook, and elsewhere as HTML that
    needs no kernel and no network.
    """

    def __init__(
        self,
        draw: Callable[..., Any],
        alt: str | Callable[..., str],
        controls: dict[str, list],
        start: dict[str, Any],
    ) -> None:
        self.draw, self.controls, self.start = draw, controls, start
        self.alt = alt if callable(alt) else alt.format
        self._html: str | None = None

    def __repr__(self) -> str:
        ways = ", ".join(f"{name}: {len(values)}" for name, values in self.controls.items())
        return f"Frames({ways})"

    def html(self) -> str:
        """The figure as HTML, with one frame for each choice of values."""
        if self._html is None:
            choices = [dict(zip(self.controls, v, strict=True)) for v in self._choices()]
            frames = [{"url": self._frame(values), "alt": self.alt(**values)} for values in choices]
            first = frames[choices.index(self.start)]
            data = {"controls": self._described(), "frames": frames}
            text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
            self._html = (
                f'<div class="bilrp-frames"><img class="dark-light" src="{first["url"]}" '
                f'alt="{escape(first["alt"])}">'
                f'<script type="application/json">{text}</script></div>\n'
                f'<script type="module">{_module()}\n'
                "document.querySelectorAll('.bilrp-frames:not(:has(.controls))')"
                ".forEach(mountFrames);</script>"
            )
        return self._html

    def widget(self) -> Any:
        """The figure as ipywidgets, which call `draw` anew at each move.

        Raises
        ------
        ImportError
            If ipywidgets is not installed.
        """
        with needs("live"):
            import ipywidgets as w

        picture = w.HTML()
        inputs = {}
        for control, (name, values) in zip(self._described(), self.controls.items(), strict=True):
            kind = w.Dropdown if control["menu"] else w.SelectionSlider
            inputs[name] = kind(
                options=list(zip(control["values"], values, strict=True)),
                value=self.start[name],
                description=control["name"],
                style={"description_width": "initial"},
            )

        def show(_: Any = None) -> None:
            values = {name: each.value for name, each in inputs.items()}
            picture.value = f'<img src="{self._frame(values)}" alt="{escape(self.alt(**values))}">'

        for each in inputs.values():
            each.observe(show, "value")
        show()
        return w.VBox([w.HBox(list(inputs.values()), layout={"flex_flow": "row wrap"}), picture])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self.html()}
        try:
            widget = self.widget()
        except ImportError:
            return bundle
        bundle[WIDGET] = widget._repr_mimebundle_()[WIDGET]
        return bundle

    def _choices(self) -> product:
        return product(*self.controls.values())

    def _described(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name.replace("_", " "),
                "values": [v if isinstance(v, str) else f"{v:g}" for v in values],
                "start": values.index(self.start[name]),
                "menu": any(isinstance(v, str) for v in values),
            }
            for name, values in self.controls.items()
        ]

    def _frame(self, values: dict[str, Any]) -> str:
        """One drawing as a data URL."""
        with needs("plot"):
            import matplotlib.pyplot as plt

        figure = self.draw(**values)
        if not hasattr(figure, "savefig"):
            raise TypeError(f"draw must return a matplotlib Figure, got {type(figure).__name__}")
        file = io.BytesIO()
        figure.savefig(file, format="webp", pil_kwargs={"quality": 72, "method": 6})
        plt.close(figure)  # the notebook must not show it a second time
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def interact_frames(
    draw: Callable[..., Any],
    alt: str | Callable[..., str],
    start: dict[str, Any] | None = None,
    **controls: Sequence,
) -> Frames:
    """Let the reader move a parameter of a figure, in a notebook and in a static page.

    Parameters
    ----------
    draw : callable
        Takes a value of each control by name and returns a matplotlib Figure, always of one size.
    alt : str or callable
        Describes the figure for readers who do not see it: a template, such as
        "Heatmap at gamma = {gamma}", or a function of the values.
    start : dict, optional
        Values to begin with; default: the first of each.
    controls : sequence of numbers or of str
        By keyword, what can be chosen: numbers get a slider, strings a menu. An underscore in a
        name is shown as a space.

    Returns
    -------
    Frames
        With `html()` and, for a live notebook, `widget()`.

    Raises
    ------
    ValueError
        Without controls, for a control without values, for a `start` that is not among the values,
        or for more than 200 combinations, which would make a heavy page.

    Examples
    --------
    >>> bilrp.interact_frames(draw, "A curve at power {power}", power=[1, 2, 3])
    """
    given = {name: list(values) for name, values in controls.items()}
    if not given or not all(given.values()):
        raise ValueError(
            f"give at least one control with values, such as gamma=[0, 1]; got {given}"
        )
    begin = {name: values[0] for name, values in given.items()} | (start or {})
    if wrong := [n for n, v in begin.items() if n not in given or v not in given[n]]:
        raise ValueError(f"start={start}: {wrong} not among the controls' values {given}")
    if (count := math.prod(map(len, given.values()))) > MOST:
        raise ValueError(f"{count} combinations are too many for a page, {MOST} at most")
    return Frames(draw, alt, given, begin)


@cache
def _module() -> str:
    return Path(__file__).with_name("frames.js").read_text(encoding="utf-8")
