"""Printing: results on stdout, everything else on stderr, colours only on a terminal."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lens_attr.display import ColouredText
from lens_attr.display import cell as cell
from lens_attr.display import number as number
from lens_attr.errors import Notice

if TYPE_CHECKING:
    import pandas as pd

PIPED_WIDTH = 240
"""Columns when the output goes to a file or another program, so that nothing is cut."""


def stdout() -> Console:
    """Where results go. Text is printed as it is: no markup, no guessed highlighting."""
    return _console(stderr=False)


def stderr() -> Console:
    """Where progress, notes and errors go."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def error(problem: object) -> None:
    """One line on stderr."""
    line = _one_line(str(problem)) or type(problem).__name__
    stderr().print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)


def wants_progress(quiet: bool) -> bool:
    """Progress bars are for people who watch."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def working(message: str, quiet: bool = False) -> Iterator[None]:
    """Say what takes time while it runs, and show notices afterwards."""
    watched = stderr().status(message) if wants_progress(quiet) else nullcontext()
    with notices(quiet), watched:
        yield


@contextmanager
def notices(quiet: bool = False) -> Iterator[None]:
    """Show each of our notices once, on one line, at the end; drop other libraries' warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if not quiet:
        ours = (str(w.message) for w in caught if issubclass(w.category, Notice))
        for text in dict.fromkeys(ours):
            note(text)


def note(text: str) -> None:
    """One line on stderr that the reader of a result should know."""
    stderr().print(Text.assemble(("note: ", "yellow"), _one_line(text)), soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def print_json(document: Any) -> None:
    """One JSON document on stdout; what JSON does not know is written as text, NaN as null."""
    text = json.dumps(
        _without_nan(document), ensure_ascii=False, indent=2, default=str, allow_nan=False
    )
    print(text)


def _without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value


def print_coloured(tokens: Sequence[str], values: Sequence[float]) -> None:
    """The text, every token on the colour of its relevance."""
    from lens_attr.plots.at_a_glance import coloured

    text = coloured(ColouredText("", tokens, values, ""))
    stdout().print(text, soft_wrap=not stdout().is_terminal)


def print_table(frame: pd.DataFrame, title: str = "") -> None:
    """A table; numbers stand on the right."""
    from lens_attr.plots.at_a_glance import table

    stdout().print(table(frame, title))


def print_facts(facts: Mapping[str, object]) -> None:
    """``name: value`` lines."""
    for name, value in facts.items():
        stdout().print(Text.assemble((f"{name}: ", "bold"), str(value)), soft_wrap=True)


def print_written(**files: Path | None) -> None:
    """Where the files lie that were asked for."""
    print_facts({name: path for name, path in files.items() if path is not None})


def print_lines(lines: Iterable[str]) -> None:
    """One line each."""
    for line in lines:
        stdout().print(line, soft_wrap=True)


def print_heading(name: str, detail: str) -> None:
    """A blank line, then a name with a remark."""
    stdout().print()
    stdout().print(Text.assemble((name, "bold"), ("  " + detail, "dim")), soft_wrap=True)


def print_colour_key() -> None:
    """What the colours mean; only where there are colours."""
    from lens_attr.plots.palette import INK, shade

    if stdout().is_terminal:
        low, high = f"{INK} on {shade(-1.0)}", f"{INK} on {shade(1.0)}"
        key = Text.assemble(("  ", low), " lowers the target  ", ("  ", high), " raises it")
        stdout().print()
        stdout().print(key)


def print_blank() -> None:
    """An empty line."""
    stdout().print()
