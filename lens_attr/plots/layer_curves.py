"""Faithfulness through the model: replacing tokens, or positions before each block."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.panels import panels

if TYPE_CHECKING:
    from lens_attr.evaluation.results import BenchTable

_MOST_TICKS = 8
_INSIDE = re.compile(r"(.*)/layer (\d+)")


def layer_faithfulness(result: BenchTable, metric: str = "comprehensiveness") -> go.Figure:
    """One line per method from the tokens through the blocks, with its 95 % interval.

    A panel per task. Of the baselines only the random one is drawn, dotted.

    Args:
        result: what `lens_attr.evaluation.bench_faithfulness` gives.
        metric: a value of its column ``metric``.

    Raises:
        InputError: no such metric.
    """
    from lens_attr.evaluation.baselines import BASELINES

    hidden = set(BASELINES) - {"random"}
    records = [r for r in result.rows.to_dict("records") if r["method"] not in hidden and r["n"]]
    chosen = [_placed(row) for row in records if row["metric"] == metric]
    if not chosen:
        known = {row["metric"] for row in records} or {"nothing"}
        raise InputError(f"there is no metric {metric!r} to draw; {did_you_mean(metric, known)}")
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    fig = panels(tasks, "before block")
    for column, task in enumerate(tasks, start=1):
        for i, method in enumerate(methods):
            rows = [r for r in chosen if (r["task"], r["method"]) == (task, method)]
            fig.add_trace(_line(rows, method, i, column == 1), row=1, col=column)
    layers = sorted({row["layer"] for row in chosen})
    shown = layers[:: -(-len(layers) // max(2, _MOST_TICKS // len(tasks)))]
    texts = ["tokens" if layer < 0 else str(layer) for layer in shown]
    fig.update_layout(title={"text": metric}, height=480, showlegend=True)
    fig.update_xaxes(tickvals=shown, ticktext=texts)
    fig.update_yaxes(title_text=f"{metric} (share of the logit)", col=1)
    return fig


def _placed(row: dict[Any, Any]) -> dict[Any, Any]:
    """A row with its task and block apart; -1 for the tokens."""
    inside = _INSIDE.fullmatch(row["task"])
    task, layer = (inside[1], int(inside[2])) if inside else (row["task"], -1)
    return {**row, "task": task, "layer": layer}


def _line(rows: list[dict[Any, Any]], method: str, i: int, in_legend: bool) -> go.Scatter:
    chance = method == "random"
    colour = RANDOM if chance else LINES[(i - 1) % len(LINES)]
    return go.Scatter(
        x=[row["layer"] for row in rows],
        y=[row["value"] for row in rows],
        name=method,
        legendgroup=method,
        showlegend=in_legend,
        mode="lines+markers",
        line={"color": colour, "dash": "dot" if chance else "solid"},
        error_y={
            "array": [row["high"] - row["value"] for row in rows],
            "arrayminus": [row["value"] - row["low"] for row in rows],
            "thickness": 1,
        },
        customdata=[row["n"] for row in rows],
        hovertemplate="%{y:.3g} (n = %{customdata})",
    )
