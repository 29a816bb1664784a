"""`Worker`: holds the model, explains the batches of a shard, and writes the shard down."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lens_attr.attribution as attribution
from lens_attr.attribution.relevance import Relevance
from lens_attr.errors import Notice
from lens_attr.graph import load, resolve
from lens_attr.runs.job import Job
from lens_attr.runs.manifest import Manifest
from lens_attr.runs.memory import is_out_of_memory
from lens_attr.runs.notices import Notices
from lens_attr.runs.plan import Planned, target_of
from lens_attr.runs.shards import Course, Record, ShardFiles, Value
from lens_attr.runs.sources import Row


@dataclass(frozen=True)
class Setup:
    """All a worker needs to know, in this process or another."""

    job: Job
    manifest: Manifest
    out: Path
    device: str | None = None
    watched: bool = False
    """Another process sees when this worker dies, and asks where."""

    def files(self, shard: int) -> ShardFiles:
        """Of one shard of this run."""
        return ShardFiles(self.out, shard, self.manifest.run)


@dataclass(frozen=True)
class Work:
    """One shard to do."""

    planned: Planned
    rows: list[Row]


Answers = Generator[tuple[Work, Record | str], None, None]
"""Every work with its record, or why not even its errors could be written."""


def load_model(job: Job, device: str | None = None) -> Any:
    """The job's model; ``device`` is the worker's own, if it has one."""
    return load(job.model, job.backend, job.dtype, device or job.device)  # type: ignore[arg-type]


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Compute with this many threads meanwhile: sums are split among them, so bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Worker:
    """Explains shards with one model that is loaded once.

    Raises:
        InputError: the model is not the one the run was started with.
    """

    def __init__(self, setup: Setup, model: Any = None) -> None:
        self.setup = setup
        self.model = load_model(setup.job, setup.device) if model is None else model
        setup.manifest.refuse_other_model(resolve(self.model))

    def do(self, work: Work) -> Record | str:
        """Explain a shard and write it; why not even its errors could be written, otherwise."""
        files = self.setup.files(work.planned.shard)
        shard = _Shard(self, work, files)
        try:
            with cpu_threads(self.setup.manifest.threads):
                values = shard.values()
            return self._write(files, work, shard, values, written=True)
        except OSError as error:
            reason = f"not written: {error.strerror or error}"
        try:
            unwritten = [Value(row.index, error=reason) for row in work.rows]
            return self._write(files, work, shard, unwritten, written=False)
        except OSError:
            return reason

    def _write(
        self, files: ShardFiles, work: Work, shard: _Shard, values: list[Value], written: bool
    ) -> Record:
        planned = work.planned
        checksum = files.write(values, self.setup.job.method)
        record = Record(
            shard=planned.shard,
            rows=(planned.start, planned.stop),
            file=files.parquet.name,
            sha256=checksum,
            errors=sum(value.error is not None for value in values),
            written=written,
            batches=shard.course.batches,
            notices=shard.notices.counted(),
        )
        files.finish(record)
        return record

    def explain(self, rows: list[Row]) -> Relevance:
        """One call of the method."""
        job = self.setup.job
        texts, options = [row.text for row in rows], dict(job.options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # they are kept in the record
            return attribution.attribute(
                self.model, texts, target_of(rows), job.method, progress=False, **options
            )


class _Shard:
    """The explanation of one shard: its batches, split where memory or a row demands it."""

    def __init__(self, worker: Worker, work: Work, files: ShardFiles) -> None:
        self.worker = worker
        self.work = work
        self.files = files
        self.course = files.kept() or Course([list(batch) for batch in work.planned.batches])
        self.notices = Notices()

    def values(self) -> list[Value]:
        """One value per row, in the order of the input.

        Raises:
            OSError: a batch was halved, and that cannot be written down.
        """
        by_index = {row.index: row for row in self.work.rows}
        course = self.course
        found = {i: Value(i, error=clean(error)) for i, error in self.work.planned.errors.items()}
        found |= {i: _failed(by_index[i], reason) for i, reason in course.lost.items()}
        while course.at < len(course.batches):
            if self.worker.setup.watched:
                self.files.note(course)
            rows = [by_index[index] for index in course.batches[course.at]]
            values, problem = self._attempt(rows)
            if values is None and len(rows) > 1:
                self._halve(problem)
                continue
            values = values or [_failed(rows[0], _said(problem))]
            found |= {value.row: value for value in values}
            course.at += 1
        self.files.forget()
        return [found[row.index] for row in self.work.rows]

    def _halve(self, problem: Exception | None) -> None:
        """Go on with half of a batch that raised, until the row that is to blame is alone.

        What memory there is depends on chance, so it is written down and a restart does the same.
        """
        self.course.halve()
        if problem is not None and is_out_of_memory(problem):
            self.files.keep(self.course)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _attempt(self, rows: list[Row]) -> tuple[list[Value] | None, Exception | None]:
        """The values of a batch, or what it raised (without the frames that hold its tensors)."""
        try:
            relevance = self.worker.explain(rows)
        except Exception as error:
            return None, error.with_traceback(None)
        self.notices.add(relevance.metadata["notices"])
        return [_value(relevance, i, row) for i, row in enumerate(rows)], None


def _value(relevance: Relevance, example: int, row: Row) -> Value:
    first_real = int(relevance.attention_mask[example].int().argmax())
    return Value(
        row=row.index,
        str_tokens=[clean(token) for token in relevance.real_str_tokens(example)],
        tokens=relevance.real_tokens(example).float().tolist(),
        target_value=float(relevance.target_value[example]),
        target=clean(relevance.target[example]),
        position=int(relevance.position[example]) - first_real,
    )


def _failed(row: Row, reason: str) -> Value:
    return Value(row.index, error=clean(f"{row.where}: {reason}"))


def _said(problem: BaseException | None) -> str:
    if problem is not None and is_out_of_memory(problem):
        return "out of memory, even alone"
    return " ".join(str(problem).split()) or type(problem).__name__


def clean(text: str) -> str:
    """Text that can be written as UTF-8 (half of a surrogate pair cannot)."""
    return text.encode("utf-8", "replace").decode("utf-8")
