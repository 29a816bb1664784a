"""Self-repair over a task's samples: joint against summed ablations of attention scores (GIM).

Circuits measure it text by text (`lens_attr.circuits.self_repair`), tasks say which texts; here
the two meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr.circuits import SelfRepair, self_repair
from lens_attr.circuits.score_ablation import PAIR, SINGLE, TSG, Replace, check_options
from lens_attr.circuits.self_repair_results import THRESHOLDS
from lens_attr.errors import checked_count
from lens_attr.evaluation.benchmark import answered
from lens_attr.evaluation.intervals import Interval, mean_intervals
from lens_attr.evaluation.predictions import Prediction, predict, target_of
from lens_attr.evaluation.results import BenchTable, interval_rows
from lens_attr.evaluation.running import (
    BATCH,
    COMPARED_AS,
    SAMPLES,
    Run,
    fingerprint_of,
    metadata_of,
    progress_bar,
)
from lens_attr.evaluation.store import Store
from lens_attr.evaluation.tasks import Tasks, TokenSample, View, tasks_of, view
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import token_string
from lens_attr.rules import RuleSet

MODE = "self_repair"
"""What ``metadata["mode"]`` of its results says."""

SUMMED = "summed"
"""The method that predicts a joint effect as the sum of the two exact single effects."""

ABLATIONS = "ablations"
"""In place of a method: the table with every ablation of a sample."""

METRICS = ("joint_slope", "joint_error")

Values = Float[NDArray[np.floating], " _"]


@dataclass(frozen=True)
class SelfRepairSettings:
    """How scores are ablated, as in `lens_attr.circuits.self_repair`.

    Attributes:
        methods: presets or ``"tsg"``, whose prediction is compared.
        replace: what an ablated score becomes.
        thresholds: of p * dL/dp; the smallest selects the candidate keys.
        max_keys: candidates per row.
        seed: of the bootstrap.
    """

    methods: Sequence[str] = ("gradient", TSG, "gim")
    replace: Replace = "mean"
    thresholds: Sequence[float] = THRESHOLDS
    max_keys: int = 8
    seed: int = 0


@dataclass(frozen=True)
class SelfRepairRun:
    """Self-repair of one model on some tasks.

    Attributes:
        table: one row per task, method and metric. ``joint_slope`` is the slope through the origin
            of predicted against exact joint effects of a sample's pairs: below 1 the method misses
            what only both ablations together show. ``joint_error`` is their mean distance, in
            units of the target.
        results: every single and joint ablation, by task; ``example`` is the sample's index.
    """

    table: BenchTable
    results: Mapping[str, SelfRepair]

    def to_markdown(self) -> str:
        """The table, and the groups of keys that stand in for each other."""
        return self.table.to_markdown()

    def __str__(self) -> str:
        return self.to_markdown()


def bench_self_repair(
    model: Any,
    tasks: Tasks,
    *,
    n: int = 100,
    settings: SelfRepairSettings | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> SelfRepairRun:
    """Ablate attention scores one by one and in pairs, on every sample of a task.

    Explained is the answer against its foil at the sample's position, whether or not the model
    predicts it correctly.

    Args:
        model: a TransformerLens model whose softmax is in the autograd graph.
        tasks: names of built-in tasks, or samples with an answer.
        n: the first so many samples of each task.
        settings: how scores are ablated.
        out: folder for the results; a run stopped there goes on where it was.
        batch_size: ablated runs per forward.
        progress: show a bar with the time left.
        command: what the user typed, for the record.

    Raises:
        InputError: unknown option, a sample without an answer, or ``out`` holds another run.
        UnsupportedModelError: the softmax is computed outside the autograd graph.
    """
    settings = settings or SelfRepairSettings()
    graph = resolve(model)
    batch_size = checked_count("batch_size", batch_size)
    chosen = tasks_of(tasks, n, settings.seed)
    names = list(_checked(graph, settings, batch_size))
    views = {task.name: view(graph, task, truth=False) for task in chosen}
    samples = {name: answered(one) for name, one in views.items()}
    metadata = metadata_of(graph, settings, {}, command)
    metadata |= {"mode": MODE, COMPARED_AS: dict.fromkeys(METRICS, 1.0)}
    store = Store(out, fingerprint_of(metadata, views))
    results: dict[str, SelfRepair] = {}
    with progress_bar(progress, sum(map(len, samples.values()))) as advance:
        run = Run(model, graph, store, {}, None, 1, advance)
        for task, mine in samples.items():
            found = predict(graph, mine, BATCH)
            rows_of = partial(_rows_of, model, found, settings, batch_size)
            run.every_batch(task, ABLATIONS, mine, rows_of)
            ablations = run.samples.pop((task, ABLATIONS))
            results[task] = _joined(ablations, names, graph, settings)
            run.samples |= _per_method(task, results[task])
            run.samples[task, SAMPLES] = _described(graph, mine, found)
    table = run.finish(
        interval_rows(run.samples, partial(_intervals, settings.seed), views),
        {name: _facts(one, results[name]) for name, one in views.items()},
        metadata,
    )
    return SelfRepairRun(table, results)


def _checked(
    graph: ModelGraph, settings: SelfRepairSettings, batch_size: int
) -> Mapping[str, RuleSet]:
    return check_options(
        graph,
        settings.methods,
        settings.replace,
        settings.thresholds,
        settings.max_keys,
        batch_size,
    )


# --------------------------------------------------------------------------- measuring


def _rows_of(
    model: Any,
    predictions: dict[int, Prediction],
    settings: SelfRepairSettings,
    batch_size: int,
    batch: list[TokenSample],
) -> list[dict[str, Any]]:
    """Every ablation of each sample, in one row."""
    return [
        {"sample": one.index, **_ablations(model, one, predictions, settings, batch_size)}
        for one in batch
    ]


def _ablations(
    model: Any,
    one: TokenSample,
    predictions: dict[int, Prediction],
    settings: SelfRepairSettings,
    batch_size: int,
) -> dict[str, Any]:
    found = self_repair(
        model,
        torch.tensor([list(one.token_ids)]),
        replace(target_of([one], predictions, contrastive=True), position=one.position),
        methods=settings.methods,
        replace=settings.replace,
        thresholds=settings.thresholds,
        max_keys=settings.max_keys,
        batch_size=batch_size,
    )
    return {
        "singles": found.singles.assign(example=one.index).to_dict("records"),
        "pairs": found.pairs.assign(example=one.index).to_dict("records"),
        "skipped": found.n_skipped,
        "dropped": found.n_dropped,
        "unit": found.unit,
    }


def _joined(
    rows: pd.DataFrame, methods: list[str], graph: ModelGraph, settings: SelfRepairSettings
) -> SelfRepair:
    """The ablations of all samples."""

    def table(key: str, columns: list[str]) -> pd.DataFrame:
        records = [record for row in rows.to_dict("records") for record in row[key]]
        return pd.DataFrame(records, columns=[*columns, *methods])

    empty = rows.empty
    return SelfRepair(
        singles=table("singles", SINGLE),
        pairs=table("pairs", PAIR),
        methods=methods,
        replace=settings.replace,
        n_skipped=0 if empty else int(rows["skipped"].sum()),
        n_dropped=0 if empty else int(rows["dropped"].sum()),
        shape=(graph.n_layers, graph.n_heads),
        unit="logit" if empty else str(rows["unit"].iloc[0]),
        metadata={"model": graph.describe(), "thresholds": list(settings.thresholds)},
    )


# ------------------------------------------------------------------------------ tables


def _per_method(task: str, result: SelfRepair) -> dict[tuple[str, str], pd.DataFrame]:
    """For each way to predict joint effects one row per sample that has pairs."""
    pairs = result.pairs
    predicted = {SUMMED: pairs.effect_1 + pairs.effect_2}
    predicted |= {method: pairs[method] for method in result.methods}
    columns = ["sample", "pairs", *METRICS]
    found = {}
    for method, values in predicted.items():
        frame = pd.DataFrame(
            {"sample": pairs.example, "exact": pairs.effect_both, "predicted": values}
        ).astype(float)
        rows = [
            (int(mine["sample"].iloc[0]), len(mine), _slope(mine), _error(mine))
            for _, mine in frame.groupby("sample")
        ]
        found[task, method] = pd.DataFrame(rows, columns=columns)
    return found


def _slope(pairs: pd.DataFrame) -> float:
    """Of predicted against exact, through the origin (least squares)."""
    return float((pairs.predicted * pairs.exact).sum() / (pairs.exact**2).sum())


def _error(pairs: pd.DataFrame) -> float:
    """Mean distance of predicted and exact."""
    return float((pairs.predicted - pairs.exact).abs().mean())


def _intervals(seed: int, frame: pd.DataFrame) -> dict[str, Interval]:
    return mean_intervals({name: frame[name].to_numpy(dtype=float) for name in METRICS}, seed)


def _described(
    graph: ModelGraph, samples: Sequence[TokenSample], predictions: Mapping[int, Prediction]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample": [one.index for one in samples],
            "text": [one.sample.text for one in samples],
            "suffix": [one.sample.suffix for one in samples],
            "tokens": [[token_string(graph, i) for i in one.token_ids] for one in samples],
            "position": [one.position for one in samples],
            "answer_token": [token_string(graph, one.answer or 0) for one in samples],
            "foil_token": [token_string(graph, predictions[i.index].foil_id) for i in samples],
        }
    )


def _facts(one: View, result: SelfRepair) -> dict[str, Any]:
    counts = result.group_counts(result.metadata["thresholds"]).to_dict("records")
    groups = "; ".join(
        f"above {row['threshold']:g}: {row['groups']} groups in {row['rows']} rows, the largest of "
        f"{row['largest']} keys"
        for row in counts
    )
    remarks = [
        f"{len(result.pairs)} pairs of keys in {result.pairs.example.nunique()} samples "
        f"({result.replace} ablation); {result.n_skipped} pairs without effect skipped, "
        f"{result.n_dropped} weaker candidates dropped.",
        f"Interchangeable keys, by threshold of p * dL/dp: {groups}.",
    ]
    return one.task.facts(one.dropped, len(one.samples), remarks=remarks)
