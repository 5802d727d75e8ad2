"""A store: features and factors of a collection in a folder, whole at every moment.

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
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilrp._names import needs
from bilrp.collect.compress import Basis, Packed
from bilrp.collect.inputs import Inputs
from bilrp.engine.api import factor
from bilrp.engine.factors import Factor, Identity, fingerprint
from bilrp.engine.rules import RuleBook, Rules

with needs("collect"):
    import zarr
    from filelock import FileLock, Timeout

FORMAT = 1  # of stores
FULL = (errno.ENOSPC, errno.EDQUOT)
CACHE = 2**28  # bytes of features that an open store keeps in memory, once they are checked


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
        except (ValueError, KeyError, UnicodeDecodeError) as error:
            raise StoreError(f"{file} cannot be read; build the store anew") from error
        if version != FORMAT:
            raise WrongStore(
                f"{path} is a store of format {version}; this version reads format {FORMAT}. Build "
                "it again in another folder"
            )
        identity = Identity(**found.pop("identity"))
        shapes = {name: tuple(found[name]) for name in ("input", "shape")}
        return cls(**{**found, **shapes, "identity": identity})

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
            return cls(found["sha256"], tuple(map(tuple, found["inputs"])), bad, factors)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, path: Path, k: int) -> None:
        write_whole(record_path(path, k), json.dumps(vars(self)))


def record_path(path: Path, k: int) -> Path:
    return path / "records" / f"{k:05}.json"


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, and on the disk before it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(values: np.ndarray) -> str:
    """Of an array's shape, type and numbers."""
    values = np.ascontiguousarray(values)
    total = hashlib.sha256(f"{values.shape} {values.dtype.str}".encode())
    total.update(values.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


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


class Store:
    """An open store, to search and to explain.

    Parameters
    ----------
    path : Path
        Of a store that `build` has made.
    model : nn.Module, optional
        To make features of queries, and factors that the store does not keep.
    rules : Rules, optional
        Of the model.
    inputs : Inputs, optional
        To make factors on demand.

    Attributes
    ----------
    about : About
    names : list of str
    bad : dict of int to str
        Inputs that could not be used, and why; their rows are zero, and no search returns them.
    missing : list of int
        Chunks that are not built yet.

    Raises
    ------
    StoreError
        If the folder is no store.
    WrongStore
        If it is of another model, rules or inputs than given.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module | None = None,
        rules: Rules | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        self.path = Path(path)
        self.about = About.read(self.path)
        self.names: list[str] = json.loads((self.path / "names.json").read_text(encoding="utf-8"))
        self.model, self.rules, self.inputs = model, rules, inputs
        self._refuse()
        self.bad: dict[int, str] = {}
        self.missing: list[int] = []
        self._records: list[Record | None] = []
        for k in range(self.about.chunks):
            record = Record.read(self.path, k)
            self._records.append(record)
            if record is None:
                self.missing.append(k)
            else:
                first = self.about.rows(k)[0]
                self.bad.update({first + i: why for i, why in record.bad.items()})
        self._arrays: Any = zarr.open_group(self.path / "arrays", mode="r")
        self._kept: dict[int, Tensor] = {}
        self._basis: Basis | None = None

    def _refuse(self) -> None:
        mine = self.about.identity
        if self.model is not None and fingerprint(self.model) != mine.model:
            raise WrongStore(f"{self.path} is a store of another model than the one given")
        if self.rules is not None and str(RuleBook(self.rules)) != mine.rules:
            raise WrongStore(f"{self.path} was built with the rules {mine.rules}")
        if self.inputs is not None:
            same = sha256_of(list(self.inputs.names)) == self.about.names
            if not same or self.inputs.about != self.about.inputs:
                raise WrongStore(
                    f"{self.path} is a store of other inputs ({self.about.count}, "
                    f"{self.about.inputs}) than those given ({len(self.inputs.names)}, "
                    f"{self.inputs.about})"
                )

    def __len__(self) -> int:
        return self.about.count

    def __repr__(self) -> str:
        built = f", {len(self.missing)} chunks missing" if self.missing else ""
        return (
            f"Store({self.path}, {len(self)} inputs, features {self.about.shape}, factors: "
            f"{self.about.factors}{built})"
        )

    @property
    def good(self) -> Tensor:
        """Which inputs could be used, (N,) of bool."""
        usable = torch.ones(len(self), dtype=torch.bool)
        usable[list(self.bad)] = False
        return usable

    def block(self, k: int) -> Tensor:
        """Features of the inputs of chunk k, (inputs, D) float32, compared with their checksum.

        Raises
        ------
        Damaged
            If they are not what was written.
        StoreError
            If the chunk is not built yet.
        """
        if k in self._kept:
            return self._kept[k]
        start, stop = self.about.rows(k)
        values = self._checked(k, "features", lambda: self._arrays["features"][start:stop])
        found = torch.from_numpy(np.asarray(values))
        if (len(self._kept) + 1) * found.numel() * 4 <= CACHE:
            self._kept[k] = found
        return found

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """All features, chunk by chunk: number of the first input, and (inputs, D)."""
        if self.missing:
            raise StoreError(
                f"{self.path} is not complete: {len(self.missing)} of {self.about.chunks} chunks "
                "are not built. Run the same build again, it goes on where it ended"
            )
        for k in range(self.about.chunks):
            yield self.about.rows(k)[0], self.block(k)

    def features(self) -> Tensor:
        """All features at once, (N, D) float32; for collections that fit into memory."""
        return torch.cat([block for _, block in self.blocks()])

    def copies(self, digest: str) -> list[int]:
        """Inputs whose content has this sha256."""
        records = [(k, r) for k, r in enumerate(self._records) if r is not None]
        return [
            self.about.rows(k)[0] + at
            for k, record in records
            for at, (_, known) in enumerate(record.inputs)
            if known == digest
        ]

    @torch.no_grad()
    def query(self, x: Tensor) -> Tensor:
        """Features (D,) of an input that need not be in the store, as the network takes it."""
        if self.model is None:
            raise StoreError("give the model to Store(..., model=...): a query needs it")
        return features_of(self.model, x[None])[0]

    def factor(self, i: int) -> Factor:
        """The factor of input i: as it is kept, or made now.

        Raises
        ------
        StoreError
            If it is not kept, and model, rules or inputs were not given; or if input i could not be
            used, or has changed since.
        Damaged
            If it is not what was written.
        """
        if i in self.bad:
            raise StoreError(f"{self.names[i]} could not be used: {self.bad[i]}")
        k, at = divmod(range(len(self))[i], self.about.chunk)
        if self.about.factors != "none":
            return self.packed(i).factor()
        if self.model is None or self.inputs is None:
            raise StoreError(
                "this store keeps no factors: give Store(..., model=, rules=, inputs=) to make "
                "them on demand"
            )
        record = self._records[k]
        if record is None:
            raise StoreError(f"chunk {k} of {self.path} is not built yet")
        stamp, digest = record.inputs[at]
        same = stamp and stamp == self.inputs.stamp(i)
        if not same and self.inputs.digest(i) != digest:
            raise StoreError(f"{self.names[i]} has changed since the store was built")
        return factor(self.model, self.inputs.read(i), self.rules, patch=self.about.patch)

    def packed(self, i: int) -> Packed:
        """The factor of input i as it is kept, with what is known of its error."""
        k, at = divmod(range(len(self))[i], self.about.chunk)
        record = self._records[k]
        if record is None or at not in record.factors:
            raise StoreError(f"{self.path} keeps no factor of {self.names[i]}")
        group = f"factors/{k:05}/{at}"
        mine = record.factors[at]
        arrays = {}
        for name in mine["arrays"]:
            read = partial(self._read, f"{group}/{name}")
            arrays[name] = self._checked(k, f"{at}/{name}", read)
        return Packed.of(arrays, mine, self.about.identity, self.basis)

    @property
    def basis(self) -> Basis | None:
        """The common basis of the factors, if they are kept in one."""
        if self._basis is None and self.about.factors.startswith("basis"):
            self._basis = Basis(torch.from_numpy(self._arrays["basis"][:]))
            if self._basis.name not in self.about.factors:
                raise Damaged(f"the basis of {self.path} is not what was written: build anew")
        return self._basis

    def check(self) -> list[int]:
        """Chunks that are not what was written: all numbers are read and compared."""
        damaged = []
        for k, record in enumerate(self._records):
            if record is None:
                continue
            self._kept.pop(k, None)
            try:
                self.block(k)
                for i in range(*self.about.rows(k)):
                    if self.about.factors != "none" and i not in self.bad:
                        self.packed(i)
            except Damaged:
                damaged.append(k)
        return damaged

    def _read(self, place: str) -> np.ndarray:
        return self._arrays[place][:]

    def _checked(self, k: int, name: str, read: Callable[[], Any]) -> np.ndarray:
        record = self._records[k]
        if record is None:
            raise StoreError(f"chunk {k} of {self.path} is not built yet")
        start, stop = self.about.rows(k)
        said = (
            f"chunk {k} of {self.path} ({self.names[start]} to {self.names[stop - 1]}) is damaged: "
            "run the same build again, it makes this chunk anew"
        )
        try:
            values = np.asarray(read())
        except Exception as error:  # whatever a decoder says of broken bytes
            raise Damaged(said) from error
        if sha256(values) != record.sha256.get(name):
            raise Damaged(said)
        return values


def sha256_of(names: list[str]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def features_of(model: nn.Module, batch: Tensor) -> Tensor:
    """What the model itself makes of a batch, (N, D) float32; no owner, no rule."""
    device = next((t.device for t in model.parameters()), batch.device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        out = model(batch.to(device))
    if not isinstance(out, Tensor) or out.shape[:1] != batch.shape[:1]:
        raise ValueError("the model must give one tensor whose first dimension is the batch")
    return out.flatten(1).float().cpu()
