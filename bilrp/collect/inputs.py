"""What a collection is made of: photos in a folder, or tensors at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Protocol

import torch
from torch import Tensor

from bilrp import _pictures
from bilrp._names import needs


class BadInput(Exception):
    """One input cannot be used; the message says why, without its name."""


class Inputs(Protocol):
    """What `build` asks of a collection.

    `about` says how inputs were prepared, `names` are their names, `part` is the collection of some
    of them, `read` gives one as the network takes it, `stamp` is cheap and changes when an input
    does, `digest` is the sha256 of its content.
    """

    @property
    def about(self) -> str: ...
    @property
    def names(self) -> Sequence[str]: ...
    def part(self, start: int, stop: int) -> Inputs: ...
    def read(self, i: int) -> Tensor: ...
    def stamp(self, i: int) -> str: ...
    def digest(self, i: int) -> str: ...


def plain(x: Tensor) -> Tensor:
    """Pixels as they are, in [0, 1]."""
    return x


@dataclass(frozen=True)
class Photos:
    """Photos of a folder, each as the centre square of the picture, resized.

    Parameters
    ----------
    root : Path
        The folder.
    names : tuple of str
        Paths below it. `Photos.of` finds them.
    size : int
        Side in pixels of what the network gets.
    prepare : callable (3, H, W) -> (3, H, W)
        From pixels in [0, 1] to the network's input; a function of a module, such as
        `bilrp.normalize`, so that a store can know it by name.

    Notes
    -----
    Photos are turned as their EXIF data say; transparent parts are shown on white. A photo whose
    shorter side is less than half of `size` is refused: enlarging it would invent pixels.
    """

    root: Path
    names: tuple[str, ...]
    size: int = 128
    prepare: Callable[[Tensor], Tensor] = plain

    def __post_init__(self) -> None:
        name = getattr(self.prepare, "__qualname__", "<none>")
        if "<" in name or not isinstance(self.prepare, FunctionType):
            raise ValueError(
                "prepare must be a function with a name of its own in a module, for a store must "
                f"tell it from others; got {self.prepare!r}"
            )

    @classmethod
    def of(
        cls, folder: str | Path, size: int = 128, prepare: Callable[[Tensor], Tensor] = plain
    ) -> Photos:
        """All pictures in a folder and the folders in it, by path; hidden files are left out.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        ValueError
            If no file in it has the suffix of a picture.
        """
        with needs("plot"):
            from PIL import Image

        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}")
        suffixes = Image.registered_extensions()
        found = (p for p in root.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        names = sorted(p.relative_to(root).as_posix() for p in found)
        names = [n for n in names if not any(part.startswith(".") for part in n.split("/"))]
        if not names:
            raise ValueError(f"no file in {root} has the suffix of a picture, such as .jpg or .png")
        return cls(root, tuple(names), size, prepare)

    @property
    def about(self) -> str:
        f = self.prepare
        return f"centre square, {self.size} x {self.size}, {f.__module__}.{f.__qualname__}"

    def part(self, start: int, stop: int) -> Photos:
        return replace(self, names=self.names[start:stop])

    def pixels(self, i: int) -> Tensor:
        """Photo i, cut and resized: (3, size, size) in [0, 1] (`BadInput` if that cannot be)."""
        return read_photo(self.root / self.names[i], self.size)

    def read(self, i: int) -> Tensor:
        return self.prepare(self.pixels(i))

    def stamp(self, i: int) -> str:
        try:
            about = (self.root / self.names[i]).stat()
        except OSError:
            return ""
        return f"{about.st_size} {about.st_mtime_ns}"

    def digest(self, i: int) -> str:
        try:
            with (self.root / self.names[i]).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""


def read_photo(path: Path, size: int) -> Tensor:
    """The centre square of a photo, (3, size, size) in [0, 1]; `BadInput` says what is wrong."""
    with needs("plot"):
        from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode, shorter = image.mode, min(image.size)
        if mode.startswith(("I", "F")):  # conversion would cut off what exceeds 255
            raise BadInput(f"has {mode} pixels, not bytes; save it as an 8-bit picture")
        if 2 * shorter < size:
            raise BadInput(f"too small: {shorter} pixels where at least {size // 2} are needed")
        return _pictures.resize(_pictures.square(_pictures.read(path)), size)[0]
    except FileNotFoundError as error:
        raise BadInput("is not there") from error
    except UnidentifiedImageError as error:
        raise BadInput("is not a picture in a format that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput("has more pixels than is safe to open") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
        raise BadInput(f"cannot be read: {error}") from error


@dataclass(frozen=True)
class Tensors:
    """Inputs at hand, as the network takes them.

    Parameters
    ----------
    values : Tensor (N, ...) or sequence of Tensor
    names : tuple of str
        Default of `Tensors.of`: their numbers.
    """

    values: Tensor | Sequence[Tensor]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Tensor | Sequence[Tensor], names: Sequence[str] | None = None) -> Tensors:
        """Inputs with names (ValueError if there are none, or not as many names)."""
        names = tuple(map(str, range(len(values)))) if names is None else tuple(names)
        if len(values) == 0 or len(names) != len(values):
            raise ValueError(f"{len(values)} inputs, {len(names)} names: give as many, 1 or more")
        return cls(values, names)

    @property
    def about(self) -> str:
        return "tensors"

    def part(self, start: int, stop: int) -> Tensors:
        # a copy: a slice would be sent to other processes with all that it is a slice of
        cut = self.values[start:stop]
        cut = cut.clone() if isinstance(cut, Tensor) else [v.clone() for v in cut]
        return Tensors(cut, self.names[start:stop])

    def read(self, i: int) -> Tensor:
        x = self.values[i]
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise BadInput("holds NaN or infinite values")
        return x

    def stamp(self, i: int) -> str:
        return ""

    def digest(self, i: int) -> str:
        x = self.values[i].detach().cpu().contiguous()
        total = hashlib.sha256(f"{tuple(x.shape)} {x.dtype}".encode())
        if x.numel():
            total.update(x.flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()
