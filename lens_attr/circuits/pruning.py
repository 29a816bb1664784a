"""Head pruning: remove heads one at a time and watch the accuracy (LRPx 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lens_attr.circuits.data import Data, contrastive_inputs_of
from lens_attr.circuits.heads import random_ranking
from lens_attr.circuits.results import Head, PruningComparison, PruningCurve, Ranking
from lens_attr.errors import InputError, did_you_mean
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import TokenBatch, tokenize
from lens_attr.targets import Resolved

Order = Literal["least", "most"]
Ablation = Literal["zero", "mean"]

BATCH = 256


def prune(
    model: Any,
    data: Data,
    ranking: Ranking,
    *,
    order: Order = "least",
    ablation: Ablation = "zero",
    batch_size: int = BATCH,
    progress: bool = False,
) -> PruningCurve:
    """Remove heads one at a time and measure accuracy and logit difference after each.

    A removed head's z is replaced at all positions. Accuracy is the share of samples whose answer
    has a higher logit than its foil. Use samples that the ranking has not seen.

    Args:
        model: a TransformerLens model.
        data: samples, or a (texts, ``la.LogitDiff``) pair.
        ranking: from `rank_heads`, `head_scores` or `random_ranking`.
        order: ``"least"`` or ``"most"`` relevant first.
        ablation: z becomes ``"zero"``, or its ``"mean"`` over all samples and real positions.
        batch_size: samples per forward.
        progress: show a bar over the steps.

    Raises:
        InputError: unknown ``order`` or ``ablation``, no foil, or a ranking of another shape.
    """
    _check_choice("order", order, get_args(Order))
    _check_choice("ablation", ablation, get_args(Ablation))
    graph = resolve(model)
    shape = (graph.n_layers, graph.n_heads)
    if ranking.scores.shape != shape:
        raise InputError(
            f"the ranking has shape {ranking.scores.shape}, the model has {shape} heads."
        )
    batches = list(_batches(graph, model, data, batch_size))
    fill = _mean_z(graph, batches) if ablation == "mean" else None
    heads = ranking.order if order == "least" else ranking.order[::-1]
    steps: Iterable[int] = range(len(heads) + 1)
    if progress:
        steps = track(steps, f"pruning by {ranking.method}", console=Console(stderr=True))
    differences = [_logit_diffs(graph, batches, heads[:step], fill) for step in steps]
    return PruningCurve(
        accuracy=np.array([float((d > 0).mean()) for d in differences]),
        logit_diff=np.array([float(d.mean()) for d in differences]),
        pruned=heads,
        method=ranking.method,
        order=order,
        ablation=ablation,
        n=len(differences[0]),
        metadata={"model": graph.describe(), "pool": ranking.pool, "ranked_on": ranking.n},
    )


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

    Args:
        model: a TransformerLens model.
        data: as in `prune`, which also takes ``options``.
        rankings: one curve each.
        seeds: number of random orders, seeds 0, 1, ...
        progress: show a bar per curve.
    """
    if not rankings:
        raise InputError("there are no rankings to compare.")
    layers, heads = rankings[0].scores.shape
    chance = [random_ranking(layers, heads, seed) for seed in range(seeds)]
    run: Callable[[Ranking], PruningCurve] = lambda ranking: prune(  # noqa: E731
        model, data, ranking, progress=progress, **options
    )
    return PruningComparison([run(r) for r in rankings], [run(r) for r in chance])


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {did_you_mean(value, known)}")


Batch = tuple[TokenBatch, Resolved]


def _batches(graph: ModelGraph, model: Any, data: Data, size: int) -> Iterator[Batch]:
    texts, target = contrastive_inputs_of(model, data)
    whole = tokenize(graph, texts)
    resolved = target.resolve(graph, whole)
    if size < 1:
        raise InputError(f"batch_size must be at least 1, got {size}.")
    for start in range(0, len(whole), size):
        index = list(range(start, min(start + size, len(whole))))
        yield whole.rows(index), resolved.rows(index)


@contextmanager
def heads_removed(
    graph: ModelGraph, heads: Sequence[Head], fill: Float[Tensor, "layer head d_head"] | None
) -> Iterator[None]:
    """Replace z of some heads at all positions, by zero or by ``fill``."""
    points = graph.points("z")
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    with ExitStack() as stack:
        for layer, removed in by_layer.items():
            value = None if fill is None else fill[layer, removed]
            points[layer].on_forward(partial(_replace, removed, value), stack)
        yield


def _replace(
    heads: list[int], value: Tensor | None, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos head d_head"]:
    z = z.clone()
    z[:, :, heads] = 0.0 if value is None else value.to(z)
    return z


@torch.no_grad()
def _logit_diffs(
    graph: ModelGraph, batches: Sequence[Batch], heads: Sequence[Head], fill: Tensor | None
) -> np.ndarray:
    found = []
    with heads_removed(graph, heads, fill):
        for batch, target in batches:
            logits = graph.logits_at(batch.token_ids, batch.padding_mask, target.position)
            found.append(target.score(logits, target).double().cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
def _mean_z(graph: ModelGraph, batches: Sequence[Batch]) -> Float[Tensor, "layer head d_head"]:
    """Mean of z over all samples and real positions."""
    points = graph.points("z")
    sums: list[Any] = [0.0] * len(points)

    def add(layer: int, mask: Tensor, z: Tensor) -> None:
        sums[layer] = sums[layer] + z[mask].double().sum(dim=0)

    for batch, target in batches:
        with ExitStack() as stack:
            for layer, point in enumerate(points):
                point.on_forward(partial(add, layer, batch.attention_mask), stack)
            graph.logits_at(batch.token_ids, batch.padding_mask, target.position)
    n = sum(int(batch.attention_mask.sum()) for batch, _ in batches)
    return torch.stack(sums) / n
