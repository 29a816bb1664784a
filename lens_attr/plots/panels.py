"""Panels side by side that share what their axes mean: one title under all of them.

On a phone a panel is a hundred pixels wide: titles of its own would run into its neighbours'.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_attr.plots.template import LIGHT

PHONE = 25
"""Characters of a line that fits beside the names of methods, 380 pixels wide."""
_BELOW_PX = 34
_FOOT_PX = 90
_TITLE_PX = 8
"""From a panel up to its title: half of the number at the very top of its axis."""
_TICKS = 3
_GAP = 0.28
"""Between panels, so that the numbers at their ends stay apart; a share of the width."""


def wrapped(text: str, width: int = PHONE) -> str:
    """Text in lines that fit on a phone.

    >>> wrapped("AOPC sufficiency (probability lost, lower is better)")
    'AOPC sufficiency<br>(probability lost, lower<br>is better)'
    """
    return "<br>".join(textwrap.wrap(text, width, break_long_words=False))


def panels(titles: Sequence[str], x_title: str, rows: int = 1, **layout: Any) -> go.Figure:
    """Empty panels that share the vertical axis of their row, a few ticks on each.

    Args:
        titles: one per panel.
        x_title: what all of them show across, with its unit.
        rows: of panels, filled from left to right.
        layout: passed on to plotly's ``make_subplots``.
    """
    columns = -(-len(titles) // rows)
    layout = {"horizontal_spacing": _GAP / columns} | layout
    fig = make_subplots(rows, columns, subplot_titles=titles, shared_yaxes=True, **layout)
    fig.update_annotations(font_size=13, yshift=_TITLE_PX)
    fig.add_annotation(
        text=wrapped(x_title), font_size=14, x=0.5, xref="paper", y=0, yref="paper",
        xanchor="center", yanchor="top", yshift=-_BELOW_PX, showarrow=False,
    )  # fmt: skip
    fig.update_layout(template=LIGHT, margin_b=_FOOT_PX)
    if columns > 1:
        fig.update_xaxes(nticks=_TICKS, tickangle=0, tickfont_size=12)
    return fig
