"""The look that all figures share, once for light and once for dark pages.

A figure takes every theme-dependent colour from its template, so ``figure.update_layout(
template=lens_attr.plots.DARK)`` is all it takes to turn one dark.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from lens_attr.errors import InputError
from lens_attr.plots.palette import LINES, SCALE
from lens_attr.plots.token_text import largest

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, 'SFMono-Regular', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

COLOUR_BAR_PX = 220


def _template(ink: str, grid: str, paper: str) -> go.layout.Template:
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 12, "font": {"size": 14}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 14, "color": ink},
            "title": {"x": 0, "xref": "container", "pad": {"l": 16}, "font": {"size": 16}},
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "colorway": LINES,
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"font": {"family": MONO, "size": 13}, "align": "left"},
            "legend": {
                "orientation": "h",
                "yanchor": "top",
                "traceorder": "normal",
                "y": -0.2,
                "x": 0,
            },
            "margin": {"l": 64, "r": 24, "t": 72, "b": 56},
        }
    )


LIGHT = _template(ink="#22262e", grid="#e3e5e9", paper="#ffffff")
DARK = _template(ink="#e4e6ea", grid="#3a3f48", paper="#1b1e24")


def figure(title: str, subtitle: str = "", **layout: Any) -> go.Figure:
    """An empty figure in the light template; what is long goes into the subtitle."""
    heading = {"text": title, "subtitle": {"text": subtitle, "font": {"size": 13}}}
    return go.Figure(layout={"template": LIGHT, "title": heading, **layout})


def relevance_axis(
    values: Iterable[float], title: str, limit: float | None = None
) -> dict[str, Any]:
    """A colour axis centred at zero.

    Args:
        values: what will be coloured.
        title: what the colour means, with its unit.
        limit: where the colour saturates; default: the largest absolute value.

    Raises:
        InputError: a value is NaN or infinite, or the limit is not above zero.
    """
    top = largest(values)
    limit = top if limit is None else float(limit)
    if not limit > 0:
        raise InputError(f"limit is {limit}; give a number above zero.")
    return {
        "colorscale": [list(stop) for stop in SCALE],
        "cmin": -limit,
        "cmax": limit,
        "colorbar": {
            "title": {"text": title, "side": "right", "font": {"size": 13}},
            "thickness": 12,
            "outlinewidth": 0,
            "len": COLOUR_BAR_PX,
            "lenmode": "pixels",
            "y": 1,
            "yanchor": "top",
            "tickformat": "~g",
        },
    }
