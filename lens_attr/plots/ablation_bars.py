"""Ablations of a preset: one bar per variant, one panel per question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.benchmark_bars import AXES
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.panels import wrapped
from lens_attr.plots.template import LIGHT

if TYPE_CHECKING:
    from lens_attr.evaluation.ablation import AblationTable

_ROW_PX, _FRAME_PX = 30, 190


def ablation(result: AblationTable, task: str, metric: str = "pg") -> go.Figure:
    """Every variant's value of one metric with its 95 % interval.

    Parts added one by one, one left out, and other temperatures, below each other; the whole preset
    stands out, the dotted line is the random baseline.

    Args:
        result: the table.
        task: one of its tasks.
        metric: a value of its column ``metric``.

    Raises:
        InputError: no such task or metric, or nothing was measured.
    """
    from lens_attr.evaluation.results import title_of

    rows = [row for row in result.rows.to_dict("records") if row["n"]]
    for column, wanted in (("task", task), ("metric", metric)):
        known = dict.fromkeys(row[column] for row in rows)
        rows = [row for row in rows if row[column] == wanted]
        if not rows:
            hint = did_you_mean(wanted, known or {"nothing"})
            raise InputError(f"there is no {column} {wanted!r} to draw; {hint}")
    series = list(dict.fromkeys(row["series"] for row in rows))
    counts = [sum(row["series"] == name for row in rows) for name in series]
    fig = make_subplots(
        rows=len(series),
        shared_xaxes=True,
        subplot_titles=series,
        row_heights=[count / sum(counts) for count in counts],
        vertical_spacing=0.08,
    )
    for place, name in enumerate(series, start=1):
        mine = [row for row in rows if row["series"] == name]
        fig.add_bar(
            x=[row["value"] for row in mine],
            y=[row["step"] for row in mine],
            orientation="h",
            marker_color=[LINES[0] if row["method"] == result.preset else RANDOM for row in mine],
            error_x={
                "array": [row["high"] - row["value"] for row in mine],
                "arrayminus": [row["value"] - row["low"] for row in mine],
                "thickness": 1.2,
            },
            customdata=[row["n"] for row in mine],
            hovertemplate="%{y}: %{x:.3g} (n = %{customdata})<extra></extra>",
            row=place,
            col=1,
        )
    chance = result.base.value("random", task, metric).value
    fig.add_vline(x=chance, line={"color": LINES[1], "dash": "dot", "width": 1.5})
    title = f"Parts of {result.preset}: {title_of(metric)}, {task}"
    height = _FRAME_PX + _ROW_PX * sum(counts)
    fig.update_layout(template=LIGHT, title={"text": title}, height=height, showlegend=False)
    fig.update_yaxes(autorange="reversed")
    fig.update_xaxes(title_text=wrapped(AXES.get(metric, title_of(metric))), row=len(series))
    return fig
