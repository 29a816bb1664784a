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
from lens_attr.runs.plan import Planned, target_of
from lens_attr.runs.shards import Record, ShardFiles, Value
from lens_attr.runs.sources import Row


@dataclass(frozen=True)
class Setup:
    """All a worker needs to know, in this process or another."""

    job: Job
    manifest: Manifest
    out: Path
    device: str | None = None

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
        with cpu_threads(self.setup.manifest.threads):
            shard = _Shard(self, work, files)
            values = shard.values()
        try:
            return self._write(files, work, shard, values, written=True)
        except OSError as error:
            reason = f"not written: {error}"
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
            batches=shard.batches,
            notices=list(shard.notices),
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
        self.batches = files.splits() or [list(batch) for batch in work.planned.batches]
        self.notices: dict[str, None] = {}

    def values(self) -> list[Value]:
        """One value per row, in the order of the input."""
        by_index = {row.index: row for row in self.work.rows}
        found = {i: Value(i, error=clean(error)) for i, error in self.work.planned.errors.items()}
        at = 0
        while at < len(self.batches):
            rows = [by_index[index] for index in self.batches[at]]
            values, problem = self._attempt(rows)
            if problem is not None and len(rows) > 1 and is_out_of_memory(problem):
                self._split(at)
                continue
            values = values or self._halves(rows, problem)
            found |= {value.row: value for value in values}
            at += 1
        return [found[row.index] for row in self.work.rows]

    def _split(self, at: int) -> None:
        """Halve a batch that did not fit, and write that down, so that a restart does the same."""
        batch = self.batches[at]
        middle = (len(batch) + 1) // 2
        self.batches[at : at + 1] = [batch[:middle], batch[middle:]]
        self.files.keep_split(self.batches)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _halves(self, rows: list[Row], problem: BaseException | None) -> list[Value]:
        """The values of a batch that raised: by halves, until the row that is to blame is alone.

        Nothing here depends on chance, so another run takes the same steps.
        """
        if len(rows) == 1:
            message = f"{rows[0].where}: {_said(problem)}"
            return [Value(rows[0].index, error=clean(message))]
        middle = (len(rows) + 1) // 2
        found = []
        for half in (rows[:middle], rows[middle:]):
            values, problem = self._attempt(half)
            found += values or self._halves(half, problem)
        return found

    def _attempt(self, rows: list[Row]) -> tuple[list[Value] | None, Exception | None]:
        """The values of a batch, or what it raised (without the frames that hold its tensors)."""
        try:
            relevance = self.worker.explain(rows)
        except Exception as error:
            return None, error.with_traceback(None)
        self.notices |= dict.fromkeys(relevance.metadata["notices"])
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


def _said(problem: BaseException | None) -> str:
    if problem is not None and is_out_of_memory(problem):
        return "out of memory, even alone"
    return " ".join(str(problem).split()) or type(problem).__name__


def clean(text: str) -> str:
    """Text that can be written as UTF-8 (half of a surrogate pair cannot)."""
    return text.encode("utf-8", "replace").decode("utf-8")
