"""The figures of a benchmark, whatever it measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
    rows = table.rows[table.rows["n"] > 0]
    judged = rows[rows["method"] != MODEL]["metric"]
    metrics = [metric for metric in dict.fromkeys(judged) if metric != "degenerate"]
    if rows["task"].str.contains("/layer ").any():
        return [plots.layer_faithfulness(table, metric) for metric in metrics]
    if rows["task"].str.contains(r"/\+\d+$").any():
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
    rows = table.rows[table.rows["n"] > 0]
    of_task = rows["task"].str.rpartition("/")[0]
    return [
        replace(table, rows=rows[of_task == task]).plot(metric=RANK_CORRELATION)
        for task in dict.fromkeys(of_task)
    ]
