"""Results at a glance: as HTML for Jupyter, and for the terminal through rich."""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lens_attr.display import ColouredText, Glance, cell
from lens_attr.plots.palette import INK, shade
from lens_attr.plots.token_html import html_tokens
from lens_attr.plots.token_text import in_line, shares

_STYLE = (
    "<style>.lens-attr p{margin:.5em 0 .2em}.lens-attr .tokens{font-family:monospace;"
    "line-height:1.9;margin:.1em 0 .5em}.lens-attr .tokens span{padding:.15em .3em;"
    "border-radius:3px;margin-right:1px}</style>"
)
_KEY = "blue lowers the target, orange raises it; the value shows when the pointer rests on a token"


def html_of(glance: Glance) -> str:
    """A fragment of HTML without scripts; all text in it is escaped."""
    parts = [f"<p><b>{html.escape(glance.headline)}</b></p>"]
    for text in glance.texts:
        parts.append(f"<p>{html.escape(text.heading)}</p>" if text.heading else "")
        parts.append(html_tokens(text.tokens, text.values, text.unit))
    if glance.texts:
        parts.append(f"<p><small>{_KEY}</small></p>")
    parts += [f"<p>{html.escape(note)}</p>" for note in glance.notes]
    if glance.table is not None:
        parts.append(_as_text(glance.table).to_html(index=False, border=0))
    return f'<div class="lens-attr">{_STYLE}{"".join(parts)}</div>'


def terminal_of(glance: Glance) -> Group:
    """The same for rich."""
    parts: list[Text | Table] = [Text(glance.headline, style="bold")]
    for text in glance.texts:
        parts += [Text(text.heading, style="dim")] if text.heading else []
        parts.append(coloured(text))
    parts += [Text(note) for note in glance.notes]
    if glance.table is not None:
        parts.append(table(glance.table))
    return Group(*parts)


def coloured(text: ColouredText) -> Text:
    """Every token on the colour of its value."""
    shown = Text()
    for token, share in zip(in_line(text.tokens), shares(text.values), strict=True):
        shown.append(token, style=f"{INK} on {shade(share)}")
    return shown


def table(frame: pd.DataFrame, title: str = "") -> Table:
    """A table; numbers stand on the right."""
    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in frame.columns:
        side = "right" if name in _numeric(frame) else "left"
        drawn.add_column(Text(str(name), style="bold"), justify=side)
    for row in _as_text(frame).itertuples(index=False):
        drawn.add_row(*map(Text, row))
    return drawn


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({name: [cell(value) for value in frame[name]] for name in frame.columns})


def _numeric(frame: pd.DataFrame) -> Sequence[str]:
    return list(frame.select_dtypes("number").columns)
