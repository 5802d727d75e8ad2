"""What all tests share: their order, what they may skip, and one build of the book."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from doctor import cores
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

from bilrp.engine import registered

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
BUILD = [sys.executable, str(ROOT / "tools" / "build_book.py")]
CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

# Chromium without a window, and without its own calls to the network.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Properties are checked with the same examples on every machine that is not a developer's.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile("ci" if CI else "dev")

# Cells run by nbval behave as they do in the book: no progress bars.
os.environ["TQDM_DISABLE"] = "1"


# With `-n`, each worker and each kernel that it starts keeps to one core.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

BEHIND: list[subprocess.Popen[bytes]] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: as many as chapters are run at a time, as memory allows."""
    return min(cores(), 8)


@pytest.hookimpl(tryfirst=True)  # before xdist, which puts the groups into the names of tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first; then those with data, the notebooks, the book, the browser."""

    def rank(item: pytest.Item) -> int:
        if item.path.suffix == ".ipynb":
            return 2
        if item.get_closest_marker("browser"):  # the longest is not left for the end
            return 4 if item.get_closest_marker("slow") else 5
        marks = {"weights": 1, "book": 3}
        return next((marks[m] for m in ("book", "weights") if item.get_closest_marker(m)), 0)

    items.sort(key=rank)  # a stable sort: order within a file is kept
    for item in items if WORKER else ():
        # What goes to one worker: a file, whose fixtures and whose kernel are shared; of the tests
        # in a browser, those of one page; a slow test alone.
        page = getattr(item, "callspec", None) and item.callspec.params.get("name")
        apart = page if item.get_closest_marker("browser") else ""
        if item.get_closest_marker("slow"):
            apart = item.name
        item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {apart or ''}".strip()))
    everything = {2, 3} <= {rank(item) for item in items} and not config.option.collectonly
    if everything and WORKER in ("", "gw0"):
        _build_behind()


def _build_behind() -> None:
    """Build the book behind the other tests, with half of the cores; nothing if it is built.

    Only where text and notebooks agree, since a build would make them agree before it is tested.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    check = [sys.executable, str(ROOT / "tools" / "notebooks.py"), "--check"]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    if subprocess.run(check, check=False, **quiet).returncode == 0:
        BEHIND.append(subprocess.Popen([*BUILD, "--jobs", str(max(1, cores() // 2))], **quiet))


def pytest_unconfigure() -> None:
    for process in BEHIND:
        process.terminate()


WANTED: set[str] = set()


def missing(what: str) -> None:
    """Skip the test for want of something; on the build machine, fail it."""
    WANTED.add(what)
    if CI:
        pytest.fail(f"{what} (with CI=true this is a failure, not a skip)", pytrace=False)
    pytest.skip(what)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each thing that was missing, however many tests wanted it."""
    for what in sorted(WANTED):
        terminalreporter.write_line(f"not run: {what}", yellow=True)


def toc_pages() -> list[str]:
    """The pages in _toc.yml, in reading order, without suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [toc["root"]]

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if "file" in node:
                pages.append(node["file"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk({key: value for key, value in toc.items() if key != "root"})
    return pages


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run where a notebook's cells could be dealt out to several kernels.

    pytest-xdist 3.8 groups by changing a test's name, which pytest 9.2 no longer lets it.
    """
    grouped = all("@" in item.nodeid for item in session.items)
    if WORKER and session.config.option.loadgroup and not grouped:
        raise pytest.UsageError("this pytest and this pytest-xdist do not group tests together")


@pytest.fixture(autouse=True)
def maps_of_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers for good ends with it: `bilrp.kept` heeds any map of a user's."""
    monkeypatch.setattr(registered, "_GLOBAL", dict(registered._GLOBAL))


@pytest.fixture(scope="session")
def built() -> subprocess.CompletedProcess[str]:
    """The book, built (or found up to date) the way `make book` does it.

    Where it is being built, behind the tests or by another worker, this waits and finds it built.
    """
    return subprocess.run(BUILD, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def html(built: subprocess.CompletedProcess[str]) -> Path:
    """The folder of the built pages; tests that need it fail where the build failed."""
    if built.returncode:
        pytest.fail(f"the book does not build: {what_was_wrong(built)}", pytrace=False)
    return HTML


def what_was_wrong(built: subprocess.CompletedProcess[str], most: int = 300) -> str:
    """The reason in a line, so that it stands at the end of a log of which only that is kept."""
    said = built.stdout.rpartition("What was wrong:")[2] or built.stderr
    line = " ".join(said.split())
    return line if len(line) <= most else f"{line[: most // 3]} [...] {line[-most * 2 // 3 :]}"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, from $CHROMIUM or the system."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        missing("browser tests need Chromium: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()
