"""The root search of BiLRP for one pair of neurons, to drag: in a notebook and in a static page."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from torch import Tensor


class RootSearch:
    """Taylor terms of the relevance model of one pair of neurons, wherever it is expanded.

    A cell that ends with it shows it. Sliders move gamma and the two steps t and t' of the search;
    the point can be dragged too. The bars are the terms of the expansion.

    Parameters
    ----------
    a, a2 : Tensor (J,), (J',)
        Activations below, in the branch of x and of x'; not negative.
    w, w2 : Tensor (J,), (J',)
        Their weights to the pair (k, k') above; without biases.
    relevance : float
        R_kk', which is shared out; positive.

    Raises
    ------
    ValueError
        If activations and weights differ in length, an activation is negative, a neuron above is
        silent, or `relevance` is not positive: there is nothing to share out.

    Source
    ------
    Eberle et al. (2022), Section 3.1: relevance model and search plane.
    """

    def __init__(self, a: Tensor, w: Tensor, a2: Tensor, w2: Tensor, relevance: float) -> None:
        for activations, weights in ((a, w), (a2, w2)):
            if activations.dim() != 1 or activations.shape != weights.shape:
                shapes = tuple(activations.shape), tuple(weights.shape)
                raise ValueError(f"give one weight for each activation (J,), got {shapes}")
            if bool((activations < 0).any()) or float(activations @ weights) <= 0:
                raise ValueError(
                    f"both neurons must be active, with activations >= 0 below them; got "
                    f"{activations.tolist()} times {weights.tolist()}"
                )
        if not relevance > 0:
            raise ValueError(f"relevance must be positive, got {relevance}")
        self.data = {
            "branches": [
                {"a": v.tolist(), "w": weights.tolist()} for v, weights in ((a, w), (a2, w2))
            ],
            "relevance": float(relevance),
        }

    def __repr__(self) -> str:
        return f"RootSearch(relevance={self.data['relevance']:g})"

    def _repr_html_(self) -> str:
        return (
            '<div class="bilrp-roots"><p>The root search, to drag; it needs JavaScript.</p>'
            f'<script type="application/json">{json.dumps(self.data)}</script></div>\n'
            f'<script type="module">{_module()}\n'
            "document.querySelectorAll('.bilrp-roots:not(:has(.controls))')"
            ".forEach(mountRoots);</script>"
        )


@cache
def _module() -> str:
    return Path(__file__).with_name("roots.js").read_text(encoding="utf-8")
