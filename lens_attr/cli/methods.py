"""``lens-attr methods``: what can be asked for."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_attr.cli import console, options


def methods(
    as_json: options.JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the names only.")] = False,
) -> None:
    """List the attribution methods: what they do, where they work and what they cost.

    Example: lens-attr methods --quiet
    """
    import lens_attr as la

    rows = la.methods().to_pandas().to_dict("records")
    if as_json:
        console.print_json(rows)
        return
    if quiet:
        console.print_lines(row["name"] for row in rows)
        return
    for row in rows:
        console.print_heading(row.pop("name"), row.pop("summary"))
        console.print_facts({f"  {_label(key)}": console.cell(value) for key, value in row.items()})


def _label(column: str) -> str:
    return {"conserves": "adds up to the target"}.get(column, column.replace("_", " "))
