"""Modules by the short names they are known under: `bilrp.metrics` is `bilrp.compare.metrics`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "altered": "compare.altered",
    "baselines": "compare.baselines",
    "bigram": "models.bigram",
    "collect": "collect",
    "controls": "compare.controls",
    "data": "book.data",
    "digit_scenes": "models.digit_scenes",
    "explorer": "show.explorer",
    "fetch": "book.fetch",
    "frames": "show.frames",
    "kept": "book.kept",
    "layers": "engine.modules",
    "measured": "book.measured",
    "metrics": "compare.metrics",
    "ownership": "engine.features",
    "planted": "compare.planted",
    "plot": "show.plot",
    "registry": "book.registry",
    "roots": "show.roots",
    "rules": "engine.rules",
    "tables": "book.tables",
    "toy": "models.toy",
    "trace": "engine.trace",
    "transforms": "engine.transforms",
    "weights": "book.weights",
}


def module(name: str) -> ModuleType:
    """The module with this short name; imported when it is first asked for."""
    return importlib.import_module(f"bilrp.{MODULES[name]}")


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around an import: where a package is missing, say which extra of bilrp brings it.

    Parameters
    ----------
    extra : str
        One of those in pyproject.toml, such as "plot".

    Raises
    ------
    ModuleNotFoundError
        With the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "bilrp").partition(".")[0] == "bilrp":
            raise  # a mistake in this package, which no installation mends
        raise ModuleNotFoundError(
            f'{error.name} is not installed: pip install "bilrp[{extra}]"', name=error.name
        ) from error


class Finder(MetaPathFinder, Loader):
    """Lets `import bilrp.metrics` find the one module that `bilrp.compare.metrics` is."""

    def find_spec(self, fullname: str, path: object = None, target: object = None):
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == "bilrp" and name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        found = module(spec.name.rpartition(".")[2])
        self.kept = found.__spec__
        return found

    def exec_module(self, found: ModuleType) -> None:
        found.__spec__ = self.kept  # importing under a second name leaves the module as it is


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.append(Finder())
