"""Self-repair figure: joint against summed effects of ablating two attention scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lens_attr.errors import InputError
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.template import figure

if TYPE_CHECKING:
    from lens_attr.circuits.self_repair_results import SelfRepair


def self_repair(result: SelfRepair, threshold: float = 0.0) -> go.Figure:
    """Every pair of keys: the sum of their single effects, and what methods predict, against both.

    On the diagonal effects add up; a pair near the horizontal axis repairs itself: either key
    alone changes little, both together much.

    Args:
        result: the measurement.
        threshold: smallest p * dL/dp of both keys.

    Raises:
        InputError: no pair above the threshold.
    """
    pairs = result.to_pandas().query("strength > @threshold")
    if pairs.empty:
        raise InputError("there is no pair of keys to draw: lower the threshold.")
    unit = result.unit
    fig = figure(f"Self-repair, {len(pairs)} pairs of keys ({result.replace} ablation)", height=520)
    fig.update_layout(showlegend=True)
    ends = [float(pairs.effect_both.min()), float(pairs.effect_both.max())]
    ends = [min(ends[0], 0.0), max(ends[1], 0.0)]
    line = {"color": RANDOM, "dash": "dot", "width": 1.5}
    fig.add_scatter(x=ends, y=ends, mode="lines", line=line, name="equal", hoverinfo="skip")
    series = {"single effects, summed": pairs.effect_1 + pairs.effect_2}
    series |= {f"{method}, predicted": pairs[method] for method in result.methods}
    names = [
        f"head {row['layer']}.{row['head']}, example {row['example']}, query {row['query']}, "
        f"keys {row['key_1']} and {row['key_2']}"
        for row in pairs.to_dict("records")
    ]
    for i, (name, values) in enumerate(series.items()):
        fig.add_scatter(
            x=pairs.effect_both,
            y=values,
            mode="markers",
            name=name,
            marker={"color": LINES[i % len(LINES)], "size": 7, "opacity": 0.75},
            customdata=names,
            hovertemplate="%{customdata}<br>joint %{x:+.4g}, %{y:+.4g} " + unit,
        )
    fig.update_xaxes(title_text=f"effect of ablating both ({unit})")
    fig.update_yaxes(title_text=f"summed or predicted effect ({unit})")
    return fig
