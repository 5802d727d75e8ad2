"""An open store: features and factors of a collection in a folder, each compared with its checksum.

How it lies on the disk, and why it is whole at every moment, says `records`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilrp._names import needs
from bilrp.collect.compress import Basis, Packed
from bilrp.collect.inputs import Inputs
from bilrp.collect.records import About, Damaged, Record, StoreError, WrongStore, sha256, sha256_of
from bilrp.engine.api import factor
from bilrp.engine.defaults import default_rules
from bilrp.engine.factors import Factor
from bilrp.engine.fingerprint import fingerprint
from bilrp.engine.rules import RuleBook, Rules

with needs("collect"):
    import zarr

CACHE = 2**28  # bytes of features that an open store keeps in memory, once they are checked


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
        Of the inputs, in their order.
    bad : dict of int to str
        Inputs that could not be used, and why; their rows are zero, and no search returns them.
    missing : list of int
        Chunks that are not built yet.

    Raises
    ------
    StoreError
        If the folder is no store, or its names are damaged.
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
        self.names = _names(self.path, self.about)
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
        self._kept: dict[int, Tensor] = {}
        self._basis: Basis | None = None

    @cached_property
    def _arrays(self) -> Any:
        # when the first number is read: a build that was killed early has none
        return zarr.open_group(self.path / "arrays", mode="r")

    def _refuse(self) -> None:
        mine = self.about.identity
        if self.model is not None:
            refuse_training(self.model)
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
        return self._block(k).clone()

    def _block(self, k: int) -> Tensor:
        if k in self._kept:
            return self._kept[k]
        start, stop = self.about.rows(k)
        values = self._checked(k, "features", lambda: self._arrays["features"][start:stop])
        found = torch.from_numpy(np.asarray(values))
        if (len(self._kept) + 1) * found.numel() * 4 <= CACHE:
            self._kept[k] = found
        return found

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """All features, chunk by chunk: number of the first input, and (inputs, D) to be read only.

        They are not copied, for a search reads them all.
        """
        if self.missing:
            raise StoreError(
                f"{self.path} is not complete: {len(self.missing)} of {self.about.chunks} chunks "
                "are not built. Run the same build again, it goes on where it ended"
            )
        for k in range(self.about.chunks):
            yield self.about.rows(k)[0], self._block(k)

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
        refuse_training(self.model)
        return features_of(self.model, x[None])[0]

    def factor(self, i: int) -> Factor:
        """The factor of input i: as it is kept, or made now.

        Raises
        ------
        StoreError
            If it is not kept, and model, rules or inputs were not given; or if input i could not be
            used, or has changed since.
        WrongStore
            If it would be made by other rules than the store's.
        Damaged
            If it is not what was written.
        """
        i = range(len(self))[i]
        if i in self.bad:
            raise StoreError(f"{self.names[i]} could not be used: {self.bad[i]}")
        k, at = divmod(i, self.about.chunk)
        if self.about.factors != "none":
            return self.packed(i).factor()
        if self.model is None or self.inputs is None:
            raise StoreError(
                "this store keeps no factors: give Store(..., model=, rules=, inputs=) to make "
                "them on demand"
            )
        rules = default_rules(self.model) if self.rules is None else self.rules
        if str(RuleBook(rules)) != self.about.identity.rules:
            raise WrongStore(
                f"{self.path} was built with the rules {self.about.identity.rules}, which are not "
                "the default ones: give Store(..., rules=)"
            )
        record = self._records[k]
        if record is None:
            raise StoreError(f"chunk {k} of {self.path} is not built yet")
        stamp, digest = record.inputs[at]
        same = stamp and stamp == self.inputs.stamp(i)
        if not same and self.inputs.digest(i) != digest:
            raise StoreError(f"{self.names[i]} has changed since the store was built")
        return factor(self.model, self.inputs.read(i), rules, patch=self.about.patch)

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
        """The common basis of the factors, if they are kept in one.

        Raises
        ------
        Damaged
            If it is not what was written.
        """
        if self._basis is None and self.about.factors.startswith("basis"):
            said = f"the basis of {self.path} is damaged: run the same build again, it mends it"
            try:
                found = Basis(torch.from_numpy(self._read("basis")))
            except Exception as error:  # whatever a decoder says of broken bytes
                raise Damaged(said) from error
            if found.name != self.about.factors:
                raise Damaged(said)
            self._basis = found
        return self._basis

    def check(self) -> list[int]:
        """Chunks that are not what was written: all numbers are read and compared.

        If a common basis is damaged, these are all chunks whose factors are kept in it.
        """
        damaged = []
        self._basis = None
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


def refuse_training(model: nn.Module) -> None:
    """ValueError for a model whose features depend on chance or on what else is in the batch."""
    if any(m.training for m in model.modules()):
        raise ValueError("the model is in training mode: call model.eval()")


def output_of(model: nn.Module, batch: Tensor) -> Tensor:
    """What the model itself makes of a batch, brought where its parameters are, in their format."""
    device = next((t.device for t in model.parameters()), batch.device)
    if batch.is_floating_point():  # `factor` takes any format, so features must
        formats = (t.dtype for t in model.parameters() if t.is_floating_point())
        batch = batch.to(next(formats, batch.dtype))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        out = model(batch.to(device))
    if not isinstance(out, Tensor) or out.shape[:1] != batch.shape[:1]:
        raise ValueError("the model must give one tensor whose first dimension is the batch")
    return out


def features_of(model: nn.Module, batch: Tensor) -> Tensor:
    """What the model itself makes of a batch, (N, D) float32; no owner, no rule."""
    return output_of(model, batch).flatten(1).float().cpu()


def _names(path: Path, about: About) -> list[str]:
    """The names of the inputs, compared with their checksum."""
    try:
        found = json.loads((path / "names.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        found = None
    if sha256_of(found) != about.names:
        raise StoreError(
            f"{path / 'names.json'} is not what was written: run the same build again, it writes "
            "the names anew"
        )
    return found
