"""`bench`: methods x tasks on one model, judged by the tokens that are known to decide."""

from __future__ import annotations

import hashlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from lens_attr._version import __version__
from lens_attr.attribution import MethodTable, attribute
from lens_attr.attribution.embeddings import Embeddings
from lens_attr.errors import InputError, Notice, UnsupportedModelError
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.intervals import Interval, mean_interval, ratio_interval
from lens_attr.evaluation.plausibility import Ties, conservation_gap, plausibility
from lens_attr.evaluation.predictions import (
    Prediction,
    by_length,
    padded,
    predict,
    target_of,
)
from lens_attr.evaluation.results import COLUMNS, MODEL, BenchTable
from lens_attr.evaluation.store import Store
from lens_attr.evaluation.tasks import Task, TokenSample, View, built_in, view
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import token_string
from lens_attr.rules import RuleSet

Methods = str | Sequence[str | RuleSet]
Tasks = str | Task | Sequence[str | Task]

BATCH = 64
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


@dataclass
class _Run:
    """What the steps of one run share."""

    model: Any
    graph: ModelGraph
    settings: Settings
    store: Store
    options: Mapping[str, Mapping[str, Any]]
    batch_size: int
    advance: Callable[[int], None]
    refused: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    samples: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)


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
    chosen = _methods(methods)
    if n < 1 or batch_size < 1:
        raise InputError(f"n and batch_size must be at least 1, got {n} and {batch_size}.")
    views = {task.name: view(graph, task) for task in _tasks(tasks, n, settings.seed)}
    metadata = _metadata(graph, settings, options or {}, command)
    folder = None if out is None else Path(out)
    store = Store(folder, _fingerprint(metadata, views))
    predictions = {name: predict(graph, _answered(one), batch_size) for name, one in views.items()}
    used = {name: _used(one, predictions[name], settings) for name, one in views.items()}
    with _bar(progress, len(chosen) * sum(map(len, used.values()))) as advance:
        run = _Run(model, graph, settings, store, options or {}, batch_size, advance)
        for task, samples in used.items():
            run.samples[task, "samples"] = _described(graph, views[task], predictions[task])
            for name, baseline in BASELINES.items():
                run.samples[task, name] = _baseline(run, samples, baseline)
            for name, method in chosen.items():
                _explain(run, task, name, method, samples, predictions[task])
    table = BenchTable(
        rows=_rows(views, used, predictions, run.samples, settings.seed),
        samples=run.samples,
        refused=run.refused,
        tasks={
            name: _facts(one, predictions[name], used[name], settings)
            for name, one in views.items()
        },
        metadata={**metadata, "notes": list(run.notes)},
    )
    if folder is not None:
        table.save(folder)
    return table


# ------------------------------------------------------------------------- arguments


def _methods(methods: Methods) -> dict[str, str | RuleSet]:
    """The chosen methods by name.

    Raises:
        InputError: unknown or doubled.
    """
    table = MethodTable()
    if methods == "all":
        return {method.name: method.name for method in table}
    each = [methods] if isinstance(methods, str) else list(methods)
    names = [method if isinstance(method, str) else method.name for method in each]
    taken = [name for name in names if name in (*BASELINES, MODEL, "samples")]
    if not names or len(set(names)) < len(names) or taken:
        raise InputError(
            f"methods must be one or more of different names, got {names}; "
            f"{', '.join(BASELINES)} are always there."
        )
    for method in each:
        if isinstance(method, str):
            table[method]
    return dict(zip(names, each, strict=True))


def _tasks(tasks: Tasks, n: int, seed: int) -> list[Task]:
    each = [tasks] if isinstance(tasks, (str, Task)) else list(tasks)
    found = [
        built_in(task, n, seed)
        if isinstance(task, str)
        else Task(task.name, task.samples[:n], task.source, task.left_out, task.template)
        for task in each
    ]
    names = [task.name for task in found]
    if not names or len(set(names)) < len(names):
        raise InputError(f"tasks must be one or more of different names, got {names}.")
    return found


def _metadata(
    graph: ModelGraph, settings: Settings, options: Mapping[str, Any], command: str
) -> dict[str, Any]:
    libraries = ("torch", "transformer-lens", "transformers", "numpy", "pandas")
    return {
        "model": graph.describe() | {"weights": _weights(graph)},
        "settings": asdict(settings),
        "options": {name: dict(values) for name, values in options.items()},
        "command": command,
        "versions": {"lens_attr": __version__}
        | {name: importlib.metadata.version(name) for name in libraries},
    }


@torch.no_grad()
def _weights(graph: ModelGraph) -> str:
    """A hash of some entries of every parameter: enough to tell two trained models apart."""
    digest = hashlib.sha256()
    for parameter in graph.model.parameters():
        step = max(1, parameter.numel() // 64)
        digest.update(parameter.flatten()[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _fingerprint(metadata: Mapping[str, Any], views: Mapping[str, View]) -> dict[str, Any]:
    """Everything that results depend on, so that a run is not resumed as another."""
    samples = {
        name: hashlib.sha256(repr(one.task.samples).encode()).hexdigest()[:16]
        for name, one in views.items()
    }
    kept = {key: metadata[key] for key in ("model", "settings", "options", "versions")}
    return {**kept, "tasks": samples}


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    with Progress(console=Console(stderr=True), transient=True, disable=not shown) as progress:
        bar = progress.add_task("explaining", total=total)
        yield lambda done: progress.advance(bar, done)


# --------------------------------------------------------------------------- samples


def _answered(one: View) -> list[TokenSample]:
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
    return pd.DataFrame(rows)


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


def _baseline(
    run: _Run, samples: Sequence[TokenSample], baseline: Callable[..., NDArray[np.floating]]
) -> pd.DataFrame:
    settings = run.settings
    return pd.DataFrame(
        [
            score(one, baseline(judged(one, settings), settings.seed, one.index), settings)
            for one in samples
        ]
    )


# --------------------------------------------------------------------------- methods


def _explain(
    run: _Run,
    task: str,
    name: str,
    method: str | RuleSet,
    samples: Sequence[TokenSample],
    predictions: dict[int, Prediction],
) -> None:
    """Every sample that is not there yet; a refused method is noted with its reason."""
    if name in run.refused:
        return
    done = set(run.store.read(task, name)["sample"])
    missing = [one for one in samples if one.index not in done]
    run.advance(len(samples) - len(missing))
    for batch in by_length(missing, run.batch_size):
        try:
            rows = _explain_batch(run, name, method, batch, predictions)
        except UnsupportedModelError as error:
            run.refused[name] = str(error)
            return
        run.store.add(task, name, pd.DataFrame(rows))
        run.advance(len(batch))
    run.samples[task, name] = run.store.close(task, name)


def _explain_batch(
    run: _Run,
    name: str,
    method: str | RuleSet,
    batch: Sequence[TokenSample],
    predictions: dict[int, Prediction],
) -> list[dict[str, Any]]:
    tokens = padded(run.graph, batch)
    target = target_of(batch, predictions, run.settings.contrastive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        result = attribute(
            run.model,
            tokens.token_ids,
            target,
            method,
            attention_mask=tokens.attention_mask,
            **_options(run, name, method),
        )
    run.notes |= {f"{name}: {notice}": None for notice in result.metadata["notices"]}
    aware = not isinstance(method, str) or MethodTable()[method].target_aware
    values = result.target_value.double().tolist() if aware else [np.nan] * len(batch)
    return [
        score(one, result.real_tokens(i).double().numpy(), run.settings, values[i])
        for i, one in enumerate(batch)
    ]


def _options(run: _Run, name: str, method: str | RuleSet) -> dict[str, Any]:
    """The method's options, with the embeddings asked for where it can choose."""
    own = dict(run.options.get(name, {}))
    wanted = run.settings.embeddings
    if wanted is None or "embeddings" in own:
        return own
    if isinstance(method, str) and not has_embeddings(method):
        run.notes[f"{name}: has no choice of embeddings"] = None
        return own
    return {**own, "embeddings": wanted}


def has_embeddings(method: str) -> bool:
    """Whether a method can explain full or partial embeddings."""
    try:
        MethodTable()[method].explainer(embeddings="token")
    except (InputError, TypeError):
        return False
    return True


# --------------------------------------------------------------------------- tables


def _rows(
    views: Mapping[str, View],
    used: Mapping[str, Sequence[TokenSample]],
    predictions: Mapping[str, Mapping[int, Prediction]],
    samples: Mapping[tuple[str, str], pd.DataFrame],
    seed: int,
) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for task in views:
        correct = np.array([p.correct for p in predictions[task].values()], dtype=float)
        rows.append(_row(MODEL, task, "accuracy", mean_interval(correct, seed)))
        for (of, method), frame in samples.items():
            if of != task or method == "samples":
                continue
            rows += [
                _row(method, task, metric, interval)
                for metric, interval in _intervals(frame, seed).items()
            ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _intervals(frame: pd.DataFrame, seed: int) -> dict[str, Interval]:
    """Every metric of a per-sample table."""
    if frame.empty:
        return {name: mean_interval(np.array([]), seed) for name in (*MEASURES, *FLAGS)}
    found = {name: mean_interval(frame[name].to_numpy(dtype=float), seed) for name in MEASURES}
    if frame["gap"].notna().all():
        gap, target = (frame[name].abs().to_numpy(dtype=float) for name in ("gap", "target_value"))
        found["gap"] = ratio_interval(gap, target, seed)
    flags = {name: mean_interval(frame[name].to_numpy(dtype=float), seed) for name in FLAGS}
    return found | flags


def _row(method: str, task: str, metric: str, interval: Interval) -> tuple[Any, ...]:
    ends = (interval.value, interval.low, interval.high)
    return (method, task, metric, *(100.0 * end for end in ends), interval.n)


def _facts(
    one: View,
    predictions: Mapping[int, Prediction],
    used: Sequence[TokenSample],
    settings: Settings,
) -> dict[str, Any]:
    correct = sum(prediction.correct for prediction in predictions.values())
    facts = {
        "source": one.task.source,
        "template": one.task.template,
        "licences": sorted({sample.licence for sample in one.task.samples}),
        "read": len(one.task.samples),
        "left_out": dict(one.task.left_out),
        "dropped": dict(one.dropped),
        "several_pieces": one.several_pieces,
        "shared_pieces": one.shared_pieces,
        "correct": correct,
        "used": len(used),
    }
    return facts | ({} if used else {"empty": _why_empty(one, correct)})


def _why_empty(one: View, correct: int) -> str:
    if not one.task.samples:
        return "the source holds no sample"
    if not one.samples:
        return "every sample was dropped"
    return f"the model predicts {correct} of {len(one.samples)} samples correctly"
