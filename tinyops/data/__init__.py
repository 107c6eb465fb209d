"""Data sets in every format of the field, tiling, transforms and synthetic scenes."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyops.data.formats import read, write

__all__ = ["read", "write"]


def __getattr__(name: str) -> Any:
    # Tiles and pictures need less than the formats do.
    if name in __all__:
        return getattr(importlib.import_module("tinyops.data.formats"), name)
    raise AttributeError(f"module 'tinyops.data' has no attribute {name!r}")
