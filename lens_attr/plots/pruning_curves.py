"""Pruning curves: what is left of the accuracy as heads, MLPs or neurons are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import plotly.graph_objects as go

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.template import figure

if TYPE_CHECKING:
    from lens_attr.circuits.results import PruningComparison, PruningCurve

Measure = Literal["accuracy", "logit_diff"]

_BAND = "rgba(138, 143, 152, 0.25)"
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "hexagon")
_DASHES = ("solid", "9px,4px", "4px,3px", "12px,3px,3px,3px")
"""Later curves lie on earlier ones and let them show through."""
_MOST_MARKED = 40
_UNITS = {"head": "heads", "mlp": "MLPs", "neuron": "neurons"}
_AXIS = {
    "accuracy": "accuracy (answer above foil)",
    "logit_diff": "mean logit difference (logit)",
}


def pruning(result: PruningComparison, y: Measure = "accuracy") -> go.Figure:
    """Accuracy against the share of heads removed: one line per method, random as a band.

    The band spans the lowest and the highest random order, the dashed line is their mean.

    Args:
        result: the curves.
        y: ``"accuracy"``, or ``"logit_diff"`` for the mean logit(answer) - logit(foil).

    Raises:
        InputError: no curve, unknown ``y``, or curves of different lengths or orders.
    """
    if y not in get_args(Measure):
        raise InputError(f"unknown y {y!r}; {did_you_mean(str(y), get_args(Measure))}")
    curves = [*result.curves, *result.random]
    if not curves:
        raise InputError("there is no pruning curve to draw.")
    if len({(len(c.accuracy), c.order, c.ablation, c.unit) for c in curves}) > 1:
        raise InputError("the curves differ in number of heads, order, ablation or unit.")
    fig = figure(_title(curves[0]), height=480, hovermode="x unified", showlegend=True)
    if result.random:
        _add_random(fig, result.random, y)
    for i, curve in enumerate(result.curves):
        _add_curve(fig, curve, y, i)
    fig.update_xaxes(
        title_text=f"{_UNITS[curves[0].unit]} removed", tickformat=".0%", range=[-0.01, 1.01]
    )
    fig.update_yaxes(title_text=_AXIS[y])
    if y == "accuracy":
        fig.update_yaxes(tickformat=".0%", range=[-0.02, 1.04])
    return fig


def _title(curve: PruningCurve) -> str:
    units = _UNITS[curve.unit]
    title = f"Pruning, {curve.order} relevant {units} first, {curve.ablation} ablation"
    return f"{title}, {curve.n} samples" if curve.n else title


def _add_curve(fig: go.Figure, curve: PruningCurve, y: Measure, i: int) -> None:
    removed = [
        "whole model" if last is None else f"removed {last[0]}.{last[1]}"
        for last in curve.last_pruned
    ]
    few = len(curve.accuracy) <= _MOST_MARKED
    fig.add_scatter(
        x=curve.fraction,
        y=getattr(curve, y),
        name=f"{curve.method} (area {curve.area:.2f})",
        mode="lines+markers" if few else "lines",
        line={"color": LINES[i % len(LINES)], "width": 2.5, "dash": _DASHES[i % len(_DASHES)]},
        marker={"symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 7},
        customdata=removed,
        hovertemplate=f"%{{y:{_digits(y)}}}, %{{customdata}}",
    )


def _add_random(fig: go.Figure, random: Sequence[PruningCurve], y: Measure) -> None:
    heights = np.stack([getattr(curve, y) for curve in random])
    fraction = random[0].fraction
    edge = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    fig.add_scatter(x=fraction, y=heights.max(axis=0), **edge)
    fig.add_scatter(x=fraction, y=heights.min(axis=0), fill="tonexty", fillcolor=_BAND, **edge)
    area = np.mean([curve.area for curve in random])
    fig.add_scatter(
        x=fraction,
        y=heights.mean(axis=0),
        name=f"random, mean of {len(random)} (area {area:.2f})",
        mode="lines",
        line={"color": RANDOM, "width": 2, "dash": "dot"},
        legendrank=2000,
        hovertemplate=f"%{{y:{_digits(y)}}}",
    )


def _digits(y: Measure) -> str:
    return ".0%" if y == "accuracy" else ".2f"
