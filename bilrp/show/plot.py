"""Static pictures, drawn with matplotlib. Red is for similarity, blue speaks against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bilrp._checks import check_whole
from bilrp._names import needs
from bilrp.engine.explanation import Explanation

with needs("plot"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

POSITIVE, NEGATIVE, INK = "#b2182b", "#2166ac", "#333333"  # told apart by all kinds of eyes
ONE, OTHER = "#6a3d9a", "#1b7837"  # two kinds of things, where neither is for or against
DIVERGING = LinearSegmentedColormap.from_list("relevance", [NEGATIVE, "white", POSITIVE])


def book_style() -> None:
    """Sizes for a page, and photos as JPEG, which keeps a chapter light; for notebooks."""
    with needs("book"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

    plt.rcParams.update({"figure.dpi": 120, "font.size": 9})
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 88})


def opacities(relevance: Tensor, threshold: float = 1.0, full: float = 8.0) -> Tensor:
    """Signed opacities in -1..1 of scores, most of them zero.

    The scores are divided by the fourth root of their mean fourth power, which follows the few
    strong ones; those below `threshold` are left out and the rest grows linearly up to `full`.

    Source
    ------
    the paper's rendering (Eberle et al. 2022, Fig. 6: colour by sign, opacity by
    magnitude); the two constants are ours.
    """
    scale = relevance.double().pow(4).mean().pow(0.25)
    if float(scale) == 0:
        return torch.zeros_like(relevance)
    score = relevance / scale.to(relevance)
    sparse = score - score.clamp(-threshold, threshold)
    return (sparse / (full - threshold)).clamp(-1, 1)


def arcs(
    explanation: Explanation,
    x: Tensor,
    x2: Tensor,
    most: int = 300,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Two images side by side, joined by an arc for each pair of patches that matters.

    Parameters
    ----------
    explanation : Explanation
        Of images: relevance (H/p, W/p, H'/p, W'/p).
    x, x2 : Tensor (3, H, W) or (1, 3, H, W)
        Pixels in [0, 1].
    most : int
        Draw at most this many arcs, the strongest.
    ax : matplotlib Axes, optional
    title : str, optional
        Default: the similarity.

    Raises
    ------
    ValueError
        If the explanation is not of images of these sizes.
    """
    images = [_pixels(v) for v in (x, x2)]
    grid = explanation.relevance.shape
    check_whole("most", most)
    if len(grid) != 4 or not (
        _has_patches(images[0], grid[:2]) and _has_patches(images[1], grid[2:])
    ):
        raise ValueError(
            f"the explanation {tuple(grid)} does not fit images of "
            f"{images[0].shape[:2]} and {images[1].shape[:2]} pixels"
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 2.6), layout="constrained")
    gap = images[0].shape[1] * 0.12
    left = 0.0
    offsets = []
    for image in images:
        height, width = image.shape[:2]
        faded = 1 - 0.75 * (1 - image)  # so that the arcs stand out
        ax.imshow(faded, extent=(left, left + width, height, 0), interpolation="antialiased")
        offsets.append(left)
        left += width + gap
    ends = [_centres(image.shape, grid[2 * s : 2 * s + 2]) for s, image in enumerate(images)]
    ends = [points + np.array([offset, 0]) for points, offset in zip(ends, offsets, strict=True)]
    ax.add_collection(_arc_lines(explanation, ends[0], ends[1], most))
    ax.set_xlim(0, left - gap)
    ax.set_ylim(max(image.shape[0] for image in images), 0)
    ax.set_axis_off()
    if title is None:
        y = explanation.similarity
        title = f"y = {y:,.0f}" if abs(y) >= 1000 else f"y = {y:.4g}"
    ax.set_title(title, fontsize=9)
    return ax


def _has_patches(image: np.ndarray, grid: Sequence[int]) -> bool:
    """Whether square patches make this grid of an image (H, W, 3)."""
    height, width = image.shape[:2]
    return height % grid[0] == 0 and height * grid[1] == width * grid[0]


def _arc_lines(
    explanation: Explanation, start: np.ndarray, stop: np.ndarray, most: int
) -> LineCollection:
    alpha = opacities(explanation.matrix.cpu()).numpy()
    order = np.argsort(np.abs(alpha), axis=None)[-most:]
    order = order[np.abs(alpha.ravel()[order]) > 0.01]
    i, j = np.unravel_index(order, alpha.shape)
    a, b = start[i], stop[j]
    bend = (a + b) / 2
    bend[:, 1] -= 0.15 * np.abs(b[:, 0] - a[:, 0])
    t = np.linspace(0, 1, 24)[None, :, None]
    curves = (1 - t) ** 2 * a[:, None] + 2 * t * (1 - t) * bend[:, None] + t**2 * b[:, None]
    colours = [
        to_rgba(POSITIVE if v > 0 else NEGATIVE, abs(v)) for v in alpha[i, j]
    ]  # drawn from weak to strong
    return LineCollection(list(curves), colors=colours, linewidths=0.9, capstyle="round")


def share_of_image(explanation: Explanation, side: int = 0) -> Tensor:
    """Relevance that each patch takes part in, summed over all partners: (H/p, W/p).

    Parameters
    ----------
    side : int
        0 for x, 1 for x'.
    """
    return explanation.relevance.sum((2, 3) if side == 0 else (0, 1))


def heat(explanation: Explanation, x: Tensor, x2: Tensor, axes: Sequence[Axes]) -> None:
    """Both images, each patch tinted by the relevance that it takes part in."""
    for side, (ax, v) in enumerate(zip(axes, (x, x2), strict=True)):
        tinted(v, share_of_image(explanation, side), ax)


def tinted(x: Tensor, share: Tensor, ax: Axes, most: float | None = None) -> None:
    """An image (3, H, W) in grey, each patch tinted by its number in `share` (H/p, W/p).

    Parameters
    ----------
    most : float, optional
        The number that gets the full colour. Default: the largest.
    """
    image, shares = _pixels(x), share.detach().cpu().numpy()
    size = np.abs(shares)
    most = most or float(size.max()) or 1.0
    height, width = image.shape[:2]
    ax.imshow(image.mean(2), cmap="gray", vmin=-0.6, vmax=1.2, extent=(0, width, height, 0))
    ax.imshow(
        shares,
        cmap=DIVERGING,
        vmin=-most,
        vmax=most,
        alpha=np.clip(size / most, 0, 1) ** 0.7 * 0.85,
        extent=(0, width, height, 0),
    )
    ax.set_axis_off()


def table(
    explanation: Explanation,
    tokens: Sequence[str],
    tokens2: Sequence[str],
    ax: Axes | None = None,
    title: str | None = None,
    most: float | None = None,
) -> Axes:
    """Token by token: a table of shares of the similarity, in per cent of y.

    Parameters
    ----------
    explanation : Explanation
        Of groups: relevance (G, G').
    tokens, tokens2 : sequence of str
        What the owners of x (rows) and of x' (columns) are called.
    most : float, optional
        The share, in per cent, of the strongest colour. Default: the largest of this table.

    Raises
    ------
    ValueError
        If there are not as many tokens as owners, or y is 0.
    """
    shape = tuple(explanation.matrix.shape)
    if (len(tokens), len(tokens2)) != shape:
        raise ValueError(
            f"the explanation has {shape[0]} and {shape[1]} owners, but {len(tokens)} and "
            f"{len(tokens2)} tokens were given"
        )
    if explanation.similarity == 0:
        raise ValueError("y is 0: there are no shares of it to be shown")
    share = 100 * explanation.matrix.cpu().double() / explanation.similarity
    most = most or float(share.abs().max()) or 1.0
    if ax is None:
        size = (1.2 + 0.42 * shape[1], 0.7 + 0.26 * shape[0])
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(share.numpy(), cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto")
    if share.numel() <= 400:  # beyond, numbers could not be read
        for i, row in enumerate(share.tolist()):
            for j, value in enumerate(row):
                dark = "white" if abs(value) > 0.6 * most else INK
                ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color=dark)
    ax.set_xticks(range(shape[1]), tokens2, rotation=50 if max(map(len, tokens2)) > 2 else 0,
                  ha="left" if max(map(len, tokens2)) > 2 else "center", fontsize=8)  # fmt: skip
    ax.set_yticks(range(shape[0]), tokens, fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    y = explanation.similarity
    ax.set_title(f"per cent of y = {y:.4g}" if title is None else title, fontsize=9)
    return ax


def ledger(
    explanation: Explanation, names: Mapping[str, str] | None = None, ax: Axes | None = None
) -> Axes:
    """The ledger as a table of shares of the similarity, in per cent.

    Parameters
    ----------
    names : mapping, optional
        What to call the owners, such as `bilrp.VGG16_NAMES`.
    """
    if explanation.similarity == 0:
        raise ValueError("y is 0: there are no shares of it to be shown")
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 5.0), layout="constrained")
    share = 100 * explanation.ledger.cpu() / explanation.similarity
    labels, labels2 = (
        [(names or {}).get(owner, owner) for owner in owners]
        for owners in (explanation.owners, explanation.owners2 or explanation.owners)
    )
    most = float(share.abs().max())
    ax.imshow(share.sign() * share.abs().div(most).sqrt(), cmap=DIVERGING, vmin=-1, vmax=1)
    for i, row in enumerate(share.tolist()):
        for j, value in enumerate(row):
            if abs(value) >= 0.05:
                light = abs(value) > 0.45 * most
                colour = "white" if light else INK
                ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=6, color=colour)
    ax.set_xticks(range(len(labels2)), labels2, rotation=90, fontsize=7)
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.set_xlabel("owner in the second image", fontsize=8)
    ax.set_ylabel("owner in the first image", fontsize=8)
    return ax


def _pixels(x: Tensor) -> np.ndarray:
    image = x[0] if x.dim() == 4 else x
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"an image is (3, H, W) or (1, 3, H, W) in [0, 1], got {tuple(x.shape)}")
    return image.detach().cpu().permute(1, 2, 0).clamp(0, 1).numpy()


def _centres(size: tuple[int, ...], grid: Sequence[int]) -> np.ndarray:
    """(x, y) of the centre of each patch, row by row: (patches, 2)."""
    y = (np.arange(grid[0]) + 0.5) * size[0] / grid[0]
    x = (np.arange(grid[1]) + 0.5) * size[1] / grid[1]
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
