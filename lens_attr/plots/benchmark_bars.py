"""Benchmark results: one bar per method with its interval, one panel per task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.palette import LINES, RANDOM
from lens_attr.plots.panels import panels

if TYPE_CHECKING:
    from lens_attr.evaluation.results import BenchTable

_ROW_PX, _FRAME_PX = 26, 184

AXES = {
    "pg": "pointing game: top token is right (% of samples)",
    "mrr": "mean reciprocal rank of the right token (%)",
    "rma": "relevance mass accuracy: share on the right tokens (%)",
    "pta": "per-token accuracy: sign is right (% of tokens)",
    "gap": "conservation gap (% of the target, lower is better)",
    "degenerate": "relevance zero everywhere (% of samples)",
    "no_positive_mass": "no positive relevance (% of samples)",
    "accuracy": "predicted correctly (% of samples)",
    "comprehensiveness": "comprehensiveness (probability lost, higher is better)",
    "sufficiency": "sufficiency (probability lost, lower is better)",
    "log_odds": "log-odds (nats, lower is better)",
    "aopc_comprehensiveness": "AOPC comprehensiveness (probability lost, higher is better)",
    "aopc_sufficiency": "AOPC sufficiency (probability lost, lower is better)",
    "aopc_log_odds": "AOPC log-odds (nats, lower is better)",
    "rank_correlation": "rank correlation with the edited text (Spearman, 1 is the same order)",
    "undefined": "no ranking, all words equal (% of samples)",
    "backward_ms": "backward pass (ms, lower is better)",
    "backward_ratio": "backward pass (times gradient x input's, lower is better)",
    "end_to_end_ms": "forward and backward (ms, lower is better)",
    "end_to_end_ratio": "forward and backward (times gradient x input's, lower is better)",
    "attribute_ms": "la.attribute (ms, lower is better)",
    "joint_slope": "slope of the predicted on the exact joint effect (1 is right)",
    "joint_error": "error of the predicted joint effect (lower is better)",
}
"""What an axis says of each metric, with its unit."""


def benchmark(result: BenchTable, metric: str = "pg") -> go.Figure:
    """Every method's value of one metric with its 95 % interval; baselines are grey.

    Args:
        result: the table.
        metric: a value of its column ``metric``.

    Raises:
        InputError: the table has no such metric.
    """
    from lens_attr.evaluation.baselines import BASELINES
    from lens_attr.evaluation.results import MODEL, title_of

    rows = [r for r in result.rows.to_dict("records") if r["method"] != MODEL]
    chosen = [row for row in rows if row["metric"] == metric and row["n"]]
    if not chosen:
        known = {row["metric"] for row in rows if row["n"]} or {"nothing"}
        raise InputError(f"there is no metric {metric!r} to draw; {did_you_mean(metric, known)}")
    tasks = list(dict.fromkeys(row["task"] for row in chosen))
    title = AXES.get(metric, title_of(metric))
    fig = panels(tasks, title)
    for i, task in enumerate(tasks):
        mine = [row for row in chosen if row["task"] == task]
        fig.add_bar(
            x=[row["value"] for row in mine],
            y=[row["method"] for row in mine],
            orientation="h",
            marker_color=[RANDOM if row["method"] in BASELINES else LINES[0] for row in mine],
            error_x={
                "array": [row["high"] - row["value"] for row in mine],
                "arrayminus": [row["value"] - row["low"] for row in mine],
                "thickness": 1.2,
            },
            customdata=[row["n"] for row in mine],
            hovertemplate="%{y}: %{x:.3g} (n = %{customdata})<extra></extra>",
            row=1,
            col=i + 1,
        )
    height = _FRAME_PX + _ROW_PX * len({row["method"] for row in chosen})
    fig.update_layout(title={"text": title}, height=height, showlegend=False)
    fig.update_yaxes(autorange="reversed")
    return fig
