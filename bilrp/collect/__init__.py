"""Many inputs: their features and factors in a store, search, contrasts, themes, repair.

Names are imported when they are asked for; most need the extra `collect`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "audit": ["carried_by", "covered", "directions", "project_out", "repaired"],
    "building": ["build"],
    "compress": ["Basis", "Packed", "common_basis", "pack"],
    "contrasts": ["Contrast", "contrast"],
    "inputs": ["BadInput", "Photos", "Tensors"],
    "lsh": ["MultiHash", "Weights", "mixed"],
    "records": ["Damaged", "StoreBusy", "StoreError", "WrongStore"],
    "search": ["FaissIndex", "Hits", "nearest", "recall", "similarities"],
    "store": ["Store"],
    "themes": [
        "Theme",
        "cluster",
        "find_themes",
        "grouped",
        "neighbours",
        "signature",
        "strong_patches",
    ],
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"bilrp.collect.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'bilrp.collect' has no attribute {name!r}")
