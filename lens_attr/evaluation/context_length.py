"""Length: is the decisive word still found when more and more sentences stand before it?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lens_attr.errors import InputError
from lens_attr.evaluation.benchmark import Settings, bench
from lens_attr.evaluation.results import COLUMNS, MODEL, BenchTable
from lens_attr.evaluation.running import BATCH, SAMPLES, Methods
from lens_attr.evaluation.tasks import Task, Tasks, distractors, preceded, tasks_of
from lens_attr.evaluation.tasks.edits import same_rivals

SENTENCES = (0, 1, 2, 4, 8)
"""How many distractor sentences stand before the text."""

_NAME = re.compile(r"(?P<task>.*)/\+(?P<sentences>\d+)")


def bench_length(
    model: Any,
    tasks: Tasks = "sva",
    methods: Methods = "all",
    *,
    sentences: Sequence[int] = SENTENCES,
    n: int = 1000,
    settings: Settings | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> BenchTable:
    """`bench` on texts with distractor sentences before them: one task per length.

    Rows are named by task and number of sentences, e.g. ``"sva/+4"``; `by_length_of_text` puts
    them in order of tokens. The sentences are the generator's and share no content word with the
    text. As in `bench` each length is judged on the samples predicted correctly there, so read
    the scores beside the accuracy; texts longer than the model reads are dropped and counted.

    Args:
        model: as in `bench`, as ``tasks``, ``methods``, ``settings`` and the rest.
        sentences: how many distractors, in increasing order.

    Raises:
        InputError: as `bench`, or ``sentences`` are not numbers from zero in increasing order.
    """
    settings = settings or Settings()
    if not sentences or min(sentences) < 0 or list(sentences) != sorted(set(sentences)):
        raise InputError(f"sentences must be numbers in increasing order, got {list(sentences)}.")
    longer = [
        one for task in tasks_of(tasks, n, settings.seed) for one in lengthened(task, sentences)
    ]
    return bench(
        model,
        longer,
        methods,
        n=n,
        settings=settings,
        options=options,
        out=out,
        batch_size=batch_size,
        progress=progress,
        command=command,
    )


def lengthened(task: Task, sentences: Sequence[int] = SENTENCES) -> list[Task]:
    """The same samples with so many distractor sentences before them, a task for each number."""
    front = distractors(task.samples, max(sentences))
    return [
        replace(
            task,
            name=f"{task.name}/+{count}",
            samples=[
                preceded(sample, before[:count])
                for sample, before in zip(same_rivals(task, task.samples), front, strict=True)
            ],
        )
        for count in sentences
    ]


def by_length_of_text(table: BenchTable) -> pd.DataFrame:
    """The scores of `bench_length` against length.

    Columns task, method, sentences, tokens (mean of the texts that were judged, special tokens
    included), metric, value, low, high, n. The model's accuracy is among the methods.

    Raises:
        InputError: the table is none of `bench_length`.
    """
    rows = []
    for row in table.rows.to_dict("records"):
        found = _NAME.fullmatch(str(row["task"]))
        if found and row["n"]:
            values = [row[name] for name in COLUMNS[2:]]
            task, sentences = found["task"], int(found["sentences"])
            rows.append((task, row["method"], sentences, _tokens(table, row), *values))
    if not rows:
        raise InputError("this table holds no scores by length.")
    names = ["task", "method", "sentences", "tokens", *COLUMNS[2:]]
    return pd.DataFrame(rows, columns=names)


def _tokens(table: BenchTable, row: Mapping[Any, Any]) -> float:
    """Mean length of the samples that a row is about."""
    described = table.samples[row["task"], SAMPLES].set_index("sample")["tokens"]
    of_model = row["method"] == MODEL
    judged = described.index if of_model else table.samples[row["task"], row["method"]]["sample"]
    return float(np.mean([len(described[index]) for index in judged]))
