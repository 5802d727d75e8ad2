"""Files that are written whole or not at all; imports no other room."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.partial$")  # as `replaced` and zarr name what they write


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path` to write a new file to; it takes that name when all went well."""
    path = Path(path)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield new
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
