"""Build the book: chapters/*.md -> executed -> _build/html, with warnings as errors.

What jupyter-book alone would get wrong, and what is done about it:

- it runs chapters one after the other, and its cache of executed cells does not see changes in the
  modules that the cells import. Here tools/execute.py fills the cache first;
- its log is hundreds of lines. Here each chapter gets one, and the log goes into a file;
- after a failed build a second one can return success. Here a failure drops the parsed pages, and
  only a clean build is remembered as built;
- a build without any change still starts Sphinx. Here it is skipped;
- two builds at a time spoil each other. Here the second waits.

The last line printed is the address of the book. The exit status is 0 for a clean build only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import notebooks
from doctor import cores
from execute import digest, run_missing
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]

# What the API page and the settings of Sphinx depend on, besides the text.
CODE = ["bilrp/**/*", "data/registry.toml", "data/*.pt", "requirements.txt"]
# What the pages depend on besides that.
PAGES = ["chapters/**/*", "assets/**/*", "*.yml", "*.bib", "*.md", "data/*.md", "tools/*.py"]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
PROBLEM = re.compile(r"^(?:.*: )?(?:WARNING|ERROR|SEVERE|CRITICAL): .*$", re.MULTILINE)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def drop(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """Cells run the same everywhere: this Python's kernel, no progress bars, no display."""
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    # where book_extension is, whatever book is built
    env["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{env.get('PYTHONPATH', '')}"
    env.update(
        JUPYTER_PREFER_ENV_PATH="1",
        JUPYTER_PLATFORM_DIRS="1",
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        PYDEVD_DISABLE_FILE_VALIDATION="1",
        PYTHONHASHSEED="0",
        TQDM_DISABLE="1",
    )
    return env


def run_sphinx(root: Path, log: Path, fresh: bool) -> int:
    """Make the pages from what was executed; all that is said goes into the log."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(root)]
    command += ["-W", "-n", "--keep-going", *(["--all"] if fresh else [])]
    with log.open("wb") as file:
        done = subprocess.run(
            command, cwd=root, env=environment(), stdout=file, stderr=file, check=False
        )
    log.write_text(ANSI.sub("", log.read_text("utf-8", errors="replace")), encoding="utf-8")
    return done.returncode


def report(log: Path) -> None:
    """Say what went wrong, at the end, where it is seen."""
    print("\nThe book was NOT built. What was wrong:")
    text = read(log)
    for line in dict.fromkeys(PROBLEM.findall(text)):
        print(f"  {line}")
    if not PROBLEM.search(text):
        print(text[-3000:])
    print(f"Full log: {log}")


def build(root: Path, jobs: int) -> int:
    started = time.monotonic()
    out = root / "_build"
    index, log = out / "html/index.html", out / "book.log"
    code_key, stamp = out / "code-key", out / "built"

    if notebooks.main(["--root", str(root)]):
        return 1

    code = digest(root, CODE)
    everything = f"{code} {digest(root, PAGES)}"
    if index.exists() and read(stamp) == everything:
        say("The book is up to date.", index.as_uri())
        return 0

    drop(stamp)
    chapters = run_missing(root, out, jobs, environment(), say)
    failed = [chapter for chapter in chapters if chapter.error]
    if failed:
        accounts = [f"{c.source.relative_to(root)}\n{ANSI.sub('', c.error)}" for c in failed]
        log.write_text("\n".join(f"ERROR: {account}" for account in accounts), encoding="utf-8")
        report(log)
        print("\n".join(f"\n{account}" for account in accounts))
        return 1

    fresh = read(code_key) != code
    if fresh or any(chapter.executed for chapter in chapters):
        # Sphinx reads a page again if its text changed, not if its numbers did.
        drop(code_key, out / ".doctrees")
    # Old pages and old error reports would outlive their chapters.
    drop(out / "html")

    say("Making the pages")
    status = run_sphinx(root, log, fresh)
    if status == 0 and (PROBLEM.search(read(log)) or not index.exists()):
        status = 1
    if status:
        drop(out / ".doctrees")
        report(log)
        return status

    code_key.write_text(code, encoding="utf-8")
    if digest(root, CODE) == code and f"{code} {digest(root, PAGES)}" == everything:
        stamp.write_text(everything, encoding="utf-8")
    say(f"Built in {time.monotonic() - started:.0f} s (full log: {log})")
    say("Open this address in a browser:", index.as_uri())
    return 0


def say(*lines: str) -> None:
    print("\n".join(lines), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--jobs", type=int, default=cores(), help="chapters run at the same time")
    args = parser.parse_args()
    root = args.root.resolve()
    # A signal to end is like Ctrl-C: what was started is ended, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    (root / "_build").mkdir(exist_ok=True)
    with FileLock(root / "_build/lock"):
        return build(root, max(1, args.jobs))


if __name__ == "__main__":
    sys.exit(main())
