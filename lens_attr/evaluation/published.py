"""Values that a paper prints, beside ours where the model is the same.

No value ships with the package: only numbers that were read in the paper itself belong here, and
a file of them (see `read_published`) is a line per number.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lens_attr.errors import InputError
from lens_attr.evaluation.results import BenchTable

FIELDS = ("paper", "where", "model", "task", "method", "metric", "value")
SHOWN = ("task", "method", "metric", "value", "low", "high", "published", "source")


@dataclass(frozen=True)
class Published:
    """One number of a paper.

    Attributes:
        paper: which, as it is cited.
        where: its table or figure there.
        model: the model's name, e.g. ``"gpt2"``.
        task: as it is called here.
        method: as it is called here.
        metric: as in `BenchTable.rows`, in the same unit (shares in percent).
        value: the number.
    """

    paper: str
    where: str
    model: str
    task: str
    method: str
    metric: str
    value: float


def read_published(path: str | Path) -> list[Published]:
    """Values of papers, from a csv with the columns `FIELDS` in its first line.

    Raises:
        InputError: no such file, other columns, or rows that are malformed (named with line).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8.") from error
    if not rows or tuple(cell.strip() for cell in rows[0]) != FIELDS:
        raise InputError(f"{path} line 1 must name the columns {','.join(FIELDS)}.")
    return [_row(path, number, row) for number, row in enumerate(rows[1:], start=2) if row]


def _row(path: Path, number: int, row: Sequence[str]) -> Published:
    cells = [cell.strip() for cell in row]
    if len(cells) != len(FIELDS) or not all(cells):
        raise InputError(f"{path} line {number} must have {len(FIELDS)} columns, none empty.")
    try:
        value = float(cells[-1])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path} line {number}: {cells[-1]!r} is no number.")
    return Published(*cells[:-1], value=value)


def beside(table: BenchTable, published: Sequence[Published], model: str) -> pd.DataFrame:
    """Our values next to those published for the same model, task, method and metric.

    Args:
        table: ours.
        published: what papers print.
        model: the name that the model was loaded by; the part after the last ``/`` counts,
            whatever its case.

    Returns:
        A table with the columns `SHOWN`; empty where nothing matches.
    """
    ours = {
        (row["task"], row["method"], row["metric"]): row for row in table.rows.to_dict("records")
    }
    rows = []
    for one in published:
        row = ours.get((one.task, one.method, one.metric))
        if row is not None and row["n"] and _bare(one.model) == _bare(model):
            source = f"{one.paper}, {one.where}"
            values = (row["value"], row["low"], row["high"], one.value)
            rows.append((one.task, one.method, one.metric, *values, source))
    return pd.DataFrame(rows, columns=list(SHOWN))


def _bare(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].casefold()
