"""Heads by tokens: at which positions does a head's relevance lie?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lens_attr.errors import InputError
from lens_attr.plots.template import figure, relevance_axis
from lens_attr.plots.token_text import plotly_text, readable

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance

MOST_HEADS = 24
_ROW_PX, _FRAME_PX = 24, 190


def head_tokens(
    result: Relevance, example: int = 0, n: int = MOST_HEADS, limit: float | None = None
) -> go.Figure:
    """The relevance of the strongest heads at every token, strongest on top.

    A head's relevance at a token is that of its output there (``hook_z``), not of the tokens it
    attends to; record ``"pattern"`` and see `attention` for those.

    Args:
        result: with head relevance.
        example: which example.
        n: how many heads, by the sum of absolute relevance over tokens.
        limit: relevance at which the colour saturates; default: the largest absolute one.

    Raises:
        InputError: no head relevance, example out of range, ``n`` below 1, or limit not above
            zero.
    """
    if result.head_tokens is None:
        raise InputError(f"method {result.method!r} gives no head relevance.")
    if n < 1:
        raise InputError(f"n is {n}; give at least one head.")
    one = result[example]
    assert one.head_tokens is not None
    by_head = one.head_tokens[0].detach().double().cpu().movedim(2, 1)  # layer, head, position
    layers, heads, positions = by_head.shape
    flat = by_head.reshape(layers * heads, positions)
    strongest = flat.abs().sum(dim=1).argsort(descending=True, stable=True)[:n].tolist()
    shown = flat[strongest]
    names = [f"{row // heads}.{row % heads}" for row in strongest]
    tokens = [plotly_text(readable(token)) for token in one.real_str_tokens()]
    subtitle = f"{len(names)} of {layers * heads} heads, {one.target[0]}"
    fig = figure(
        f"Relevance of heads at tokens, {result.method}",
        plotly_text(subtitle),
        height=_FRAME_PX + _ROW_PX * len(names),
    )
    unit = f"relevance ({result.unit})"
    fig.add_heatmap(
        z=shown.numpy(),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        customdata=[[[name, token] for token in tokens] for name in names],
        hovertemplate="head %{customdata[0]} at%{customdata[1]}<br>" + unit + " %{z:+.4g}"
        "<extra></extra>",
    )
    places, rows = list(range(positions)), list(range(len(names)))
    fig.update_xaxes(
        title_text="token", tickvals=places, ticktext=tokens, tickangle=-60, showgrid=False
    )
    fig.update_yaxes(
        title_text="layer.head", tickvals=rows, ticktext=names, autorange="reversed",
        showgrid=False,
    )  # fmt: skip
    fig.update_layout(coloraxis=relevance_axis(shown.ravel().tolist(), unit, limit))
    return fig
