"""Tables that take too long for a chapter: measured once, kept with where they come from.

A chapter sets `MEASURE = False`, computes a sample and compares it with the table.
`python tools/measure.py NAME` runs the same cells with True, which measure everything anew.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import date
from typing import NamedTuple

from bilrp._files import replaced


class Measured(NamedTuple):
    """A table that was measured.

    Attributes
    ----------
    about : str
        Date, commit and command.
    rows : list of dict
        Numbers where a cell reads as one, else text.
    """

    about: str
    rows: list[dict[str, float | str]]


def commit_of(folder: str | os.PathLike = ".") -> str:
    """The short name of the commit that a folder is at; "unknown" outside of a checkout."""
    head = ["git", "-C", os.fspath(folder), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(head, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def write(path: str | os.PathLike, rows: Iterable[Mapping], command: str) -> Measured:
    """Write a table as CSV, below a line that says when, from which commit and by what command.

    Floats are kept to 6 digits. Written whole or not at all.

    Raises
    ------
    ValueError
        If there are no rows, or rows differ in their columns.
    """
    rows = list(rows)
    if "\n" in command or "`" in command:
        raise ValueError(f"the command must be one line without backquotes, got {command!r}")
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise ValueError("a table needs rows, all with the same columns in the same order")
    about = f"{date.today()}, commit {commit_of()}, `{command}`"
    with replaced(path) as new, open(new, "w", encoding="utf-8", newline="") as file:
        file.write(f"# {about}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(
            [f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows
        )
    return read(path)


def read(path: str | os.PathLike) -> Measured:
    """Read a table that `write` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file does not begin with the line that says where it comes from.
    """
    with open(path, encoding="utf-8", newline="") as file:
        first = file.readline()
        if not first.startswith("# ") or "commit" not in first:
            raise ValueError(
                f"{path} does not begin with a line '# date, commit, command': it is no table "
                "written by bilrp.book.measured"
            )
        rows = [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return Measured(first[2:].strip(), rows)


def _number(text: str) -> float | str:
    return float(text) if _NUMBER.fullmatch(text) else text


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|inf|nan)")  # as `write` writes them
