"""The commands together, and what happens when one of them fails."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lens_attr._version import __version__
from lens_attr.cli import (
    attribute,
    bench,
    check,
    circuit,
    console,
    demo,
    edges,
    generate,
    heads,
    methods,
    patch,
    prune,
    run,
)
from lens_attr.errors import LensAttrError

INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns what can go wrong on purpose into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of a pipe has seen enough; typer ends quietly
            raise
        except (LensAttrError, OSError) as error:
            console.error(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            console.error("interrupted")
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    cls=_Commands,
    name="lens-attr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"lens-attr {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def lens_attr(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Which tokens and attention heads made a language model predict what it predicted?

    Start with: [bold]lens-attr demo[/bold]
    """


for command in (
    attribute.attribute,
    heads.heads,
    generate.generate,
    prune.prune,
    patch.patch,
    edges.edges,
    bench.bench,
    check.check,
    run.run,
    methods.methods,
    demo.demo,
):
    app.command()(command)
app.add_typer(circuit.circuit, name="circuit")
