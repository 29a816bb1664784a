"""Choices around a method: each method's paired difference, one panel per choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.template import LIGHT

if TYPE_CHECKING:
    from lens_attr.evaluation.axes import AxesTable

_ROW_PX, _FRAME_PX = 26, 190


def axes(result: AxesTable, metric: str = "pg") -> go.Figure:
    """Paired differences of one metric with their 95 % intervals, choice by choice.

    Right of zero the first way of the choice is better. Baselines are grey; the shaded band is the
    margin within which a difference does not count.

    Args:
        result: the comparison.
        metric: a value of its column ``metric``.

    Raises:
        InputError: no such metric, or there are no samples.
    """
    from lens_attr.evaluation.baselines import BASELINES
    from lens_attr.evaluation.results import title_of

    filled = [row for row in result.differences.to_dict("records") if row["n"]]
    rows = [row for row in filled if row["metric"] == metric]
    if not rows:
        known = dict.fromkeys(row["metric"] for row in filled) or {"nothing": None}
        raise InputError(f"there is no metric {metric!r} to draw; {did_you_mean(metric, known)}")
    several = len({row["task"] for row in rows}) > 1
    shown = [axis for axis in result.compared if any(row["axis"] == axis.name for row in rows)]
    counts = [sum(row["axis"] == axis.name for row in rows) for axis in shown]
    fig = make_subplots(
        rows=len(shown),
        subplot_titles=[f"{axis.name}: {axis.first} - {axis.second}" for axis in shown],
        row_heights=[count / sum(counts) for count in counts],
        vertical_spacing=0.25 / len(shown),
    )
    for place, axis in enumerate(shown, start=1):
        mine = [row for row in rows if row["axis"] == axis.name]
        panel: Any = {"row": place, "col": 1}
        fig.add_bar(
            x=[row["difference"] for row in mine],
            y=[f"{row['method']}, {row['task']}" if several else row["method"] for row in mine],
            orientation="h",
            marker_color=[RANDOM if row["method"] in BASELINES else LINES[0] for row in mine],
            error_x={
                "array": [row["high"] - row["difference"] for row in mine],
                "arrayminus": [row["difference"] - row["low"] for row in mine],
                "thickness": 1.2,
            },
            customdata=[[row["p"], row["n"]] for row in mine],
            hovertemplate="%{y}: %{x:+.2f} (p = %{customdata[0]:.3g}, n = %{customdata[1]})"
            "<extra></extra>",
            **panel,
        )
        band: Any = {"fillcolor": LINES[1], "opacity": 0.12, "line_width": 0}
        fig.add_vrect(-axis.margin, axis.margin, **band, **panel)
    title = f"{title_of(metric)}: paired differences, percentage points"
    height = _FRAME_PX + _ROW_PX * sum(counts) + 60 * len(shown)
    fig.update_layout(template=LIGHT, title={"text": title}, height=height, showlegend=False)
    fig.update_yaxes(autorange="reversed")
    fig.update_xaxes(title_text="difference (percentage points)", row=len(shown))
    return fig
