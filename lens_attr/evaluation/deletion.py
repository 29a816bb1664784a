"""Deletion: does the prediction change when the words of highest relevance go (AIEG, A.4)?

p is the probability of the token that the model predicts from the whole text, at the explained
position. AIEG's text prints comprehensiveness with the opposite sign; here, as in DeYoung et al.
(2020), higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from lens_attr import spelling
from lens_attr.attribution.embeddings import Embeddings
from lens_attr.errors import InputError, checked_count, did_you_mean
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.intervals import mean_interval, mean_intervals
from lens_attr.evaluation.predictions import by_length, padded, positions, stand_in
from lens_attr.evaluation.results import COLUMNS, BenchTable, interval_rows
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
from lens_attr.evaluation.tasks import Tasks, TokenSample, View, tasks_of, text_read, view
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import pad_rows, pad_token_id, token_string
from lens_attr.rules import RuleSet
from lens_attr.targets import Logit

Delete = Literal["zero", "pad", "token", "remove"]
"""What a deleted token becomes: a zero token embedding (AIEG), the padding token, a token of your
choice, or nothing (the text gets shorter)."""

Unit = Literal["word", "token"]

Probability = Float[NDArray[np.floating], " sample"]
Kept = Bool[NDArray[np.bool_], " _"]
Scores = Float[NDArray[np.floating], " _"]
"""One per token of a sample; samples differ in length."""


def log_odds(without: Probability, whole: Probability) -> Probability:
    """log(p(x without the top k) / p(x)) of each sample; lower is better.

    A probability that is zero in float64 counts as the smallest one above.
    """
    tiny = np.finfo(np.float64).tiny
    return np.log(np.maximum(without, tiny)) - np.log(np.maximum(whole, tiny))


def comprehensiveness(without: Probability, whole: Probability) -> Probability:
    """p(x) - p(x without the top k) of each sample; higher is better."""
    return whole - without


def sufficiency(only: Probability, whole: Probability) -> Probability:
    """p(x) - p(x with only the top k) of each sample; lower is better."""
    return whole - only


def count(k: float, n: int) -> int:
    """How many of ``n`` words k % are: rounded down, at least one."""
    return max(1, int(k * n / 100 + 1e-9))


@dataclass(frozen=True)
class Deletion:
    """How deletion is done.

    Attributes:
        k: percent of words that the headline figures delete.
        sweep: percents over which AOPC averages, and which the sweep figure shows.
        unit: what is ranked and deleted: ``"word"`` (the sum of its pieces) or ``"token"``.
        delete: see `Delete`.
        token: what ``delete="token"`` puts in the place; None: the space, for a masked model its
            mask.
        embeddings: what methods explain, where they have the choice.
        seed: of the random baseline, the order of equal scores and the bootstrap.
    """

    k: float = 20.0
    sweep: Sequence[float] = (5.0, 10.0, 20.0, 50.0)
    unit: Unit = "word"
    delete: Delete = "zero"
    token: str | None = None
    embeddings: Embeddings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("unit", self.unit, Unit), ("delete", self.delete, Delete)):
            if value not in get_args(known):
                hint = did_you_mean(str(value), get_args(known))
                raise InputError(f"unknown {name} {value!r}; {hint}")
        if not all(0 < k < 100 for k in self.percents) or not self.sweep:
            raise InputError(f"k must lie between 0 and 100 %, got {list(self.percents)}.")

    @property
    def percents(self) -> list[float]:
        """Every percent that is measured, in order."""
        return sorted({float(self.k), *map(float, self.sweep)})


def bench_deletion(
    model: Any,
    tasks: Tasks,
    methods: Methods = "all",
    *,
    n: int = 1000,
    settings: Deletion | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> BenchTable:
    """Delete the words of highest relevance, and all the others, and watch the prediction.

    Explained is the logit of the token that the model predicts from the whole text. Special
    tokens are neither ranked nor deleted. Equal scores are put in a random, seeded order.

    Args:
        model: as in `bench`, as ``methods``, ``options``, ``out`` and the rest.
        tasks: names of built-in tasks, or samples; their answers do not matter. Texts become
            samples by `tasks.paragraphs`.
        n: at most so many samples of each task.
        settings: how deletion is done.

    Raises:
        InputError: unknown method or option, a ``settings.token`` that is not one token, or ``out``
            holds another run.
    """
    settings = settings or Deletion()
    graph = resolve(model)
    chosen = methods_by_name(methods)
    batch_size = checked_count("batch_size", batch_size)
    cut = tasks_of(tasks, n, settings.seed)
    if settings.delete in ("pad", "token"):
        _filler(graph, settings)  # refused now rather than after the first explanations
    views = {task.name: view(graph, task, truth=False) for task in cut}
    used = {name: _long_enough(graph, one, settings) for name, one in views.items()}
    metadata = metadata_of(graph, settings, options or {}, command)
    store = Store(out, fingerprint_of(metadata, views))
    everyone: dict[str, str | RuleSet | None] = {**dict.fromkeys(BASELINES), **chosen}
    with progress_bar(progress, len(everyone) * sum(map(len, used.values()))) as advance:
        run = Run(model, graph, store, options or {}, settings.embeddings, batch_size, advance)
        for task, samples in used.items():
            tops = _tops(graph, samples, batch_size)
            run.samples[task, SAMPLES] = _described(graph, samples, tops)
            for name, method in everyone.items():
                rows_of = partial(_rows_of, run, name, method, tops, settings)
                run.every_batch(task, name, samples, rows_of)
    return run.finish(
        interval_rows(
            run.samples,
            lambda frame: mean_intervals(headline(frame, settings), settings.seed),
            views,
        ),
        {name: one.task.facts(one.dropped, len(used[name])) for name, one in views.items()},
        metadata,
    )


# ----------------------------------------------------------------------------- words


def units(graph: ModelGraph, sample: TokenSample, unit: Unit) -> list[list[int]]:
    """The tokens of each word (or single tokens) that can be ranked and deleted, in order."""
    spans = [None if sample.special[i] else span for i, span in enumerate(sample.spans)]
    if unit == "token":
        return [[i] for i, span in enumerate(spans) if span is not None]
    return spelling.grouped(spelling.words(text_read(graph, sample.sample)), spans)


def kept_tokens(
    words: Sequence[Sequence[int]], order: Sequence[int], top: int, length: int
) -> tuple[Kept, Kept]:
    """Masks of what stays without the ``top`` first words of ``order``, and with only them.

    Tokens of no word (special ones) always stay.
    """
    without, only = np.ones(length, dtype=bool), np.ones(length, dtype=bool)
    for place, word in enumerate(order):
        (without if place < top else only)[list(words[word])] = False
    return without, only


def ranked(words: Sequence[Sequence[int]], scores: Scores, rng: np.random.Generator) -> list[int]:
    """Words by the sum of their tokens' scores, highest first; equal ones in random order."""
    totals = np.array([scores[list(word)].sum() for word in words])
    shuffled = rng.permutation(len(words))
    return shuffled[np.argsort(-totals[shuffled], kind="stable")].tolist()


def _long_enough(graph: ModelGraph, one: View, settings: Deletion) -> list[TokenSample]:
    """Samples with two words or more; the others are dropped and counted."""
    found = []
    for sample in one.samples:
        if len(units(graph, sample, settings.unit)) < 2:
            one.dropped[f"fewer than two {settings.unit}s to delete"] += 1
        else:
            found.append(sample)
    return found


# --------------------------------------------------------------------- probabilities


@torch.no_grad()
def _tops(
    graph: ModelGraph, samples: Sequence[TokenSample], batch_size: int
) -> dict[int, tuple[int, float]]:
    """The token that each whole text predicts, and its probability."""
    found = {}
    for batch in by_length(samples, batch_size):
        tokens = padded(graph, batch)
        where = positions(graph, batch, tokens)
        logits = graph.logits_at(tokens.token_ids, tokens.padding_mask, where).double()
        best = logits.softmax(dim=-1).max(dim=-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found |= {one.index: pair for one, pair in zip(batch, pairs, strict=True)}
    return found


@torch.no_grad()
def probabilities(
    graph: ModelGraph,
    samples: Sequence[TokenSample],
    kept: Sequence[Kept],
    token_ids: Sequence[int],
    settings: Deletion,
) -> Probability:
    """p of one token per sample at its explained position, with some tokens deleted.

    Raises:
        InputError: ``settings.token`` is not one token.
    """
    if settings.delete == "remove":
        return _without_columns(graph, samples, kept, token_ids)
    batch = padded(graph, samples)
    where = positions(graph, samples, batch)
    keep = torch.ones_like(batch.attention_mask)
    keep[batch.attention_mask] = torch.from_numpy(np.concatenate(kept)).to(keep.device)
    ids = batch.token_ids
    with ExitStack() as stack:
        if settings.delete == "zero":
            (embed,) = graph.points("embed")
            embed.on_forward(lambda e: e * keep[..., None].to(e.dtype), stack)
        else:
            ids = torch.where(keep, ids, _filler(graph, settings))
        logits = graph.logits_at(ids, batch.padding_mask, where)
    return _probability(logits, token_ids)


def _without_columns(
    graph: ModelGraph,
    samples: Sequence[TokenSample],
    kept: Sequence[Kept],
    token_ids: Sequence[int],
) -> Probability:
    """A causal model then predicts at the last token that is left."""
    rows, places = [], []
    for one, keep in zip(samples, kept, strict=True):
        rows.append([token for token, stays in zip(one.token_ids, keep, strict=True) if stays])
        places.append(max(0, int(keep[: one.position + 1].sum()) - 1))
    batch = pad_rows(graph, rows)
    width = batch.token_ids.shape[1]
    shift = [0 if graph.is_masked_model else width - len(row) for row in rows]
    where = torch.tensor([a + b for a, b in zip(places, shift, strict=True)], device=graph.device)
    return _probability(graph.logits_at(batch.token_ids, batch.padding_mask, where), token_ids)


def _filler(graph: ModelGraph, settings: Deletion) -> int:
    if settings.delete == "pad":
        return pad_token_id(graph)
    return stand_in(graph, settings.token)


def _probability(logits: Float[Tensor, "sample d_vocab"], ids: Sequence[int]) -> Probability:
    chosen = torch.tensor(list(ids), device=logits.device)
    found = logits.double().softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
    return found.cpu().numpy()


# ---------------------------------------------------------------------------- tables


def _described(
    graph: ModelGraph, samples: Sequence[TokenSample], tops: Mapping[int, tuple[int, float]]
) -> pd.DataFrame:
    return sample_table(
        [
            {
                "sample": one.index,
                "source": one.sample.source,
                "licence": one.sample.licence,
                "text": one.sample.text,
                "suffix": one.sample.suffix,
                "tokens": [token_string(graph, i) for i in one.token_ids],
                "position": one.position,
                "predicted": token_string(graph, tops[one.index][0]),
                "p": tops[one.index][1],
            }
            for one in samples
        ]
    )


def _rows_of(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    tops: Mapping[int, tuple[int, float]],
    settings: Deletion,
    batch: list[TokenSample],
) -> list[dict[str, Any]]:
    """The rows of one batch: scores, and both probabilities at every percent."""
    chosen = [tops[one.index] for one in batch]
    ids = [token for token, _ in chosen]
    scores = _scores(run, name, method, ids, settings, batch)
    words = [units(run.graph, one, settings.unit) for one in batch]
    seeds = ([settings.seed, one.index] for one in batch)
    orders = [
        ranked(word, score, np.random.default_rng(seed))
        for word, score, seed in zip(words, scores, seeds, strict=True)
    ]
    columns: dict[str, Sequence[Any]] = {
        "sample": [one.index for one in batch],
        "words": [len(word) for word in words],
        "p": [p for _, p in chosen],
        "degenerate": [not score.any() for score in scores],
        "scores": [score.tolist() for score in scores],
    }
    for k in settings.percents:
        pairs = [
            kept_tokens(word, order, count(k, len(word)), len(one))
            for one, word, order in zip(batch, words, orders, strict=True)
        ]
        for side, kept in zip(("without", "only"), zip(*pairs, strict=True), strict=True):
            found = probabilities(run.graph, batch, kept, ids, settings)
            columns[f"{side}_{k:g}"] = found.tolist()
    return pd.DataFrame(columns).to_dict("records")


def _scores(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    ids: list[int],
    settings: Deletion,
    batch: list[TokenSample],
) -> list[Scores]:
    if method is not None:
        return run.explain(name, method, batch, Logit(ids))[0]
    spans = [np.array([span is not None for span in one.spans]) for one in batch]
    return [
        BASELINES[name](here & ~np.array(one.special), settings.seed + 1, one.index)
        for one, here in zip(batch, spans, strict=True)
    ]


def measures(frame: pd.DataFrame, k: float) -> dict[str, Probability]:
    """The three measures of every sample of a table at one percent."""
    whole, without, only = (
        frame[name].to_numpy(dtype=float) for name in ("p", f"without_{k:g}", f"only_{k:g}")
    )
    return {
        "comprehensiveness": comprehensiveness(without, whole),
        "sufficiency": sufficiency(only, whole),
        "log_odds": log_odds(without, whole),
    }


def headline(frame: pd.DataFrame, settings: Deletion) -> dict[str, Probability]:
    """Every metric of one per-sample table, sample by sample."""
    names = ("comprehensiveness", "sufficiency", "log_odds")
    if frame.empty:
        return dict.fromkeys((*names, *(f"aopc_{name}" for name in names)), np.array([]))
    found = measures(frame, settings.k)
    swept = [measures(frame, k) for k in settings.sweep]
    found |= {f"aopc_{name}": np.mean([one[name] for one in swept], axis=0) for name in names}
    return found | {"degenerate": frame["degenerate"].to_numpy(dtype=float)}


def sweep(table: BenchTable) -> pd.DataFrame:
    """Every measure at every percent: method, task, k, metric, value, low, high, n.

    Raises:
        InputError: the table is none of deletion.
    """
    if "sweep" not in table.metadata.get("settings", {}):
        raise InputError("this table holds no deletion results.")
    given = table.metadata["settings"]
    percents = Deletion(k=given["k"], sweep=given["sweep"]).percents
    rows = []
    for (task, method), frame in table.samples.items():
        if method == SAMPLES or frame.empty:
            continue
        for k in percents:
            for metric, values in measures(frame, k).items():
                one = mean_interval(values, given["seed"])
                rows.append((method, task, k, metric, *asdict(one).values()))
    return pd.DataFrame(rows, columns=["method", "task", "k", *COLUMNS[2:]])
