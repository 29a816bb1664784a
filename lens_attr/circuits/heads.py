"""Ranking heads by relevance (LRPx 5.3, Appendix D)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from lens_attr.attribution import Pool, Relevance, attribute
from lens_attr.circuits.data import Data, inputs_of
from lens_attr.circuits.results import Ranking
from lens_attr.errors import InputError
from lens_attr.rules import RuleSet


def rank_heads(relevance: Relevance | Iterable[Relevance], pool: Pool = "relu_token") -> Ranking:
    """Order heads by their relevance, averaged over all examples.

    Args:
        relevance: one result or several (batches of a data set).
        pool: how z * dz becomes one number per head, see `Relevance.heads`.

    Raises:
        InputError: no results, results of different methods, or an unknown pooling.
    """
    results = [relevance] if isinstance(relevance, Relevance) else list(relevance)
    if not results:
        raise InputError("there is no relevance to rank heads by.")
    methods = sorted({result.method for result in results})
    if len(methods) > 1:
        raise InputError(f"the results come from different methods ({', '.join(methods)}).")
    scores = torch.cat([result.heads(pool).double() for result in results])
    return Ranking(scores.mean(dim=0).numpy(), methods[0], pool, len(scores))


def head_scores(
    model: Any,
    data: Data,
    method: str | RuleSet = "attnlrp",
    pool: Pool = "relu_token",
    *,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Ranking:
    """Explain every sample and rank the heads by their mean relevance.

    Args:
        model: a TransformerLens model.
        data: samples, or texts (or token ids) with a target.
        method: as in ``la.attribute``, which also takes ``options``.
        pool: see `Relevance.heads`.
        batch_size: samples explained at a time.
        progress: show a bar or not.

    Raises:
        InputError: no samples, or arguments that ``la.attribute`` refuses.
    """
    texts, target = inputs_of(model, data)
    relevance = attribute(
        model, texts, target, method, batch_size=batch_size, progress=progress, **options
    )
    return rank_heads(relevance, pool)


def random_ranking(n_layers: int, n_heads: int, seed: int) -> Ranking:
    """Heads in a random order: the yardstick of every pruning curve."""
    scores = np.random.default_rng(seed).permutation(n_layers * n_heads).astype(np.float64)
    return Ranking(scores.reshape(n_layers, n_heads), f"random seed {seed}")
