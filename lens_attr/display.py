"""How results show themselves: as a figure, in Jupyter, and in the terminal through rich.

Results live low in the house and what draws them high, and imports point downwards only. This is
the one deliberate exception, kept in one place: the plots package is looked up by name when a
result is shown, so that importing a result never imports plotly.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def figure_of(kind: str, result: Any, /, **options: Any) -> Any:
    """The plotly figure that ``lens_attr.plots.<kind>(result, **options)`` draws."""
    plots = importlib.import_module("lens_attr.plots")
    return getattr(plots, kind)(result, **options)


@dataclass(frozen=True)
class ColouredText:
    """Tokens on the colour of their values, under a heading."""

    heading: str
    tokens: Sequence[str]
    values: Sequence[float]
    unit: str


@dataclass(frozen=True)
class Glance:
    """What a result shows of itself: one line, texts, notes and a small table."""

    headline: str
    texts: Sequence[ColouredText] = ()
    notes: Sequence[str] = ()
    table: pd.DataFrame | None = None


MOST_SHOWN = 8
"""Examples that a result shows of itself."""

MOST_ROWS = 10
"""Rows of a table that a result shows of itself."""


class Shown:
    """A result that shows itself in Jupyter, through rich's ``print``, and in one line as repr.

    A dataclass that derives from it must be declared with ``repr=False``.
    """

    @property
    @abstractmethod
    def headline(self) -> str:
        """The result in one line."""

    def glance(self) -> Glance:
        """What is shown."""
        return Glance(self.headline)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.headline})"

    def _repr_html_(self) -> str:
        return importlib.import_module("lens_attr.plots.at_a_glance").html_of(self.glance())

    def __rich__(self) -> Any:
        return importlib.import_module("lens_attr.plots.at_a_glance").terminal_of(self.glance())


def cell(value: object) -> str:
    """A value of a table as text."""
    if str(value) in ("None", "nan", "<NA>"):
        return "-"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def number(value: float) -> str:
    """A number as people read it: three decimals, or three digits where it is tiny or huge."""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def count(n: int, what: str) -> str:
    """``1 example``, ``2 examples``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
