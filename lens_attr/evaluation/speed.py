"""What an explanation costs beside gradient x input: LRPx Table 8 for this machine.

Three ways to the same numbers, text by text, in turn: gradient x input, AttnLRP as published
(`ExplicitAttnLRP`), and rules on gradients. First the last two are proved equal in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lens_attr.attribution import attribute
from lens_attr.attribution.embeddings import InputEmbeddings
from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.evaluation.benchmark import answered
from lens_attr.evaluation.explicit_attnlrp import Clock, ExplicitAttnLRP, now
from lens_attr.evaluation.intervals import Interval, median_interval
from lens_attr.evaluation.machine import machine
from lens_attr.evaluation.predictions import Prediction, predict
from lens_attr.evaluation.results import BenchTable, interval_rows
from lens_attr.evaluation.running import (
    SAMPLES,
    Run,
    fingerprint_of,
    metadata_of,
    progress_bar,
)
from lens_attr.evaluation.store import Store
from lens_attr.evaluation.tasks import Tasks, TokenSample, View, tasks_of, view
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.precision import Float64Throughout
from lens_attr.graph.tokens import token_string
from lens_attr.rules import PRESETS, RuleSet, preset
from lens_attr.rules.session import Session
from lens_attr.targets import LogitDiff

METRICS = ("backward_ms", "backward_ratio", "end_to_end_ms", "end_to_end_ratio", "attribute_ms")

MODE = "speed"
"""What ``metadata["mode"]`` of its results says."""

GRADIENT, EXPLICIT = "gradient_x_input", "explicit_attnlrp"
TIMES = "times"
"""In place of a method: the table in which all of them are timed in turn."""

EQUAL = 1e-9
"""Largest difference of explicit AttnLRP and ours, of the largest relevance, in float64."""
PROVED_ON = 16
"""Samples on which the two are compared."""
AT_A_TIME = 16
"""Samples timed before their times are written."""

Values = Float[NDArray[np.floating], " _"]


@dataclass(frozen=True)
class Speed:
    """What is timed.

    Attributes:
        presets: ways of ours, beside gradient x input and explicit AttnLRP.
        seed: of the bootstrap.
    """

    presets: Sequence[str] = ("attnlrp",)
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.presets if name not in PRESETS or name == "gradient"]
        if unknown or not self.presets or len(set(self.presets)) < len(self.presets):
            known = ", ".join(name for name in PRESETS if name != "gradient")
            raise InputError(
                f"speed is measured for presets, each once, got {list(self.presets)}; there are "
                f"{known}."
            )


def bench_speed(
    model: Any,
    tasks: Tasks,
    *,
    exact: Any = None,
    n: int = 1000,
    settings: Speed | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    command: str = "",
) -> BenchTable:
    """Time explanations one text at a time, without the forward pass and with it (LRPx, Table 8).

    Rows hold medians over the samples in milliseconds, and medians of each sample's ratio to
    gradient x input, with bootstrap intervals of the median. End to end is a forward and the
    relevance of the tokens; ``la.attribute``, beside it, also gives heads, checks and a record.
    On a CPU it is processor time that counts, so that a busy machine does not distort it.

    Args:
        model: a TransformerLens model.
        tasks: names of built-in tasks, or samples with an answer; all are timed, predicted
            correctly or not.
        exact: the same model in float64, loaded under `Float64Throughout`, on which explicit
            AttnLRP is proved equal to ours; without it the explicit one is not timed.
        n: the first so many samples of each task.
        settings: what is timed.
        out: folder for the results; a run stopped there goes on where it was.
        progress: show a bar with the time left.
        command: what the user typed, for the record.

    Raises:
        InputError: no task, two of one name, or ``out`` holds another run.
    """
    settings = settings or Speed()
    graph = resolve(model)
    chosen = tasks_of(tasks, n, settings.seed)
    views = {task.name: view(graph, task, truth=False) for task in chosen}
    samples = {name: answered(one) for name, one in views.items()}
    where = machine(graph.device)
    metadata = metadata_of(graph, settings, {}, command) | {"mode": MODE, "machine": where}
    store = Store(out, {**fingerprint_of(metadata, views), "machine": where})
    refused, explicit, difference = _explicit(graph, exact, samples)
    metadata |= {"difference": difference}
    timer = _Timer(graph, model, settings, explicit)
    with progress_bar(progress, sum(map(len, samples.values()))) as advance:
        run = Run(model, graph, store, {}, None, AT_A_TIME, advance, refused=refused)
        for task, mine in samples.items():
            found = predict(graph, mine, AT_A_TIME)
            run.every_batch(task, TIMES, mine, partial(timer.rows, found))
            run.samples |= _split(task, run.samples.pop((task, TIMES)), list(timer.ways))
            run.samples[task, SAMPLES] = _described(graph, mine, found)
    return run.finish(
        interval_rows(run.samples, partial(_intervals, settings.seed), views),
        {name: _facts(one, metadata) for name, one in views.items()},
        metadata,
    )


# -------------------------------------------------------------------------- the proof


def largest_difference(exact: Any, samples: Sequence[TokenSample]) -> float:
    """Of explicit AttnLRP and ours on a float64 model, relative to the largest relevance.

    Raises:
        UnsupportedModelError: explicit AttnLRP is not written out for this model.
    """
    with Float64Throughout():
        graph = resolve(exact)
        explicit, worst = ExplicitAttnLRP.of(graph), 0.0
        predictions = predict(graph, samples, 1)
        for one in samples:
            asked = _Question.of(graph, one, predictions)
            ours = attribute(exact, asked.ids, asked.target, "attnlrp").tokens[0]
            theirs = explicit.explain(asked.ids, asked.answer, asked.foil).cpu()
            worst = max(worst, float((theirs - ours).abs().max() / ours.abs().max()))
    return worst


def _explicit(
    graph: ModelGraph, exact: Any, samples: Mapping[str, Sequence[TokenSample]]
) -> tuple[dict[str, str], ExplicitAttnLRP | None, float | None]:
    """Why explicit AttnLRP is not timed, or else its weights, and how equal it is to ours."""
    some = [one for mine in samples.values() for one in mine][:PROVED_ON]
    try:
        found = ExplicitAttnLRP.of(graph)
        if exact is None:
            raise UnsupportedModelError("without exact=, the model in float64, nothing is proved.")
        worst = largest_difference(exact, some)
    except UnsupportedModelError as error:
        return {EXPLICIT: str(error)}, None, None
    if not worst <= EQUAL:
        reason = f"it differs from ours by {worst:.2g} in float64, so its times say nothing."
        return {EXPLICIT: reason}, None, worst
    return {}, found, worst


@dataclass(frozen=True)
class _Question:
    """One sample as every way of explaining takes it."""

    ids: Int[Tensor, "1 pos"]
    answer: int
    foil: int
    position: Int[Tensor, 1]

    @staticmethod
    def of(graph: ModelGraph, one: TokenSample, predictions: Mapping[int, Prediction]) -> _Question:
        assert one.answer is not None
        ids, position = (
            torch.tensor(x, device=graph.device) for x in ([list(one.token_ids)], [one.position])
        )
        return _Question(ids, one.answer, predictions[one.index].foil_id, position)

    @property
    def target(self) -> LogitDiff:
        return LogitDiff(self.answer, self.foil)


# ------------------------------------------------------------------------------ timing


class _Timer:
    """Every way to explain one text, in an order that turns from text to text."""

    def __init__(
        self, graph: ModelGraph, model: Any, settings: Speed, explicit: ExplicitAttnLRP | None
    ) -> None:
        rules = {GRADIENT: preset("gradient")} | {name: preset(name) for name in settings.presets}
        self.graph = graph
        self.ways: dict[str, Callable[[_Question], dict[str, float]]] = {
            name: partial(_by_rules, graph, model, name, one) for name, one in rules.items()
        }
        if explicit is not None:
            self.ways[EXPLICIT] = partial(_by_layers, explicit)
        self.warm = False

    def rows(
        self, predictions: Mapping[int, Prediction], batch: list[TokenSample]
    ) -> list[dict[str, Any]]:
        """One row per sample, with the seconds of everything."""
        asked = [_Question.of(self.graph, one, predictions) for one in batch]
        if not self.warm:
            self._times(asked[0], 0)
            self.warm = True
        return [
            {"sample": one.index, "tokens": len(one)} | self._times(question, one.index)
            for one, question in zip(batch, asked, strict=True)
        ]

    def _times(self, asked: _Question, turn: int) -> dict[str, float]:
        names = list(self.ways)
        found: dict[str, float] = {}
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            found |= {f"{name} {part}": s for part, s in self.ways[name](asked).items()}
        return found


def _by_rules(
    graph: ModelGraph, model: Any, method: str, rules: RuleSet, asked: _Question
) -> dict[str, float]:
    """Seconds of gradient x input under rules: from the explained number on, whole, in our API."""
    inputs = InputEmbeddings()
    begin = now()
    with torch.enable_grad(), ExitStack() as stack:
        inputs.attach(graph, stack)
        stack.enter_context(Session(graph, rules, strict=True, lowered=True))
        logits = graph.logits_at(asked.ids, None, asked.position)[0]
        value = logits[asked.answer] - logits[asked.foil]
        start = now()
        (grad,) = torch.autograd.grad(value, inputs.leaf)
        (inputs.embedding("full") * grad).sum(dim=-1)
        done = now()
    end = now()
    attribute(model, asked.ids, asked.target, method)
    return {"backward": done - start, "end_to_end": end - begin, "attribute": now() - end}


def _by_layers(explicit: ExplicitAttnLRP, asked: _Question) -> dict[str, float]:
    """Seconds of explicit AttnLRP, and of its operations."""
    begin = now()
    kept = explicit.forward(asked.ids)
    start = now()
    explicit.relevance(kept, asked.answer, asked.foil)
    done = now()
    clock = Clock()
    explicit.relevance(kept, asked.answer, asked.foil, clock)
    operations = {f"op {name}": seconds for name, seconds in clock.seconds.items()}
    return {"backward": done - start, "end_to_end": done - begin} | operations


# ------------------------------------------------------------------------------ tables


def _split(
    task: str, times: pd.DataFrame, names: Sequence[str]
) -> dict[tuple[str, str], pd.DataFrame]:
    """One table per way of explaining, with its ratios to gradient x input."""
    if times.empty:
        return dict.fromkeys(((task, name) for name in names), times)
    found = {}
    for name in names:
        columns = [column for column in times if column.startswith(f"{name} ")]
        frame = times[["sample", "tokens", *columns]].copy()
        frame.columns = [column.removeprefix(f"{name} ") for column in frame]
        for part in ("backward", "end_to_end"):
            frame[f"{part}_ratio"] = frame[part] / times[f"{GRADIENT} {part}"]
        found[task, name] = frame
    return found


def headline(frame: pd.DataFrame) -> dict[str, Values]:
    """Every metric of one per-sample table, sample by sample."""
    if frame.empty:
        return dict.fromkeys(METRICS, np.array([]))
    found = {
        f"{part}_ms": 1e3 * frame[part]
        for part in ("backward", "end_to_end", "attribute")
        if part in frame
    }
    found |= {metric: frame[metric] for metric in METRICS if metric in frame}
    return {m: found[m].to_numpy(dtype=float) for m in METRICS if m in found}


def _intervals(seed: int, frame: pd.DataFrame) -> dict[str, Interval]:
    return {name: median_interval(times, seed) for name, times in headline(frame).items()}


def operations(table: BenchTable, task: str) -> pd.DataFrame:
    """Explicit AttnLRP by kind of operation: median milliseconds per sample, and their share.

    Raises:
        InputError: it was not timed on this task.
    """
    frame = table.samples.get((task, EXPLICIT))
    if frame is None or frame.empty:
        raise InputError(f"there are no times of {EXPLICIT} on {task!r} here.")
    medians = {
        column.removeprefix("op "): 1e3 * float(frame[column].median())
        for column in frame
        if column.startswith("op ")
    }
    total = sum(medians.values())
    rows = [(name, ms, 100 * ms / total) for name, ms in medians.items()]
    found = pd.DataFrame(rows, columns=["operation", "ms", "share"])
    return found.sort_values("ms", ascending=False, ignore_index=True)


def _described(
    graph: ModelGraph, samples: Sequence[TokenSample], predictions: Mapping[int, Prediction]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample": [one.index for one in samples],
            "text": [one.sample.text for one in samples],
            "suffix": [one.sample.suffix for one in samples],
            "tokens": [len(one) for one in samples],
            "answer_token": [token_string(graph, one.answer or 0) for one in samples],
            "foil_token": [token_string(graph, predictions[i.index].foil_id) for i in samples],
        }
    )


def _facts(one: View, metadata: Mapping[str, Any]) -> dict[str, Any]:
    where = ", ".join(f"{key}: {value}" for key, value in metadata["machine"].items())
    versions = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    remarks = [
        "Medians over single texts (batch 1), in "
        + ("wall-clock time of the GPU" if "gpu" in metadata["machine"] else "processor time")
        + "; backward excludes the forward.",
        f"Measured on {where}; {metadata['model']['dtype']}; {versions}.",
    ]
    if metadata["difference"] is not None:
        remarks.append(
            f"Explicit AttnLRP differs from ours by {metadata['difference']:.1g} of the largest "
            "relevance in float64."
        )
    return one.task.facts(one.dropped, len(one.samples), remarks=remarks)
