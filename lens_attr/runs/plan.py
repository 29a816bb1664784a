"""The batch plan: which rows are explained together. Made once, written down, and followed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from lens_attr.errors import InputError, LensAttrError
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import tokenize
from lens_attr.runs.job import Job
from lens_attr.runs.sources import Row, read_rows
from lens_attr.targets import Logit, LogitDiff, Target, TopLogit

DIGEST = 8
"""Hexadecimal digits of a row's fingerprint kept in the plan, to name the first that changed."""

MOST_ROWS = 256
"""Rows in one batch, however short."""


def target_of(rows: list[Row]) -> Target:
    """What is explained in a batch, whose rows are all of one `kind`."""
    here = rows[0].position == -1
    position: int | list[int] = -1 if here else [row.position for row in rows]
    answers, foils = [row.target for row in rows], [row.foil for row in rows]
    if answers[0] is None:
        return TopLogit(position=position)
    if foils[0] is None:
        return Logit(answers, position=position)  # type: ignore[arg-type]
    return LogitDiff(answers, foils, position=position)  # type: ignore[arg-type]


def kind(row: Row) -> tuple[bool, bool, bool]:
    """Rows that can be explained in one call: same target, and all or none at the default place.

    At -1 a masked model explains its mask, which one position per example cannot say.
    """
    return row.target is None, row.foil is None, row.position == -1


@dataclass(frozen=True)
class Planned:
    """One shard of the plan.

    Attributes:
        shard: its number.
        start: index of its first row.
        digests: `DIGEST` letters for each row.
        batches: row indices explained together, in order.
        errors: why a row is not explained, by index.
    """

    shard: int
    start: int
    digests: str
    batches: list[list[int]]
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """One past the index of its last row."""
        return self.start + len(self.digests) // DIGEST

    def __len__(self) -> int:
        return self.stop - self.start

    def line(self) -> str:
        """As it stands in the plan file."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"

    @staticmethod
    def parse(line: str) -> Planned:
        """A line of the plan file."""
        fields = json.loads(line)
        errors = {int(row): message for row, message in fields.pop("errors").items()}
        return Planned(**fields, errors=errors)


@dataclass(frozen=True)
class Scanned:
    """What reading and tokenising the whole input told.

    Attributes:
        rows: how many.
        errors: how many of them cannot be explained.
        shards: how many output files.
        lengths: how many rows have how many tokens.
        sha256: of the whole input.
    """

    rows: int
    errors: int
    shards: int
    lengths: dict[int, int]
    sha256: str

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=1)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(length * times for length, times in self.lengths.items())


@dataclass(frozen=True)
class _Seen:
    """One shard after the scan, before it is cut into batches."""

    start: int
    digests: str
    groups: dict[str, list[tuple[int, int]]]
    errors: dict[int, str]


def shards_of(job: Job) -> Iterator[list[Row]]:
    """The input, ``rows_per_shard`` rows at a time."""
    rows = read_rows(job.data, job.columns, job.split)
    while shard := list(islice(rows, job.rows_per_shard)):
        yield shard


def scan(job: Job, graph: ModelGraph, path: Path) -> Scanned:
    """Read and tokenise everything once; write lengths, fingerprints and errors to ``path``.

    Raises:
        InputError: there is no data.
    """
    lengths: Counter[int] = Counter()
    rows = errors = shards = 0
    fingerprint = hashlib.sha256()
    with path.open("x", encoding="utf-8") as file:
        for shard in shards_of(job):
            seen = _look(shard, graph, fingerprint)
            file.write(json.dumps(asdict(seen), separators=(",", ":")) + "\n")
            lengths.update(length for group in seen.groups.values() for _, length in group)
            rows, errors, shards = rows + len(shard), errors + len(seen.errors), shards + 1
    if not rows:
        raise InputError(f"there is not one row in {job.data!r}.")
    return Scanned(rows, errors, shards, dict(sorted(lengths.items())), fingerprint.hexdigest())


def _look(shard: list[Row], graph: ModelGraph, fingerprint: Any) -> _Seen:
    groups: dict[str, list[tuple[int, int]]] = {}
    errors: dict[int, str] = {}
    digests = [row.digest for row in shard]
    fingerprint.update("".join(digests).encode())
    for row in shard:
        try:
            groups.setdefault(str(kind(row)), []).append((row.index, _length(row, graph)))
        except LensAttrError as error:
            errors[row.index] = f"{row.where}: {error}"
    short = "".join(one[:DIGEST] for one in digests)
    return _Seen(shard[0].index, short, groups, errors)


def _length(row: Row, graph: ModelGraph) -> int:
    """Tokens of a row that can be explained.

    Raises:
        InputError: it cannot be.
    """
    if row.error is not None:
        raise InputError(row.error)
    batch = tokenize(graph, [row.text])
    target_of([row]).resolve(graph, batch)
    return batch.token_ids.shape[1]


Shape = tuple[int, int]
"""Rows and padded length of a batch."""


def cut(scanned: Path, tokens_per_batch: int) -> Iterator[tuple[Planned, list[Shape]]]:
    """The plan: every shard of the scan cut into batches, and their shapes."""
    with scanned.open(encoding="utf-8") as file:
        for shard, line in enumerate(file):
            seen = json.loads(line)
            groups = [[(i, n) for i, n in group] for group in seen["groups"].values()]
            found = [batch for group in groups for batch in batches_of(group, tokens_per_batch)]
            rows = [[index for index, _ in batch] for batch in found]
            shapes = [(len(batch), batch[-1][1]) for batch in found]
            errors = {int(row): message for row, message in seen["errors"].items()}
            yield Planned(shard, seen["start"], seen["digests"], rows, errors), shapes


def batches_of(
    rows: Iterable[tuple[int, int]], tokens_per_batch: int
) -> Iterator[list[tuple[int, int]]]:
    """Rows (index, length) cut into batches of similar lengths within a budget of padded tokens.

    Shortest first. A row longer than the budget is a batch of its own.
    """
    batch: list[tuple[int, int]] = []
    for index, length in sorted(rows, key=lambda row: (row[1], row[0])):
        if batch and (len(batch) == MOST_ROWS or (len(batch) + 1) * length > tokens_per_batch):
            yield batch
            batch = []
        batch.append((index, length))
    if batch:
        yield batch


def read_plan(path: Path) -> Iterator[Planned]:
    """The plan file, one shard at a time."""
    with path.open(encoding="utf-8") as file:
        yield from map(Planned.parse, file)


def side_by_side(job: Job, path: Path) -> Iterator[tuple[Planned, list[Row]]]:
    """The plan file and the input it was made for, shard by shard.

    Raises:
        InputError: the input is not the same any more, naming the first row that differs.
    """
    for planned, rows in zip_longest(read_plan(path), shards_of(job)):
        if planned is None:
            raise InputError(_changed(f"there are more rows: {rows[0].where} is new"))
        for at, row in enumerate(rows or []):
            if row.digest[:DIGEST] != planned.digests[at * DIGEST : (at + 1) * DIGEST]:
                if at == len(planned):
                    raise InputError(_changed(f"there are more rows: {row.where} is new"))
                raise InputError(_changed(f"row {row.index} ({row.where}) differs"))
        if len(rows or []) < len(planned):
            raise InputError(_changed(f"it has {planned.start + len(rows or [])} rows, not more"))
        yield planned, rows


def _changed(how: str) -> str:
    return (
        f"the input has changed since this run was started: {how}. Restore it, or choose another "
        "out directory."
    )
