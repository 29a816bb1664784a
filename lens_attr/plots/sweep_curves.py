"""Curves of a benchmark: against the percent of words deleted, or the length of the text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.benchmark_bars import AXES
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.panels import panels, wrapped


def deletion_sweep(result: pd.DataFrame, metric: str = "comprehensiveness") -> go.Figure:
    """One line per method against the percent deleted, with its 95 % interval; a panel per task.

    Args:
        result: what `lens_attr.evaluation.deletion.sweep` gives.
        metric: a value of its column ``metric``.

    Raises:
        InputError: no such metric.
    """
    title = metric.replace("_", "-")
    return _curves(result, metric, "k", title, "words deleted (%)")


def length_curves(result: pd.DataFrame, metric: str = "pg") -> go.Figure:
    """One line per method against the length of the text; a panel per task.

    Args:
        result: what `lens_attr.evaluation.context_length.by_length_of_text` gives.
        metric: a value of its column ``metric``.

    Raises:
        InputError: no such metric.
    """
    from lens_attr.evaluation.results import title_of

    return _curves(result, metric, "tokens", title_of(metric), "tokens in the text (mean)")


def _curves(result: pd.DataFrame, metric: str, x: str, title: str, x_title: str) -> go.Figure:
    from lens_attr.evaluation.baselines import BASELINES

    chosen = [row for row in result.to_dict("records") if row["metric"] == metric]
    if not chosen:
        known = set(result["metric"]) or {"nothing"}
        raise InputError(f"there is no metric {metric!r} to draw; {did_you_mean(metric, known)}")
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    lines = _lines([method for method in methods if method not in BASELINES])
    lines |= _lines([method for method in methods if method in BASELINES], [RANDOM])
    fig = panels(tasks, x_title)
    for column, task in enumerate(tasks, start=1):
        for method in methods:
            rows = [r for r in chosen if (r["task"], r["method"]) == (task, method)]
            fig.add_scatter(
                x=[row[x] for row in rows],
                y=[row["value"] for row in rows],
                name=method,
                legendgroup=method,
                showlegend=column == 1,
                mode="lines+markers",
                line=lines[method],
                error_y={
                    "array": [row["high"] - row["value"] for row in rows],
                    "arrayminus": [row["value"] - row["low"] for row in rows],
                    "thickness": 1,
                },
                row=1,
                col=column,
            )
    fig.update_layout(title={"text": title}, height=480)
    fig.update_yaxes(title_text=wrapped(AXES.get(metric, title), _TITLE), col=1)
    return fig


def _lines(names: list[str], colours: Sequence[str] = LINES) -> dict[str, dict[str, str]]:
    """Colours, and where they run out another dash."""
    return {
        name: {"color": colours[i % len(colours)], "dash": _DASHES[i // len(colours) % 4]}
        for i, name in enumerate(names)
    }


_TITLE = 40
"""Characters of the vertical title on a line."""
_DASHES = ("solid", "dash", "dot", "dashdot")
