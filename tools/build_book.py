"""Build the book: chapters/*.md -> executed -> _build/html, with warnings as errors.

What jupyter-book alone would get wrong, and what is done about it:

- its cache of executed cells does not see changes in the modules that the cells import. The cache
  here belongs to one state of bilrp/, of the data registry and of the pins, and is dropped when
  that changes;
- after a failed build a second one can return success. Here a failure drops the parsed pages, and
  only a clean build is remembered as built;
- a build without any change still starts Sphinx. Here it is skipped.

The last line printed is the address of the book. The exit status is 0 for a clean build only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import notebooks

ROOT = Path(__file__).resolve().parents[1]

# What the numbers in executed cells depend on, besides the cells.
CODE = ["bilrp/**/*", "data/registry.toml", "requirements.txt"]
# What the pages depend on besides that.
PAGES = ["chapters/**/*", "assets/**/*", "*.yml", "*.bib", "*.md", "data/*.md", "tools/*.py"]
IGNORED = ("__pycache__", ".ipynb_checkpoints")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
PROBLEM = re.compile(r"^(?:.*: )?(?:WARNING|ERROR|SEVERE|CRITICAL): .*$", re.MULTILINE)
# nbclient's account of a failed cell: its code and the error.
CELL = re.compile(r"CellExecutionError: (.*?)\n(?:\n *\[mystnb|\n\n\n)", re.DOTALL)


def digest(root: Path, patterns: list[str]) -> str:
    sha = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            if path.is_file() and not any(part in IGNORED for part in path.parts):
                sha.update(f"{path.relative_to(root)}\0".encode())
                sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


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


def run(root: Path, log: Path, fresh: bool) -> int:
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(root)]
    command += ["-W", "-n", "--keep-going", *(["--all"] if fresh else [])]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            out.write(ANSI.sub("", line))
        return process.wait()


def report(root: Path, log: Path) -> None:
    """Say again at the end what went wrong, where it is seen."""
    print("\nThe book was NOT built. What was wrong:")
    text = read(log)
    for line in dict.fromkeys(PROBLEM.findall(text)):
        print(f"  {line}")
    for account in dict.fromkeys(a.strip() for a in CELL.findall(text)):
        print(f"\n{account}")
    if not PROBLEM.search(text):
        print(text[-3000:])
    print(f"Full log: {log}")


def build(root: Path) -> int:
    started = time.monotonic()
    out = root / "_build"
    index, log = out / "html/index.html", out / "book.log"
    code_key, stamp = out / "code-key", out / "built"
    out.mkdir(exist_ok=True)

    if notebooks.main(["--root", str(root)]):
        return 1

    code = digest(root, CODE)
    everything = f"{code} {digest(root, PAGES)}"
    if index.exists() and read(stamp) == everything:
        print("The book is up to date.")
        print(index.as_uri())
        return 0

    drop(stamp)
    fresh = read(code_key) != code
    if fresh:
        drop(code_key, out / ".jupyter_cache", out / ".doctrees")
        # Recorded before the build: chapters that ran need not run again after one that failed.
        code_key.write_text(code, encoding="utf-8")
    # Old pages and old error reports would outlive their chapters.
    drop(out / "html")

    status = run(root, log, fresh)
    if status == 0 and PROBLEM.search(read(log)):
        status = 1
    if status == 0 and not index.exists():
        status = 1
    if status:
        drop(out / ".doctrees")
        report(root, log)
        return status

    if digest(root, CODE) == code and f"{code} {digest(root, PAGES)}" == everything:
        stamp.write_text(everything, encoding="utf-8")
    print(f"Built in {time.monotonic() - started:.0f} s. Open this address in a browser:")
    print(index.as_uri())
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    sys.exit(build(parser.parse_args().root.resolve()))
