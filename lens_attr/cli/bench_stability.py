"""What ``lens-attr bench --stability`` and ``--length`` run and draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lens_attr.cli import bench_runs, console
from lens_attr.cli.bench_runs import Request
from lens_attr.evaluation import (
    BenchTable,
    Settings,
    Stability,
    bench_length,
    bench_stability,
    by_length_of_text,
    tasks,
)
from lens_attr.plots import length_curves


def stability(
    request: Request, settings: Stability, pairs: Path | None, skip_bad: bool, as_json: bool
) -> None:
    """Built-in edits of the request's tasks, or the pairs of a file."""
    edited = request.tasks if pairs is None else [tasks.read_pairs(pairs, skip_bad=skip_bad)]
    model = request.load()
    with console.notices(request.quiet):
        table = bench_stability(model, edited, request.names, settings=settings, **request.shared)
    bench_runs.show_table(table, request, as_json, list(_edit_figures(table)))


def _edit_figures(table: BenchTable) -> Iterator[Any]:
    """One per task, with a panel for each edit."""
    for task in dict.fromkeys(name.rpartition("/")[0] for name in table.tasks):
        mine = table.rows["task"].str.startswith(f"{task}/") & (table.rows["n"] > 0)
        if mine.any():
            yield replace(table, rows=table.rows[mine]).plot(metric="rank_correlation")


def length(request: Request, settings: Settings, as_json: bool) -> None:
    """The request's tasks with distractor sentences before every text."""
    model = request.load()
    with console.notices(request.quiet):
        table = bench_length(
            model, request.tasks, request.names, settings=settings, **request.shared
        )
    bench_runs.show_table(table, request, as_json, list(_length_figures(table)))


def _length_figures(table: BenchTable) -> Iterator[Any]:
    if not table.rows["n"].any():
        return
    curves = by_length_of_text(table)
    for metric in ("accuracy", "pg", "mrr", "rma", "pta"):
        if metric in set(curves["metric"]):
            yield length_curves(curves, metric)
