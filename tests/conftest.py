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
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

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


BEHIND: list[subprocess.Popen[bytes]] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first; then those with data, the notebooks, the book, the browser."""

    def rank(item: pytest.Item) -> int:
        if item.path.suffix == ".ipynb":
            return 2
        return {"weights": 1, "book": 3, "browser": 4}.get(
            next((m for m in ("browser", "book", "weights") if item.get_closest_marker(m)), ""), 0
        )

    items.sort(key=rank)  # a stable sort: order within a file is kept
    if {2, 3} <= {rank(item) for item in items} and not config.option.collectonly:
        _build_behind()


def _build_behind() -> None:
    """Build the book behind the other tests, each with one thread: chapters need both cores seldom.

    Only where text and notebooks agree, since a build would make them agree before it is tested.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    check = [sys.executable, str(ROOT / "tools" / "notebooks.py"), "--check"]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    if subprocess.run(check, check=False, **quiet).returncode == 0:
        BEHIND.append(subprocess.Popen(BUILD, **quiet))


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


@pytest.fixture(scope="session")
def built() -> subprocess.CompletedProcess[str]:
    """The book, built (or found up to date) the way `make book` does it."""
    for process in BEHIND:
        process.wait()
    return subprocess.run(BUILD, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def html(built: subprocess.CompletedProcess[str]) -> Path:
    """The folder of the built pages; tests that need it fail where the build failed."""
    if built.returncode:
        pytest.fail("the book does not build, see test_book.py", pytrace=False)
    return HTML


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
