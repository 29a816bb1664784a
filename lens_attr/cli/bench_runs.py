"""What ``lens-attr bench`` runs and prints."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lens_attr.cli import console, options
from lens_attr.evaluation import (
    AxesTable,
    BenchTable,
    Deletion,
    Published,
    Settings,
    bench,
    bench_axes,
    bench_deletion,
    beside,
    compare_runs,
    deletion,
    tasks,
)
from lens_attr.evaluation.results import facts_of, shown_rows
from lens_attr.evaluation.tasks import Interest, Task
from lens_attr.graph import resolve
from lens_attr.plots import deletion_sweep
from lens_attr.report import Page, Section, write_page

LOW_PRECISION = "bfloat16"


@dataclass(frozen=True)
class Request:
    """What every kind of run takes."""

    model: str
    names: list[str] | Literal["all"]
    tasks: list[Task]
    n: int
    seed: int
    batch_size: int
    out: Path
    backend: options.Backend
    dtype: str
    device: str | None
    quiet: bool
    published: Sequence[Published] = ()

    def load(self, dtype: str | None = None) -> Any:
        """The model."""
        with console.working(f"loading {self.model}", self.quiet):
            return options.load_model(self.model, self.backend, dtype or self.dtype, self.device)

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of every benchmark."""
        return {
            "n": self.n,
            "out": self.out,
            "batch_size": self.batch_size,
            "progress": console.wants_progress(self.quiet),
            "command": shlex.join(["lens-attr", *sys.argv[1:]]),
        }


def run(request: Request, settings: Settings) -> BenchTable:
    model = request.load()
    with console.notices(request.quiet):
        return bench(model, request.tasks, request.names, settings=settings, **request.shared)


def run_deletion(
    request: Request, settings: Deletion, lengths: list[int], interest: Interest | Path
) -> BenchTable:
    """``interest`` is a rule, or a file that names the word of each text."""
    words: Interest | Mapping[str, tuple[int, int]] = (
        tasks.read_interest(interest, request.tasks) if isinstance(interest, Path) else interest
    )
    model = request.load()
    with console.notices(request.quiet):
        cut = [
            one
            for task in request.tasks
            for one in tasks.paragraphs(
                resolve(model), task, lengths, n=request.n, interest=words, seed=request.seed
            )
        ]
        return bench_deletion(model, cut, request.names, settings=settings, **request.shared)


def run_axes(request: Request, settings: Settings) -> AxesTable:
    low = request.load(LOW_PRECISION) if request.dtype == "float32" else None
    model = request.load()
    with console.notices(request.quiet):
        return bench_axes(
            model,
            request.tasks,
            request.names,
            settings=settings,
            low_precision=low,
            **request.shared,
        )


# ----------------------------------------------------------------------------- output


def show_table(
    table: BenchTable, request: Request, as_json: bool, figures: Sequence[Any] | None = None
) -> None:
    """Print a table, and write its page with ``figures`` or those that every table has."""
    published = beside(table, request.published, request.model)
    _write_page(table, request, figures, published)
    if as_json:
        console.print_json(_document(table) | {"published": published.to_dict("records")})
        return
    console.print_facts({request.model: table.metadata["model"]["backend"]})
    for name, facts in table.tasks.items():
        _print_task(table, name, facts)
    console.print_facts({f"{m} is refused": why for m, why in table.refused.items()})
    if len(published):
        console.print_heading("published", "values of papers beside ours")
        console.print_table(published)
    if not request.quiet:
        console.print_facts({"results": request.out})


def _print_task(table: BenchTable, name: str, facts: Any) -> None:
    console.print_heading(name, facts_of(facts))
    console.print_table(shown_rows(table, name))


def _document(table: BenchTable) -> dict[str, Any]:
    return {
        "table": [
            {key: None if value != value else value for key, value in row.items()}
            for row in table.to_pandas().to_dict("records")
        ],
        "tasks": dict(table.tasks),
        "refused": dict(table.refused),
        "metadata": dict(table.metadata),
    }


def _write_page(
    table: BenchTable, request: Request, figures: Sequence[Any] | None, published: pd.DataFrame
) -> None:
    sections = [
        Section(name, facts_of(facts), [shown_rows(table, name)])
        for name, facts in table.tasks.items()
    ]
    if len(published):
        sections.append(Section("Published", "Values of papers beside ours.", [published]))
    if figures is None:
        sections += _figures(table)
    else:
        sections.append(Section("Figures", "", figures))
    refused = "\n\n".join(f"{m} is not defined here: {why}" for m, why in table.refused.items())
    page = Page(f"Benchmark of {request.model}", refused, sections, table.metadata["command"])
    write_page(page, request.out / "report.html")


def _figures(table: BenchTable) -> list[Section]:
    drawn = [m for m in dict.fromkeys(table.rows["metric"]) if m not in ("accuracy", "degenerate")]
    filled = [m for m in drawn if table.rows.loc[table.rows["metric"] == m, "n"].any()]
    sections = [Section("Figures", "", [table.plot(metric=metric) for metric in filled])]
    if "sweep" in table.metadata["settings"] and filled:
        figures = [
            deletion_sweep(deletion.sweep(table), metric)
            for metric in filled
            if "aopc" not in metric
        ]
        sections.append(Section("Sweep", "", figures))
    return sections


def show_axes(table: AxesTable, request: Request, as_json: bool) -> None:
    if as_json:
        claims, pairs = (f.to_dict("records") for f in (table.claims, table.differences))
        console.print_json({"claims": claims, "pairs": pairs, "left_out": dict(table.left_out)})
        return
    claims = table.claims.to_dict("records")
    for name, claim in {row["axis"]: row["claim"] for row in claims}.items():
        console.print_heading(name, f"{claim}?")
        differences = table.differences.query("axis == @name").drop(columns="axis")
        console.print_table(differences)
        mine = [row for row in claims if row["axis"] == name]
        console.print_facts({row["metric"]: row["verdict"] for row in mine})
    console.print_facts({f"{name} is not compared": why for name, why in table.left_out.items()})
    if not request.quiet:
        console.print_facts({"results": request.out})


def compare(first: Path, second: Path, as_json: bool) -> None:
    found = compare_runs(BenchTable.load(first), BenchTable.load(second))
    if as_json:
        console.print_json(found.to_dict("records"))
    else:
        console.print_table(found.rename(columns={"first": str(first), "second": str(second)}))
