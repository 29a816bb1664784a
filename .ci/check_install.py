"""Check the lens_attr that this interpreter has installed.

The command must start without loading torch or a model library, and the package must carry its
data: the type marker and the demo models.
"""

from __future__ import annotations

import contextlib
import io
import sys
from importlib import resources

HEAVY = {"torch", "transformers", "transformer_lens"}


def output(*arguments: str) -> str:
    """What ``lens-attr ARGUMENTS`` prints."""
    from lens_attr.cli import main

    sys.argv = ["lens-attr", *arguments]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main()
    return printed.getvalue()


def check() -> None:
    from lens_attr._version import __version__
    from lens_attr.demo import DEMO_MODELS

    assert "Usage" in output("--help"), output("--help")
    assert __version__ in output("--version"), output("--version")
    loaded = HEAVY & set(sys.modules)
    assert not loaded, f"lens-attr --help loads {sorted(loaded)}"

    assert resources.files("lens_attr").joinpath("py.typed").is_file()
    assert DEMO_MODELS
    for name, folder in DEMO_MODELS.items():
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            assert (folder / file).is_file(), f"demo model {name} has no {file}"


if __name__ == "__main__":
    check()
    print("installed package: command, type marker and demo models are in place")
