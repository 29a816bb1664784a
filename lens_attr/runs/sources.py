"""Rows of a data set, one at a time: JSON lines, CSV, Parquet, Hugging Face data sets, globs."""

from __future__ import annotations

import csv
import glob
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lens_attr.errors import InputError

COLUMNS = ("text", "target", "foil", "position")
"""What a row can say: what the model reads and, optionally, which prediction is explained."""

SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")
_AT_A_TIME = 1024
_LONGEST_CELL = 2**31 - 1
_CELL_LIMIT = Lock()
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}")

Found = tuple[str, "Mapping[str, Any] | str"]
"""Where a record stands, and the record, or why it cannot be read."""


@dataclass(frozen=True)
class Row:
    """One row of the input.

    Attributes:
        index: its place in the whole input, counted from 0.
        where: file and line (or record), for messages.
        text: what the model reads.
        target: string or token id; None explains the top logit.
        foil: what the target competes with.
        position: which prediction is explained, see `lens_attr.targets.Target`.
        error: why the row cannot be used; then the other fields mean nothing.
    """

    index: int
    where: str
    text: str = ""
    target: str | int | None = None
    foil: str | int | None = None
    position: int = -1
    error: str | None = None

    @property
    def digest(self) -> str:
        """Fingerprint of what the row says (not of where it stands)."""
        said = [self.text, self.target, self.foil, self.position, self.error]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def read_rows(
    data: str | Iterable[str], columns: Mapping[str, str] | None = None, split: str | None = None
) -> Iterator[Row]:
    """Every row of the input, in order; memory does not grow with their number.

    A row that cannot be read comes as a row with an error.

    Args:
        data: paths and globs, see `Job`.
        columns: names of the columns where they are not called as in `COLUMNS`.
        split: of a Hugging Face data set with several.

    Raises:
        InputError: nothing is there, or it is of an unknown kind, or holds no column of a name
            that ``columns`` gives.
    """
    named = columns or {}
    wanted = _Wanted({name: named.get(name, name) for name in COLUMNS}, set(named), split)
    unseen, any_record = set(named.values()), False
    index = count()
    for path in find(data):
        for where, record in _records(path, wanted):
            if not isinstance(record, str):
                any_record = True
                unseen -= record.keys()
            yield _row(next(index), where, record, wanted.columns)
    if unseen and any_record:
        raise InputError(f"no record has {', '.join(map(repr, sorted(unseen)))}: see columns.")


def find(data: str | Iterable[str]) -> list[Path]:
    """The files and data sets that ``data`` names.

    Raises:
        InputError: a name or a glob that matches nothing.
    """
    found: list[Path] = []
    for name in [data] if isinstance(data, str) else data:
        path = Path(name).expanduser()
        matches = [path] if path.exists() else []
        if not matches and glob.has_magic(str(path)):
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            matches = [match for match in matches if match.is_file()]
        if not matches:
            raise InputError(
                f"no data at {name!r}: there is no such file, and no file matches it. A data set "
                "of the Hugging Face hub must be saved here first: datasets.load_dataset(name)"
                ".save_to_disk(directory), then data: directory."
            )
        found += matches
    return found


@dataclass(frozen=True)
class _Wanted:
    """What is read of each file.

    Attributes:
        columns: what each of `COLUMNS` is called there.
        named: which of them the user called so: those must be there.
        split: of a Hugging Face data set with several.
    """

    columns: Mapping[str, str]
    named: set[str]
    split: str | None

    def present(self, path: Path, header: Iterable[str]) -> list[str]:
        """Those columns that a table has.

        Raises:
            InputError: it has no text, or not what the user named.
        """
        header = list(header)
        for name in COLUMNS:
            column = self.columns[name]
            if column not in header and (name == "text" or name in self.named):
                raise InputError(f"{path} has no column {column!r}; it has: {_shown(header)}.")
        return [column for column in self.columns.values() if column in header]


def _shown(header: list[str]) -> str:
    names = ", ".join(header)
    return names if len(names) <= 500 else names[:500] + "..."


def _records(path: Path, wanted: _Wanted) -> Iterator[Found]:
    """What a file or data set holds, one record after the other.

    Raises:
        InputError: it cannot be read at all, or has no splits and one was asked for.
    """
    reader = _reader(path)
    if wanted.split is not None and reader is not _hugging_face:
        raise InputError(f"{path} has no splits: leave split: out of the job.")
    try:
        yield from reader(path, wanted)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _row(index: int, where: str, record: Mapping[str, Any] | str, names: Mapping[str, str]) -> Row:
    if isinstance(record, str):
        return Row(index, where, error=record)
    said = {name: _present(record.get(column)) for name, column in names.items()}
    text, position = said["text"], _position(said["position"])
    problem = None
    if not isinstance(text, str):
        problem = f"the row has no {names['text']!r}, or it is not text"
    elif not all(_is_token(said[name]) for name in ("target", "foil")):
        problem = "target and foil must be text or a token id"
    elif said["foil"] is not None and said["target"] is None:
        problem = "there is a foil but no target"
    elif not isinstance(position, int) or isinstance(position, bool):
        problem = f"position must be a whole number, got {position!r}"
    if problem is not None:
        return Row(index, where, error=problem)
    return Row(index, where, text, said["target"], said["foil"], position)


def _present(value: Any) -> Any:
    """None for what tables write where there is nothing; whole floats are integers with gaps."""
    if value is None or value != value:
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _position(value: Any) -> Any:
    """The last token where the data says nothing; CSV knows text only."""
    if value is None:
        return -1
    return int(value) if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) else value


def _is_token(value: Any) -> bool:
    return value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))


# ---------------------------------------------------------------------------- one kind of file


def _json_lines(path: Path, _: _Wanted) -> Iterator[Found]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path.name}:{number}", _json_record(line)


def _json_record(line: bytes) -> Mapping[str, Any] | str:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # among them whole numbers that are too long
        return f"not JSON: {error}"
    return record if isinstance(record, dict) else "not a JSON object"


def _csv(path: Path, wanted: _Wanted) -> Iterator[Found]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = _cells(reader) or []
        if isinstance(header, str):
            raise InputError(f"the header of {path} is {header}")
        wanted.present(path, header)
        while (cells := _cells(reader)) is not None:
            if cells:
                where = f"{path.name}:{reader.line_num}"
                yield where, cells if isinstance(cells, str) else _csv_record(header, cells)


def _cells(reader: Any) -> list[str] | str | None:
    """The next row of a table, or why it cannot be read; None at its end.

    Python limits the length of a cell for the whole process; a row broken off there would be read
    as many.
    """
    with _CELL_LIMIT:
        before = csv.field_size_limit(_LONGEST_CELL)
        try:
            return next(reader, None)
        except csv.Error as error:
            return f"not CSV: {error}"
        finally:
            csv.field_size_limit(before)


def _csv_record(header: list[str], cells: list[str]) -> Mapping[str, Any] | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells in a table of {len(header)} columns"
    if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
        return "not UTF-8"
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _parquet(path: Path, wanted: _Wanted) -> Iterator[Found]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    present = wanted.present(path, file.schema_arrow.names)
    with file:
        records = (
            record
            for group in range(file.num_row_groups)
            for record in _row_group(file, group, present)
        )
        for number, record in enumerate(records):
            yield f"{path.name}:{number}", record


def _row_group(
    file: pq.ParquetFile, group: int, columns: list[str]
) -> Iterator[Mapping[str, Any] | str]:
    """Its records; where its data are damaged, as many errors as records are missing."""
    missing = file.metadata.row_group(group).num_rows
    try:
        for batch in file.iter_batches(_AT_A_TIME, row_groups=[group], columns=columns):
            for at in range(len(batch)):
                yield _parquet_record(batch.slice(at, 1))
                missing -= 1
    except (pa.ArrowException, OSError) as error:
        yield from [f"damaged: {error}"] * missing


def _parquet_record(row: pa.RecordBatch) -> Mapping[str, Any] | str:
    try:
        return row.to_pylist()[0]
    except ValueError as error:
        return f"damaged: {error}"


def _hugging_face(path: Path, wanted: _Wanted) -> Iterator[Found]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(
            f"{path} is a Hugging Face data set: pip install 'lens_attr[datasets]' to read it."
        ) from error
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, dict):
        if wanted.split not in loaded:
            raise InputError(f"{path} has the splits {', '.join(loaded)}: set split: in the job.")
        loaded = loaded[wanted.split]
    elif wanted.split is not None:
        raise InputError(f"{path} has no splits: leave split: out of the job.")
    wanted.present(path, loaded.column_names)
    for number, record in enumerate(loaded):
        yield f"{path.name}:{number}", record


Reader = Callable[[Path, _Wanted], Iterator[Found]]

READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def _reader(path: Path) -> Reader:
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED_BY_DATASETS):
            return _hugging_face
        raise InputError(
            f"{path} is a directory, but no Hugging Face data set: give a glob such as "
            f"'{path}/*.jsonl'."
        )
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path} is of an unknown kind; known: {', '.join(READERS)}.")
    return READERS[path.suffix.lower()]
