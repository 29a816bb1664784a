"""Pruning: remove heads, MLPs or neurons one at a time and watch the accuracy (LRPx 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.circuits.ablation import Ablator
from lens_attr.circuits.checks import check_choice, check_kind, check_kinds
from lens_attr.circuits.data import Data, contrastive_inputs_of
from lens_attr.circuits.heads import random_ranking
from lens_attr.circuits.progress import bar
from lens_attr.circuits.replacement import Ablation
from lens_attr.circuits.results import Head, PruningComparison, PruningCurve, Ranking
from lens_attr.circuits.units import per_layer
from lens_attr.errors import InputError, checked_optional_count
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import tokenize

Order = Literal["least", "most"]

NEURON_STEPS = 50
"""Points of a curve of neurons, unless told otherwise."""

RANKED = "la.circuits.rank_heads(relevance) or head_scores(model, data, method) makes one"


def prune(
    model: Any,
    data: Data,
    ranking: Ranking,
    *,
    order: Order = "least",
    ablation: Ablation = "zero",
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PruningCurve:
    """Remove units one at a time and measure accuracy and logit difference after each.

    A removed unit is replaced at all positions. Accuracy is the share of samples whose answer has
    a higher logit than its foil. Use samples that the ranking has not seen.

    The result is that of one full forward per step and sample, to rounding. Layers below the
    removed unit are computed once for all steps that share them, samples of one length go together
    without padding, and only the scored position is unembedded.

    Args:
        model: a TransformerLens model.
        data: samples, or a (texts, ``la.LogitDiff``) pair.
        ranking: from `rank_heads`, `head_scores`, `unit_scores` or `random_ranking`.
        order: ``"least"`` or ``"most"`` relevant first.
        ablation: a removed unit gives ``"zero"``, its ``"mean"`` over all samples and real
            positions, or what it gives for another sample (``"resample"``, see
            `lens_attr.circuits.replacement.donors`).
        steps: measure after this many equal parts of all removals; default: after every one, of
            neurons, which are many, after 50 parts.
        batch_size: rows per forward; default: as many as fit in memory.
        seed: of resample ablation.
        progress: show a bar.

    Raises:
        InputError: unknown ``order`` or ``ablation``, no foil, or a ranking of another shape.
    """
    check_kind("ranking", ranking, Ranking, RANKED)
    options = {"order": order, "ablation": ablation, "steps": steps, "batch_size": batch_size}
    return _curves(model, data, [ranking], seed=seed, progress=progress, **options)[0]


def compare_pruning(
    model: Any,
    data: Data,
    rankings: Sequence[Ranking],
    *,
    seeds: int = 10,
    progress: bool = False,
    **options: Any,
) -> PruningComparison:
    """Prune by several rankings and by ``seeds`` random orders, on the same samples.

    What the curves share, such as the whole model, is computed once.

    Args:
        model: a TransformerLens model.
        data: as in `prune`, which also takes ``options``.
        rankings: one curve each, all of the same unit.
        seeds: number of random orders, seeds 0, 1, ...
        progress: show a bar.

    Raises:
        InputError: no rankings, rankings of different units, or what `prune` refuses.
    """
    check_kinds("rankings", rankings, Ranking, RANKED)
    units = sorted({ranking.unit for ranking in rankings})
    if len(units) > 1:
        raise InputError(f"the rankings are of different units ({', '.join(units)}).")
    layers, width = rankings[0].scores.shape
    chance = [random_ranking(layers, width, seed, rankings[0].unit) for seed in range(seeds)]
    curves = _curves(model, data, [*rankings, *chance], progress=progress, **options)
    return PruningComparison(curves[: len(rankings)], curves[len(rankings) :])


def _curves(
    model: Any,
    data: Data,
    rankings: Sequence[Ranking],
    *,
    order: Order = "least",
    ablation: Ablation = "zero",
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[PruningCurve]:
    """One curve per ranking, everything evaluated together."""
    check_choice("order", order, get_args(Order))
    check_choice("ablation", ablation, get_args(Ablation))
    batch_size = checked_optional_count("batch_size", batch_size)
    steps = checked_optional_count("steps", steps)
    graph = resolve(model)
    for ranking in rankings:
        _check_shape(graph, ranking)
    orders = [ranking.order if order == "least" else ranking.order[::-1] for ranking in rankings]
    if steps is None and rankings[0].unit == "neuron":
        steps = NEURON_STEPS
    counts = _counts(len(orders[0]), steps)
    removed = torch.cat([_sets(units, counts, rankings[0].scores.shape) for units in orders])
    texts, target = contrastive_inputs_of(model, data)
    batch = tokenize(graph, texts)
    resolved = target.resolve(graph, batch)
    ablator = Ablator(graph, batch, resolved, rankings[0].unit, ablation, batch_size, seed)
    with bar("pruning", len(removed) * len(batch), progress) as advance:
        scores = ablator.scores(removed, advance).split(len(counts))
    shared = {"order": order, "ablation": ablation, "n": len(batch), "counts": counts}
    return [
        _curve(graph, ranking, units, found, shared)
        for ranking, units, found in zip(rankings, orders, scores, strict=True)
    ]


def _curve(
    graph: ModelGraph,
    ranking: Ranking,
    units: list[Head],
    scores: Float[Tensor, "step sample"],
    shared: dict[str, Any],
) -> PruningCurve:
    return PruningCurve(
        accuracy=(scores > 0).double().mean(dim=1).numpy(),
        logit_diff=scores.mean(dim=1).numpy(),
        pruned=units,
        method=ranking.method,
        metadata={"model": graph.describe(), "pool": ranking.pool, "ranked_on": ranking.n},
        unit=ranking.unit,
        **shared,
    )


def _check_shape(graph: ModelGraph, ranking: Ranking) -> None:
    shape = (graph.n_layers, per_layer(graph, ranking.unit))
    if ranking.scores.shape != shape:
        raise InputError(
            f"the ranking has shape {ranking.scores.shape}, the model has {shape} {ranking.unit}s."
        )


def _counts(n: int, steps: int | None) -> list[int]:
    """Numbers of removed units at which the curve is measured, from 0 to all ``n``."""
    if steps is None or steps >= n:
        return list(range(n + 1))
    return np.linspace(0, n, steps + 1).round().astype(int).tolist()


def _sets(
    units: Sequence[Head], counts: Sequence[int], shape: tuple[int, int]
) -> Bool[Tensor, "set layer unit"]:
    """What is removed at each count: the first so many of ``units``."""
    when = torch.empty(shape, dtype=torch.long)
    layers, columns = torch.tensor(units).T
    when[layers, columns] = torch.arange(len(units))
    return when[None] < torch.tensor(counts)[:, None, None]
