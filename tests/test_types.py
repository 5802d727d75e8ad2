"""Types: what annotations say is true, as far as mypy can tell; its settings: pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_mypy() -> None:
    """A first run reads torch, which takes some ten seconds; later ones find it in .mypy_cache."""
    command = [sys.executable, "-m", "mypy", "--no-color-output"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
