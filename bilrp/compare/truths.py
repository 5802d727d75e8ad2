"""Truths: pairs of inputs of which it is known, from outside, what an explanation should join.

A truth makes pairs, and judges the scores of a method on them. Those in which the similarity must
rest on what was put there (`ranks` is True) rank methods. Warps and films measure the model as much
as the method: a network that does not follow a motion cannot be blamed on its explanation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from bilrp._checks import is_whole
from bilrp._names import needs
from bilrp.compare.altered import warped
from bilrp.compare.controls import controlled_share, marginal_null
from bilrp.compare.metrics import correspondence, cosine

SIZE = 64


@dataclass(frozen=True, eq=False)
class Pair:
    """Two inputs, and what is known of them.

    Attributes
    ----------
    x, x2 : Tensor
        Images (C, H, W) in [0, 1], or rows of digits (6,).
    true : callable
        From the side of the patches to a mask of bool, (h, w, h', w') or (G, G'): the pairs that
        should be joined.
    group : int or tuple of int
        Pairs of one group are no independent evidence (of one film, say). Several numbers are those
        of a pair's photos: pairs with a photo in common are no independent evidence.
    about : dict
        What varied, such as the size of an object.
    """

    x: Tensor
    x2: Tensor
    true: Callable[[int], Tensor]
    group: int | tuple[int, ...]
    about: dict[str, object] = field(default_factory=dict)


Record = dict[str, float]


@dataclass(frozen=True)
class Truth:
    """A kind of pairs with a known answer.

    Attributes
    ----------
    name : str
    pairs : callable
        From a number to that many pairs; the first of many are the same as of few.
    judge : callable
        (scores, pair, patch, network, its inputs) to numbers; the one called "score" is the chief
        one, "null" what it is compared with.
    ranks : bool
        Whether it ranks methods; else it measures the model too.
    unit : str
        What the score is.
    patch, coarse : int
        Sides of the patches, for most methods and for slow ones.
    """

    name: str
    pairs: Callable[[int], list[Pair]]
    judge: Callable[[Tensor, Pair, int, nn.Module, tuple[Tensor, Tensor]], Record]
    ranks: bool
    unit: str
    patch: int = 8
    coarse: int = 8


# --- how scores are judged -------------------------------------------------------------------


def auc(scores: Tensor, true: Tensor) -> float:
    """The probability that a true pair scores higher than another one; ties count half.

    Unlike a share it does not change with an offset, so a method whose scores are all positive
    loses nothing by that.

    Raises
    ------
    ValueError
        If the shapes differ, a score is not finite, or all pairs are true or none is.
    """
    from scipy.stats import rankdata

    if scores.shape != true.shape or true.dtype != torch.bool:
        raise ValueError(
            f"scores and true must have one shape, true of bool; got {tuple(scores.shape)} and "
            f"{tuple(true.shape)} of {true.dtype}"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError("scores hold NaN or infinite numbers, which cannot be put in order")
    flat, mask = scores.detach().flatten().double().numpy(), true.flatten().numpy()
    positive, negative = int(mask.sum()), int((~mask).sum())
    if not positive or not negative:
        raise ValueError("both true and other pairs are needed")
    rank = rankdata(flat)[mask].sum() - positive * (positive + 1) / 2
    return float(rank / (positive * negative))


def judge_share(
    scores: Tensor, pair: Pair, patch: int, model: nn.Module, inputs: tuple[Tensor, Tensor]
) -> Record:
    """Share of the positive scores on true pairs, beside its nulls.

    A method without any positive score has joined nothing: 0, its nulls as well.
    """
    true = pair.true(patch)
    order = auc(scores, true)
    if not bool((scores > 0).any()):
        area = float(true.double().mean())
        return {"score": 0.0, "null": 0.0, "marginals": 0.0, "area": area, "auc": order}
    found = controlled_share(scores, true, tolerance=1e-3)
    return {
        "score": found.share,
        "null": found.locality,
        "marginals": found.marginals,
        "area": found.area,
        "auc": order,
    }


def judge_planted(
    scores: Tensor, pair: Pair, patch: int, model: nn.Module, inputs: tuple[Tensor, Tensor]
) -> Record:
    """As `judge_share`; the null is what the two marginals reach, the places being unrelated."""
    found = judge_share(scores, pair, patch, model, inputs)
    return {**found, "null": found["marginals"], "locality": found["null"]}


def judge_found(
    scores: Tensor, pair: Pair, patch: int, model: nn.Module, inputs: tuple[Tensor, Tensor]
) -> Record:
    """As `judge_share`; the null is the share of true pairs among all, by area.

    For one object: its places are a product of two masks, which two heat maps can find as well.
    """
    found = judge_share(scores, pair, patch, model, inputs)
    return {**found, "null": found["area"], "locality": found["null"]}


def judge_cosine(
    scores: Tensor, pair: Pair, patch: int, model: nn.Module, inputs: tuple[Tensor, Tensor]
) -> Record:
    """Cosine with the truth (the paper's measure), and that of the scores' own marginals."""
    true = pair.true(patch).double()
    order = auc(scores, true.bool())
    if not bool((scores > 0).any()):
        return {"score": 0.0, "null": 0.0, "auc": order}
    return {
        "score": cosine(scores, true),
        "null": cosine(marginal_null(scores), true),
        "auc": order,
    }


STEPS = 8


def judge_removal(
    scores: Tensor, pair: Pair, patch: int, model: nn.Module, inputs: tuple[Tensor, Tensor]
) -> Record:
    """How fast y rises as the best pairs are shown, minus how slowly it falls as they are covered.

    Pairs are taken from the highest score down, and both patches of a pair covered (or shown in an
    all-covered image) where they are not yet. After each eighth of all patches y is read, as a part
    of the whole y. The score is the mean of the shown curve minus that of the covered one. The null
    takes the pairs in the order of the scores' own marginals: what two heat maps know.
    """
    return {
        "score": _removal(scores, patch, model, inputs),
        "null": _removal(marginal_null(scores), patch, model, inputs)
        if bool((scores > 0).any())
        else 0.0,
    }


def _removal(scores: Tensor, patch: int, model: nn.Module, inputs: tuple[Tensor, Tensor]) -> float:
    from bilrp.compare.methods import features_of_covered

    half = scores.dim() // 2
    table = scores.flatten(half).flatten(0, half - 1)
    first, second = table.shape
    order = table.flatten().argsort(descending=True, stable=True)
    # When a patch is met for the first time, as the best pairs come; the same on both sides.
    met = torch.full((first + second,), len(order))
    met.scatter_reduce_(0, order // second, torch.arange(len(order)), "amin")
    met.scatter_reduce_(0, first + order % second, torch.arange(len(order)), "amin")
    rank = torch.empty_like(met)
    rank[met.argsort(stable=True)] = torch.arange(len(met))
    steps = [len(met) * k // STEPS for k in range(1, STEPS)]
    covered = torch.stack([rank < k for k in steps])
    hidden = torch.cat([covered, ~covered, torch.zeros_like(covered[:1])])
    sides = (hidden[:, :first], hidden[:, first:])
    phi, phi2 = (
        features_of_covered(model, x, patch, h) for x, h in zip(inputs, sides, strict=True)
    )
    *y, whole = (phi.double() * phi2.double()).sum(1).tolist()
    return float(sum(y[STEPS - 1 :]) - sum(y[: STEPS - 1])) / (STEPS - 1) / whole


def _check(count: int, size: int = SIZE) -> None:
    if not is_whole(count):
        raise ValueError(f"count must be a whole number of pairs >= 1, got {count!r}")
    if not is_whole(size, 32) or size % 16:
        raise ValueError(f"size must be 32, 48, 64, ... pixels, got {size!r}")


# --- (a) toy digits --------------------------------------------------------------------------


def _whatever_the_patch(true: Tensor, patch: int) -> Tensor:
    return true


def toy_pairs(count: int) -> list[Pair]:
    """Two rows of six digits with at least one match; true pairs are equal digits."""
    from bilrp.models.toy import DIGITS, PLACES, matches

    _check(count)
    generator = torch.Generator().manual_seed(300)
    found: list[Pair] = []
    while len(found) < count:
        d, d2 = torch.randint(DIGITS, (2, PLACES), generator=generator)
        true = matches(d, d2).bool()
        if bool(true.any()):
            # Networks take turns: five of them, so pairs of one network belong together.
            found.append(Pair(d, d2, partial(_whatever_the_patch, true), len(found) % 5))
    return found


# --- (b) planted match -----------------------------------------------------------------------


def book_photos(size: int) -> Tensor:
    """The photos of the book's registry that are no series: (30, 3, size, size)."""
    from bilrp.book import data

    names = [name for group in ("imagenet", "cats", "photos") for name in data.names(group)]
    return data.photos(names, size)


def planted_pairs(count: int, objects: int = 1, size: int = SIZE) -> list[Pair]:
    """One or two small objects pasted into two unrelated photos, at unrelated places.

    An object is a disc cut from a third photo, 5/16 or 7/16 of the side across, with full or half
    its contrast; its places in the two photos do not overlap. With two objects (5/16 across), true
    pairs join equal ones: two heat maps cannot tell these from unequal ones.

    Parameters
    ----------
    count : int
    objects : int
        1 or 2.
    size : int
        Side of the images in pixels.

    Raises
    ------
    ValueError
        If `count` is no number of pairs, `objects` neither 1 nor 2, or `size` not 32, 48, 64, ...
    """
    _check(count, size)
    if objects not in (1, 2):
        raise ValueError(f"objects must be 1 or 2, got {objects!r}: more find no room apart")
    photos = book_photos(size)
    generator = torch.Generator().manual_seed(13)
    found = []
    for k in range(count):
        side = (5 if k % 2 == 0 or objects == 2 else 7) * size // 16
        contrast = 1.0 if k // 2 % 2 == 0 else 0.5
        chosen = torch.randperm(len(photos), generator=generator)[: 2 + objects].tolist()
        images = [photos[i].clone() for i in chosen[:2]]
        places = _unrelated_places(objects, side, size, generator)
        for source, pair in zip(chosen[2:], places, strict=True):
            for image, place in zip(images, pair, strict=True):
                _paste(image, photos[source], side, contrast, place)
        about: dict[str, object] = {"side": side, "contrast": contrast}
        first, second = images
        found.append(Pair(first, second, _discs(places, side, size), tuple(chosen), about))
    return found


def _unrelated_places(
    objects: int, side: int, size: int, generator: torch.Generator
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Top left corners of each object in both images: none of them where another one is."""
    while True:
        corner = torch.randint(size - side + 1, (objects * 2, 2), generator=generator)
        apart = (corner[:, None] - corner).abs().amax(2) >= side
        if bool(apart.triu(1).sum() == objects * (2 * objects - 1)):
            return [((a, b), (c, d)) for (a, b), (c, d) in corner.view(objects, 2, 2).tolist()]


def _disc(side: int) -> Tensor:
    at = torch.arange(side) + 0.5 - side / 2
    return ((side / 2 + 0.5 - (at[:, None] ** 2 + at**2).sqrt()).clamp(0, 1))[None]


def _paste(
    image: Tensor, source: Tensor, side: int, contrast: float, place: tuple[int, int]
) -> None:
    """Draw a disc of the middle of `source` into the image, in place."""
    from torch.nn.functional import interpolate

    size = source.shape[-1]
    middle = source[:, size // 8 : -(size // 8), size // 8 : -(size // 8)]
    small = interpolate(middle[None], (side, side), mode="bilinear", antialias=True)[0]
    mean = small.mean((1, 2), keepdim=True)
    small, disc = mean + contrast * (small - mean), _disc(side)
    row, col = place
    under = image[:, row : row + side, col : col + side]
    under.copy_((disc * small + (1 - disc) * under).clamp(0, 1))


def _discs(places: list, side: int, size: int) -> Callable[[int], Tensor]:
    def true(patch: int) -> Tensor:
        n = size // patch
        mask = torch.zeros(n, n, n, n, dtype=torch.bool)
        for pair in places:
            covered = []
            for row, col in pair:
                image = torch.zeros(size, size)
                image[row : row + side, col : col + side] = _disc(side)[0]
                covered.append(image.view(n, patch, n, patch).mean((1, 3)) > 0.15)
            mask |= covered[0][:, :, None, None] & covered[1]
        return mask

    return true


# --- (c) warps -------------------------------------------------------------------------------

WARPS = (
    ("mirror", {"mirror": True}),
    ("turn", {"rotate": 40.0}),
    ("enlarge", {"scale": 1.5}),
    ("tilt", {"tilt": (0.15, 0.35)}),
    ("quarter turn", {"rotate": 90.0}),
)


def warped_pairs(count: int, size: int = SIZE) -> list[Pair]:
    """A photo, and the same mirrored, turned, enlarged or tilted, in another light."""
    _check(count, size)
    margin = size // 4
    photos = book_photos(size + 2 * margin)
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    found = []
    for k in range(count):
        kind, change = WARPS[k % len(WARPS)]
        number = (k + k // len(photos)) % len(photos)
        after = warped(photos[number], **change)
        darker = 1.6 if k % 2 else 1 / 1.6
        # In the coordinates of both windows.
        row, col = after.row[inner] - margin, after.col[inner] - margin
        image = (after.image[inner].clamp(0, 1) ** darker).contiguous()
        window = photos[number][inner].contiguous()
        about = {"kind": kind, "light": darker}
        found.append(Pair(window, image, _moved(row, col, size), number, about))
    return found


def _moved(row: Tensor, col: Tensor, size: int) -> Callable[[int], Tensor]:
    return lambda patch: correspondence(row, col, patch, (size, size)) > 0.2


# --- (d) films and stereo --------------------------------------------------------------------

SCENES = {  # film, first frame, frame after the last, of every third; cuts found by eye
    "roof": (0, 0, 10),
    "man": (0, 10, 26),
    "taxi": (0, 26, 46),
    "street": (0, 46, 63),
    "bicycle": (0, 63, 81),
    "carphone": (1, 0, 40),
    "rabbit": (2, 0, 44),
}


def film_pairs(count: int, size: int = SIZE) -> list[Pair]:
    """The stereo pair, plain and mirrored, then frames of films five apart with their flow.

    True are the pairs of patches between which something has moved by more than 4 pixels, half a
    patch of 8: what stays is found by nearness alone. Of these, about half join equal places of the
    grid, since that far one may move within a patch; the null that knows about nearness finds them.
    Pairs of frames in which nothing has moved so far are left out.
    """
    from bilrp.book import data

    _check(count, size)
    photos = data.stereo(size)
    row = torch.arange(float(size))[:, None].expand(size, size)
    col = row.T
    partner = torch.where(photos.valid, col - photos.disparity, torch.nan)
    found = [
        Pair(photos.left[0], photos.right[0], _moved(row, partner, size), -1, {"kind": "stereo"}),
        Pair(
            photos.left[0],
            photos.right[0].flip(2),
            _moved(row, size - 1 - partner, size),
            -1,
            {"kind": "stereo, mirrored"},
        ),
    ]
    for number, kind, a, b in _frames(size):
        if len(found) >= count:
            break
        shift = _flow(a, b)
        far = shift.norm(dim=0) > 4
        moved = torch.where(far, row + shift[0], torch.nan)
        true = _moved(moved, col + shift[1], size)
        if bool(true(8).any()):
            found.append(Pair(a, b, true, number, {"kind": kind}))
    return found[:count]


def _frames(size: int) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """Frames five apart, one pair of each scene in turn: first all that begin at even frames."""
    from bilrp.book import data

    frames, film = data.clips(every=3, size=size)
    time = torch.cat([torch.arange(n) for n in film.bincount().tolist()])
    for start in (*range(0, 40, 2), *range(1, 40, 2)):
        for number, (kind, (which, first, last)) in enumerate(SCENES.items()):
            if first + start + 5 < last:
                at = [
                    int(((film == which) & (time == first + start + n)).nonzero()) for n in (0, 5)
                ]
                yield number, kind, frames[at[0]], frames[at[1]]


def _flow(a: Tensor, b: Tensor) -> Tensor:
    """Shift of each pixel of a on its way to b, (2, H, W); NaN where it does not come back."""
    with needs("book"):
        from scipy.ndimage import map_coordinates
        from skimage.registration import optical_flow_tvl1

    import numpy as np

    grey, grey2 = (photo.mean(0).numpy() for photo in (a, b))
    there, back = optical_flow_tvl1(grey, grey2), optical_flow_tvl1(grey2, grey)
    at = np.indices(grey.shape) + there
    returned = np.stack([map_coordinates(s, at, order=1, mode="nearest") for s in back])
    there[:, np.hypot(*(there + returned)) > 1] = np.nan
    return torch.from_numpy(there).float()


# --- (e) tables ------------------------------------------------------------------------------


def table_pairs(count: int) -> list[Pair]:
    """Two printed tables of four numbers that share two, at other places, in another style.

    True pairs of patches lie on an equal bigram, two neighbouring digits, in both.
    """
    from bilrp.book import tables

    _check(count)
    size, found = (80, 112), []
    for k in range(count):
        numbers = [n for row in tables.numbers(2, 2, 900 + k) for n in row]
        other = [n for row in tables.numbers(1, 2, 9000 + k) for n in row]
        order = torch.randperm(4, generator=torch.Generator().manual_seed(k)).tolist()
        both = [numbers[0], numbers[3], *other]
        second = [both[i] for i in order]
        pages = [
            tables.table(
                [content[:2], content[2:]],
                tables.Style.random(5000 + 2 * k + side, gap=13, leading=19),
                2 * k + side,
                size,
            )
            for side, content in enumerate((numbers, second))
        ]
        page, page2 = pages
        found.append(Pair(page.image[0], page2.image[0], _bigrams(page, page2), k))
    return found


def _bigrams(page, page2) -> Callable[[int], Tensor]:
    def covered(page, patch: int) -> list[tuple[tuple[int, int], Tensor]]:
        height, width = page.image.shape[2:]
        found = []
        for left, right in page.pairs:
            ink = torch.zeros(height, width)
            top, bottom = min(left.box[0], right.box[0]), max(left.box[2], right.box[2])
            rows = slice(math.floor(top), math.ceil(bottom))
            ink[rows, math.floor(left.box[1]) : math.ceil(right.box[3])] = 1
            cells = ink.view(height // patch, patch, width // patch, patch).mean((1, 3)) > 0.15
            found.append(((left.value, right.value), cells))
        return found

    def true(patch: int) -> Tensor:
        first, second = covered(page, patch), covered(page2, patch)
        mask = torch.zeros(*first[0][1].shape, *second[0][1].shape, dtype=torch.bool)
        for value, cells in first:
            for value2, cells2 in second:
                if value == value2:
                    mask |= cells[:, :, None, None] & cells2
        return mask

    return true


# --- (f) removal -----------------------------------------------------------------------------


def photo_pairs(count: int, size: int = SIZE) -> list[Pair]:
    """Two different photos; nothing is known of them but what the network says, covered or not."""
    _check(count, size)
    photos = book_photos(size)
    generator = torch.Generator().manual_seed(17)
    found = []
    for _ in range(count):
        i, j = torch.randperm(len(photos), generator=generator)[:2].tolist()
        found.append(Pair(photos[i], photos[j], _nothing_known, (i, j)))
    return found


def _nothing_known(patch: int) -> Tensor:
    raise ValueError("of two photos it is not known which patches belong together")


def two_objects(count: int) -> list[Pair]:
    """`planted_pairs` with two objects."""
    return planted_pairs(count, objects=2)


SHARE = "share of the positive relevance on true pairs"
TRUTHS = {
    t.name: t
    for t in (
        Truth("toy digits", toy_pairs, judge_cosine, True, "cosine with the truth", 10, 10),
        Truth("planted match", planted_pairs, judge_found, True, SHARE, 8, 16),
        Truth("two planted", two_objects, judge_planted, True, SHARE, 8, 16),
        Truth("warps", warped_pairs, judge_share, False, SHARE, 8, 16),
        Truth("films and stereo", film_pairs, judge_share, False, SHARE, 8, 16),
        Truth("tables", table_pairs, judge_planted, True, SHARE, 8, 16),
        Truth("removal", photo_pairs, judge_removal, True, "shown minus covered, part of y", 8, 16),
    )
}
