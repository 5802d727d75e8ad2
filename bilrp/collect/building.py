"""Build a store: chunk by chunk, on this machine or on a cluster, and on from where it ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilrp._checks import check_whole, is_whole
from bilrp._names import needs
from bilrp.collect.compress import Basis, pack
from bilrp.collect.inputs import BadInput, Inputs, Tensors
from bilrp.collect.records import (
    About,
    Record,
    StoreError,
    WrongStore,
    builder,
    record_path,
    refuse_foreign,
    sha256,
    sha256_of,
    sweep,
    told_of_full_disks,
    write_whole,
)
from bilrp.collect.store import Store, features_of, output_of, refuse_training
from bilrp.engine.api import factor
from bilrp.engine.defaults import default_rules
from bilrp.engine.factors import Identity
from bilrp.engine.fingerprint import fingerprint
from bilrp.engine.owners import owners_of
from bilrp.engine.rules import RuleBook, Rules

with needs("collect"):
    import dask
    import zarr
    from dask.callbacks import Callback
    from tqdm import tqdm

Model = nn.Module | Callable[[], nn.Module]
Keep = str | int | Basis | None

ANSWER = 10  # seconds that a scheduler has to answer


@dataclass(frozen=True, eq=False)
class Job:
    """What every chunk of a store is made with; travels to the workers once."""

    path: Path
    about: About
    model: Model
    rules: Rules
    keep: Keep


def build(
    path: str | Path,
    inputs: Inputs | Tensor,
    model: Model,
    rules: Rules | None = None,
    factors: Keep = None,
    patch: int = 8,
    chunk: int = 32,
    scheduler: Any = None,
    workers: int | None = None,
    recipe: dict[str, Any] | None = None,
) -> Store:
    """Build a store, or go on with one, and open it.

    Parameters
    ----------
    path : Path
        A folder, on a disk that all workers share: one that is empty or not there yet. If a store
        of the same things is there already, only what is missing, damaged or changed is made.
    inputs : Inputs, or Tensor (N, ...)
        Such as `Photos.of(folder, 128, bilrp.normalize)`.
    model : nn.Module, or callable without arguments that returns it
        In eval mode. On a cluster a callable travels lighter than a network.
    rules : Rules, optional
        Of the factors. Default: `bilrp.default_rules`.
    factors : "exact", "float16", int, Basis, or None
        Keep factors, and how: see `pack`. Default: none; they are made on demand.
    patch : int
        Of the factors, in pixels.
    chunk : int
        Inputs of one chunk: what a killed process loses, and what is in memory at once.
    scheduler : optional
        None: one chunk after another, each with all threads of torch. "threads": several at once
        in this process. A Client of dask.distributed or the address of a scheduler: on its workers.
    workers : int, optional
        With "threads": how many chunks at once.
    recipe : dict, optional
        Kept in the store as JSON, for the command `bilrp`; the newest counts.

    Returns
    -------
    Store
        Look at its `bad`: inputs that could not be used. The next build tries those again that
        have changed.

    Raises
    ------
    StoreBusy
        If another process builds this store.
    WrongStore
        If the folder has a store of something else: says what differs.
    StoreError
        If the folder holds something that is no store, the disk is full, or no input at all can
        be used. What is there stays whole.
    ValueError
        If the model is in training mode, or for options that do not fit.
    """
    path = Path(path)
    recipe = _as_kept({} if recipe is None else recipe)
    refuse_foreign(path)
    _refuse_options(factors, patch)
    patch, chunk = int(patch), check_whole("chunk", chunk)
    factors = int(factors) if isinstance(factors, Integral) else factors
    inputs = Tensors.of(inputs) if isinstance(inputs, Tensor) else inputs
    made = model if isinstance(model, nn.Module) else model()
    refuse_training(made)
    rules = default_rules(made) if rules is None else rules
    with told_of_full_disks(path, "the store"), builder(path):
        about = _about(inputs, made, rules, factors, patch, chunk, recipe)
        todo = _prepare(path, about, inputs, factors)
        job = Job(path, about, model, rules, factors)
        parts = [(k, inputs.part(*about.rows(k))) for k in todo]
        done = sum(len(range(*about.rows(k))) for k in range(about.chunks) if k not in set(todo))
        with tqdm(total=about.count, initial=done, desc="inputs", unit="input") as bar:
            for count in _run(job, parts, scheduler, workers):
                bar.update(count)
    store = Store(path, made, rules, inputs)
    if len(store.bad) == len(store):
        raise StoreError(f"none of the {len(store)} inputs can be used: {store.bad[0]}")
    return store


def _as_kept(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as it is read again (ValueError if JSON cannot hold it); before any work."""
    try:
        found = json.loads(json.dumps(recipe))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"recipe must hold what JSON can, text, Python's numbers, lists and dicts: {error}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"recipe must be a dict, got {recipe!r}")
    return found


def _refuse_options(keep: Keep, patch: int) -> None:
    """ValueError for what no store can be made with; before anything is written."""
    known = isinstance(keep, Basis) or keep in (None, "exact", "float16")
    if not known and not is_whole(keep):
        raise ValueError(
            f'factors must be None, "exact", "float16", a rank >= 1 or a Basis, got {keep!r}'
        )
    check_whole("patch", patch)


def _about(
    inputs: Inputs,
    model: nn.Module,
    rules: Rules,
    keep: Keep,
    patch: int,
    chunk: int,
    recipe: dict[str, Any],
) -> About:
    """The manifest; the shape of the features is that of the first input that can be read."""
    for i in range(len(inputs.names)):
        try:
            x = inputs.read(i)
        except BadInput:
            continue
        shape = tuple(output_of(model, x[None]).shape[1:])
        break
    else:
        raise StoreError(f"none of the {len(inputs.names)} inputs can be used")
    kept = (
        keep.name if isinstance(keep, Basis) else f"rank {keep}" if isinstance(keep, int) else keep
    )
    if isinstance(keep, Basis) and keep.rows.shape[1] != np.prod(shape):
        raise ValueError(
            f"the basis is of {keep.rows.shape[1]} features, the model makes {np.prod(shape)}"
        )
    if x.dim() == 3 and x.is_floating_point():
        owners_of(x[None], patch, None)  # refuses a patch that does not divide the picture
    return About(
        identity=Identity(fingerprint(model), str(RuleBook(rules)), "none, exact"),
        inputs=inputs.about,
        names=sha256_of(list(inputs.names)),
        count=len(inputs.names),
        chunk=chunk,
        input=tuple(x.shape),
        shape=shape,
        factors=kept or "none",
        patch=patch,
        recipe=recipe,
    )


def _prepare(path: Path, about: About, inputs: Inputs, keep: Keep) -> list[int]:
    """Make the empty store, or compare with the one that is there: the chunks to be made."""
    new = not (path / "store.json").exists()
    if not new:
        there = About.read(path)
        try:
            there.refuse_unless(about, path)
        except WrongStore:
            # without a single chunk nothing is lost, such as after a first try by wrong options
            if any(path.glob("records/*.json")):
                raise
            new = True
    sweep(path)
    if new:
        shutil.rmtree(path / "arrays", ignore_errors=True)
        write_whole(path / "store.json", about.text())
    names = json.dumps(list(inputs.names))
    if new or _text(path / "names.json") != names:
        write_whole(path / "names.json", names)
    _mend_arrays(path, about, keep)
    store = Store(path)
    for k in store.check():  # a chunk without its record is made anew
        tqdm.write(f"chunk {k} of {path} is damaged and is made anew")
        record_path(path, k).unlink()
    for k in range(about.chunks):
        record = Record.read(path, k)
        if record is not None and _bad_ones_changed(path, about, inputs, k, record):
            record_path(path, k).unlink()
    if about.recipe and store.about.recipe != about.recipe:  # the same photos, in another folder
        write_whole(path / "store.json", about.text())
    return [k for k in range(about.chunks) if Record.read(path, k) is None]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _mend_arrays(path: Path, about: About, keep: Keep) -> None:
    """Make what chunks are written to, where it is missing or cannot be opened.

    What zarr knows of an array lies in a file of its own; the chunks beside it stay, and are
    compared with their checksums like all others.
    """
    top, size = path / "arrays", int(np.prod(about.shape))
    wanted: dict[str, Any] = dict(
        shape=(about.count, size), chunks=(about.chunk, size), dtype="float32"
    )
    arrays: Any = _opened(top, lambda: zarr.open_group(top, mode="r+"))
    if arrays is None:
        arrays = zarr.open_group(top, mode="a")
    features = _opened(top / "features", lambda: arrays["features"])
    if features is None or any(getattr(features, name) != v for name, v in wanted.items()):
        (top / "features" / "zarr.json").unlink(missing_ok=True)
        arrays.create_array("features", **wanted)
    if keep is not None and _opened(top / "factors", lambda: arrays["factors"]) is None:
        arrays.create_group("factors")  # before any worker, for they would all want to
    if isinstance(keep, Basis):
        basis = _opened(top / "basis", lambda: Basis(torch.from_numpy(arrays["basis"][:])))
        if basis is None or basis.name != keep.name:
            arrays.create_array("basis", data=keep.rows.numpy(), overwrite=True)


def _opened(folder: Path, open_it: Callable[[], Any]) -> Any:
    """A group or array of zarr; None if it cannot be opened, and then what hinders it is gone."""
    try:
        return open_it()
    except Exception:  # whatever zarr and its decoders say of what is spoiled
        (folder / "zarr.json").unlink(missing_ok=True)
        return None


def _bad_ones_changed(path: Path, about: About, inputs: Inputs, k: int, record: Record) -> bool:
    """Whether an input that could not be used is another now; `WrongStore` if a used one is."""
    first = about.rows(k)[0]
    again = False
    for at, (stamp, digest) in enumerate(record.inputs):
        i = first + at
        if (stamp and stamp == inputs.stamp(i)) or digest == inputs.digest(i):
            continue
        if at not in record.bad:
            raise WrongStore(
                f"{inputs.names[i]} has changed since it was put into {path}: build in another "
                "folder, or bring the old file back"
            )
        again = True
    return again


def _run(
    job: Job, parts: list[tuple[int, Inputs]], scheduler: Any, workers: int | None
) -> Iterator[int]:
    """Make chunks; yields how many inputs each had."""
    if not parts:
        return
    if scheduler is None:
        yield from (make_chunk(job, k, part) for k, part in parts)
        return
    shared = dask.delayed(job, pure=False, traverse=False)
    tasks = [dask.delayed(make_chunk, pure=False)(shared, k, part) for k, part in parts]
    if scheduler == "threads":
        counted: list[int] = []
        with _counting(counted):
            dask.compute(*tasks, scheduler="threads", num_workers=workers)
        yield from counted
        return
    with needs("collect"):
        from distributed import Client, as_completed

    client = scheduler if isinstance(scheduler, Client) else _client(scheduler)
    futures = client.compute(tasks)
    try:
        # a worker that dies costs its chunk, which another one makes
        for future in as_completed(futures):
            yield future.result()
    finally:
        client.cancel(futures)  # of an error: nothing more is written
        if client is not scheduler:
            client.close()


def _client(address: str) -> Any:
    """A client of the scheduler at an address (`StoreError` if none answers)."""
    from distributed import Client

    try:
        return Client(address, timeout=ANSWER)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"no scheduler of Dask answers at {address!r}: start one by `dask scheduler`, and "
            "workers that see the same files, or build without"
        ) from error


@contextmanager
def _counting(counted: list[int]) -> Iterator[None]:
    def seen(key: Any, result: Any, *_: Any) -> None:
        if isinstance(result, int):
            counted.append(result)

    with Callback(posttask=seen):
        yield


def make_chunk(job: Job, k: int, part: Inputs) -> int:
    """Read, compute and write one chunk; its record comes last. Returns how many inputs it had.

    Raises
    ------
    StoreError
        If the disk is full.
    """
    model = _model(job)
    good: dict[int, Tensor] = {}
    bad: dict[int, str] = {}
    seen = [(part.stamp(i), part.digest(i)) for i in range(len(part.names))]
    for i in range(len(part.names)):
        try:
            x = part.read(i)
            if tuple(x.shape) != job.about.input:
                raise BadInput(f"has the shape {tuple(x.shape)}, others have {job.about.input}")
            good[i] = x
        except BadInput as error:
            bad[i] = str(error)
    values = np.zeros((len(part.names), int(np.prod(job.about.shape))), np.float32)
    if good:
        values[list(good)] = features_of(model, torch.stack(list(good.values()))).numpy()
    for i in [i for i in good if not np.isfinite(values[i]).all()]:
        values[i], bad[i] = 0, "the model makes NaN or infinite features of it"
        del good[i]
    start, stop = job.about.rows(k)
    with told_of_full_disks(job.path, f"chunk {k}"):
        arrays: Any = zarr.open_group(job.path / "arrays", mode="r+")
        arrays["features"][start:stop] = values
        sums, factors = {"features": sha256(values)}, {}
        if job.keep is not None:
            group = arrays["factors"].create_group(f"{k:05}", overwrite=True)
            for i, x in good.items():
                packed = pack(factor(model, x, job.rules, patch=job.about.patch), job.keep)
                factors[i] = dict(packed.about)
                for name, numbers in packed.arrays.items():
                    group.create_array(f"{i}/{name}", data=numbers)
                    sums[f"{i}/{name}"] = sha256(numbers)
        Record(sums, tuple(seen), bad, factors).write(job.path, k)
    return len(part.names)


_MADE: dict[str, nn.Module] = {}  # by its fingerprint, the model that this process has made


def _model(job: Job) -> nn.Module:
    if isinstance(job.model, nn.Module):
        return job.model
    wanted = job.about.identity.model
    made = _MADE.get(wanted)  # once: another thread may clear it
    if made is None:
        made = job.model()
        if fingerprint(made) != wanted:
            raise WrongStore(f"{job.model!r} makes another model here than where the build began")
        _MADE.clear()
        _MADE[wanted] = made
    return made
