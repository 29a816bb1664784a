"""The first start of a run: read everything once, measure, choose the batches, write it down."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lens_attr import display
from lens_attr.attribution.storage import sha256_of, writing_whole
from lens_attr.display import Glance, Shown
from lens_attr.errors import LensAttrError
from lens_attr.graph import resolve
from lens_attr.runs.directory import UNFINISHED, refuse_own_output
from lens_attr.runs.job import Job, JobLike
from lens_attr.runs.manifest import (
    PLAN,
    Manifest,
    describe_model,
    device_name,
    versions_now,
)
from lens_attr.runs.memory import Need, available, budget, bytes_of, measure
from lens_attr.runs.plan import Scanned, Shape, cut, scan
from lens_attr.runs.worker import load_model

SHOWN_PROBLEMS = 10


@dataclass(frozen=True, repr=False)
class Preview(Shown):
    """What a run will do.

    Attributes:
        scanned: rows, lengths and errors of the input.
        tokens_per_batch: padded tokens in one forward, at most.
        batches: how many.
        largest: rows and length of the batch that needs most memory.
        need: how memory grows with a batch; None where it could not be measured.
        available: bytes that a worker may use.
        problems: the first rows that cannot be explained, and why.
    """

    scanned: Scanned
    tokens_per_batch: int
    batches: int
    largest: Shape
    need: Need | None
    available: float
    problems: list[str]

    @property
    def peak(self) -> float | None:
        """Estimated bytes at the worst moment, weights included."""
        return None if self.need is None else self.need.model + self.need.peak(*self.largest)

    @property
    def headline(self) -> str:
        """How much there is to do."""
        return f"{display.count(self.scanned.rows, 'row')} in {self.batches} batches"

    def glance(self) -> Glance:
        """The facts, and the first problems."""
        table = pd.DataFrame(list(self.facts().items()), columns=["fact", "value"])
        return Glance(self.headline, notes=self.problems, table=table)

    def facts(self) -> dict[str, Any]:
        """Names and values worth printing."""
        rows, length = self.largest
        shortest = min(self.scanned.lengths, default=0)
        peak = (
            "unknown"
            if self.need is None or self.peak is None
            else (f"{_megabytes(self.peak)}, {_megabytes(self.need.model)} of it weights")
        )
        return {
            "rows": self.scanned.rows,
            "rows that cannot be explained": self.scanned.errors,
            "tokens": f"{self.scanned.tokens}, {shortest} to {self.scanned.longest} per row",
            "shards": self.scanned.shards,
            "batches": f"{self.batches}, of at most {self.tokens_per_batch} tokens",
            "largest batch": f"{rows} rows of {length} tokens",
            "estimated peak memory": peak,
            "memory a worker may use": _megabytes(self.available),
        }


def _megabytes(size: int | float) -> str:
    return f"{size / 1e6:,.1f} MB"


def preview(job: JobLike, *, model: Any = None) -> Preview:
    """What `run` would do: rows, batches, memory. Writes nothing (but a temporary file).

    Args:
        job: as in `run`.
        model: the job's model, if it is loaded already.

    Raises:
        InputError, UnsupportedModelError: what `run` would raise at its first start.
    """
    job = Job.of(job)
    refuse_own_output(job)
    loaded = load_model(job) if model is None else model
    with tempfile.TemporaryDirectory() as folder:
        return _look_ahead(job, loaded, Path(folder) / "scan")


def _look_ahead(job: Job, model: Any, scan_path: Path) -> Preview:
    """Scan the input, measure the method, and pick the batch size."""
    graph = resolve(model)
    scanned = scan(job, graph, scan_path)
    need = measure(model, graph, job)
    free = available(job, bytes_of(model), graph.device)
    tokens = budget(job, need, free, graph.device, scanned.longest)
    batches, largest = 0, (0, 0)
    problems: list[str] = []
    for planned, shapes in cut(scan_path, tokens):
        batches += len(shapes)
        largest = max([largest, *shapes], key=lambda shape: need.peak(*shape) if need else shape)
        problems += list(planned.errors.values())[: SHOWN_PROBLEMS - len(problems)]
    return Preview(scanned, tokens, batches, largest, need, free, problems)


def start(job: Job, model: Any, out: Path) -> Manifest:
    """Write the plan, then the manifest; until that is there, nothing has been started.

    Raises:
        LensAttrError: they cannot be written.
    """
    scan_path = out / f".scan.{secrets.token_hex(8)}{UNFINISHED}"
    try:
        return _start(job, model, out, scan_path)
    except OSError as error:
        raise LensAttrError(
            f"cannot write the plan of this run: {error}. Nothing was computed yet: make room and "
            "start again."
        ) from error
    finally:
        scan_path.unlink(missing_ok=True)


def _start(job: Job, model: Any, out: Path, scan_path: Path) -> Manifest:
    seen = _look_ahead(job, model, scan_path)
    with writing_whole(out / PLAN) as file:
        file.writelines(
            planned.line().encode() for planned, _ in cut(scan_path, seen.tokens_per_batch)
        )
    graph = resolve(model)
    manifest = Manifest(
        job=job.deciding(),
        job_sha256=job.sha256,
        model=describe_model(graph),
        method=job.method,
        versions=versions_now(),
        device=device_name(graph),
        threads=job.threads or max(1, torch.get_num_threads() // job.workers),
        input={
            "rows": seen.scanned.rows,
            "errors": seen.scanned.errors,
            "tokens": seen.scanned.tokens,
            "sha256": seen.scanned.sha256,
        },
        batches={
            "tokens_per_batch": seen.tokens_per_batch,
            "batches": seen.batches,
            "shards": seen.scanned.shards,
            "largest": list(seen.largest),
            "estimated_peak_bytes": seen.peak,
        },
        plan_sha256=sha256_of(out / PLAN),
    )
    manifest.write(out)
    return manifest
