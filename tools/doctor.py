"""What is missing on this machine, and what cures it. `make doctor` runs it with any Python 3.

    python tools/doctor.py          look at everything; exit 1 if the book cannot be built
    python tools/doctor.py --plan   say what `make book` will install and download, if anything

Nothing is imported that comes with the environment, since that may be what is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GB = 1e9
ENVIRONMENT = 5.5 * GB  # what the pinned packages take on disk, and room for what pip unpacks
BOOK = 1 * GB  # data, built pages, the outputs of cells
CHAPTER = 3 * GB  # of memory, which a chapter may take at its peak
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DATA = """
import json
from bilrp.book.fetch import available
from bilrp.book.registry import registry
files = [f for f in registry().files.values() if f.used_by and not f.optional]
print(json.dumps([f.name for f in files if not available(f.name)]))
"""


class Finding:
    """One line of the report: what was looked at, whether it will do, and what to do if not."""

    def __init__(self, what: str, good: bool, cure: str = "", needed: bool = True) -> None:
        self.what, self.good, self.cure, self.needed = what, good, cure, needed

    def __str__(self) -> str:
        mark = "ok     " if self.good else "MISSING" if self.needed else "note   "
        return f"{mark}  {self.what}" + ("" if self.good else f"\n         -> {self.cure}")


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        f"Python {version} at {sys.executable}",
        sys.version_info >= (3, 11),
        "install Python 3.11 or newer, or name one: make book PYTHON=/path/to/python3",
    )


def virtual_environments(root: Path) -> Finding:
    done = subprocess.run(
        [sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False
    )
    cure = "on Debian and Ubuntu: apt-get install python3-venv"
    what, made = "virtual environments (modules venv, ensurepip)", (root / ".venv").exists()
    return Finding(what, done.returncode == 0, cure, needed=not made)


def pins_changed(root: Path) -> bool:
    """Whether there is no environment, or one that is older than the pins."""
    ready = root / ".venv" / ".ready"
    pins = (root / "requirements.txt", root / "pyproject.toml")
    return not ready.exists() or any(p.stat().st_mtime > ready.stat().st_mtime for p in pins)


def environment(root: Path) -> Finding:
    there = (root / ".venv" / "bin" / "python").exists()
    state = "is not there yet" if not there else "is older than the pins"
    return Finding(
        "the environment, .venv" + ("" if not pins_changed(root) else f", {state}"),
        not pins_changed(root),
        "make book makes it; if an installation broke off: rm -rf .venv, and again",
        needed=False,
    )


def packages(root: Path) -> Finding:
    """Whether what is installed is what is pinned."""
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (root / "requirements.txt").read_text()))
    code = (
        "import json, sys\nfrom importlib.metadata import version, PackageNotFoundError\n"
        "def of(name):\n    try: return version(name)\n    except PackageNotFoundError: return ''\n"
        f"print([n for n, v in {pins!r}.items() if of(n).split('+')[0] != v])"
    )
    done = ask(root, code)
    wrong = re.findall(r"'([^']+)'", done.stdout)
    what = "packages as pinned"
    if wrong:
        what += f": not {', '.join(wrong[:5])}" + (" and more" if len(wrong) > 5 else "")
    cure = ".venv/bin/python -m pip install -r requirements.txt"
    return Finding(what, done.returncode == 0 and not wrong, cure)


def data(root: Path) -> Finding:
    done = ask(root, DATA)
    missing = re.findall(r'"([^"]+)"', done.stdout)
    what = "photos, digits and weights"
    if done.returncode:
        what += f" (cannot look: {(done.stderr.strip() or '?').splitlines()[-1]})"
    elif missing:
        what += f": {len(missing)} files are not here or damaged, {missing[0]} first"
    cure = (
        "make book fetches them. Without a network: BILRP_DATA=/folder/with/copies make book;\n"
        "            a damaged file is removed and fetched again by .venv/bin/python -m "
        "bilrp.book.data"
    )
    return Finding(what, done.returncode == 0 and not missing, cure, needed=done.returncode != 0)


def ask(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in the environment."""
    command = [str(root / ".venv" / "bin" / "python"), "-c", code]
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


def disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    need = BOOK + (0 if (root / ".venv" / ".ready").exists() else ENVIRONMENT)
    return Finding(
        f"disk: {free / GB:.0f} GB free where the book is, {need / GB:.1f} needed",
        free >= need,
        "free some space, or put the folder on another disk; make clean removes what was built",
    )


def memory() -> Finding:
    total, need = machine_memory(), CHAPTER + GB
    return Finding(
        f"memory: {total / GB:.0f} GB, {need / GB:.0f} needed",
        total >= 0.95 * need,
        "close other programs; chapters are run one at a time by make book JOBS=1",
        needed=False,
    )


def machine_memory() -> float:
    """Bytes of memory that this machine, or the container around us, has."""
    try:
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")  # this system does not tell
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(total, float(text)) if text.isdigit() else total


def cores() -> int:
    """How many chapters can run at the same time: one a core, as far as memory reaches."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return int(max(1, min(count, machine_memory() / CHAPTER)))


def git() -> Finding:
    cure = "only those who change the book need it: apt-get install git"
    return Finding("git", shutil.which("git") is not None, cure, needed=False)


def chromium() -> Finding:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    cure = "only the browser tests need it: apt-get install chromium, or CHROMIUM=/path/to/it"
    return Finding(f"Chromium{f' at {found}' if found else ''}", bool(found), cure, needed=False)


def examine(root: Path) -> list[Finding]:
    """Everything; what lives in the environment only if there is one."""
    found = [python(), virtual_environments(root), disk(root), memory(), environment(root)]
    if (root / ".venv" / "bin" / "python").exists():
        found += [packages(root), data(root)]
    return [*found, git(), chromium()]


def downloads(root: Path) -> float:
    """Bytes that the data of the book are, on their way."""
    import tomllib

    table = tomllib.loads((root / "data" / "registry.toml").read_text(encoding="utf-8"))
    wanted = [g for g in table["groups"] if g.get("used_by") and not g.get("optional")]
    total = sum(
        table["packages"][p]["size"] for p in {g["package"] for g in wanted if "package" in g}
    )
    return total + sum(f["size"] for g in wanted if "url" in g for f in g["files"])


def plan(root: Path) -> list[str]:
    """What `make book` has to set up first; nothing where all is there."""
    steps = []
    if pins_changed(root):
        steps.append("install the pinned packages into .venv: about 5 GB, some 3 minutes")
    if not (root / "data" / "cache" / ".fetched").exists():
        steps.append(
            f"fetch photos, digits and weights: {downloads(root) / 1e6:.0f} MB, under a minute"
        )
    if not steps:
        return []
    pages = sum("\nkernelspec:" in p.read_text("utf-8") for p in (root / "chapters").glob("*.md"))
    at_once = min(cores(), pages)
    steps.append(
        f"run the {pages} pages with code, {at_once} at a time, and make the HTML: "
        f"about {-(-pages // at_once) + 2} minutes"
    )
    return ["make book will", *(f"  {i}. {step}" for i, step in enumerate(steps, 1))]


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="what `make book` will set up")
    if parser.parse_args(argv).plan:
        print("\n".join(plan(root)), end="\n" if plan(root) else "")
        return 0
    found = examine(root)
    print("\n".join(map(str, found)))
    missing = [finding for finding in found if finding.needed and not finding.good]
    print(
        "\nThe book cannot be built before what is MISSING is there."
        if missing
        else "\nNothing is in the way of `make book`."
    )
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
