"""A JupyterLab on this machine, for tests of what readers see in a live notebook."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Every cell is drawn, also those that are not in the window.
WHOLE = {"windowingMode": "none"}


@contextmanager
def jupyterlab(folder: Path, whole: bool = False) -> Iterator[Callable[[str], str]]:
    """Serve the notebooks of a folder; gives what makes a notebook's address, with the token.

    ``whole``: draw every cell. Settings, workspaces and extensions are not those of the user.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    names = ("_CONFIG_DIR", "_DATA_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
    own = {f"JUPYTER{name}": str(folder / f".{name}") for name in names}
    # another renderer of Markdown, where one is installed, would number formulas in its own way
    config = folder / "._CONFIG_DIR/labconfig"
    config.mkdir(parents=True)
    disabled = {"disabledExtensions": {"jupyterlab-myst": True}}
    (config / "page_config.json").write_text(json.dumps(disabled))
    if whole:
        settings = folder / ".LAB_SETTINGS_DIR/@jupyterlab/notebook-extension"
        settings.mkdir(parents=True)
        (settings / "tracker.jupyterlab-settings").write_text(json.dumps(WHOLE))
    # A kernel runs any code, so others on this machine must not reach it: they see command lines,
    # not the environment.
    own["JUPYTER_TOKEN"] = token = secrets.token_hex(32)
    log = folder / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command,
            env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.2)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/api/status", timeout=5)
        yield lambda name: f"{address}/lab/tree/{name}?token={token}&reset"
    finally:
        server.terminate()  # and with it, its kernels
        server.wait(30)
