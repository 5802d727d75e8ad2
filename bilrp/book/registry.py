"""What data/registry.toml says: the files the book uses, their origins, licences and hashes."""

import hashlib
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from bilrp._names import needs

with needs("vgg"):
    import pooch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]  # of a checkout


class DataError(RuntimeError):
    """A file cannot be had."""


class NotAvailable(DataError):
    """No copy of the file here, and its origin did not answer."""


class WrongHash(DataError):
    """The sha256 of a file is not the registered one: the file is refused."""

    def __init__(self, what: str | Path, expected: str, found: str):
        super().__init__(
            f"{what} is refused: its sha256 is not the registered one "
            f"(cut short, damaged, or another version).\n"
            f"  expected: {expected}\n  found:    {found}"
        )


class UnknownName(DataError, KeyError):
    """The registry has no file or group of this name."""

    __str__ = RuntimeError.__str__  # KeyError would print the quoted repr


@dataclass(frozen=True)
class Package:
    """One file of one version of a registry package: ``form`` is "sdist" or "wheel"."""

    name: str
    version: str
    form: str
    sha256: str
    size: int


@dataclass(frozen=True)
class File:
    """One entry of data/registry.toml, whose opening lines explain the fields."""

    name: str
    sha256: str
    size: int
    group: str
    licence: str
    credit: str
    used_by: list[str]
    optional: bool
    path: str = ""
    suffix: str = ""
    label: str = ""
    package: Package | None = None
    module: str = ""
    url: str = ""

    @property
    def origin(self) -> str:
        """Where the file comes from, in words."""
        if self.package:
            return f"package {self.package.name} {self.package.version}, {self.path}"
        if self.module:
            return f"installed with {self.module}, {self.path}"
        return self.url + self.path if self.url else "no address: place it by hand"


class Registry:
    """The entries of one registry file.

    Parameters
    ----------
    path : Path
        A TOML file laid out as data/registry.toml.
    """

    def __init__(self, path: Path):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        packages = {name: Package(name, **rest) for name, rest in table["packages"].items()}
        self.files: dict[str, File] = {}
        for group in table["groups"]:
            shared = {k: v for k, v in group.items() if k not in ("name", "files", "package")}
            package = packages[group["package"]] if "package" in group else None
            for entry in group["files"]:
                file = File(**entry, **shared, group=group["name"], package=package)
                self.files[file.name] = file

    def select(self, names: Iterable[str]) -> list[File]:
        """The files named, in the registry's order; the name of a group stands for its files.

        Raises
        ------
        UnknownName
            Lists the names that come close.
        """
        names = list(names)
        known = set(self.files) | {file.group for file in self.files.values()}
        for name in names:
            if name not in known:
                close = get_close_matches(name, known, n=5, cutoff=0.5)
                hint = f"; did you mean {', '.join(close)}?" if close else ""
                raise UnknownName(f"no file or group named {name!r} in the registry{hint}")
        return [f for f in self.files.values() if f.name in names or f.group in names]

    def find(self, name: str) -> File:
        """The one file of this name (UnknownName otherwise)."""
        if name not in self.files:
            self.select([name])  # complains, with the names that come close, unless it is a group
            raise UnknownName(f"{name!r} is a group of files; see bilrp.data.names({name!r})")
        return self.files[name]


@cache
def registry() -> Registry:
    """The book's registry: data/registry.toml of a checkout, or its copy in a wheel."""
    inside = HERE / "registry.toml"
    return Registry(inside if inside.exists() else ROOT / "data" / "registry.toml")


def cache_dir() -> Path:
    """``BILRP_CACHE``, or data/cache of a checkout, or the user's own cache folder."""
    if folder := os.environ.get("BILRP_CACHE"):
        return Path(folder).expanduser()
    data = ROOT / "data"
    # A cache that came filled with a read-only checkout is still worth reading.
    if (data / "registry.toml").exists() and (
        (data / "cache").is_dir() or os.access(data, os.W_OK)
    ):
        return data / "cache"
    return pooch.os_cache("bilrp")


def digest(content: Path | bytes | dict[str, bytes], suffix: str = "") -> str:
    """Sha256 (hex) of a file, of bytes, or of a folder (its ``suffix`` files, see the registry)."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, Path) and content.is_file():
        with content.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if isinstance(content, Path):
        found = (p for p in content.rglob(f"*{suffix}") if p.is_file())
        content = {p.relative_to(content).as_posix(): p.read_bytes() for p in found}
    lines = (f"{digest(data)}  {name}\n" for name, data in sorted(content.items()))
    return digest("".join(lines).encode())


def check(content: Path | bytes | dict[str, bytes], file: File, where: str | Path) -> None:
    """Raise `WrongHash` unless ``content``, found at ``where``, is the registered ``file``."""
    found = digest(content, file.suffix)
    if found != file.sha256:
        raise WrongHash(where, file.sha256, found)
