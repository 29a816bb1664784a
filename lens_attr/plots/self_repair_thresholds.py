"""Self-repair against the threshold: groups of keys, and joint effects seen too small or large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_attr.errors import InputError
from lens_attr.plots.palette import LINES
from lens_attr.plots.template import LIGHT

if TYPE_CHECKING:
    from lens_attr.circuits.self_repair_results import SelfRepair

_COUNTED = ("keys in a group", "groups in a row")
_SHARES = {"under": "under half of the joint effect", "over": "over twice the joint effect"}


def self_repair_thresholds(
    result: SelfRepair, thresholds: Sequence[float] | None = None
) -> go.Figure:
    """Above, the distribution of group sizes and of groups per attention row, one colour per
    threshold; below, the share of pairs that each method under- or over-aggregates.

    Args:
        result: the measurement.
        thresholds: of p * dL/dp; default: those it was made with.

    Raises:
        InputError: no pair above any threshold.
    """
    chosen = sorted(thresholds or result.metadata.get("thresholds", ()))
    counts, shares = result.distribution(chosen), result.aggregation(chosen)
    if counts.empty:
        raise InputError("there is no pair of keys above these thresholds: lower them.")
    fig = make_subplots(2, 2, subplot_titles=[*_COUNTED, *_SHARES.values()], vertical_spacing=0.2)
    for i, threshold in enumerate(chosen):
        colour = LINES[i % len(LINES)]
        for column, what in enumerate(_COUNTED, start=1):
            rows = counts[(counts["threshold"] == threshold) & (counts["what"] == what)]
            fig.add_bar(
                x=rows["value"],
                y=rows["count"],
                name=f"threshold {threshold:g}",
                legendgroup=f"threshold {threshold:g}",
                showlegend=column == 1,
                marker_color=colour,
                row=1,
                col=column,
            )
    for i, method in enumerate(result.methods):
        rows = shares[shares["method"] == method]
        for column, what in enumerate(_SHARES, start=1):
            fig.add_scatter(
                x=[f"{threshold:g}" for threshold in rows["threshold"]],
                y=rows[what],
                name=method,
                legendgroup=method,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": LINES[(i + len(chosen)) % len(LINES)]},
                customdata=rows["n"],
                hovertemplate="%{y:.0%} of %{customdata} pairs",
                row=2,
                col=column,
            )
    title = f"Self-repair against the threshold ({result.replace} ablation)"
    fig.update_layout(template=LIGHT, title={"text": title}, height=680)
    fig.update_xaxes(dtick=1, row=1)
    fig.update_yaxes(title_text="count", row=1, col=1)
    fig.update_xaxes(title_text=f"threshold ({result.unit})", type="category", row=2)
    fig.update_yaxes(title_text="share of pairs", tickformat=".0%", range=[-0.02, 1.02], row=2)
    return fig
