"""A similarity that looks at its two images from all sides, and keeps the best view."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bilrp.engine.explanation import Explanation
from bilrp.engine.shadow import exact, place_and_format, shadow


class View(NamedTuple):
    """One of the 8 flips and rotations of a square: mirrored or not, then turned."""

    mirrored: bool
    turns: int  # quarter turns, counter-clockwise

    def __str__(self) -> str:
        words = [*(["mirrored"] if self.mirrored else [])]
        words += [f"turned {90 * self.turns}°"] if self.turns else []
        return ", ".join(words) or "as it is"

    def of(self, image: Tensor, axes: tuple[int, int] = (-2, -1)) -> Tensor:
        """The image (..., H, W), or any grid along two axes, in this view."""
        image = image.flip(axes[1]) if self.mirrored else image
        return torch.rot90(image, self.turns, axes)

    def undo(self, image: Tensor, axes: tuple[int, int] = (-2, -1)) -> Tensor:
        """The image that looks like this in this view."""
        image = torch.rot90(image, -self.turns, axes)
        return image.flip(axes[1]) if self.mirrored else image


VIEWS = tuple(View(mirrored, turns) for mirrored in (False, True) for turns in range(4))


class MaxOverTransforms(nn.Module):
    """Similarity over all views: y(x, x') = max <phi(t(x)), phi(t'(x'))> over t and t'.

    The 8 flips and rotations t of each square image give 64 pairs. `bilrp.explain` explains the
    best of them, and tells it in the patches of the images as they were given.

    Parameters
    ----------
    model : nn.Module
        The features phi, such as `bilrp.vgg16()`; used as it is.

    Source
    ------
    Eberle et al. (2022), Section 6.1.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, x2: Tensor) -> Tensor:
        """Similarities of pairs of images.

        Parameters
        ----------
        x, x2 : Tensor (N, C, H, H) or (C, H, H)
            As the model takes them.

        Returns
        -------
        Tensor (N,) or ()

        Raises
        ------
        ValueError
            For images that are not square, or another number of them on the other side.
        """
        if x.dim() != x2.dim() or (x.dim() == 4 and len(x) != len(x2)):
            raise ValueError(f"give as many x as x2, got {tuple(x.shape)} and {tuple(x2.shape)}")
        if x.dim() == 3:
            return self(x[None], x2[None])[0]
        return self._all(x, x2).flatten(1).amax(1)

    @torch.no_grad()
    def best(
        self,
        x: Tensor,
        x2: Tensor,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[View, View]:
        """The views of two images, (C, H, H) or (1, C, H, H), that are most similar.

        The model is evaluated as in eval mode and left as it is.

        Features do not turn with the image, so turning both alike can change the similarity much.
        Still, different pairs of views can be nearly level; of equal ones the first is taken.

        Raises
        ------
        ValueError
            For images that are not square, or more than one on a side.
        """
        x, x2 = (v[None] if v.dim() == 3 else v for v in (x, x2))
        if len(x) != 1 or len(x2) != 1:
            raise ValueError(f"give one image a side, got {tuple(x.shape)} and {tuple(x2.shape)}")
        place, form = place_and_format(self.model, x, dtype, device)
        with exact():
            copied = MaxOverTransforms(shadow(self.model, form, place))
            x, x2 = (v.to(device=place, dtype=form) for v in (x, x2))
            first, second = divmod(int(copied._all(x, x2).argmax()), len(VIEWS))
        return VIEWS[first], VIEWS[second]

    @staticmethod
    def as_given(e: Explanation, views: tuple[View, View]) -> Explanation:
        """An explanation of two views, told in the patches of the images as they were given."""
        relevance = views[0].undo(e.relevance, (0, 1))
        return replace(e, relevance=views[1].undo(relevance, (2, 3)))

    def _all(self, x: Tensor, x2: Tensor) -> Tensor:
        """Similarities of all views, (N, 8, 8)."""
        return self._features(x) @ self._features(x2).transpose(1, 2)

    def _features(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            raise ValueError(
                "MaxOverTransforms turns images by 90 degrees, so they must be square, "
                f"(N, C, H, H) or (C, H, H); got {tuple(x.shape)}. Crop or pad them."
            )
        views = torch.stack([view.of(x) for view in VIEWS], 1)
        return self.model(views.flatten(0, 1)).flatten(1).unflatten(0, (len(x), len(VIEWS)))
