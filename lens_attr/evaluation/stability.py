"""Stability: does relevance stay where it was when a text is said a little differently?

Each sample is explained as it is and edited; the edit keeps the meaning and the model's answer.
The relevance of the words that both versions share is compared by Spearman's rank correlation.
Stability alone proves nothing: scores that never look at the model can be perfectly stable, as
the baseline ``first_token`` shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr.attribution.embeddings import Embeddings
from lens_attr.errors import InputError, checked_count, did_you_mean
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.intervals import Interval, mean_intervals
from lens_attr.evaluation.predictions import target_of
from lens_attr.evaluation.results import BenchTable, interval_rows
from lens_attr.evaluation.running import (
    BATCH,
    COMPARED_AS,
    SAMPLES,
    Methods,
    Run,
    Scores,
    fingerprint_of,
    metadata_of,
    methods_by_name,
    progress_bar,
)
from lens_attr.evaluation.store import Store
from lens_attr.evaluation.tasks import (
    ALL_EDITS,
    Pairs,
    Task,
    TokenSample,
    View,
    edited,
    tasks_of,
)
from lens_attr.evaluation.versions import Edited, Plan, plan
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import token_string
from lens_attr.rules import RuleSet

MEASURES: Mapping[str, float] = {"rank_correlation": 1.0, "undefined": 100.0}
"""With the factor between the per-sample tables and what is shown."""


@dataclass(frozen=True)
class Stability:
    """What is edited and explained.

    Attributes:
        edits: names from ``tasks.ALL_EDITS``; pairs from a file bring their own.
        contrastive: explain answer - foil, with the foil of the text as it was; otherwise the
            highest logit among the task's candidates.
        embeddings: what methods explain, where they have the choice.
        keep_incorrect: use samples that the model gets wrong as well.
        seed: of the edits, the random baseline and the bootstrap.
    """

    edits: Sequence[str] = ALL_EDITS
    contrastive: bool = True
    embeddings: Embeddings | None = None
    keep_incorrect: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.edits:
            if name not in ALL_EDITS:
                raise InputError(f"unknown edit {name!r}; {did_you_mean(name, ALL_EDITS)}")


def bench_stability(
    model: Any,
    tasks: str | Task | Pairs | Sequence[str | Task | Pairs] = "sva",
    methods: Methods = "all",
    *,
    n: int = 1000,
    settings: Stability | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> BenchTable:
    """Edit every sample in ways that keep its meaning, and correlate the relevance of its words.

    Rows are named by task and edit, e.g. ``"sva/synonym"``. Samples are used that the model
    predicts correctly; an edit that changes the model's answer is dropped and counted. A ranking
    that is constant over the shared words correlates with nothing: it counts as 0, and as
    ``undefined``.

    Args:
        model: as in `bench`, as ``methods``, ``options``, ``out`` and the rest.
        tasks: what is edited, or pairs of versions from `tasks.read_pairs`.
        n: at most so many samples of each task.
        settings: what is edited and explained.

    Raises:
        InputError: unknown task, method, edit or option, or ``out`` holds another run.
    """
    settings = settings or Stability()
    graph = resolve(model)
    chosen = methods_by_name(methods)
    batch_size = checked_count("batch_size", batch_size)
    views: dict[str, View] = {}
    rest = {"keep_incorrect": settings.keep_incorrect, "seed": settings.seed}
    plans = [
        plan(graph, one, views, batch_size=batch_size, **rest) for one in _pairs(tasks, n, settings)
    ]
    metadata = metadata_of(graph, settings, options or {}, command) | {COMPARED_AS: MEASURES}
    store = Store(out, fingerprint_of(metadata, views))
    everyone: dict[str, str | RuleSet | None] = {**dict.fromkeys(BASELINES), **chosen}
    total = len(everyone) * sum(one.explanations for one in plans)
    with progress_bar(progress, total) as advance:
        run = Run(model, graph, store, options or {}, settings.embeddings, batch_size, advance)
        for one in plans:
            _run(run, one, everyone, settings)
    facts = {edit.name: edit.facts for one in plans for edit in one.edits}
    return run.finish(
        interval_rows(run.samples, partial(_intervals, settings.seed), facts),
        facts,
        metadata,
    )


def _pairs(tasks: Any, n: int, settings: Stability) -> list[Pairs]:
    each = [tasks] if isinstance(tasks, (str, Task, Pairs)) else list(tasks)
    plain = [one.task if isinstance(one, Pairs) else one for one in each]
    return [
        _first(one, task) if isinstance(one, Pairs) else edited(task, settings.edits, settings.seed)
        for one, task in zip(each, tasks_of(plain, n, settings.seed), strict=True)
    ]


def _first(pairs: Pairs, task: Task) -> Pairs:
    """Only the pairs of a task that was cut."""
    kept = {
        name: {i: one for i, one in versions.items() if i < len(task.samples)}
        for name, versions in pairs.versions.items()
    }
    return replace(pairs, task=task, versions=kept)


# ------------------------------------------------------------------------------ running


def _run(
    run: Run, plan: Plan, everyone: Mapping[str, str | RuleSet | None], settings: Stability
) -> None:
    """The texts as they were, then every edit."""
    run.samples[plan.name, SAMPLES] = _described(run.graph, plan.wanted)
    for name, method in everyone.items():

        def scored(
            batch: list[TokenSample], name: str = name, method: str | RuleSet | None = method
        ) -> list[dict[str, Any]]:
            scores = _scores(run, name, method, plan, settings, 0, batch)
            return [
                {"sample": one.index, "scores": values.tolist()}
                for one, values in zip(batch, scores, strict=True)
            ]

        run.every_batch(plan.name, name, plan.wanted, scored)
    for number, edit in enumerate(plan.edits, start=1):
        run.samples[edit.name, SAMPLES] = _described_edit(run.graph, edit, plan)
        samples = [version.sample for version in edit.versions.values()]
        for name, method in everyone.items():
            rows = partial(_compared, run, name, method, plan, settings, number, edit)
            run.every_batch(edit.name, name, samples, rows)


def _scores(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    plan: Plan,
    settings: Stability,
    number: int,
    batch: list[TokenSample],
) -> list[Scores]:
    """Of every token. The random baseline draws anew for each edit, by its ``number``."""
    if method is not None:
        target = target_of(batch, plan.predictions, settings.contrastive)
        return run.explain(name, method, batch, target)[0]
    return [
        BASELINES[name](~np.array(one.special), settings.seed + number, one.index) for one in batch
    ]


def _compared(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    plan: Plan,
    settings: Stability,
    number: int,
    edit: Edited,
    batch: list[TokenSample],
) -> list[dict[str, Any]]:
    """The rows of one batch of edited samples."""
    before = run.samples[plan.name, name].set_index("sample")["scores"]
    rows = []
    for one, after in zip(
        batch, _scores(run, name, method, plan, settings, number, batch), strict=True
    ):
        shared = edit.versions[one.index].shared
        pairs = [
            (sum(before[one.index][i] for i in a), sum(after[i] for i in b)) for _, a, b in shared
        ]
        first, second = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
        correlation = rank_correlation(first, second)
        rows.append(
            {
                "sample": one.index,
                "rank_correlation": 0.0 if np.isnan(correlation) else correlation,
                "undefined": bool(np.isnan(correlation)),
                "words": len(shared),
                "scores": first.tolist(),
                "edited_scores": second.tolist(),
            }
        )
    return rows


def rank_correlation(
    first: Float[NDArray[np.floating], " word"], second: Float[NDArray[np.floating], " word"]
) -> float:
    """Spearman's rho, equal values sharing their mean rank; NaN where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else np.nan


def _ranks(values: Float[NDArray[np.floating], " word"]) -> Float[NDArray[np.floating], " word"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


# ------------------------------------------------------------------------------- tables


_TEXT = ("source", "licence", "text", "suffix", "tokens", "position")
_EDITED = ("text", "edited", "edited_tokens", "shared_words")


def _described(graph: ModelGraph, samples: Sequence[TokenSample]) -> pd.DataFrame:
    rows = [
        {
            "sample": one.index,
            "source": one.sample.source,
            "licence": one.sample.licence,
            "text": one.sample.text,
            "suffix": one.sample.suffix,
            "tokens": [token_string(graph, i) for i in one.token_ids],
            "position": one.position,
        }
        for one in samples
    ]
    return pd.DataFrame(rows, columns=["sample", *_TEXT])


def _described_edit(graph: ModelGraph, edit: Edited, plan: Plan) -> pd.DataFrame:
    rows = [
        {
            "sample": index,
            "text": plan.originals[index].sample.text,
            "edited": version.sample.sample.text,
            "edited_tokens": [token_string(graph, i) for i in version.sample.token_ids],
            "shared_words": [word for word, _, _ in version.shared],
        }
        for index, version in edit.versions.items()
    ]
    return pd.DataFrame(rows, columns=["sample", *_EDITED])


def _intervals(seed: int, frame: pd.DataFrame) -> dict[str, Interval]:
    values = {name: np.array(frame.get(name, ()), dtype=float) for name in MEASURES}
    return mean_intervals(values, seed)
