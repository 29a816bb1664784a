"""`bench`: methods x tasks on one model, judged by the tokens that are known to decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from lens_attr.attribution.embeddings import Embeddings
from lens_attr.errors import InputError, checked_count
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.intervals import Interval, mean_interval, mean_intervals, ratio_interval
from lens_attr.evaluation.plausibility import Ties, conservation_gap, plausibility
from lens_attr.evaluation.predictions import Prediction, predict, target_of
from lens_attr.evaluation.results import COLUMNS, MODEL, BenchTable, interval_row, interval_rows
from lens_attr.evaluation.running import (
    BATCH,
    SAMPLES,
    Methods,
    Run,
    fingerprint_of,
    metadata_of,
    methods_by_name,
    progress_bar,
)
from lens_attr.evaluation.store import Store, sample_table
from lens_attr.evaluation.tasks import Tasks, TokenSample, View, tasks_of, view
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import token_string
from lens_attr.rules import RuleSet

MEASURES = ("pg", "mrr", "rma", "pta")
FLAGS = ("degenerate", "no_positive_mass")


@dataclass(frozen=True)
class Settings:
    """What is explained and judged, and how (the axes of LRPx, Tables 2 to 7).

    Attributes:
        contrastive: explain answer - foil; otherwise the highest logit among the task's
            candidates.
        special_tokens: judge BOS, [CLS], [SEP] and the mask as well.
        whole_text: judge the question as well as the context it asks about.
        embeddings: ``"full"`` or ``"token"``; None leaves each method its own default.
        ties: how equal scores are ranked.
        keep_incorrect: judge samples that the model gets wrong as well.
        seed: of the random baseline and the bootstrap.
    """

    contrastive: bool = True
    special_tokens: bool = False
    whole_text: bool = False
    embeddings: Embeddings | None = None
    ties: Ties = "expected"
    keep_incorrect: bool = False
    seed: int = 0


def bench(
    model: Any,
    tasks: Tasks = "sva",
    methods: Methods = "all",
    *,
    n: int = 1000,
    settings: Settings | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> BenchTable:
    """Explain every sample by every method and compare with the tokens that decide (LRPx).

    Samples that the model predicts correctly are explained in batches of similar length. Every
    table holds four baselines: random, first_token, last_token and uniform.

    Args:
        model: a TransformerLens model.
        tasks: names of built-in tasks, or `tasks.Task` objects (see `tasks.read`).
        methods: ``"all"``, or names from ``la.methods()`` and rule sets of your own.
        n: number of samples of each built-in task; of other tasks, the first ``n``.
        settings: what is explained and judged.
        options: of single methods, by name, e.g. ``{"integrated_gradients": {"steps": 20}}``.
        out: folder for the results; a run stopped there goes on where it was.
        batch_size: samples explained at a time.
        progress: show a bar with the time left.
        command: what the user typed, for the record.

    Raises:
        InputError: unknown task, method or option, or ``out`` holds another run.
    """
    settings = settings or Settings()
    graph = resolve(model)
    chosen = methods_by_name(methods)
    batch_size = checked_count("batch_size", batch_size)
    views = {task.name: view(graph, task) for task in tasks_of(tasks, n, settings.seed)}
    metadata = metadata_of(graph, settings, options or {}, command)
    store = Store(out, fingerprint_of(metadata, views))
    predictions = {name: predict(graph, answered(one), batch_size) for name, one in views.items()}
    used = {name: _used(one, predictions[name], settings) for name, one in views.items()}
    with progress_bar(progress, len(chosen) * sum(map(len, used.values()))) as advance:
        run = Run(model, graph, store, options or {}, settings.embeddings, batch_size, advance)
        for task, samples in used.items():
            found = predictions[task]
            run.samples[task, SAMPLES] = _described(graph, views[task], found)
            for name in BASELINES:
                run.samples[task, name] = _baseline(name, samples, settings)
            for name, method in chosen.items():
                rows_of = partial(_explained, run, name, method, found, settings)
                run.every_batch(task, name, samples, rows_of)
    return run.finish(
        _rows(views, used, predictions, run.samples, settings.seed),
        {name: _facts(one, predictions[name], used[name]) for name, one in views.items()},
        metadata,
    )


# ------------------------------------------------------------------------- arguments


# --------------------------------------------------------------------------- samples


def answered(one: View) -> list[TokenSample]:
    """Samples with an answer; without one nothing can be predicted correctly.

    Raises:
        InputError: a sample has none.
    """
    for sample in one.samples:
        if sample.answer is None:
            raise InputError(
                f"sample {sample.index} of task {one.task.name!r} has no answer: tasks without "
                "answers are for deletion (la.evaluation.deletion, bench --deletion)."
            )
    return list(one.samples)


def _used(
    one: View, predictions: Mapping[int, Prediction], settings: Settings
) -> list[TokenSample]:
    correct = settings.keep_incorrect
    return [sample for sample in one.samples if correct or predictions[sample.index].correct]


def judged(sample: TokenSample, settings: Settings) -> Bool[NDArray[np.bool_], " token"]:
    """Which tokens of a sample are judged."""
    special = np.array(sample.special)
    text = ~special if settings.whole_text else np.array(sample.context) & ~special
    return text | special if settings.special_tokens else text


def _described(graph: ModelGraph, one: View, predictions: Mapping[int, Prediction]) -> pd.DataFrame:
    """What every per-sample table refers to by its column ``sample``."""
    rows = []
    for sample in one.samples:
        found = predictions[sample.index]
        made = sample.sample
        rows.append(
            {
                "sample": sample.index,
                "source": made.source,
                "licence": made.licence,
                "text": made.text,
                "suffix": made.suffix,
                "answer": made.answer,
                "foil": made.foil,
                "tokens": [token_string(graph, i) for i in sample.token_ids],
                "inside": list(sample.inside),
                "special": list(sample.special),
                "context": list(sample.context),
                "position": sample.position,
                "shared_pieces": sample.shared,
                "answer_token": token_string(graph, sample.answer or 0),
                "foil_token": token_string(graph, found.foil_id),
                "top_token": token_string(graph, found.top_id),
                "answer_logit": found.answer,
                "foil_logit": found.foil,
                "correct": found.correct,
            }
        )
    return sample_table(rows)


def score(
    sample: TokenSample,
    scores: Float[NDArray[np.floating], " token"],
    settings: Settings,
    target_value: float = np.nan,
) -> dict[str, Any]:
    """One row of a per-sample table: the scores of all tokens, and how they are judged."""
    keep = judged(sample, settings)
    found = plausibility(scores[keep], np.array(sample.inside)[keep], settings.ties)
    return {
        "sample": sample.index,
        **asdict(found),
        "gap": conservation_gap(scores, target_value),
        "target_value": target_value,
        "judged_tokens": int(keep.sum()),
        "scores": scores.astype(float).tolist(),
    }


def _baseline(name: str, samples: Sequence[TokenSample], settings: Settings) -> pd.DataFrame:
    scores = (
        (one, BASELINES[name](judged(one, settings), settings.seed, one.index)) for one in samples
    )
    return sample_table([score(one, values, settings) for one, values in scores])


def _explained(
    run: Run,
    name: str,
    method: str | RuleSet,
    predictions: dict[int, Prediction],
    settings: Settings,
    batch: list[TokenSample],
) -> list[dict[str, Any]]:
    """The rows of one batch."""
    target = target_of(batch, predictions, settings.contrastive)
    scores, values = run.explain(name, method, batch, target)
    return [score(*row) for row in zip(batch, scores, [settings] * len(batch), values, strict=True)]


# --------------------------------------------------------------------------- tables


def _rows(
    views: Mapping[str, View],
    used: Mapping[str, Sequence[TokenSample]],
    predictions: Mapping[str, Mapping[int, Prediction]],
    samples: Mapping[tuple[str, str], pd.DataFrame],
    seed: int,
) -> pd.DataFrame:
    correct = {
        task: np.array([one.correct for one in predictions[task].values()], dtype=float)
        for task in views
    }
    accuracy = [
        interval_row(MODEL, task, "accuracy", mean_interval(values, seed))
        for task, values in correct.items()
    ]
    rows = interval_rows(samples, partial(_intervals, seed), views)
    return pd.concat([pd.DataFrame(accuracy, columns=list(COLUMNS)), rows], ignore_index=True)


def _intervals(seed: int, frame: pd.DataFrame) -> dict[str, Interval]:
    """Every metric of a per-sample table."""
    columns = {name: np.array(frame.get(name, ()), dtype=float) for name in (*MEASURES, *FLAGS)}
    found = mean_intervals(columns, seed)
    if len(frame) and frame["gap"].notna().all():
        gap, target = (frame[name].abs().to_numpy(dtype=float) for name in ("gap", "target_value"))
        found["gap"] = ratio_interval(gap, target, seed)
    return found


def _facts(
    one: View,
    predictions: Mapping[int, Prediction],
    used: Sequence[TokenSample],
) -> dict[str, Any]:
    correct = sum(prediction.correct for prediction in predictions.values())
    total = len(one.samples)
    wrong = f"the model predicts {correct} of {total} samples correctly" if total else ""
    return one.task.facts(
        one.dropped,
        len(used),
        wrong,
        template=one.task.template,
        several_pieces=one.several_pieces,
        shared_pieces=one.shared_pieces,
        correct=correct,
    )
