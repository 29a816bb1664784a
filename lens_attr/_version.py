"""The version of this package, which everything else reads from here, and of what it stands on."""

from functools import cache

__version__ = "0.1.0"

LIBRARIES = ("torch", "transformer-lens", "transformers")


def versions(*more: str) -> dict[str, str]:
    """Versions of lens_attr, of the libraries that every value depends on, and of ``more``."""
    return {"lens_attr": __version__} | {name: _installed(name) for name in (*LIBRARIES, *more)}


@cache
def _installed(library: str) -> str:
    """Reading it off the disk takes a millisecond."""
    import importlib.metadata

    return importlib.metadata.version(library)
