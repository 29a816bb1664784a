"""`BenchTable`: what a benchmark run found, with intervals, baselines and everything left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lens_attr import display
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, SavedResultError, did_you_mean
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.intervals import Interval
from lens_attr.evaluation.store import file_name, write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = ("method", "task", "metric", "value", "low", "high", "n")
SAMPLES = "samples"
"""In place of a method: the table that describes a task's samples."""
MODEL = "model"
"""In the column ``method`` of rows that say something about the model itself."""

TITLES: dict[str, str] = {
    "pg": "PG %",
    "mrr": "MRR %",
    "rma": "RMA %",
    "pta": "PTA %",
    "gap": "gap %",
    "degenerate": "all zero %",
    "no_positive_mass": "no positive %",
    "accuracy": "accuracy %",
    "rank_correlation": "rank correlation",
    "undefined": "undefined %",
    "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency",
    "log_odds": "log-odds",
    "aopc_comprehensiveness": "AOPC comprehensiveness",
    "aopc_sufficiency": "AOPC sufficiency",
    "aopc_log_odds": "AOPC log-odds",
    "backward_ms": "backward, ms",
    "backward_ratio": "backward, ratio",
    "end_to_end_ms": "end to end, ms",
    "end_to_end_ratio": "end to end, ratio",
    "attribute_ms": "la.attribute, ms",
    "joint_slope": "slope, predicted on joint",
    "joint_error": "error of the joint effect",
}
"""How tables head each metric."""

PERCENT = frozenset(
    ("pg", "mrr", "rma", "pta", "gap", "degenerate", "no_positive_mass", "accuracy", "undefined")
)
LOWER_IS_BETTER = frozenset(
    (
        "gap",
        "degenerate",
        "no_positive_mass",
        "undefined",
        "sufficiency",
        "log_odds",
        "aopc_sufficiency",
        "aopc_log_odds",
        "backward_ms",
        "backward_ratio",
        "end_to_end_ms",
        "end_to_end_ratio",
        "attribute_ms",
        "joint_error",
    )
)


@dataclass(frozen=True, repr=False)
class BenchTable(Shown):
    """The results of one run.

    Attributes:
        rows: one row per method, task and metric with the columns `COLUMNS`: the mean and its
            bootstrap 95 % interval over ``n`` samples. Shares and the conservation gap are in
            percent, deletion metrics in their own units. Rows of the method ``"model"`` hold
            the model's accuracy.
        samples: one row per sample, by (task, method).
        refused: the reason, by name of a method that is not defined for this model.
        tasks: what happened to each task's samples: read, left out, dropped, correct, and why
            none was left if so.
        metadata: model, settings, seed, versions, command, notes.
    """

    rows: pd.DataFrame
    samples: Mapping[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """Its tasks."""
        tasks = ", ".join(self.tasks)
        return f"{tasks}: {display.count(self.rows['method'].nunique(), 'row')} per task"

    def glance(self) -> Glance:
        """Every task's table, as in `to_markdown`."""
        return Glance(
            self.headline,
            table=pd.concat([shown_rows(self, task).assign(task=task) for task in self.tasks]),
        )

    def to_pandas(self) -> pd.DataFrame:
        """The rows: method, task, metric, value, low, high, n."""
        return self.rows.copy()

    def value(self, method: str, task: str, metric: str) -> Interval:
        """One row.

        Raises:
            InputError: there is none.
        """
        rows = self._records()
        for column, wanted in (("task", task), ("method", method), ("metric", metric)):
            known = dict.fromkeys(row[column] for row in rows)
            rows = [row for row in rows if row[column] == wanted]
            if not rows:
                hint = did_you_mean(wanted, known)
                raise InputError(f"there is no {column} {wanted!r} here; {hint}")
        return _interval(rows[0])

    def beats_random(self, metric: str = "pg") -> pd.DataFrame:
        """For each task and method, whether its interval is better than random's and apart.

        Raises:
            InputError: no such metric.
        """
        rows = [row for row in self._records() if row["metric"] == metric]
        if not rows:
            known = {row["metric"] for row in self._records()}
            raise InputError(f"there is no metric {metric!r} here; {did_you_mean(metric, known)}")
        chance = {row["task"]: _interval(row) for row in rows if row["method"] == "random"}
        found = [
            (row["task"], row["method"], _better(_interval(row), chance[row["task"]], metric))
            for row in rows
            if row["method"] not in (*BASELINES, MODEL)
        ]
        return pd.DataFrame(found, columns=["task", "method", "beats_random"])

    def _records(self) -> list[dict[str, Any]]:
        return self.rows.to_dict("records")

    def to_markdown(self) -> str:
        """One table per task, and below it what was dropped, refused or is worth knowing."""
        parts = [self._task_markdown(task) for task in self.tasks]
        if self.refused:
            lines = [f"- {method}: {reason}" for method, reason in self.refused.items()]
            parts.append("Not defined for this model:\n\n" + "\n".join(lines))
        notes = self.metadata.get("notes", [])
        if notes:
            parts.append("Notes:\n\n" + "\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts) + "\n"

    def _task_markdown(self, task: str) -> str:
        shown = shown_rows(self, task)
        lines = [f"| {' | '.join(shown.columns)} |", "|---|" + "---:|" * (len(shown.columns) - 1)]
        lines += [f"| {' | '.join(map(str, row))} |" for row in shown.itertuples(index=False)]
        return f"### {task}\n\n{facts_of(self.tasks[task])}\n\n" + "\n".join(lines)

    def __str__(self) -> str:
        return self.to_markdown()

    def plot(self, **options: Any) -> go.Figure:
        """Every method's value with its interval, task by task; ``metric="pg"`` by default."""
        return display.figure_of("benchmark", self, **options)

    def save(self, folder: str | Path) -> Path:
        """Write ``summary.json``, ``table.csv``, ``table.md`` and ``samples/*.parquet``."""
        folder = Path(folder)
        records = [_plain(row) for row in self._records()]
        summary = {
            **self.metadata,
            "tasks": self.tasks,
            "refused": self.refused,
            "table": records,
            "tables": [list(key) for key in self.samples],
        }
        write_text(folder / "summary.json", json.dumps(summary, indent=1, default=str))
        write_text(folder / "table.csv", str(self.rows.to_csv(index=False)))
        write_text(folder / "table.md", self.to_markdown())
        for (task, method), frame in self.samples.items():
            path = folder / "samples" / f"{file_name(task)}.{file_name(method)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(path, index=False)
        return folder

    @staticmethod
    def load(folder: str | Path) -> BenchTable:
        """Read what `save` wrote.

        Raises:
            SavedResultError: missing, truncated, or not written by `save`.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            rows = pd.DataFrame(summary.pop("table"), columns=list(COLUMNS))
            samples = {
                (task, method): pd.read_parquet(
                    folder / "samples" / f"{file_name(task)}.{file_name(method)}.parquet"
                )
                for task, method in summary.pop("tables")
            }
            tasks, refused = summary.pop("tasks"), summary.pop("refused")
        except (OSError, ValueError, KeyError) as error:
            raise SavedResultError(f"{folder} holds no benchmark results: {error}") from error
        numbers = rows.astype({"value": float, "low": float, "high": float, "n": int})
        return BenchTable(numbers, samples, refused, tasks, summary)


def shown_rows(table: BenchTable, task: str) -> pd.DataFrame:
    """One row per method, one column per metric, every value with its interval as text."""
    rows = [
        row
        for row in table.rows.to_dict("records")
        if row["task"] == task and row["method"] != MODEL
    ]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = {row["metric"]: row for row in rows if row["method"] == method}
        values = {title_of(m): _cell(cells[m]) if m in cells else "" for m in metrics}
        found.append({"method": method, **values, "n": max(r["n"] for r in cells.values())})
    return pd.DataFrame(found)


def rows_by_length(table: BenchTable, source: str, lengths: Sequence[int]) -> pd.DataFrame:
    """`shown_rows` of the tasks ``"source/length"`` as one table: a row per method and length."""
    frames = [shown_rows(table, f"{source}/{length}") for length in lengths]
    for length, frame in zip(lengths, frames, strict=True):
        frame.insert(1, "tokens", length)
    rows = pd.concat(frames, ignore_index=True)
    places = {method: place for place, method in enumerate(dict.fromkeys(rows["method"]))}
    return rows.sort_values("method", key=lambda names: names.map(places), kind="stable")


def title_of(metric: str) -> str:
    """How a table heads a metric."""
    return TITLES.get(metric, metric)


def interval_rows(
    samples: Mapping[tuple[str, str], pd.DataFrame],
    intervals: Callable[[pd.DataFrame], Mapping[str, Interval]],
    tasks: Iterable[str],
) -> pd.DataFrame:
    """`BenchTable.rows` of the per-sample tables of ``tasks``: a row per method and metric."""
    rows = [
        interval_row(method, task, metric, one)
        for task in tasks
        for (of, method), frame in samples.items()
        if of == task and method != SAMPLES
        for metric, one in intervals(frame).items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def interval_row(method: str, task: str, metric: str, interval: Interval) -> tuple[Any, ...]:
    """One row; shares become percent."""
    factor = 100.0 if metric in PERCENT else 1.0
    ends = (interval.value, interval.low, interval.high)
    return (method, task, metric, *(factor * end for end in ends), interval.n)


def _interval(row: Mapping[str, Any]) -> Interval:
    return Interval(row["value"], row["low"], row["high"], row["n"])


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _better(one: Interval, other: Interval, metric: str) -> bool:
    """Better, and so far that the intervals are apart."""
    if metric in LOWER_IS_BETTER:
        return one.high < other.low
    return one.low > other.high


def _cell(row: Mapping[str, Any]) -> str:
    if math.isnan(row["value"]):
        return "-"
    digits = 1 if row["metric"] in PERCENT else 3
    value, low, high = (f"{row[end]:.{digits}f}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def facts_of(task: Mapping[str, Any]) -> str:
    """What happened to a task's samples, in one paragraph."""
    parts = [f"Source: {task['source']}.", f"{task['read']} samples read"]
    if "correct" in task:
        total = task["read"] - sum(task["dropped"].values())
        share = f" ({100 * task['correct'] / total:.1f} %)" if total else ""
        parts[-1] += f", {task['correct']} of {total} predicted correctly{share}"
    parts[-1] += f", {task['used']} used."
    for title, key in (("Rows left out", "left_out"), ("Samples dropped", "dropped")):
        if task.get(key):
            reasons = (f"{count} x {reason}" for reason, count in task[key].items())
            parts.append(f"{title}: {'; '.join(reasons)}.")
    if task.get("several_pieces"):
        parts.append(
            f"{task['several_pieces']} answers are several tokens; {task['shared_pieces']} prompts "
            "were extended by pieces that answer and foil share."
        )
    parts += task.get("remarks", [])
    if task.get("empty"):
        parts.append(f"Nothing is left: {task['empty']}.")
    return " ".join(parts)
