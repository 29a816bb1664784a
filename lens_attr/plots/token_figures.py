"""Coloured text: one strip of token boxes per example, or per method."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import plotly.graph_objects as go

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.head_map import heads
from lens_attr.plots.head_token_map import head_tokens
from lens_attr.plots.palette import INK, POSITIVE
from lens_attr.plots.path_figures import PATH_FIGURES, PathKind
from lens_attr.plots.template import MONO, figure, relevance_axis
from lens_attr.plots.token_text import Box, boxes, plotly_text, shares

if TYPE_CHECKING:
    from lens_attr.attribution.comparison import Comparison
    from lens_attr.attribution.relevance import Relevance
    from lens_attr.attribution.spans import SpanRelevance

Kind = Literal["tokens", "heads", "head_tokens", PathKind]

Colours = Literal["signed", "positive"]

MOST_EXAMPLES = 20
"""Examples drawn when none is chosen."""
WRAP = 64
"""Characters on a line by default: still legible on a phone."""
_LINE_PX, _HEAD_PX, _FOOT_PX = 36, 60, 84
_BAR_BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yanchor": "top"}
"""Beside the text it would take the room of the words, and run into the headings."""
_HEADING = 1.0
_GAP = 0.35


@dataclass(frozen=True)
class Strip:
    """One text under one heading; ``colours`` are what the colour axis measures."""

    heading: str
    tokens: Sequence[str]
    values: Sequence[float]
    colours: Sequence[float]


def relevance(
    result: Relevance,
    kind: Kind = "tokens",
    example: int | None = None,
    limit: float | None = None,
    wrap: int = WRAP,
    **options: Any,
) -> go.Figure:
    """The text, every token coloured by its relevance.

    Args:
        result: what to draw.
        kind: ``"tokens"``, or ``"heads"`` for the head map and ``"head_tokens"`` for heads by
            tokens (then ``options`` go to the function of that name), or for a result of AIEG the
            name of one of `lens_attr.plots.path_figures`.
        example: which example; ``None`` draws all, up to the first 20.
        limit: relevance at which the colour saturates; default: the largest absolute one.
        wrap: characters on a line.

    Raises:
        InputError: unknown kind or option, example out of range, or limit not above zero.
    """
    if kind not in get_args(Kind):
        raise InputError(f"unknown kind {kind!r}; {did_you_mean(str(kind), get_args(Kind))}")
    if kind == "heads":
        return heads(result, example=example, limit=limit, **options)
    if kind == "head_tokens":
        return head_tokens(result, example=example or 0, limit=limit, **options)
    if options:
        raise InputError(f"unknown option {next(iter(options))!r} for a {kind} figure.")
    if kind in PATH_FIGURES:
        if limit is not None:
            raise InputError(f"a {kind} figure has no colours to limit: leave out limit.")
        return PATH_FIGURES[kind](result, example)
    chosen = range(min(len(result), MOST_EXAMPLES)) if example is None else [example]
    strips = [_example_strip(result[i]) for i in chosen]
    values = (value for strip in strips for value in strip.values)
    axis = relevance_axis(values, f"relevance ({result.unit})", limit)
    title = f"Token relevance, {result.method}"
    if len(strips) < len(result) and example is None:
        title += f", first {len(strips)} of {len(result)} examples"
    return _draw(strips, title, axis, wrap)


def spans(
    result: SpanRelevance,
    example: int | None = None,
    limit: float | None = None,
    wrap: int = WRAP,
) -> go.Figure:
    """The text, every word, sentence or span coloured by its relevance.

    Args:
        result: what to draw.
        example: which example; ``None`` draws all, up to the first 20.
        limit: relevance at which the colour saturates; default: the largest absolute one.
        wrap: characters on a line.

    Raises:
        InputError: example out of range, or limit not above zero.
    """
    chosen = range(min(len(result), MOST_EXAMPLES)) if example is None else [example]
    strips = [_unit_strip(result[i]) for i in chosen]
    values = (value for strip in strips for value in strip.values)
    axis = relevance_axis(values, f"relevance ({result.unit})", limit)
    return _draw(strips, f"Relevance by {result.kind}, {result.method}", axis, wrap)


def comparison(
    result: Comparison, example: int = 0, wrap: int = WRAP, colours: Colours = "signed"
) -> go.Figure:
    """The same text once per method.

    Methods measure in different units, so each strip is coloured relative to its own largest
    absolute relevance; the values themselves show on hover.

    Args:
        result: what to draw.
        example: which example.
        wrap: characters on a line.
        colours: ``"signed"``, or ``"positive"`` for green where relevance is positive and no
            colour where it is not, relative to the largest positive one (the AIEG paper's).

    Raises:
        InputError: nothing to compare, example out of range, or unknown colours.
    """
    if not result.results:
        raise InputError("the comparison holds no method.")
    if colours not in get_args(Colours):
        raise InputError(f"colours must be 'signed' or 'positive', got {colours!r}.")
    positive = colours == "positive"
    strips = []
    for method, of_method in result.results.items():
        one = of_method[example]
        values = one.real_tokens().double().tolist()
        drawn = [max(value, 0.0) for value in values] if positive else values
        strips.append(Strip(method, one.real_str_tokens(), values, shares(drawn)))
    first = next(iter(result.results.values()))[example]
    axis = relevance_axis((), "share of the method's largest", limit=1.0)
    if positive:
        axis |= {"colorscale": [list(stop) for stop in POSITIVE], "cmin": 0.0}
    return _draw(strips, "Token relevance by method", axis, wrap, _target_line(first))


def _example_strip(one: Relevance) -> Strip:
    """The strip of a result that holds a single example."""
    values = one.real_tokens().double().tolist()
    return Strip(_target_line(one), one.real_str_tokens(), values, values)


def _unit_strip(one: SpanRelevance) -> Strip:
    """The strip of a single example; every word of a unit has the colour of the whole."""
    pairs = zip(one.strings(), one.scores[0].double().tolist(), strict=True)
    words = [(f" {word}", score) for text, score in pairs for word in text.split() or [text]]
    values = [score for _, score in words]
    return Strip(_target_line(one), [word for word, _ in words], values, values)


def _target_line(one: Relevance | SpanRelevance) -> str:
    return f"{one.target[0]} = {float(one.target_value[0]):.3f}"


def _draw(
    strips: Sequence[Strip], title: str, axis: dict[str, Any], wrap: int, subtitle: str = ""
) -> go.Figure:
    """Boxes as horizontal bars: each starts where the one before it ends."""
    fig = figure(html.escape(title, quote=False), html.escape(subtitle, quote=False))
    row, widest = 0.0, wrap / 2
    for strip in strips:
        placed = boxes(strip.tokens, wrap)
        _add_heading(fig, row, strip.heading)
        _add_strip(fig, strip, placed, row + _HEADING)
        row += _HEADING + placed[-1].line + 1 + _GAP
        widest = max(widest, *(box.left + box.width for box in placed))
    bottom = row - _GAP - 0.4
    fig.update_xaxes(visible=False, range=[0, widest], fixedrange=True)
    fig.update_yaxes(visible=False, range=[bottom, -0.5], fixedrange=True)
    axis["colorbar"] |= _BAR_BELOW
    axis["colorbar"]["title"] |= {"side": "top"}
    fig.update_layout(
        height=round((bottom + 0.5) * _LINE_PX) + _HEAD_PX + _FOOT_PX,
        coloraxis=axis,
        margin={"l": 16, "r": 16, "t": _HEAD_PX, "b": _FOOT_PX},
        showlegend=False,
        barmode="overlay",
    )
    return fig


def _add_strip(fig: go.Figure, strip: Strip, placed: Sequence[Box], first_row: float) -> None:
    hover = [
        f"{plotly_text(repr(token))}<br>position {position}<br>relevance {value:+.4g}"
        for position, (token, value) in enumerate(zip(strip.tokens, strip.values, strict=True))
    ]
    fig.add_bar(
        orientation="h",
        base=[box.left for box in placed],
        x=[box.width for box in placed],
        y=[first_row + box.line for box in placed],
        width=0.86,
        text=[plotly_text(box.text) for box in placed],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": INK, "family": MONO, "size": 14},
        marker={"color": strip.colours, "coloraxis": "coloraxis", "line": {"width": 0}},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
    )


def _add_heading(fig: go.Figure, row: float, heading: str) -> None:
    fig.add_annotation(
        text=html.escape(heading, quote=False),
        x=0,
        y=row + 0.1,
        xanchor="left",
        yanchor="middle",
        showarrow=False,
        font={"size": 14},
    )
