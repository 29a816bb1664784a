"""Coloured text on a page: the words of one example, once per method, with a picker of both."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_attr.plots import html_tokens, readable
from lens_attr.plots.palette import SCALE
from lens_attr.report.page import Html, table_of

if TYPE_CHECKING:
    import pandas as pd

    from lens_attr.attribution.relevance import Relevance


@dataclass(frozen=True)
class Explanation:
    """One prediction, explained by one method or several.

    Attributes:
        heading: what is explained, in a few words.
        facts: what else is known: the value of the target, what decides it.
        results: relevance of one example, by method name.
    """

    heading: str
    facts: str
    results: Mapping[str, Relevance]


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


def explained_texts(explanations: Sequence[Explanation]) -> Html:
    """Several texts, each once per method; the reader picks the methods and the text.

    Without scripts, and on paper, all of them show.
    """
    methods = list(dict.fromkeys(m for one in explanations for m in one.results))
    parts = [_picker(explanations, methods), colour_key().markup]
    parts += [_example(i, one, methods) for i, one in enumerate(explanations)]
    return Html(f'<div class="explanations">{"".join(parts)}</div>')


def _picker(explanations: Sequence[Explanation], methods: Sequence[str]) -> str:
    """Plain form controls, so that keyboards and screen readers know what to do with them."""
    boxes = "".join(
        f'<label><input type="checkbox" data-method="{i}" checked> {html.escape(name)}</label>'
        for i, name in enumerate(methods)
    )
    options = "".join(
        f'<option value="{i}">{html.escape(one.heading)}</option>'
        for i, one in enumerate(explanations)
    )
    shown = f"<fieldset><legend>Methods shown</legend>{boxes}</fieldset>"
    picked = f'<label>Text <select><option value="">all</option>{options}</select></label>'
    controls = (shown if len(methods) > 1 else "") + (picked if len(explanations) > 1 else "")
    return f'<div class="picker">{controls}</div>' if controls else ""


def _example(number: int, one: Explanation, methods: Sequence[str]) -> str:
    heading, facts = html.escape(one.heading), html.escape(one.facts)
    label = f'<div class="label"><b>{heading}</b><span>{facts}</span></div>'
    strips = "".join(
        f'<div class="strip" data-method="{methods.index(name)}">{_strip(name, result)}</div>'
        for name, result in one.results.items()
    )
    values = f"<details><summary>Values</summary>{table_of(_values(one.results))}</details>"
    return f'<div class="example" data-text="{number}">{label}{strips}{values}</div>'


def _values(results: Mapping[str, Relevance]) -> pd.DataFrame:
    import pandas as pd

    first = next(iter(results.values()))
    tokens = [readable(token) for token in first.real_str_tokens()]
    columns = {name: one.real_tokens().double().tolist() for name, one in results.items()}
    return pd.DataFrame({"token": tokens, **columns})
