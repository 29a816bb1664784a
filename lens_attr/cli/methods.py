"""``lens-attr methods``: what can be asked for."""

from __future__ import annotations

from lens_attr.cli import console, options


def methods(as_json: options.JsonOption = False) -> None:
    """List the attribution methods: what they do, where they work and what they cost."""
    import lens_attr as la

    table = la.methods().to_pandas()
    if as_json:
        console.print_json(table.to_dict("records"))
    else:
        console.print_table(table)
