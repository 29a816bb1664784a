"""GIM's faithfulness: which share of a logit goes when what is most relevant goes (Edin et al.).

Explained is the logit of the token that the model predicts: the higher of answer and foil where a
sample has both, else the highest of all. Everything is a share of that logit on the whole input.

Comprehensiveness: the tokens of highest relevance become the space token, the first 1, 2, ..., 50
of them (of a shorter input: all); the mean share that is lost; higher is better. Sufficiency: .5,
.8, .9, .95 and .99 of the tokens go, the least relevant ones; the mean share that is lost; lower is
better. The same inside the model: in place of tokens, positions of the residual stream before a
block, which become the mean of the stream there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from lens_attr.attribution.embeddings import Embeddings
from lens_attr.errors import InputError, checked_count
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.deletion import kept_tokens, ranked, units
from lens_attr.evaluation.intervals import mean_intervals
from lens_attr.evaluation.predictions import by_length, logits_of, padded, positions, stand_in
from lens_attr.evaluation.results import BenchTable, interval_rows
from lens_attr.evaluation.running import (
    BATCH,
    SAMPLES,
    Methods,
    Run,
    fingerprint_of,
    has_records,
    metadata_of,
    methods_by_name,
    progress_bar,
)
from lens_attr.evaluation.store import Store
from lens_attr.evaluation.tasks import Tasks, TokenSample, View, tasks_of, view
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import token_string
from lens_attr.rules import RuleSet
from lens_attr.targets import Logit, LogitDiff, Target

MODE = "faithfulness"
"""What ``metadata["mode"]`` of its results says."""

NOT_POSITIVE = (
    "the explained logit is not positive, so it has no shares (with contrastive=True, or "
    "--contrastive, its lead over the foil is explained instead)"
)

Values = Float[NDArray[np.floating], " _"]
Scores = Float[NDArray[np.floating], " _"]
Kept = Bool[NDArray[np.bool_], "_ _"]
"""One row per edit of a sample, True on what stays as it is."""


@dataclass(frozen=True)
class Faithfulness:
    """How faithfulness is measured; the defaults are GIM's.

    Attributes:
        top: how many tokens go at most for comprehensiveness.
        masked: shares of the tokens that go for sufficiency.
        token: what takes a token's place; None: the space, for a masked model its mask.
        layers: blocks before which the residual stream is replaced too; None: all of them.
        contrastive: explain the lead over the foil (or the runner-up) instead of the logit.
        embeddings: what methods explain, where they have the choice.
        seed: of the random baseline, the order of equal scores and the bootstrap.
    """

    top: int = 50
    masked: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.99)
    token: str | None = None
    layers: Sequence[int] | None = None
    contrastive: bool = False
    embeddings: Embeddings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InputError(f"top must be at least 1, got {self.top}.")
        if not self.masked or not all(0 < share < 1 for share in self.masked):
            raise InputError(f"masked must be shares between 0 and 1, got {list(self.masked)}.")


@dataclass(frozen=True)
class Aim:
    """What is explained of one sample.

    Attributes:
        token: id of the predicted token.
        foil: id of what it competes with; None where the logit alone is explained.
        whole: the explained number on the whole input.
    """

    token: int
    foil: int | None
    whole: float

    def value(self, logits: Float[Tensor, " d_vocab"]) -> float:
        """The explained number, from logits."""
        lead = 0.0 if self.foil is None else float(logits[self.foil])
        return float(logits[self.token]) - lead


@dataclass(frozen=True)
class Place:
    """Where something is replaced, and by what.

    Attributes:
        layer: the block before which; None: the tokens themselves.
        filler: the id of a token, or a vector of the residual stream.
    """

    layer: int | None
    filler: int | Float[Tensor, " d_model"]

    def task(self, name: str) -> str:
        """How the results of a task are called here."""
        return name if self.layer is None else f"{name}/layer {self.layer}"


def loss(values: Values | Sequence[float], whole: float) -> float:
    """The share of ``whole`` that is lost, mean over ``values``."""
    return float(np.mean(1.0 - np.asarray(values, dtype=float) / whole))


def n_left(masked: float, n: int) -> int:
    """How many of ``n`` tokens stay when a share goes: its number rounded down, at least one."""
    return max(1, n - int(masked * n + 1e-9))


def bench_faithfulness(
    model: Any,
    tasks: Tasks,
    methods: Methods = "all",
    *,
    n: int = 1000,
    settings: Faithfulness | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
    command: str = "",
) -> BenchTable:
    """GIM's protocol on tokens, and before every block (Edin et al. 2025, arXiv 2505.17630).

    The result has one table per task, and one per task and block, named ``"sva/layer 3"``. Special
    tokens are neither ranked nor replaced. Methods that cannot keep relevance inside the model are
    in the tables of tokens only.

    Args:
        model: as in `bench`, as ``methods``, ``options``, ``out`` and the rest.
        tasks: names of built-in tasks, or samples, with an answer and a foil or without. Texts
            become samples by `tasks.paragraphs`.
        n: at most so many samples of each task.
        settings: how it is measured.
        batch_size: samples explained, and edited inputs run, at a time.

    Raises:
        InputError: unknown method, option or layer, a ``settings.token`` that is not one token, or
            ``out`` holds another run.
    """
    settings = settings or Faithfulness()
    graph = resolve(model)
    chosen = methods_by_name(methods)
    batch_size = checked_count("batch_size", batch_size)
    cut = tasks_of(tasks, n, settings.seed)
    filler, layers = stand_in(graph, settings.token), _layers(graph, settings)
    views = {task.name: view(graph, task, truth=False) for task in cut}
    metadata = metadata_of(graph, settings, options or {}, command) | {"mode": MODE}
    store = Store(out, fingerprint_of(metadata, views))
    used, aims = {}, {}
    for name, one in views.items():
        aims[name] = _aims(graph, one.samples, settings, batch_size)
        used[name] = _dividable(graph, one, aims[name])
    everyone: dict[str, str | RuleSet | None] = {**dict.fromkeys(BASELINES), **chosen}
    inside = [name for name, method in everyone.items() if method is None or has_records(method)]
    total = (len(everyone) + len(inside) * len(layers)) * sum(map(len, used.values()))
    facts = {}
    with progress_bar(progress, total) as advance:
        run = Run(model, graph, store, options or {}, settings.embeddings, batch_size, advance)
        for name in everyone:
            if layers and name not in inside:
                run.note(name, {"gives no relevance inside the model": 1})
        for name, samples in used.items():
            places = [Place(None, filler), *_streams(graph, samples, layers, batch_size)]
            for place in places:
                task = place.task(name)
                facts[task] = _facts(views[name], samples, place, graph, settings)
                run.samples[task, SAMPLES] = _described(graph, samples, aims[name])
                for method in everyone if place.layer is None else inside:
                    rows_of = partial(
                        _rows_of, run, method, everyone[method], aims[name], place, settings
                    )
                    run.every_batch(task, method, samples, rows_of)
    return run.finish(
        interval_rows(
            run.samples, lambda frame: mean_intervals(headline(frame), settings.seed), facts
        ),
        facts,
        metadata,
    )


# -------------------------------------------------------------------- what is explained


def _layers(graph: ModelGraph, settings: Faithfulness) -> list[int]:
    known = range(graph.n_layers)
    wanted = list(known if settings.layers is None else settings.layers)
    wrong = [layer for layer in wanted if layer not in known]
    if wrong or len(set(wanted)) < len(wanted):
        raise InputError(f"layers must be different and of 0 to {known[-1]}, got {wanted}.")
    return wanted


@torch.no_grad()
def _aims(
    graph: ModelGraph, samples: Sequence[TokenSample], settings: Faithfulness, batch_size: int
) -> dict[int, Aim]:
    """What the model predicts of every sample, by its index."""
    found = {}
    for batch in by_length(samples, batch_size):
        for one, logits in zip(batch, logits_of(graph, batch).double().cpu(), strict=True):
            found[one.index] = _aim(one, logits, settings.contrastive)
    return found


def _aim(one: TokenSample, logits: Float[Tensor, " d_vocab"], contrastive: bool) -> Aim:
    pair = logits.topk(2).indices.tolist()
    if one.answer is not None and one.foil is not None:
        pair = sorted((one.answer, one.foil), key=lambda token: -float(logits[token]))
    aim = Aim(pair[0], pair[1] if contrastive else None, np.nan)
    return replace(aim, whole=aim.value(logits))


def _target(batch: Sequence[TokenSample], aims: Mapping[int, Aim]) -> Target:
    chosen = [aims[one.index] for one in batch]
    tokens = [aim.token for aim in chosen]
    foils = [aim.foil for aim in chosen if aim.foil is not None]
    return LogitDiff(tokens, foils) if foils else Logit(tokens)


def _dividable(graph: ModelGraph, one: View, aims: Mapping[int, Aim]) -> list[TokenSample]:
    """Samples with something to rank and a positive logit; the others are dropped and counted."""
    found = []
    for sample in one.samples:
        if len(units(graph, sample, "token")) < 2:
            one.dropped["fewer than two tokens to rank"] += 1
        elif not aims[sample.index].whole > 0:
            one.dropped[NOT_POSITIVE] += 1
        else:
            found.append(sample)
    return found


# ------------------------------------------------------------------- what is measured


@torch.no_grad()
def _streams(
    graph: ModelGraph, samples: Sequence[TokenSample], layers: Sequence[int], batch_size: int
) -> list[Place]:
    """The mean of the residual stream before each block, over every ranked token of the samples."""
    points = [graph.points("residual")[layer] for layer in layers]
    totals = [torch.zeros(graph.cfg.d_model, dtype=torch.float64) for _ in layers]
    count = 0
    for batch in by_length(samples, batch_size) if layers else ():
        tokens = padded(graph, batch)
        ranked_here = _spread(tokens.attention_mask, [_rankable(graph, one) for one in batch])
        count += int(ranked_here.sum())
        with ExitStack() as stack:
            for total, point in zip(totals, points, strict=True):
                add = partial(_add_to, total, ranked_here)
                point.on_forward(add, stack)
            graph.logits_at(tokens.token_ids, tokens.padding_mask, positions(graph, batch, tokens))
    return [
        Place(layer, (total / max(1, count)).to(graph.device, graph.dtype))
        for layer, total in zip(layers, totals, strict=True)
    ]


def _add_to(
    total: Float[Tensor, " d_model"],
    where: Bool[Tensor, "batch pos"],
    stream: Float[Tensor, "batch pos d_model"],
) -> None:
    total += stream.detach()[where].double().sum(dim=0).cpu()


def _rankable(graph: ModelGraph, one: TokenSample) -> Bool[NDArray[np.bool_], " token"]:
    found = np.zeros(len(one), dtype=bool)
    found[[i for unit in units(graph, one, "token") for i in unit]] = True
    return found


def _spread(
    mask: Bool[Tensor, "batch pos"], rows: Sequence[Bool[NDArray[np.bool_], " _"]]
) -> Bool[Tensor, "batch pos"]:
    """One flag per real token, put where the tokens are; False on padding."""
    found = torch.zeros_like(mask)
    found[mask] = torch.from_numpy(np.concatenate(rows)).to(mask.device)
    return found


@torch.no_grad()
def values_of(
    graph: ModelGraph,
    samples: Sequence[TokenSample],
    kept: Sequence[Kept],
    aims: Mapping[int, Aim],
    place: Place,
    batch_size: int,
) -> list[Values]:
    """The explained number of every edit of every sample, ``batch_size`` inputs at a time."""
    found: list[list[float]] = [[] for _ in samples]
    edits = [(i, row) for i, rows in enumerate(kept) for row in rows]
    for start in range(0, len(edits), batch_size):
        part = edits[start : start + batch_size]
        batch = [samples[i] for i, _ in part]
        logits = _edited(graph, batch, [row for _, row in part], place).double().cpu()
        for (i, _), one, row in zip(part, batch, logits, strict=True):
            found[i].append(aims[one.index].value(row))
    return [np.array(values) for values in found]


def _edited(
    graph: ModelGraph,
    samples: Sequence[TokenSample],
    kept: Sequence[Bool[NDArray[np.bool_], " _"]],
    place: Place,
) -> Float[Tensor, "sample d_vocab"]:
    """Logits at the explained positions when what is not kept is replaced."""
    batch = padded(graph, samples)
    gone = _spread(batch.attention_mask, [~row for row in kept])
    ids = batch.token_ids
    with ExitStack() as stack:
        if place.layer is None:
            ids = torch.where(gone, place.filler, ids)
        else:
            point = graph.points("residual")[place.layer]
            vector = place.filler
            point.on_forward(lambda stream: torch.where(gone[..., None], vector, stream), stack)
        return graph.logits_at(ids, batch.padding_mask, positions(graph, samples, batch))


def edits_of(
    words: Sequence[Sequence[int]], order: Sequence[int], length: int, settings: Faithfulness
) -> tuple[Kept, Kept]:
    """What stays in each edit: without the top 1, 2, ... tokens, and with only the top ones."""
    n = len(words)
    tops = range(1, min(settings.top, n) + 1)
    lefts = [n_left(share, n) for share in settings.masked]
    without = [kept_tokens(words, order, top, length)[0] for top in tops]
    only = [kept_tokens(words, order, left, length)[1] for left in lefts]
    return np.stack(without), np.stack(only)


def _rows_of(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    aims: Mapping[int, Aim],
    place: Place,
    settings: Faithfulness,
    batch: list[TokenSample],
) -> list[dict[str, Any]]:
    """The rows of one batch: scores, and the explained number after every edit."""
    scores = list(_scores(run, name, method, aims, place, settings, batch))
    kept, tops = [], []
    for one, values in zip(batch, scores, strict=True):
        words = units(run.graph, one, "token")
        order = ranked(words, values, np.random.default_rng([settings.seed, one.index]))
        without, only = edits_of(words, order, len(one), settings)
        kept.append(np.concatenate([without, only]))
        tops.append(len(without))
    found = values_of(run.graph, batch, kept, aims, place, run.batch_size)
    return [
        {
            "sample": one.index,
            "tokens": len(units(run.graph, one, "token")),
            "whole": aims[one.index].whole,
            "without": values[:top].tolist(),
            "only": values[top:].tolist(),
            "degenerate": not score.any(),
            "scores": score.tolist(),
        }
        for one, top, values, score in zip(batch, tops, found, scores, strict=True)
    ]


def _scores(
    run: Run,
    name: str,
    method: str | RuleSet | None,
    aims: Mapping[int, Aim],
    place: Place,
    settings: Faithfulness,
    batch: list[TokenSample],
) -> Iterator[Scores]:
    """Relevance of the tokens, or of the positions before a block."""
    if method is None:
        for one in batch:
            yield BASELINES[name](_rankable(run.graph, one), settings.seed + 1, one.index)
    elif place.layer is None:
        yield from run.explain(name, method, batch, _target(batch, aims))[0]
    else:
        point = run.graph.points("residual")[place.layer].name
        found = run.attribute(name, method, batch, _target(batch, aims), record=[point])
        for row, real in zip(found.records[point], found.attention_mask, strict=True):
            yield row[real].double().sum(dim=-1).numpy()


# ---------------------------------------------------------------------------- tables


def _described(
    graph: ModelGraph, samples: Sequence[TokenSample], aims: Mapping[int, Aim]
) -> pd.DataFrame:
    foils = (aims[one.index].foil for one in samples)
    return pd.DataFrame(
        {
            "sample": [one.index for one in samples],
            "source": [one.sample.source for one in samples],
            "licence": [one.sample.licence for one in samples],
            "text": [one.sample.text for one in samples],
            "suffix": [one.sample.suffix for one in samples],
            "tokens": [[token_string(graph, i) for i in one.token_ids] for one in samples],
            "position": [one.position for one in samples],
            "predicted": [token_string(graph, aims[one.index].token) for one in samples],
            "foil": [None if foil is None else token_string(graph, foil) for foil in foils],
            "whole": [aims[one.index].whole for one in samples],
        }
    )


def headline(frame: pd.DataFrame) -> dict[str, Values]:
    """Every metric of one per-sample table, sample by sample."""
    if frame.empty:
        return {"comprehensiveness": np.array([]), "sufficiency": np.array([])}
    wholes = frame["whole"].tolist()
    found = {
        metric: np.array([loss(v, whole) for v, whole in zip(frame[side], wholes, strict=True)])
        for metric, side in (("comprehensiveness", "without"), ("sufficiency", "only"))
    }
    return found | {"degenerate": frame["degenerate"].to_numpy(dtype=float)}


def _facts(
    one: View,
    used: Sequence[TokenSample],
    place: Place,
    graph: ModelGraph,
    settings: Faithfulness,
) -> dict[str, Any]:
    short = sum(len(units(graph, sample, "token")) < settings.top for sample in used)
    if isinstance(place.filler, int):
        how = f"Tokens are replaced by {token_string(graph, place.filler)!r}."
    else:
        how = f"{graph.points('residual')[place.layer or 0].name} is replaced by its mean."
    remarks = [
        how,
        f"{short} inputs have fewer than {settings.top} tokens to replace: their "
        "comprehensiveness is averaged over their own length.",
    ]
    return one.task.facts(one.dropped, len(used), remarks=remarks)
