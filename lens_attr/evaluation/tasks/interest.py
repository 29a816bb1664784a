"""The word of interest of each text, from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lens_attr.errors import InputError
from lens_attr.evaluation.tasks.files import SHOWN
from lens_attr.evaluation.tasks.rows import Bad, RowError, json_lines, span_of, text_of
from lens_attr.evaluation.tasks.task import Task

Words = Mapping[str, tuple[int, int]]
"""The characters of the word of interest, by the text it stands in."""


def read_interest(path: str | Path, tasks: Sequence[Task]) -> Words:
    """Which word of each text is explained, from a jsonl file with one object per line.

    ``text`` is a whole text as it stands in the data; ``word`` is the word, and ``occurrence``
    which one if it stands there several times, counted from 1. Instead of a word, ``start`` and
    ``end`` can give its characters.

    Args:
        path: the file.
        tasks: the texts.

    Raises:
        InputError: no such file, an empty one, or rows (named with file and line) that are
            malformed, name a text or a word that is not there, leave open which occurrence is
            meant, name a text twice, or a word that nothing stands before.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    texts = {sample.text for task in tasks for sample in task.samples}
    found: dict[str, tuple[int, int]] = {}
    bad: list[Bad] = []
    for number, record in json_lines(path):
        try:
            text, span = _row(record, texts, found)
            found[text] = span
        except RowError as error:
            bad.append(Bad(number, str(error)))
    if bad:
        shown = "; ".join(f"{path} line {one.line}: {one.reason}" for one in bad[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise InputError(f"{len(bad)} malformed rows: {shown}{more}.")
    return found


def _row(
    record: dict[str, Any] | Bad, texts: set[str], found: Words
) -> tuple[str, tuple[int, int]]:
    if isinstance(record, Bad):
        raise RowError(record.reason)
    text = text_of(record, "text")
    if text not in texts:
        raise RowError(f"no text of the data is {_start(text)!r}")
    if text in found:
        raise RowError(f"the text {_start(text)!r} has a word of interest already")
    start, end = _span(record, text)
    if not text[:start].strip():
        raise RowError("nothing stands before the word of interest")
    return text, (start, end)


def _span(record: dict[str, Any], text: str) -> tuple[int, int]:
    if "word" not in record:
        return span_of(text, record.get("start"), record.get("end"), "the word of interest")
    word, which = text_of(record, "word"), record.get("occurrence")
    if not word.strip():
        raise RowError("'word' is empty")
    spans = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    if not spans:
        raise RowError(f"the word {word!r} does not stand in the text")
    if which is None and len(spans) > 1:
        raise RowError(f"the word {word!r} stands there {len(spans)} times: give 'occurrence'")
    if which is not None and (type(which) is not int or not 1 <= which <= len(spans)):
        raise RowError(f"'occurrence' must be 1 to {len(spans)}, got {which!r}")
    return spans[(which or 1) - 1]


def _start(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
