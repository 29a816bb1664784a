"""The figures of a benchmark, whatever it measured."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from lens_attr import plots
from lens_attr.evaluation import BenchTable, by_length_of_text, deletion
from lens_attr.evaluation.results import MODEL

if TYPE_CHECKING:
    import plotly.graph_objects as go

RANK_CORRELATION = "rank_correlation"


def bench_figures(table: BenchTable) -> list[go.Figure]:
    """One figure per metric that has values.

    Against the block where a run went inside the model, against length where texts were lengthened,
    a panel for each edit where they were edited; with the k sweep of a benchmark by deletion.
    """
    rows = _filled(table)
    metrics = dict.fromkeys(row["metric"] for row in rows if row["method"] != MODEL)
    metrics = [metric for metric in metrics if metric != "degenerate"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if any("/layer " in task for task in tasks):
        return [plots.layer_faithfulness(table, metric) for metric in metrics]
    if any(re.search(r"/\+\d+$", task) for task in tasks):
        curves = by_length_of_text(table)
        return [plots.length_curves(curves, metric) for metric in ("accuracy", *metrics)]
    if RANK_CORRELATION in metrics:
        return _by_edit(table)
    figures = [table.plot(metric=metric) for metric in metrics]
    if "sweep" in table.metadata.get("settings", {}):
        sweep = deletion.sweep(table)
        figures += [plots.deletion_sweep(sweep, m) for m in metrics if "aopc" not in m]
    return figures


def _by_edit(table: BenchTable) -> list[go.Figure]:
    """One figure per task."""
    found: dict[str, list[Any]] = {}
    for row in _filled(table):
        found.setdefault(row["task"].rpartition("/")[0], []).append(row)
    return [
        replace(table, rows=pd.DataFrame(rows)).plot(metric=RANK_CORRELATION)
        for rows in found.values()
    ]


def _filled(table: BenchTable) -> list[dict[Any, Any]]:
    return [row for row in table.rows.to_dict("records") if row["n"] > 0]
