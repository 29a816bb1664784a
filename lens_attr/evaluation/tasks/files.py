"""Files as tasks: which reader a file needs, and what happens to rows that are wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from lens_attr.errors import InputError, did_you_mean
from lens_attr.evaluation.tasks.annotation import read_choices
from lens_attr.evaluation.tasks.documents import (
    QA_TEMPLATE,
    read_labelled,
    read_own,
    read_squad,
)
from lens_attr.evaluation.tasks.pairs import read_blimp, read_linzen, read_marvin_linzen
from lens_attr.evaluation.tasks.rows import Bad, LeftOut, Row
from lens_attr.evaluation.tasks.task import Task
from lens_attr.types import Sample

Format = Literal["auto", "blimp", "linzen", "marvin-linzen", "squad", "labelled", "choices", "own"]
"""``"labelled"`` is a tsv of texts and labels (SST-2, IMDB), ``"choices"`` plain sentences with a
choice ``[right|wrong]`` (needs the extra ``spacy``), ``"own"`` the documented jsonl."""

SHOWN = 5
"""Malformed rows that an error names."""


def read(
    path: str | Path,
    format: Format = "auto",
    *,
    task: str | None = None,
    skip_bad: bool = False,
    template: str = QA_TEMPLATE,
) -> dict[str, Task]:
    """The tasks that a file holds, by name.

    Args:
        path: the file.
        format: ``"auto"`` goes by the file's ending and its first line.
        task: what samples without a task of their own are called; default: the file's name.
        skip_bad: keep the good rows of a file in which others are malformed; they are counted.
        template: how a context and a question become a prompt (SQuAD).

    Raises:
        InputError: the file is empty, of no known format, or holds malformed rows (named with
            file and line).
    """
    path = Path(path)
    if format not in get_args(Format):
        raise InputError(f"unknown format {format!r}; {did_you_mean(format, get_args(Format))}")
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    chosen = detect(path) if format == "auto" else format
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        "blimp": read_blimp,
        "linzen": read_linzen,
        "marvin-linzen": read_marvin_linzen,
        "squad": partial(read_squad, template=template),
        "labelled": read_labelled,
        "choices": read_choices,
        "own": read_own,
    }
    samples, left_out = sorted_out(path, readers[chosen](path), skip_bad)
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task or task or path.stem, []).append(sample)
    if not by_task:
        by_task[task or path.stem] = []
    shown = template if chosen == "squad" else ""
    return {
        name: Task(name, found, f"{chosen} file {path.name}", left_out, shown)
        for name, found in by_task.items()
    }


def detect(path: Path) -> Format:
    """The format of a file, by its ending and its first line.

    Raises:
        InputError: it cannot be told.
    """
    ending = path.suffix.lower()
    first = next((line for line in path.read_bytes().splitlines() if line.strip()), b"")
    if ending == ".json":
        return "squad"
    if ending == ".jsonl":
        return "blimp" if _has_key(first, "sentence_good") else "own"
    cells = first.decode("utf-8", errors="replace").split("\t")
    if ending in (".tsv", ".tab", ".txt"):
        if "orig_sentence" in cells or any("***mask***" in cell for cell in cells):
            return "linzen"
        return "labelled" if len(cells) == 2 or _names_text(cells) else "marvin-linzen"
    raise InputError(
        f"cannot tell the format of {path.name}: name it ({', '.join(get_args(Format)[1:])})."
    )


def _names_text(cells: list[str]) -> bool:
    return bool(
        {"sentence", "review", "text"} & {cell.strip().strip('"').lower() for cell in cells}
    )


def _has_key(line: bytes, key: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and key in record


def sorted_out(
    path: Path, rows: Iterable[Row], skip_bad: bool
) -> tuple[list[Sample], Counter[str]]:
    """The good rows, and how many are none, by reason.

    Raises:
        InputError: malformed rows without ``skip_bad``, or no good one with it.
    """
    samples: list[Sample] = []
    bad: list[Bad] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, Bad):
            bad.append(row)
        elif isinstance(row, LeftOut):
            left_out[row.reason] += 1
        else:
            samples.append(row)
    if bad and not skip_bad:
        shown = "; ".join(f"{path} line {one.line}: {one.reason}" for one in bad[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise InputError(
            f"{len(bad)} malformed rows: {shown}{more}. Correct them, or keep the good rows "
            "(--skip-bad, or skip_bad=True)."
        )
    if bad and not samples:
        raise InputError(f"{path} holds no good row; line {bad[0].line}: {bad[0].reason}.")
    return samples, left_out + _by_kind(bad)


_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|-?\d+")
"""What reasons of one kind differ in: quoted text and numbers."""


def _by_kind(bad: Sequence[Bad]) -> Counter[str]:
    """How many rows were malformed in the same way, with the lines of the first and its reason."""
    kinds: dict[str, list[Bad]] = {}
    for one in bad:
        kinds.setdefault(_PARTICULAR.sub("_", one.reason), []).append(one)
    return Counter(
        {f"malformed: {_lines(rows)}: {rows[0].reason}": len(rows) for rows in kinds.values()}
    )


def _lines(rows: Sequence[Bad]) -> str:
    numbers = ", ".join(str(one.line) for one in rows[:SHOWN])
    return f"line{'s' * (len(rows) > 1)} {numbers}{', ...' if len(rows) > SHOWN else ''}"
