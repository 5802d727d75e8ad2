"""Data and weights of the book as tensors.

`fetch` gets one registered file, the loaders below return what is in the files, and
``python -m bilrp.book.data`` fetches all that the chapters need and says where it comes from.
"""

import argparse
import gzip
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from bilrp._names import needs
from bilrp._pictures import read as _read
from bilrp._pictures import resize as _resize
from bilrp._pictures import square as _square
from bilrp.book.fetch import available, fetch
from bilrp.book.registry import (
    DataError,
    NotAvailable,
    UnknownName,
    WrongHash,
    registry,
)
from bilrp.book.weights import efficientnet_lite0_state, vgg16_state

__all__ = [
    "DataError",
    "NotAvailable",
    "Stereo",
    "UnknownName",
    "WrongHash",
    "available",
    "cats",
    "clips",
    "efficientnet_lite0_state",
    "faces",
    "fetch",
    "film_scenes",
    "imagenet_photos",
    "label",
    "mnist",
    "names",
    "photo",
    "photos",
    "stereo",
    "vgg16_state",
]


def names(group: str) -> list[str]:
    """Names of the files of a group, in the registry's order (UnknownName if there is none)."""
    return [file.name for file in registry().select([group])]


def label(name: str) -> str:
    """What a registered picture shows, or its ImageNet class ("" where nothing is said)."""
    return registry().find(name).label


# --- pictures --------------------------------------------------------------------------------


def photo(name: str, size: int = 128) -> torch.Tensor:
    """One registered picture: its centre square, resized with antialiasing.

    Parameters
    ----------
    name : str
        Such as "photos/chelsea.png"; `names` lists those of a group.
    size : int
        Side of the result in pixels.

    Returns
    -------
    Tensor
        (1, 3, size, size) float32, RGB in [0, 1].

    Raises
    ------
    DataError
        As `fetch`.
    """
    return _resize(_square(_read(fetch(name))), size)


def photos(names: Iterable[str], size: int = 128) -> torch.Tensor:
    """Several pictures as by `photo`: (N, 3, size, size) float32 in [0, 1]."""
    return torch.cat([photo(name, size) for name in names])


def imagenet_photos(size: int = 128) -> tuple[torch.Tensor, list[str]]:
    """Twenty photos of ImageNet classes.

    Returns
    -------
    images : Tensor
        (20, 3, size, size) float32 in [0, 1].
    labels : list of str
        Their ImageNet classes in words, such as "jeep" (twice).
    """
    found = names("imagenet")
    return photos(found, size), [label(name) for name in found]


def cats(size: int = 128) -> tuple[torch.Tensor, list[str]]:
    """Four cats: images (4, 3, size, size) float32 in [0, 1], and their breeds in words."""
    found = names("cats")
    return photos(found, size), [label(name) for name in found]


class Stereo(NamedTuple):
    """A rectified stereo pair and its true correspondences; see `stereo`."""

    left: torch.Tensor
    right: torch.Tensor
    disparity: torch.Tensor
    valid: torch.Tensor


def stereo(size: int = 128) -> Stereo:
    """Two photos of a motorcycle, and which pixel of one is which pixel of the other.

    Both photos are cropped at the same rows and columns (the centre square), then resized.

    Parameters
    ----------
    size : int
        Side of the result in pixels.

    Returns
    -------
    left, right : Tensor
        (1, 3, size, size) float32 in [0, 1].
    disparity : Tensor
        (size, size) float32, in pixels of the returned photos: what is at (row, column) of the left
        photo is at (row, column - disparity) of the right one. NaN where not `valid`. Each value is
        one true disparity, that of the nearest pixel of the full photo: an average would put
        the edge of an object at a depth where there is nothing.
    valid : Tensor
        (size, size) bool: the disparity is known, and the partner lies within the right photo.
        (Not that it is seen there: something nearer may hide it.)

    Notes
    -----
    scikit-image's own page on the pair has the sign the other way; the photos, and the tests of
    this module, say that it is as above.
    """
    left, right = (_square(_read(fetch(f"stereo/{side}.png"))) for side in ("left", "right"))
    with np.load(fetch("stereo/disparity.npz")) as file:
        full = _square(torch.from_numpy(file["arr_0"].astype(np.float32)))
    scale = size / full.shape[-1]
    disparity = F.interpolate(full[None, None], (size, size), mode="nearest-exact")[0, 0] * scale
    # Column c stands for the stretch [c, c + 1) of the photo, its middle at c + 1/2.
    partner = torch.arange(size) + 0.5 - disparity
    valid = disparity.isfinite() & (partner >= 0) & (partner < size)
    disparity = disparity.masked_fill(~valid, torch.nan)
    return Stereo(_resize(left, size), _resize(right, size), disparity, valid)


def faces(size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """The ORL faces: 40 people, ten pictures of each.

    Returns
    -------
    images : Tensor
        (400, 3, size, size) float32 in [0, 1]: the centre square (92 x 92 of 92 x 112), grey.
    labels : Tensor
        (400,) int64: the person, 0 to 39.
    """
    folder = fetch("orl_faces")
    paths = [folder / f"s{person}" / f"{k}.pgm" for person in range(1, 41) for k in range(1, 11)]
    images = torch.cat([_resize(_square(_read(path)), size) for path in paths])
    return images, torch.arange(40).repeat_interleave(10)


def mnist(per_digit: int = 500, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Handwritten digits of MNIST, white on black.

    Parameters
    ----------
    per_digit : int
        How many of each digit, 1 to 500, the first ones in the file's order.
    size : int
        Side of the result in pixels.

    Returns
    -------
    images : Tensor
        (10 * per_digit, 3, size, size) float32 in [0, 1], sorted by digit.
    labels : Tensor
        (10 * per_digit,) int64: the digit.

    Raises
    ------
    ValueError
        If ``per_digit`` is not between 1 and 500.
    """
    if not 1 <= per_digit <= 500:
        raise ValueError(f"per_digit must be between 1 and 500, not {per_digit}")
    with gzip.open(fetch("mnist/mnist_5k.csv.gz"), "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    pixels, digits = table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].long()
    chosen = torch.cat([(digits == d).nonzero()[:per_digit, 0] for d in range(10)])
    return _resize(pixels[chosen], size).repeat(1, 3, 1, 1), digits[chosen]


def clips(every: int = 10, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of the video clips, in the order of time (needs PyAV).

    Parameters
    ----------
    every : int
        Keep every so-manieth frame of a clip, from its first.
    size : int
        Side of the result in pixels.

    Returns
    -------
    frames : Tensor
        (N, 3, size, size) float32 in [0, 1]: centre squares.
    clip : Tensor
        (N,) int64: which clip, in the order of ``names("clips")``.

    Raises
    ------
    ImportError
        If PyAV is not installed.
    """
    with needs("book"):
        import av  # no other part of the book reads video

    frames, clip = [], []
    for number, name in enumerate(names("clips")):
        with av.open(str(fetch(name))) as video:
            for k, frame in enumerate(video.decode(video=0)):
                if k % every == 0:
                    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                    pixels = pixels.permute(2, 0, 1)[None].float() / 255
                    frames.append(_resize(_square(pixels), size))
                    clip.append(number)
    return torch.cat(frames), torch.tensor(clip)


# Film, first and last frame of the seven scenes, counted in every third frame; cuts found by eye.
_SCENES = {
    "roof": (0, 0, 10),
    "man": (0, 10, 26),
    "taxi": (0, 26, 46),
    "street": (0, 46, 63),
    "bicycle": (0, 63, 81),
    "carphone": (1, 0, 40),
    "rabbit": (2, 0, 44),
}


class FilmScenes(NamedTuple):
    """Frames of the seven scenes, which scene each is from, its number in it, and their names."""

    frames: torch.Tensor
    scene: torch.Tensor
    frame: torch.Tensor
    names: list[str]


def film_scenes(size: int = 128) -> FilmScenes:
    """The clips without their cuts: seven scenes, of each the last sixteen of every third frame.

    Returns
    -------
    FilmScenes
        frames (105, 3, size, size) float32 in [0, 1]; scene and frame (105,) int64; names.

    Raises
    ------
    ImportError
        As `clips`.
    """
    frames, film = clips(every=3, size=size)
    time = torch.cat([torch.arange(n) for n in film.bincount().tolist()])
    kept = [
        ((film == which) & (time >= start) & (time < stop)).nonzero()[-16:, 0]
        for which, start, stop in _SCENES.values()
    ]
    scene = torch.cat([torch.full((len(k),), i) for i, k in enumerate(kept)])
    number = torch.cat([torch.arange(len(k)) for k in kept])
    return FilmScenes(frames[torch.cat(kept)], scene, number, list(_SCENES))


# Boxes around the faces of the five cats, drawn by eye on photos of 128 x 128 pixels: top, bottom,
# left, right. The four of `cats`, then photos/chelsea.png.
CAT_FACES = (
    (32, 112, 32, 120),
    (16, 88, 24, 96),
    (8, 80, 56, 128),
    (0, 32, 64, 104),
    (8, 120, 8, 120),
)


# --- python -m bilrp.book.data --------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch files and print where they come from; returns 1 if a required one is missing."""
    parser = argparse.ArgumentParser(prog="python -m bilrp.book.data", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="files or groups; default: all chapters need")
    parser.add_argument("--all", action="store_true", help="all files, the optional ones too")
    options = parser.parse_args(arguments)
    try:
        files = registry().select(options.names) if options.names else registry().files.values()
    except UnknownName as error:
        parser.error(str(error))
    if not (options.all or options.names):
        files = [file for file in files if file.used_by and not file.optional]
    rows, failed, silent = [("what", "from", "licence", "kB", "where")], False, set()
    for file in files:
        source = file.package or file.url
        try:
            # An origin that did not answer once is not asked again for its other files.
            if source in silent and not available(file.name):
                raise NotAvailable(f"{file.name} is not here: its origin did not answer")
            place = str(fetch(file.name))
        except DataError as error:
            place = "optional, not here" if file.optional else "MISSING"
            failed |= not file.optional or bool(options.names)
            if isinstance(error, NotAvailable):
                silent.add(source)
            print(f"bilrp: {error}", file=sys.stderr)
        row = (file.name, file.origin, file.licence, f"{file.size / 1e3:.0f}", place)
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print("  ".join([*cells, row[-1]]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
