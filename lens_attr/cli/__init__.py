"""The command line, ``lens-attr``. Starting it, and every ``--help``, loads no model library."""

from __future__ import annotations

from lens_attr.cli.app import app


def main() -> None:
    """Entry point of the ``lens-attr`` command."""
    app(prog_name="lens-attr")


__all__ = ["app", "main"]
