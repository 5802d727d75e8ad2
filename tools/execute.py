"""Run the chapters' cells: side by side, one processor core each, and only what must be run again.

Results go into jupyter-cache, where Sphinx finds them. jupyter-cache compares cells only; here a
result also belongs to the modules that the cells can import, to the data and to the pins. Its
record says which, so that a number from another state of the package is never shown.

As a script, `python execute.py CELLS.json RESULT.json FOLDER TIMEOUT` runs one chapter.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from notebooks import sources

# Rooms of the package that every chapter counts as using. A chapter uses any other room only if it
# names it, since no other may be imported from these without being found. A folder of modules
# within a room, such as show/gallery, is a room of its own.
ALWAYS = ("book", "compare", "engine", "models", "show")
DATA = ["data/registry.toml", "data/*.pt", "requirements.txt"]
IGNORED = ("__pycache__", ".ipynb_checkpoints")
# Through these a cell reaches code without naming it.
SHELL = re.compile(r"(?m)^\s*[!%]|\bsubprocess\b|\bos\.(?:system|popen|spawn)|\brunpy\b")
# A file of assets/ as a cell names it. And the ways to one without its name: its folder's name, or
# a way out of chapters/, where cells run, or from one file to another beside it.
ASSET = re.compile(r"""["'](?:\.\./)*(assets/[\w./-]+)["']""")
UNNAMED = re.compile(
    r"""assets|["'/]\.\.["'/]|\bpardir\b|\.parents?\b|\bwith_(?:name|stem|suffix)\b|\bROOT\b"""
    r"|__file__|chdir|cwd\b|\b(?:resolve|absolute|abspath|realpath)\b|(?<![.\w])(?:exec|eval)\("
)
# One core a page. And glibc keeps what is freed: large tensors in memory that is new to the process
# each time took a tenth of the processor time.
ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
ENVIRONMENT |= {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# Tags of a cell that change how it is run, not only how it is shown.
RUN_TAGS = ("raises-exception", "skip-execution")


@dataclass
class Chapter:
    """A page with cells, and what running it gave."""

    source: Path
    notebook: nbformat.NotebookNode
    key: str
    seconds: float | None = None  # of processor time; of an earlier run until it has run
    error: str = ""
    executed: bool = False


# --- what a result depends on


def digest(root: Path, patterns: list[str]) -> str:
    """A hash over the names and contents of the files that fit the patterns."""
    return digest_of(root, (p for pattern in patterns for p in sorted(root.glob(pattern))))


def digest_of(root: Path, paths: Iterable[Path]) -> str:
    """A hash over the names and contents of files."""
    sha = hashlib.sha256()
    for path in paths:
        if path.is_file() and not any(part in IGNORED for part in path.parts):
            sha.update(f"{path.relative_to(root)}\0".encode())
            sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


def used_rooms(root: Path, code: str) -> list[str]:
    """The rooms of bilrp/ that these cells may import from."""
    package = root / "bilrp"
    rooms = all_rooms(package) - set(ALWAYS)
    used: set[str] = set()
    while rooms - used:
        shared = [p for p in package.rglob("*.py") if _room(package, p) not in rooms - used]
        modules = [parsed(p.read_text(encoding="utf-8")) for p in shared]
        more = {
            room
            for room in rooms - used
            if SHELL.search(code)
            or re.search(rf"\b(?:{'|'.join(_names(room, modules))})\b", code)
            or any(_imports(room, module) for module in modules)
        }
        if not more:
            break
        used |= more
    return sorted({*ALWAYS, *used})


def all_rooms(package: Path) -> set[str]:
    """The folders of a package that hold modules, such as "show" and "show/gallery"."""
    inner = (p.parent.relative_to(package) for p in package.glob("*/**/*.py"))
    return {path.as_posix() for path in inner if not any(part in IGNORED for part in path.parts)}


def _room(package: Path, path: Path) -> str:
    """The room that a file is in: the nearest folder with modules; "" for the package itself."""
    for folder in path.relative_to(package).parents:
        if any((package / folder).glob("*.py")) and folder.parts:
            return folder.as_posix()
    return ""


@dataclass(frozen=True)
class Module:
    """What a module's text says, as far as it matters here."""

    imports: frozenset[str]  # what it imports, or may by importlib: any string
    pairs: tuple[tuple[object, str], ...]  # of its tables, such as that of bilrp/_names.py
    speaks_of_assets: bool  # in a string that is not there for readers only


@functools.cache
def parsed(text: str) -> Module:
    """Read a module; once, since every page asks."""
    imports: set[str] = set()
    pairs: list[tuple[object, str]] = []
    nodes = list(ast.walk(ast.parse(text)))
    told = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    assets = False
    for node in nodes:
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            imports.update([start, *(f"{start}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            imports.add(node.value)
            assets = assets or ("assets" in node.value and id(node) not in told)
        elif isinstance(node, ast.Dict):
            pairs += [
                (key.value, str(value.value))
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
            ]
    return Module(frozenset(imports), tuple(pairs), assets)


def _names(room: str, modules: list[Module]) -> list[str]:
    """What a room is called: its own name, and short names such as those in bilrp/_names.py."""
    start = f"{room.replace('/', '.')}."
    pairs = (pair for module in modules for pair in module.pairs)
    short = [key for key, value in pairs if f"{value.removeprefix('bilrp.')}.".startswith(start)]
    return [re.escape(str(name)) for name in (room.rpartition("/")[2], *short)]


def _imports(room: str, module: Module) -> bool:
    *outer, name = room.split("/")
    # a room within a room may be imported from there by its own name alone
    within = "".join(rf"(?:{re.escape(part)}\.)?" for part in outer)
    found = re.compile(rf"(?:bilrp|)\.+{within}{re.escape(name)}(?:\.|$)")
    return any(found.match(name) for name in module.imports)


def used_assets(root: Path, code: str, rooms: list[str]) -> list[Path]:
    """The files of assets/ that these cells may read: those that they name, or all in doubt.

    In doubt are cells that speak of assets otherwise than by the name of a file that is there, that
    leave their folder some other way or run commands, and all if the package speaks of assets.
    """
    every = sorted(p for p in (root / "assets").rglob("*") if p.is_file())
    named = {root / name for name in ASSET.findall(code)}
    package = root / "bilrp"
    modules = (p for p in package.rglob("*.py") if _room(package, p) in ("", *rooms))
    unseen = (
        SHELL.search(code)
        or UNNAMED.search(ASSET.sub("", code))
        or not named <= set(every)
        or any(parsed(p.read_text(encoding="utf-8")).speaks_of_assets for p in modules)
    )
    return every if unseen else sorted(named)


def key_of(root: Path, notebook: nbformat.NotebookNode) -> str:
    """What the outputs of these cells depend on, as a hash."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    run = [[c.source, [t for t in c.metadata.get("tags", []) if t in RUN_TAGS]] for c in cells]
    code, package = "\n".join(c.source for c in cells), root / "bilrp"
    rooms = used_rooms(root, code)
    modules = [p for p in sorted(package.rglob("*")) if _room(package, p) in ("", *rooms)]
    state = digest_of(root, [*modules, *used_assets(root, code, rooms)]), digest(root, DATA)
    whole = [run, notebook.metadata.get("kernelspec"), state, sys.version]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


# --- the cache


def chapters(root: Path, cache: JupyterCacheAbstract) -> list[Chapter]:
    """Every page with cells, in the order of their names."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    enabled = config["parse"]["myst_enable_extensions"]
    earlier = {r.uri: (r.data or {}).get("execution_seconds") for r in cache.list_cache_records()}
    return [
        Chapter(path, notebook, key_of(root, notebook), earlier.get(str(path)))
        for path in sources(root / "chapters")
        for notebook in [read(path, enabled)]
    ]


def read(path: Path, enabled: list[str]) -> nbformat.NotebookNode:
    """The notebook that Sphinx will look up in the cache."""
    text = path.read_text(encoding="utf-8")
    config = MdParserConfig(enable_extensions=set(enabled))
    return read_myst_markdown_notebook(text, config=config, add_source_map=True, path=path)


def is_cached(cache: JupyterCacheAbstract, chapter: Chapter) -> bool:
    """Whether this chapter's outputs are there; if outdated ones are, they are removed."""
    with suppress(KeyError):
        found = cache.match_cache_notebook(chapter.notebook)
        if (found.data or {}).get("key") == chapter.key:
            return True
        cache.remove_cache(found.pk)
    for record in cache.list_cache_records():
        if (record.data or {}).get("key") == chapter.key:
            # The cells are the same, but not how they are shown: their tags, a picture's words.
            notebook = cache.get_cache_bundle(record.pk).nb
            cells = (cell for cell in chapter.notebook.cells if cell.cell_type == "code")
            for old, new in zip(notebook.cells, cells, strict=True):
                old.metadata = new.metadata
            keep(cache, chapter, notebook, record.data)
            return True
    return False


def keep(
    cache: JupyterCacheAbstract, chapter: Chapter, notebook: nbformat.NotebookNode, data: dict
) -> None:
    """Put an executed notebook into the cache, in place of earlier ones of the same page."""
    uri = str(chapter.source)
    cache.cache_notebook_bundle(
        CacheBundleIn(notebook, uri, data=data), check_validity=False, overwrite=True
    )
    new = cache.match_cache_notebook(chapter.notebook).pk
    for record in cache.list_cache_records():
        if record.uri == uri and record.pk != new:
            cache.remove_cache(record.pk)


# --- running


def run_all(
    root: Path, todo: list[Chapter], jobs: int, env: dict[str, str]
) -> Iterator[tuple[Chapter, dict[str, Any]]]:
    """Run chapters, the longest first, and give each with its result when it is done."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    timeout = config["execute"]["timeout"]
    running: list[subprocess.Popen[bytes]] = []

    def work(chapter: Chapter, folder: str) -> dict[str, Any]:
        name = chapter.source.stem
        cells, target = Path(folder) / f"{name}.cells", Path(folder) / f"{name}.json"
        cells.write_text(json.dumps(chapter.notebook), encoding="utf-8")
        command = [sys.executable, __file__, cells, target, chapter.source.parent, str(timeout)]
        with subprocess.Popen(
            command,
            env=env | ENVIRONMENT,
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            running.append(process)
            said = process.communicate()[0].decode(errors="replace")
        if not target.exists():
            return {"error": f"The process ended with status {process.returncode}.\n{said}"}
        return json.loads(target.read_text(encoding="utf-8"))

    # One that never ran here may be the longest. Of those, the later chapters compute more.
    order = sorted(todo, key=lambda c: (c.seconds or float("inf"), c.source.name), reverse=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[dict[str, Any]], Chapter] = {
            pool.submit(work, chapter, folder): chapter for chapter in order
        }
        try:
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(done), done.result()
        finally:  # also when we are interrupted
            for future in waiting:
                future.cancel()
            for process in running:
                if process.poll() is None:
                    process.terminate()


def run_missing(
    root: Path, out: Path, jobs: int, env: dict[str, str], say: Callable[[str], None]
) -> list[Chapter]:
    """Fill the cache. The chapters, each with what its run gave; errors are not cached."""
    cache = get_cache(out / ".jupyter_cache")
    pages = chapters(root, cache)
    todo = [chapter for chapter in pages if not is_cached(cache, chapter)]
    if not todo:
        return pages
    plural = "s" if len(todo) > 1 else ""
    say(f"Running {len(todo)} page{plural} with code{expected(todo, jobs)}")
    started = time.monotonic()
    for number, (chapter, result) in enumerate(run_all(root, todo, jobs, env), 1):
        chapter.executed, chapter.error = True, result["error"]
        if not chapter.error and key_of(root, chapter.notebook) != chapter.key:
            chapter.error = "The package or its data changed while this page ran. Build again."
        if not chapter.error:
            chapter.seconds = result["seconds"]
            data = {"execution_seconds": chapter.seconds, "key": chapter.key}
            keep(cache, chapter, nbformat.from_dict(result["notebook"]), data)
        took = f"{chapter.seconds:4.0f} s" if not chapter.error else "FAILED"
        clock = time.monotonic() - started
        say(f"  {number:2}/{len(todo)}  {chapter.source.stem:24} {took:8} (after {clock:.0f} s)")
    return pages


def expected(todo: list[Chapter], jobs: int) -> str:
    """How many run at a time, and how long all of it takes, as far as earlier runs tell."""
    jobs = min(jobs, len(todo))
    text = f", {jobs} at a time" if jobs > 1 else ""
    if any(chapter.seconds is None for chapter in todo):
        return f"{text}: up to a minute of processor time each"
    longest = max(chapter.seconds or 0.0 for chapter in todo)
    total = max(longest, sum(chapter.seconds or 0.0 for chapter in todo) / jobs)
    return f"{text}: about {total / 60:.0f} min" if total > 90 else f"{text}: about {total:.0f} s"


def run_one(cells: Path, target: Path, folder: Path, timeout: int) -> None:
    """Run the cells of one page; write the outputs, or the error, and the processor time."""
    import resource

    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.from_dict(json.loads(cells.read_text(encoding="utf-8")))
    place = {"metadata": {"path": str(folder)}}
    error = ""
    try:
        # without the times of cells, which would make it another notebook to the cache
        client = NotebookClient(notebook, timeout=timeout, record_timing=False, resources=place)
        client.execute()
    except DeadKernelError as dead:
        error = (
            f"{dead}. Often this means that memory ran out. One page at a time: make book JOBS=1"
        )
    except (CellExecutionError, CellTimeoutError) as failed:
        error = str(failed)
    error = error or warned(notebook)
    # The kernel and its own processes have ended and been waited for.
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {"error": error, "seconds": used.ru_utime + used.ru_stime, "notebook": notebook}
    part = target.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(target)


def warned(notebook: nbformat.NotebookNode) -> str:
    """What the first cell that printed a warning printed; "" if none did.

    Pages with warnings are refused later, too (stderr_output in _config.yml); but then they would
    lie in the cache, and a warning that comes by chance would be there at each further build.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code" and "remove-stderr" not in cell.metadata.get("tags", []):
            said = [o.text for o in cell.outputs if o.get("name") == "stderr"]
            if said:
                return f"{cell.source}\n\nThis cell printed a warning:\n{''.join(said)}"
    return ""


if __name__ == "__main__":
    *paths, seconds = sys.argv[1:]
    run_one(*map(Path, paths), int(seconds))
