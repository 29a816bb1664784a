"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
from functools import cache

from lens_attr._version import __version__

LIBRARIES = ("torch", "transformer-lens", "transformers")


def versions(*more: str) -> dict[str, str]:
    """Versions of lens_attr, of the libraries that every value depends on, and of ``more``."""
    return {"lens_attr": __version__} | {name: _installed(name) for name in (*LIBRARIES, *more)}


@cache
def _installed(library: str) -> str:
    """Reading it off the disk takes a millisecond."""
    return importlib.metadata.version(library)
