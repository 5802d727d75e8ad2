"""What a store writes beside its numbers: what it is of, which chunks are whole, who builds.

    lock, builder.json    who builds
    store.json            what the store is of: model, rules, inputs, shapes; written first
    names.json            the names of the inputs
    arrays/features       zarr, one chunk for so many inputs
    arrays/factors/00007  zarr, the factors of chunk 7, if they are kept
    records/00007.json    written last: chunk 7 is whole; sha256 of all its numbers, bad inputs

A chunk without its record does not count, so whatever is killed leaves a whole store behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilrp._checks import check_whole
from bilrp._files import UNFINISHED, replaced
from bilrp._names import needs
from bilrp.engine.factors import Identity

with needs("collect"):
    from filelock import FileLock, Timeout

FORMAT = 1  # of stores
FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(RuntimeError):
    """Something is wrong with a store; the message says what, and what to do."""


class StoreBusy(StoreError):
    """Another process builds this store."""


class WrongStore(StoreError):
    """The store is of another model, of other rules or inputs."""


class Damaged(StoreError):
    """A chunk is not what was written."""


@dataclass(frozen=True)
class About:
    """What a store is of; a store is continued and opened only by what has the same.

    Attributes
    ----------
    identity : Identity
        Model, rules and projection, as factors know them.
    inputs : str
        How inputs were prepared.
    names : str
        Sha256 of the names of the inputs.
    count, chunk : int
        Inputs, and inputs of one chunk.
    input, shape : tuple of int
        Shapes of one input, and of its features.
    factors : str
        "none", "exact", "float16", "rank 32" or "basis 512 (its sha256)".
    patch : int
    recipe : dict
        What the command `bilrp` needs to make model and inputs again.
    """

    identity: Identity
    inputs: str
    names: str
    count: int
    chunk: int
    input: tuple[int, ...]
    shape: tuple[int, ...]
    factors: str
    patch: int
    recipe: dict[str, Any]

    @property
    def chunks(self) -> int:
        return -(-self.count // self.chunk)

    def rows(self, k: int) -> tuple[int, int]:
        """First input of chunk k, and the first after it."""
        return k * self.chunk, min(self.count, (k + 1) * self.chunk)

    def text(self) -> str:
        return json.dumps({"format": FORMAT, **vars(self), "identity": vars(self.identity)})

    @classmethod
    def read(cls, path: Path) -> About:
        """The manifest of a store (`StoreError` if there is none that can be read)."""
        file = path / "store.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            version = found.pop("format")
        except FileNotFoundError:
            raise StoreError(f"{path} is no store: it has no store.json") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{file} is not that of a store; build in another folder") from error
        if version != FORMAT:
            raise WrongStore(
                f"{path} is a store of format {version}; this version reads format {FORMAT}. Build "
                "it again in another folder"
            )
        try:
            identity = Identity(**found.pop("identity"))
            shapes = {
                name: tuple(check_whole(name, n, 0) for n in found[name])
                for name in ("input", "shape")
            }
            about = cls(**{**found, **shapes, "identity": identity})
            for name in ("chunk", "count", "patch"):
                check_whole(name, getattr(about, name))
            if not isinstance(about.recipe, dict):
                raise ValueError(f"recipe is {about.recipe!r}")
        except (ValueError, KeyError, TypeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise StoreError(f"{file} is damaged: {what}; build in another folder") from error
        return about

    def refuse_unless(self, other: About, path: Path) -> None:
        """`WrongStore`, with all differences, unless `other`, which is wanted, is the same."""
        said = {
            "inputs": "inputs are prepared as",
            "count": "number of inputs",
            "input": "shape of an input",
            "shape": "shape of the features",
            "factors": "kept factors",
            "patch": "patch",
            "chunk": "inputs of a chunk",
        }
        wrong = [
            f"{words}: {getattr(self, name)} there, {getattr(other, name)} here"
            for name, words in said.items()
            if getattr(self, name) != getattr(other, name)
        ]
        if not wrong and self.names != other.names:
            wrong = ["the inputs have other names"]
        if self.identity.model != other.identity.model:
            wrong.insert(
                0, f"the model is another: {self.identity.model} there, {other.identity.model} here"
            )
        if self.identity.rules != other.identity.rules:
            wrong.insert(0, f"rules: {self.identity.rules} there, {other.identity.rules} here")
        if wrong:
            raise WrongStore(
                f"{path} is a store of something else. {'; '.join(wrong)}. Build in another folder"
            )


@dataclass(frozen=True)
class Record:
    """That a chunk is whole.

    Attributes
    ----------
    sha256 : dict
        Of the numbers of each array.
    inputs : tuple of (str, str)
        Stamp and digest of each input.
    bad : dict of int to str
        Inputs that could not be used, by their place in the chunk, and why.
    factors : dict of int to dict
        For each kept factor, by its place in the chunk: what its arrays mean.
    """

    sha256: Mapping[str, str]
    inputs: tuple[tuple[str, str], ...]
    bad: Mapping[int, str]
    factors: Mapping[int, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path, k: int) -> Record | None:
        """The record of chunk k; None if the chunk is not whole."""
        try:
            found = json.loads(record_path(path, k).read_text(encoding="utf-8"))
            bad, factors = (
                {int(i): v for i, v in found[name].items()} for name in ("bad", "factors")
            )
            inputs = tuple((stamp, digest) for stamp, digest in found["inputs"])
            return cls(dict(found["sha256"]), inputs, bad, factors)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, path: Path, k: int) -> None:
        write_whole(record_path(path, k), json.dumps(vars(self)))


def record_path(path: Path, k: int) -> Path:
    return path / "records" / f"{k:05}.json"


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, and on the disk before it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as new, new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def refuse_foreign(path: Path) -> None:
    """`StoreError` if a folder holds what no build has put there; before anything is written.

    With a store.json it is a store. Without one there may be what a build leaves that was killed
    before: its lock, which is empty, and who had it.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file: give a folder for the store")
    if not path.is_dir():
        return
    if (path / "store.json").exists():
        About.read(path)
        return
    lock = path / "lock"
    locked = lock.is_file() and lock.stat().st_size == 0
    own = {"lock", "builder.json", "store.json"} if locked else set()
    foreign = sorted(p.name for p in path.iterdir() if UNFINISHED.sub("", p.name) not in own)
    if foreign:
        raise StoreError(
            f"{path} is no store and holds other things, such as {foreign[0]}: give a folder that "
            "is empty or not there yet"
        )


def sweep(path: Path) -> None:
    """Remove what a killed builder of this store was writing, and nothing else."""
    mine = ("store.json.*", "names.json.*", "builder.json.*", "records/*", "arrays/**/*")
    for half in [p for pattern in mine for p in path.glob(pattern) if UNFINISHED.search(p.name)]:
        half.unlink(missing_ok=True)


def sha256(values: np.ndarray) -> str:
    """Of an array's shape, type and numbers."""
    values = np.ascontiguousarray(values)
    total = hashlib.sha256(f"{values.shape} {values.dtype.str}".encode())
    total.update(values.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def sha256_of(names: Any) -> str:
    """Of what JSON can hold."""
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


@contextmanager
def told_of_full_disks(path: Path, what: str) -> Iterator[None]:
    """Say what a full disk means for a store: nothing that is there is harmed."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StoreError(
                f"the disk of {path} is full: {what} was not written. What is there is whole: "
                "make room and run the same again, it goes on from here"
            ) from error
        raise


@contextmanager
def builder(path: Path) -> Iterator[None]:
    """Be the only one that builds this store; the lock of a process that died is free.

    Raises
    ------
    StoreBusy
        If another process builds it: says which.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(path / "lock"), path / "builder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            who = json.loads(note.read_text(encoding="utf-8"))
        raise StoreBusy(
            f"{path} is being built by process {who.get('pid', '?')} on {who.get('host', '?')}: "
            "wait for it, or end it, and run again"
        ) from None
    try:
        write_whole(note, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        lock.release()
