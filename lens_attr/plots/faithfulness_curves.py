"""Faithfulness curves: how much of the model a circuit explains, against its size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from lens_attr.errors import InputError
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.template import figure

if TYPE_CHECKING:
    from lens_attr.circuits.faithfulness_results import FaithfulnessComparison, FaithfulnessCurve

_BAND = "rgba(138, 143, 152, 0.25)"


def faithfulness(result: FaithfulnessComparison) -> go.Figure:
    """Faithfulness against the share of edges in the circuit, one line per ranking.

    1 is as good as the whole model, 0 as bad as the corrupted run. The band spans the random
    orders.

    Args:
        result: the curves.

    Raises:
        InputError: no curve.
    """
    curves = [*result.curves, *result.random]
    if not curves:
        raise InputError("there is no faithfulness curve to draw.")
    axis = curves[0].axis
    fig = figure(f"Faithfulness of circuits, {curves[0].ordering} ordering", height=480)
    fig.update_layout(showlegend=True)
    if result.random:
        _band(fig, result)
    for i, curve in enumerate(result.curves):
        fig.add_scatter(
            x=curve.x,
            y=curve.faithfulness,
            name=f"{curve.method}, {curve.by} (CPR {curve.cpr:.2f}, CMD {curve.cmd:.2f})",
            mode="lines+markers",
            line={"color": LINES[i % len(LINES)], "width": 2.5},
            customdata=_labels(curve),
            hovertemplate="%{y:.3f}, %{customdata}<extra></extra>",
        )
    what = "edges in the circuit" if axis == "fraction" else "edges chosen, before pruning"
    what += " (% of all)"
    fig.add_hline(y=1.0, line={"dash": "dot", "color": RANDOM, "width": 1})
    fig.update_xaxes(title_text=what, type="log", tickformat="~%", dtick=1)
    fig.update_yaxes(title_text="faithfulness (1 whole model, 0 corrupted)")
    return fig


def _labels(curve: FaithfulnessCurve) -> list[str]:
    return [f"{e.n_edges} of {e.n_edges_model} edges" for e in curve.evaluations]


def _band(fig: go.Figure, result: FaithfulnessComparison) -> None:
    """Random circuits lose most edges to pruning, so they are drawn at the size chosen."""
    heights = np.stack([curve.faithfulness for curve in result.random])
    x = np.array(result.random[0].percentages) / 100
    edge = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    fig.add_scatter(x=x, y=heights.max(axis=0), **edge)
    fig.add_scatter(x=x, y=heights.min(axis=0), fill="tonexty", fillcolor=_BAND, **edge)
    fig.add_scatter(
        x=x,
        y=heights.mean(axis=0),
        name=f"random, mean of {len(heights)}",
        mode="lines",
        line={"color": RANDOM, "width": 2, "dash": "dot"},
        hovertemplate="%{y:.3f}<extra></extra>",
    )
