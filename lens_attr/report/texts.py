"""Coloured text on a page: the words of one example, once per method."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lens_attr.plots import html_tokens
from lens_attr.plots.palette import SCALE
from lens_attr.report.page import Html

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance


def colour_key() -> Html:
    """What the colours of `explained_text` mean."""
    stops = ", ".join(f"{colour} {place:.0%}" for place, colour in SCALE)
    return Html(
        '<div class="key"><span>lowers the target</span>'
        f'<i style="background:linear-gradient(90deg, {stops})"></i>'
        "<span>raises the target</span></div>"
    )


def explained_text(results: Mapping[str, Relevance], example: int = 0) -> Html:
    """The text once per method, coloured by relevance.

    Each method is coloured relative to its own largest absolute relevance, because methods
    measure in different units.

    Args:
        results: relevance by method name.
        example: which example of each result.
    """
    strips = (_strip(method, result[example]) for method, result in results.items())
    return Html("\n".join(strips))


def _strip(method: str, one: Relevance) -> str:
    values = one.real_tokens().double().tolist()
    unit = html.escape(one.unit)
    facts = f"<span>relevance adds up to {sum(values):+.3f} {unit}</span>"
    label = f'<div class="label"><b>{html.escape(method)}</b>{facts}</div>'
    return label + html_tokens(one.real_str_tokens(), values, one.unit)
