"""`run`: start or resume, hand the shards out, and account for every row."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lens_attr import display
from lens_attr.attribution.storage import sha256_of
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError
from lens_attr.runs.directory import own_directory, refuse_own_output, sweep
from lens_attr.runs.executors.local import in_processes, in_this_process
from lens_attr.runs.executors.ray import on_ray
from lens_attr.runs.job import Job, JobLike
from lens_attr.runs.lock import at_work
from lens_attr.runs.manifest import PLAN, Manifest
from lens_attr.runs.notices import Notices
from lens_attr.runs.plan import read_plan, side_by_side
from lens_attr.runs.ranks import Share, share
from lens_attr.runs.shards import FOLDER, SCHEMA, Record
from lens_attr.runs.start import start
from lens_attr.runs.worker import Answers, Setup, Work, load_model

SOME_ERRORS, UNWRITTEN = 3, 4
"""Exit codes of a run that came to its end, but not without errors."""

PATIENCE = 3600.0
"""Seconds that other ranks wait for the first one to make the plan."""


@dataclass(frozen=True, repr=False)
class RunReport(Shown):
    """What a run came to.

    Attributes:
        out: where the results are.
        rows: rows this process was responsible for.
        errors: of them, rows that hold an error instead of values.
        unwritten: of them, rows whose values could not be written; start the run again.
        computed: of them, rows done now and not by an earlier start.
        complete: whether every row of the input has its place, by this process or another.
        notices: what the reader of the results should know.
        closed: False where no row is missing, but the manifest could not say so.
    """

    out: Path
    rows: int
    errors: int
    unwritten: int
    computed: int
    complete: bool
    notices: list[str] = field(default_factory=list)
    closed: bool = True

    @property
    def exit_code(self) -> int:
        """0; 3 if some rows hold an error; 4 if something could not be written."""
        if self.unwritten or not self.closed:
            return UNWRITTEN
        return SOME_ERRORS if self.errors else 0

    @property
    def headline(self) -> str:
        """How far the run is, and where its results are."""
        state = "complete" if self.complete else "not complete"
        wrong = [f"{self.errors} with an error"] if self.errors else []
        wrong += [f"{self.unwritten} not written"] if self.unwritten else []
        return f"{', '.join([display.count(self.rows, 'row'), *wrong, state])}, in {self.out}"

    def glance(self) -> Glance:
        """What to know of the results; `to_pandas` reads them."""
        return Glance(self.headline, notes=self.notices)

    def to_pandas(self) -> pd.DataFrame:
        """Every row written so far, in the order of the input; all of them in memory."""
        files = sorted((self.out / FOLDER).glob("*.parquet"))
        tables = [pq.read_table(file).to_pandas() for file in files]
        return pd.concat(tables or [SCHEMA.empty_table().to_pandas()], ignore_index=True)


def run(job: JobLike, *, model: Any = None, progress: bool | None = None) -> RunReport:
    """Explain every row of a data set; call it again with the same job to resume.

    Results are Parquet files under ``job.out``. Killed at any instant and started again, the run
    goes on where it stopped, and every value is the same bit for bit. A row that cannot be read
    or explained is recorded with its error. Under torchrun or srun each process does its share.

    Args:
        job: a `Job`, a mapping with the same fields, or the path of a YAML file.
        model: the job's model, if it is loaded already (executor ``"local"``, one worker).
        progress: show a bar or not; default: on a terminal.

    Raises:
        InputError: a job that cannot be used; job, input, model or versions are not those the
            run was started with; ``out`` holds something else; another process runs this job.
        UnsupportedModelError: the method is not defined for this model.
        LensAttrError: the plan cannot be written; workers die before they explain anything.
    """
    job, mine = Job.of(job), share()
    here = job.executor == "local" and job.workers == 1
    if (model is not None or mine.world > 1) and not here:
        raise InputError(
            "several ranks, and model=, go with executor 'local' and 1 worker only: Ray and worker "
            "processes start and load their own."
        )
    refuse_own_output(job)
    out = own_directory(job)
    with at_work(out, mine.rank) as alone:
        manifest = Manifest.read(out)
        if manifest is None and mine.rank > 0:
            manifest = _wait_for_plan(out)
        if manifest is None:
            model = load_model(job, mine.device(job.device)) if model is None else model
            manifest = start(job, model, out)
        else:
            _refuse_changes(manifest, job, out)
        setup = Setup(job, manifest, out, mine.device(job.device))
        report = _carry_out(setup, mine, model if here else None, progress)
        if report.complete and alone():
            sweep(out)
    return report


def _wait_for_plan(out: Path) -> Manifest:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = Manifest.read(out)
        if found is not None:
            return found
        time.sleep(0.2)
    raise InputError(f"rank 0 made no plan in {out} within {PATIENCE:.0f} s: has it stopped?")


def _refuse_changes(manifest: Manifest, job: Job, out: Path) -> None:
    """Raise before anything is computed; the model is compared where it is loaded."""
    manifest.refuse_other_job(job)
    if not (out / PLAN).is_file() or sha256_of(out / PLAN) != manifest.plan_sha256:
        raise InputError(
            f"{out / PLAN} is missing or was altered, so this run cannot be resumed: choose "
            "another out directory."
        )
    for _ in side_by_side(job, out / PLAN):
        pass


# ------------------------------------------------------------------------------------- the work


def _carry_out(setup: Setup, mine: Share, model: Any, progress: bool | None) -> RunReport:
    counts = _Counts()
    works = _undone(setup, mine, counts)
    with _progress(progress) as bar, closing(_execute(works, setup, model)) as answers:
        task = bar.add_task("rows", total=_rows_of(setup, mine))
        for work, answer in answers:
            counts.add(answer, len(work.rows), computed=True)
            bar.update(task, completed=counts.rows)
    closed, complete = True, False
    try:
        complete = _complete(setup)
    except OSError as error:
        closed = False
        reason = f"the manifest's table of shards is not written: {error.strerror or error}"
        counts.notices.add([reason])
    return RunReport(
        setup.out,
        counts.rows,
        counts.errors,
        counts.unwritten,
        counts.computed,
        complete,
        counts.notices.lines(),
        closed,
    )


def _execute(works: Iterator[Work], setup: Setup, model: Any) -> Answers:
    if setup.job.executor == "ray":
        return on_ray(works, setup)
    if setup.job.workers > 1:
        return in_processes(works, setup, setup.job.workers)
    return in_this_process(works, setup, model)


def _undone(setup: Setup, mine: Share, counts: _Counts) -> Iterator[Work]:
    """The shards of this process that are still to do; the others are counted."""
    for planned, rows in side_by_side(setup.job, setup.out / PLAN):
        if not mine.includes(planned.shard):
            continue
        record = setup.files(planned.shard).finished(verify=True)
        if record is not None and record.written:
            counts.add(record, len(planned), computed=False)
        else:
            yield Work(planned, rows)


def _rows_of(setup: Setup, mine: Share) -> int:
    plan = read_plan(setup.out / PLAN)
    return sum(len(planned) for planned in plan if mine.includes(planned.shard))


def _progress(wanted: bool | None) -> Progress:
    console = Console(stderr=True)
    hidden = not (console.is_terminal if wanted is None else wanted)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=hidden, transient=True
    )


@dataclass
class _Counts:
    """Rows of this process, so far."""

    rows: int = 0
    errors: int = 0
    unwritten: int = 0
    computed: int = 0
    notices: Notices = field(default_factory=Notices)

    def add(self, answer: Record | str, rows: int, computed: bool) -> None:
        """One more shard; a string says why nothing of it could be written."""
        record = answer if isinstance(answer, Record) else None
        written = record is not None and record.written
        self.rows += rows
        self.errors += record.errors if record is not None and written else rows
        self.unwritten += 0 if written else rows
        self.computed += rows if computed else 0
        self.notices.add([answer] if isinstance(answer, str) else answer.notices)


def _complete(setup: Setup) -> bool:
    """Fill in the manifest's table of shards, if none is missing.

    Raises:
        OSError: it cannot be written.
    """
    table = []
    for planned in read_plan(setup.out / PLAN):
        record = setup.files(planned.shard).finished()
        if record is None or not record.written:
            return False
        kept = {"file": record.file, "rows": list(record.rows)}
        table.append(kept | {"sha256": record.sha256, "errors": record.errors})
    finished = setup.manifest.complete(table)
    if Manifest.read(setup.out) != finished:
        finished.write(setup.out)
    return True
