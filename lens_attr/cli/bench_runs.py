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
    AblationTable,
    AxesTable,
    BenchTable,
    Deletion,
    Faithfulness,
    Published,
    Settings,
    ablate,
    bench_axes,
    beside,
    compare_runs,
    tasks,
)
from lens_attr.evaluation.ablation import MEASURES, Measure
from lens_attr.evaluation.results import facts_of, shown_rows
from lens_attr.evaluation.tasks import Interest, Task
from lens_attr.graph import resolve
from lens_attr.report import Page, Section, bench_figures, write_page

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


@dataclass(frozen=True)
class Measured:
    """What is measured: by its settings, and how texts without an answer get one."""

    settings: Settings | Deletion | Faithfulness
    lengths: list[int]
    interest: Interest | Path

    def tasks(self, request: Request, model: Any) -> list[Task]:
        """The tasks, for deletion and faithfulness with a word of interest in every text."""
        if isinstance(self.settings, Settings):
            return request.tasks
        interest = self._words(request)
        how: dict[str, Any] = {"interest": interest, "seed": request.seed, "n": request.n}
        return [
            one
            for task in request.tasks
            for one in tasks.paragraphs(resolve(model), task, self.lengths, **how)
        ]

    def _words(self, request: Request) -> Interest | Mapping[str, tuple[int, int]]:
        """Which word of a text is explained: by rule, or as a file says."""
        if isinstance(self.interest, Path):
            return tasks.read_interest(self.interest, request.tasks)
        return self.interest

    @property
    def kind(self) -> Measure:
        """Its name."""
        if isinstance(self.settings, Settings):
            return "plausibility"
        return "deletion" if isinstance(self.settings, Deletion) else "faithfulness"


def run(request: Request, measured: Measured) -> BenchTable:
    model = request.load()
    with console.notices(request.quiet):
        chosen = measured.tasks(request, model)
        return MEASURES[measured.kind](
            model, chosen, request.names, settings=measured.settings, **request.shared
        )


def run_ablation(request: Request, measured: Measured, preset: str) -> AblationTable:
    model = request.load()
    with console.notices(request.quiet):
        return ablate(
            model,
            preset,
            measured.tasks(request, model),
            measured.kind,
            settings=measured.settings,
            **request.shared,
        )


def run_axes(request: Request, measured: Measured) -> AxesTable:
    assert isinstance(measured.settings, Settings)
    low = request.load(LOW_PRECISION) if request.dtype == "float32" else None
    model = request.load()
    with console.notices(request.quiet):
        return bench_axes(
            model,
            request.tasks,
            request.names,
            settings=measured.settings,
            low_precision=low,
            **request.shared,
        )


# ----------------------------------------------------------------------------- output


def show_table(
    table: BenchTable,
    request: Request,
    as_json: bool,
    more: Sequence[Section] = (),
    document: Mapping[str, Any] | None = None,
    figures: bool = True,
) -> None:
    """Print a table and write its page.

    Args:
        table: the results.
        request: what was asked for.
        as_json: print a document instead.
        more: further sections of the page, and on the terminal those that are not figures.
        document: further entries of the document.
        figures: whether the page draws every metric of the table.
    """
    published = beside(table, request.published, request.model)
    if len(published):
        more = [*more, Section("Published", "Values of papers beside ours.", [published])]
    _write_page(table, request, more, figures)
    if as_json:
        papers = {"published": records_of(published)}
        console.print_json({**document_of(table), **papers, **(document or {})})
        return
    console.print_facts({request.model: table.metadata["model"]["backend"]})
    for name, facts in table.tasks.items():
        _print_task(table, name, facts)
    for section in more:
        frames = [one for one in section.content if isinstance(one, pd.DataFrame)]
        if frames or not section.content:
            console.print_heading(section.title, "; ".join(section.prose.split("\n\n")))
        for frame in frames:
            console.print_table(frame)
    console.print_facts({f"{m} is refused": why for m, why in table.refused.items()})
    if not request.quiet:
        console.print_facts({"results": request.out})


def _print_task(table: BenchTable, name: str, facts: Any) -> None:
    console.print_heading(name, facts_of(facts))
    console.print_table(shown_rows(table, name))


def document_of(table: BenchTable) -> dict[str, Any]:
    """The results as JSON knows them."""
    return {
        "table": records_of(table.to_pandas()),
        "tasks": dict(table.tasks),
        "refused": dict(table.refused),
        "metadata": dict(table.metadata),
    }


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows without NaN, which JSON does not have."""
    return [
        {str(key): None if value != value else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _write_page(
    table: BenchTable, request: Request, more: Sequence[Section], figures: bool
) -> None:
    sections = [
        Section(name, facts_of(facts), [shown_rows(table, name)])
        for name, facts in table.tasks.items()
    ]
    if figures:
        sections.append(Section("Figures", "", bench_figures(table)))
    sections += more
    refused = "\n\n".join(f"{m} is not defined here: {why}" for m, why in table.refused.items())
    page = Page(f"Benchmark of {request.model}", refused, sections, table.metadata["command"])
    write_page(page, request.out / "report.html")


def compare(first: Path, second: Path, as_json: bool) -> None:
    found = compare_runs(BenchTable.load(first), BenchTable.load(second))
    if as_json:
        console.print_json(records_of(found))
    else:
        console.print_table(found.rename(columns={"first": str(first), "second": str(second)}))
