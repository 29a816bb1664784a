"""Deletion curves: what becomes of the prediction as more and more words are deleted."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.palette import LINES
from lens_attr.plots.template import LIGHT


def deletion_sweep(result: pd.DataFrame, metric: str = "comprehensiveness") -> go.Figure:
    """One line per method against the percent deleted, with its 95 % interval; a panel per task.

    Args:
        result: what `lens_attr.evaluation.deletion.sweep` gives.
        metric: a value of its column ``metric``.

    Raises:
        InputError: no such metric.
    """
    chosen = [row for row in result.to_dict("records") if row["metric"] == metric]
    if not chosen:
        known = set(result["metric"]) or {"nothing"}
        raise InputError(f"there is no metric {metric!r} to draw; {did_you_mean(metric, known)}")
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    fig = make_subplots(cols=len(tasks), subplot_titles=tasks, shared_yaxes=True)
    for column, task in enumerate(tasks, start=1):
        for i, method in enumerate(methods):
            rows = [r for r in chosen if (r["task"], r["method"]) == (task, method)]
            fig.add_scatter(
                x=[row["k"] for row in rows],
                y=[row["value"] for row in rows],
                name=method,
                legendgroup=method,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": LINES[i % len(LINES)]},
                error_y={
                    "array": [row["high"] - row["value"] for row in rows],
                    "arrayminus": [row["value"] - row["low"] for row in rows],
                    "thickness": 1,
                },
                row=1,
                col=column,
            )
    title = metric.replace("_", "-")
    fig.update_layout(template=LIGHT, title={"text": title}, height=480)
    fig.update_xaxes(title_text="words deleted (%)")
    fig.update_yaxes(title_text=title, col=1)
    return fig
