"""Reading files row by row: what is wrong is collected with its line, never skipped in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_attr.errors import InputError
from lens_attr.types import Sample


@dataclass(frozen=True)
class Bad:
    """A row that is not what its format says.

    Attributes:
        line: counted from 1.
        reason: what is wrong with it.
    """

    line: int
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """A well-formed row that is no sample, such as a question without an answer."""

    reason: str


Row = Sample | Bad | LeftOut


class RowError(Exception):
    """A row that is not what its format says; becomes `Bad` with its line."""


def lines(path: Path) -> Iterator[tuple[int, str | Bad]]:
    """The lines of a UTF-8 file that are not blank, numbered from 1.

    Raises:
        InputError: the file holds nothing.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise InputError(f"{path} is empty.")
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield number, raw.rstrip(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, Bad(number, f"not UTF-8 (byte 0x{raw[error.start]:02x})")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Bad]]:
    """The JSON objects of a file, one per line."""
    for number, line in lines(path):
        if isinstance(line, Bad):
            yield number, line
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            yield number, Bad(number, f"not JSON: {error}")
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, Bad(number, "not a JSON object")


def columns(path: Path, separator: str = "\t") -> Iterator[tuple[int, list[str] | Bad]]:
    """The cells of every line, without the spaces around them."""
    for number, line in lines(path):
        if isinstance(line, Bad):
            yield number, line
        else:
            yield number, [cell.strip() for cell in line.split(separator)]


def text_of(record: dict[str, Any], *names: str, default: str | None = None) -> str:
    """The string under the first of ``names`` that the record has.

    Raises:
        RowError: there is none, or it is no string.
    """
    for name in names:
        if name in record:
            if isinstance(record[name], str):
                return record[name]
            raise RowError(f"{name!r} is not a string")
    if default is None:
        raise RowError(f"has no {names[0]!r}")
    return default


def span_of(text: str, start: Any, end: Any, what: str) -> tuple[int, int]:
    """A character span, checked.

    Raises:
        RowError: not two integers, empty, or outside the text.
    """
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (start, end))
    if not whole:
        raise RowError(f"{what} must be two integers, got {start!r} and {end!r}")
    if not 0 <= start < end <= len(text):
        raise RowError(
            f"{what} ({start}, {end}) is empty or outside the text of {len(text)} characters"
        )
    return start, end
