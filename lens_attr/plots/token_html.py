"""Coloured text as HTML that flows and wraps like any other text."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lens_attr.errors import InputError
from lens_attr.plots.palette import INK, shade
from lens_attr.plots.token_text import in_line, shares


def html_tokens(tokens: Sequence[str], values: Sequence[float], unit: str = "logit") -> str:
    """One ``<span>`` per token, coloured relative to the largest absolute relevance.

    The space before a word stands before its span, so that lines break there. The value shows when
    the pointer rests on a token. Everything is escaped.

    Args:
        tokens: the strings.
        values: the relevance of each.
        unit: unit of the relevance.

    Raises:
        InputError: the lengths differ, or a value is NaN or infinite.
    """
    if len(tokens) != len(values):
        raise InputError(f"there are {len(tokens)} tokens but {len(values)} values.")
    parts = zip(tokens, in_line(tokens), values, shares(values), strict=True)
    spans = [_span(*part, unit) for part in parts]
    return f'<p class="tokens">{"".join(spans)}</p>'


def _span(token: str, text: str, value: float, share: float, unit: str) -> str:
    colours = f"background:{shade(share)};color:{INK}"
    tip = html.escape(f"{token!r}: {value:+.4g} {unit}")
    before = " " if text.startswith(" ") else ""
    return f'{before}<span style="{colours}" title="{tip}">{html.escape(text.strip())}</span>'
