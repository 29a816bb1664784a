"""Faithfulness curves: how much of the model a circuit explains, against its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from lens_attr.display import count
from lens_attr.errors import InputError
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.panels import wrapped
from lens_attr.plots.template import figure

if TYPE_CHECKING:
    from lens_attr.circuits.faithfulness_results import FaithfulnessComparison, FaithfulnessCurve

_LINE = 36
"""Characters of a title's line: two lines stay above the legend."""
_TITLES = {
    "fraction": "edges in the circuit, share of the model's (axis: fraction)",
    "percentage": "edges chosen before pruning, share of the model's (axis: percentage)",
}


def faithfulness(result: FaithfulnessComparison) -> go.Figure:
    """Faithfulness against the size of the circuit, one line per ranking.

    1 is as good as the whole model, 0 as bad as the corrupted run. Every circuit stands where it
    stands on the axis that CPR and CMD integrate over; a circuit without edges, which a
    logarithmic axis has no place for, on a mark of its own at the left. Grey lines are random
    orders.

    Args:
        result: the curves.

    Raises:
        InputError: no curve, or curves over different axes.
    """
    curves = [*result.curves, *result.random]
    if not curves:
        raise InputError("there is no faithfulness curve to draw.")
    axis = curves[0].axis
    if any(curve.axis != axis for curve in curves):
        raise InputError("the curves are over different axes: draw those of one axis together.")
    empty = _place_of_empty(curves)
    fig = figure(f"Faithfulness of circuits, {curves[0].ordering} ordering", height=480)
    fig.update_layout(showlegend=True, legend_y=-0.32)
    for i, curve in enumerate(result.random):
        _random(fig, curve, empty, len(result.random) if i == 0 else 0)
    for i, curve in enumerate(result.curves):
        fig.add_scatter(
            x=_places(curve, empty),
            y=curve.faithfulness,
            name=_named(curve),
            mode="lines+markers",
            line={"color": LINES[i % len(LINES)], "width": 2.5},
            customdata=_labels(curve),
            hovertemplate="%{y:.3f}, %{customdata}<extra></extra>",
        )
    fig.add_hline(y=1.0, line={"dash": "dot", "color": RANDOM, "width": 1})
    fig.update_xaxes(title_text=wrapped(_TITLES[axis], _LINE), type="log", **_ticks(curves, empty))
    fig.update_yaxes(title_text="faithfulness (1 whole model, 0 corrupted)")
    return fig


def _named(curve: FaithfulnessCurve) -> str:
    """With its scores, which one size of circuit alone does not give."""
    areas = "" if np.isnan(curve.cpr) else f" (CPR {curve.cpr:.2f}, CMD {curve.cmd:.2f})"
    return f"{curve.method}, {curve.by}{areas}"


def _labels(curve: FaithfulnessCurve) -> list[str]:
    return [f"{e.n_edges} of {e.n_edges_model} edges" for e in curve.evaluations]


def _place_of_empty(curves: Sequence[FaithfulnessCurve]) -> float:
    """Where circuits without edges are drawn: left of a circuit of one edge."""
    return 0.3 / max(e.n_edges_model for curve in curves for e in curve.evaluations)


def _places(curve: FaithfulnessCurve, empty: float) -> list[float]:
    return [float(x) or empty for x in curve.x]


def _ticks(curves: Sequence[FaithfulnessCurve], empty: float) -> dict[str, Any]:
    """Powers of ten; where a circuit is empty, also its mark."""
    every = np.concatenate([curve.x for curve in curves])
    if every.all():
        return {"tickformat": "~%", "dtick": 1}
    lowest = min([*every[every > 0], 1.0])
    powers = [10.0**k for k in range(int(np.ceil(np.log10(lowest))), 1)]
    return {
        "tickvals": [empty, *powers],
        "ticktext": ["no edge", *(f"{p * 100:g}%" for p in powers)],
    }


def _random(fig: go.Figure, curve: FaithfulnessCurve, empty: float, n: int) -> None:
    """A random order; the first stands for all ``n`` in the legend."""
    fig.add_scatter(
        x=_places(curve, empty),
        y=curve.faithfulness,
        name=f"random, {count(n, 'order')}",
        legendgroup="random",
        showlegend=n > 0,
        mode="lines",
        opacity=0.7,
        line={"color": RANDOM, "width": 1.5, "dash": "dot"},
        customdata=_labels(curve),
        hovertemplate="%{y:.3f}, %{customdata}<extra></extra>",
    )
