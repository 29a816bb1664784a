"""What the tests of data-set runs share: a small data set, and processes that die on purpose."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

import lens_attr as la
from lens_attr.demo import generate

ROWS = 40


@cache
def model() -> Any:
    """demo-gpt2, shared: do not spoil."""
    return la.load("demo-gpt2", device="cpu")


def samples(n: int = ROWS) -> list[dict[str, Any]]:
    """Rows with target and foil, with a target only, and with neither, of many lengths."""
    rows = []
    for i, sample in enumerate(generate("sva", n, seed=3)):
        row = {"text": sample.text, "target": sample.answer, "foil": sample.foil}
        kept = list(row)[: 1 + i % 3]
        rows.append({name: row[name] for name in kept})
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    """JSON lines; a string is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def job(folder: Path, rows: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A job in ``folder`` over `samples`, in several shards and batches."""
    data = folder / "data.jsonl"
    if rows is not None or not data.exists():
        write(data, samples() if rows is None else rows)
    usual = {
        "model": "demo-gpt2",
        "data": str(data),
        "out": str(folder / "out"),
        "device": "cpu",
        "rows_per_shard": 16,
        "tokens_per_batch": 40,
        "threads": 1,
    }
    return usual | fields


def run(given: dict[str, Any], using: Any = None) -> la.runs.RunReport:
    """In this process, with a model that is loaded already."""
    return la.run(given, model=model() if using is None else using, progress=False)


def table(folder: str | Path) -> pd.DataFrame:
    """Everything a run wrote, in the order of the files."""
    files = sorted(Path(folder).glob("**/*.parquet"))
    return pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)


def contents(folder: str | Path) -> dict[str, bytes]:
    """Name and bytes of every output file and of the manifest."""
    paths = [*Path(folder).glob("**/*.parquet"), Path(folder) / "manifest.json"]
    return {path.name: path.read_bytes() for path in sorted(paths)}


def fork(function: Callable[[], Any]) -> int:
    """A child process that runs ``function`` and ends; returns its id.

    It has this process's model and modules already, so a test can afford many.
    """
    child = os.fork()
    if child:
        return child
    try:
        function()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)


def exit_status(child: int) -> int:
    """How a child ended: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_self() -> None:
    """End at once, as by a power cut: no ``finally``, no flushing."""
    os.kill(os.getpid(), signal.SIGKILL)
