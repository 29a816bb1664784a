"""Output files: one Parquet file and one record per shard, each written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lens_attr.attribution.storage import write_whole

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("str_tokens", pa.list_(pa.string())),
        pa.field("tokens", pa.list_(pa.float32())),
        pa.field("target_value", pa.float64()),
        pa.field("target", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
)
"""One row of the output per row of the input; see docs/how-to/runs.md."""

FOLDER = "shards"


@dataclass(frozen=True)
class Value:
    """What one row came to: the first five, or an error."""

    row: int
    str_tokens: list[str] | None = None
    tokens: list[float] | None = None
    target_value: float | None = None
    target: str | None = None
    position: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard.

    Attributes:
        shard: its number.
        rows: first row, and one past the last.
        file: name of its Parquet file.
        sha256: checksum of that file.
        errors: rows that hold an error.
        written: False where only the error of writing could be written; such a shard is done
            again at the next start.
        batches: row indices as they were explained together, halved where they had to be.
        notices: what the reader of the results should know, and how often it was said.
    """

    shard: int
    rows: tuple[int, int]
    file: str
    sha256: str
    errors: int
    written: bool
    batches: list[list[int]]
    notices: dict[str, int]

    def __len__(self) -> int:
        return self.rows[1] - self.rows[0]


@dataclass
class Course:
    """How a shard is explained: as planned, until a batch fails.

    Attributes:
        batches: row indices explained together.
        lost: rows that are not explained any more, and why.
        at: the batch that is being explained.
    """

    batches: list[list[int]]
    lost: dict[int, str] = field(default_factory=dict)
    at: int = 0

    def halve(self) -> None:
        """Go on with the first half of this batch; the second comes after it."""
        batch = self.batches[self.at]
        middle = (len(batch) + 1) // 2
        self.batches[self.at : self.at + 1] = [batch[:middle], batch[middle:]]

    def give_up(self, reason: str) -> None:
        """Explain the one row of this batch no more."""
        (row,) = self.batches.pop(self.at)
        self.lost[row] = reason


class ShardFiles:
    """The files of one shard under ``out``; those of another ``run`` (`Manifest.run`) count as
    none."""

    def __init__(self, out: Path, shard: int, run: str) -> None:
        self.folder = out / FOLDER
        self.run = run
        self.parquet = self.folder / f"{shard:06d}.parquet"
        self.record = self.folder / f"{shard:06d}.json"
        self.split = self.folder / f"{shard:06d}.split.json"
        self.note_of = self.folder / f"{shard:06d}.now.json"

    def write(self, values: Sequence[Value], method: str) -> str:
        """Write the Parquet file; returns its checksum.

        Raises:
            OSError: the disk is full, ...
        """
        data = to_parquet(values, method)
        write_whole(self.parquet, data)
        return hashlib.sha256(data).hexdigest()

    def finish(self, record: Record) -> None:
        """Write the record that makes the shard count as done."""
        write_whole(self.record, json.dumps(asdict(record) | {"run": self.run}).encode())

    def finished(self, verify: bool = False) -> Record | None:
        """The record, None where the shard is not done or its file is not what was written."""
        try:
            fields = json.loads(self.record.read_text(encoding="utf-8"))
            ours = fields.pop("run") == self.run
            record = Record(**fields | {"rows": tuple(fields["rows"])})
            if verify and hashlib.sha256(self.parquet.read_bytes()).hexdigest() != record.sha256:
                return None
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record if ours else None

    def keep(self, course: Course) -> None:
        """Write down what is done otherwise than planned, before it is tried.

        Raises:
            OSError: the disk is full, ...
        """
        write_whole(self.split, self._said(course))

    def kept(self) -> Course | None:
        """What an earlier attempt did otherwise than planned; to be taken from its beginning."""
        course = self._read(self.split)
        return None if course is None else Course(course.batches, course.lost)

    def note(self, course: Course) -> None:
        """Write down where this process is, for another one that finds it dead.

        That must not outlast the machine, so it is not synced, nor missed on a full disk.
        """
        temporary = self.note_of.with_name(f".{self.note_of.name}.{secrets.token_hex(8)}.tmp")
        with suppress(OSError):
            with temporary.open("xb") as file:
                file.write(self._said(course))
            os.replace(temporary, self.note_of)

    def noted(self) -> Course | None:
        """Where the process that did this shard died; None where it had not begun."""
        return self._read(self.note_of)

    def forget(self) -> None:
        """No process is at work on this shard any more."""
        with suppress(OSError):
            self.note_of.unlink()

    def _said(self, course: Course) -> bytes:
        return json.dumps(asdict(course) | {"run": self.run}).encode()

    def _read(self, path: Path) -> Course | None:
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if said.pop("run") != self.run:
            return None
        lost = {int(row): reason for row, reason in said["lost"].items()}
        return Course(**said | {"lost": lost})


def to_parquet(values: Sequence[Value], method: str) -> bytes:
    """The bytes of a Parquet file; the same values give the same bytes."""
    columns = {name: [getattr(value, name) for value in values] for name in Value.__annotations__}
    columns["method"] = [method] * len(values)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
