"""The commands together, and what happens when one of them fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
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
    report,
    run,
)
from lens_attr.errors import LensAttrError, close_to

INTERRUPTED = 130
WRONG_USAGE = 2

_UsageError: Any = typer.BadParameter.__base__
"""Typer brings a click of its own, and which one differs between versions."""

_CHOICE = re.compile(r"'(?P<given>[^']*)' is not one of (?P<known>'.*')")


class _Commands(TyperGroup):
    """Turns what can go wrong on purpose into one line on stderr and an exit code."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _one_line_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _one_line_errors():
            return super().invoke(ctx)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group alone shows its help
            raise
        console.error(_mistake(error))
        raise typer.Exit(WRONG_USAGE) from error
    except BrokenPipeError:  # the reader of a pipe has seen enough; typer ends quietly
        raise
    except (LensAttrError, OSError) as error:
        console.error(error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        console.error("interrupted")
        raise typer.Exit(INTERRUPTED) from interrupt


def _mistake(error: Any) -> str:
    """What is wrong, what may have been meant, and where the help is."""
    message = error.format_message().replace(": Value error, ", ": ", 1)
    if choice := _CHOICE.search(message):
        close = close_to(choice["given"], re.findall(r"'([^']*)'", choice["known"]))
        message = f"{message.removesuffix('.')}; {close}" if close else message
    if getattr(error, "possibilities", None):
        message = f"{error.message}; did you mean {' or '.join(error.possibilities)}?"
    where = f" See: {error.ctx.command_path} --help" if error.ctx else ""
    return f"{message}{'' if message.endswith(('.', '?')) else '.'}{where}"


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
    report.report,
    methods.methods,
    demo.demo,
):
    app.command()(command)
app.add_typer(circuit.circuit, name="circuit")
