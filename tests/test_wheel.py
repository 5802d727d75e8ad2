"""The wheel: torch and numpy are all that it needs, and it carries what its code looks for."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bilrp
from tests.conftest import ROOT

NEEDED = ["numpy", "torch"]
# What the extras bring, and a package of the tests: none of it may be seen in the environment.
UNSEEN = ["PIL", "anywidget", "hypothesis", "matplotlib", "pooch", "scipy", "sklearn"]
UNSEEN += ["torchvision", "tqdm"]

BEFORE = """\
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 5)
).eval()
x, x2 = torch.rand(2, 3, 16, 16)
"""
AFTER = """
assert e.relevance.dim() == 4, e.relevance.shape
truth = float(model(x[None])[0] @ model(x2[None])[0])
assert abs(e.similarity - truth) < 1e-4 * abs(truth)
assert abs(float(e.ledger.sum()) - truth) < 1e-4 * abs(truth)
"""
VECTORS = """
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
v = bilrp.explain(model, torch.rand(6), torch.rand(6), rules=bilrp.Gamma(0.1))
assert v.relevance.shape == (6, 6), v.relevance.shape
"""
WANTING = """
def error(act):
    try:
        act()
    except ModuleNotFoundError as raised:
        return str(raised)

for act in (lambda: e.plot(x, x2), lambda: e.explore(x, x2), lambda: bilrp.plot):
    assert error(act) == 'matplotlib is not installed: pip install "bilrp[plot]"', error(act)
assert error(lambda: bilrp.data) == 'pooch is not installed: pip install "bilrp[vgg]"'
assert error(bilrp.vgg16) == 'torchvision is not installed: pip install "bilrp[vgg]"'
two = torch.tensor([0, 1])
assert error(lambda: bilrp.svm_accuracy(torch.rand(2, 3), two, two > 0)) == (
    'sklearn is not installed: pip install "bilrp[book]"'
)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def required(names: list[str]) -> set[str]:
    """These distributions and, to the last, those that they require."""
    found: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in names]
    while waiting:
        name, extra = one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        for line in distribution(name).requires or ():
            r = Requirement(line)
            if r.marker is None or r.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(r.name), e) for e in ("", *r.extras)]
    return {name for name, _ in found}


def parts(name: str) -> Iterator[Path]:
    """The files and folders of a distribution, at the top of site-packages."""
    for first in {file.parts[0] for file in distribution(name).files or ()}:
        if first not in ("..", "__pycache__") and not first.endswith(".pth"):
            yield Path(str(distribution(name).locate_file(first)))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with torch, numpy, what these require, and the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")]
    subprocess.run(command, check=True)
    windows = sys.platform == "win32"
    python = folder / "venv" / ("Scripts/python.exe" if windows else "bin/python")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    command += ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run(command, check=True)
    # Links, not copies: torch alone is gigabytes.
    (folder / "links").mkdir()
    for path in {path for name in required(NEEDED) for path in parts(name)}:
        (folder / "links" / path.name).symlink_to(path, target_is_directory=path.is_dir())
    site = next((folder / "venv").rglob("site-packages"))
    (site / "links.pth").write_text(f"{folder / 'links'}\n", encoding="utf-8")
    return python


def run(python: Path, code: str, folder: Path) -> None:
    # -I: neither PYTHONPATH nor the working directory nor the user's own packages
    command = [str(python), "-I", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def snippet() -> str:
    """The code of the README's "Your own model", without lines that draw."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"(?ms)^## Your own model$(.*?)^## ", text)
    assert section, "the README has no section on your own model"
    code = re.search(r"(?ms)^```python\n(.*?)^```$", section[1])
    assert code, "that section has no Python code"
    return re.sub(r"(?m)^\w+\.(plot|explore)\(.*\n", "", code[1])


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode())


def test_the_method_asks_for_torch_and_numpy_only(wheel: Path) -> None:
    asked = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist", [])]
    assert sorted(r.name for r in asked if r.marker is None) == NEEDED
    assert all(str(r.marker).startswith("extra ==") for r in asked if r.marker is not None)
    assert metadata(wheel)["Version"] == bilrp.__version__


def test_each_extra_that_an_error_names_exists(wheel: Path) -> None:
    offered = metadata(wheel).get_all("Provides-Extra", [])
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("bilrp/**/*.py"))
    named = set(re.findall(r'needs\("(\w+)"\)|bilrp\[(\w+)\]', code))
    assert named
    assert {a or b for a, b in named} <= set(offered)


def test_files_lie_where_the_code_looks_for_them(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        for name, source in {
            "bilrp/py.typed": "bilrp/py.typed",
            "bilrp/show/explorer.js": "bilrp/show/explorer.js",
            "bilrp/show/pair.js": "bilrp/show/pair.js",
            "bilrp/show/pair_line.js": "bilrp/show/pair_line.js",
            "bilrp/show/frames.js": "bilrp/show/frames.js",
            "bilrp/show/roots.js": "bilrp/show/roots.js",
            "bilrp/show/gallery/ask.js": "bilrp/show/gallery/ask.js",
            "bilrp/book/registry.toml": "data/registry.toml",
            "bilrp/models/bigram.pt": "data/bigram.pt",
        }.items():
            assert file.read(name) == (ROOT / source).read_bytes(), name
        inside = {name.split("/")[0] for name in file.namelist()}
    assert inside == {"bilrp", f"bilrp-{bilrp.__version__}.dist-info"}


@pytest.mark.slow
def test_the_readmes_code_runs_with_nothing_else_installed(python: Path, tmp_path: Path) -> None:
    code = f"""\
from importlib.util import find_spec
import sys
seen = [name for name in {UNSEEN} if find_spec(name)]
assert not seen, seen
{BEFORE}
{snippet()}
{AFTER}
{VECTORS}
assert bilrp.__file__.startswith(sys.prefix), bilrp.__file__
bilrp.BigramNetwork.load()
bilrp.Explorer, bilrp.interact_frames  # need no more until they draw
{WANTING}
"""
    run(python, code, tmp_path)
    assert not list(tmp_path.iterdir())
