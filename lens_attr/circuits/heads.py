"""Ranking heads, MLPs and neurons by relevance (LRPx 5.3, Appendix D)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lens_attr.attribution import Pool, Relevance, attribute
from lens_attr.attribution.many_targets import resolve_targets
from lens_attr.circuits.aligned import announce
from lens_attr.circuits.checks import check_choice, check_kind
from lens_attr.circuits.data import Data, inputs_of
from lens_attr.circuits.results import Ranking
from lens_attr.circuits.units import Unit
from lens_attr.errors import InputError, checked_count
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.tokens import Text, TokenBatch, tokenize
from lens_attr.rules import RuleSet
from lens_attr.targets import Resolved, Target

RECORDED: dict[Unit, str] = {"mlp": "mlp_out", "neuron": "neurons"}
"""What ``la.attribute`` must record for a unit (heads always are)."""


def rank_heads(relevance: Relevance | Iterable[Relevance], pool: Pool = "relu_token") -> Ranking:
    """Order heads by their relevance, averaged over all examples.

    Args:
        relevance: one result or several (batches of a data set).
        pool: how z * dz becomes one number per head, see `Relevance.heads`.

    Raises:
        InputError: no results, results of different methods, or an unknown pooling.
    """
    return rank_units(relevance, "head", pool)


def rank_units(
    relevance: Relevance | Iterable[Relevance], unit: Unit = "head", pool: Pool = "relu_token"
) -> Ranking:
    """Order heads, MLPs or neurons by their relevance, averaged over all examples.

    Args:
        relevance: one result or several (batches of a data set, also from a generator: one at a
            time is kept), made with ``record=["mlp_out"]`` for MLPs and ``record=["neurons"]`` for
            neurons.
        unit: ``"head"``, ``"mlp"`` or ``"neuron"``.
        pool: how activation x gradient becomes one number per unit, see `Pool`; a neuron has one
            dimension, so its ``relu_dim`` is its ``relu_token``.

    Raises:
        InputError: no results, results of different methods, nothing recorded, or an unknown unit
            or pooling.
    """
    check_choice("unit", unit, get_args(Unit))
    check_choice("pool", pool, get_args(Pool))
    methods: set[str] = set()
    total, n = torch.zeros(()), 0
    for result in [relevance] if isinstance(relevance, Relevance) else relevance:
        check_kind("relevance", result, Relevance, "la.attribute(...) makes one")
        methods.add(result.method)
        if len(methods) > 1:
            names = ", ".join(sorted(methods))
            raise InputError(f"the results come from different methods ({names}).")
        total = total + _pooled(result, unit, pool).double().sum(dim=0)
        n += len(result)
    if not n:
        raise InputError("there is no relevance to rank by.")
    return Ranking((total / n).numpy(), methods.pop(), pool, n, unit)


def _pooled(result: Relevance, unit: Unit, pool: Pool) -> Float[Tensor, "batch layer unit"]:
    if unit == "head":
        return result.heads(pool)
    key = RECORDED[unit]
    if key not in result.records:
        raise InputError(f"{unit}s were not recorded: pass record=[{key!r}] to la.attribute.")
    product = result.records[key]
    if pool == "relu_dim":
        product = product.relu()
    if unit == "mlp":
        product = product.sum(dim=-1, keepdim=True)
    return (product.relu() if pool == "relu_token" else product).sum(dim=2)


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
    options |= {"batch_size": batch_size, "progress": progress}
    return unit_scores(model, data, "head", method, pool, **options)


def unit_scores(
    model: Any,
    data: Data,
    unit: Unit,
    method: str | RuleSet = "attnlrp",
    pool: Pool = "relu_token",
    **options: Any,
) -> Ranking:
    """As `head_scores`, for heads, MLPs or neurons.

    The relevance of every neuron at every position is held in memory, of ``batch_size`` samples at
    a time.
    """
    check_choice("unit", unit, get_args(Unit))
    texts, target = inputs_of(model, data)
    if unit != "head":
        options["record"] = [*options.get("record", ()), RECORDED[unit]]
    if options.get("batch_size") is None:
        return rank_units(attribute(model, texts, target, method, **options), unit, pool)
    return rank_units(_batches(model, texts, target, method, **options), unit, pool)


@dataclass(frozen=True, kw_only=True)
class _Bound(Target):
    """A target that was resolved before, on the rows that it is now asked for.

    Attributes:
        resolved: for these rows.
    """

    resolved: Resolved

    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """See `Target.resolve`."""
        return self.resolved


def _batches(
    model: Any,
    texts: Text,
    target: Target,
    method: str | RuleSet,
    *,
    batch_size: int,
    progress: bool | None = None,
    attention_mask: Tensor | None = None,
    baseline: Any = None,
    **options: Any,
) -> Iterator[Relevance]:
    """The relevance of some samples after the other, none of which is kept."""
    batch_size = checked_count("batch_size", batch_size)
    graph = resolve(model)
    batch, (resolved,) = resolve_targets(graph, tokenize(graph, texts, attention_mask), target)
    announce(graph, [batch], resolved)
    starts = range(0, len(batch), batch_size)
    hidden = progress is False or (progress is None and len(starts) == 1)
    for start in track(starts, "explaining", console=Console(stderr=True), disable=hidden):
        index = list(range(start, min(start + batch_size, len(batch))))
        each = isinstance(baseline, Tensor) and baseline.ndim == 3
        yield attribute(
            model,
            batch.token_ids[index],
            _Bound(resolved=replace(resolved.rows(index), notices=())),
            method,
            attention_mask=batch.attention_mask[index],
            baseline=baseline[index] if each else baseline,
            progress=False,
            **options,
        )


def random_ranking(n_layers: int, n_heads: int, seed: int, unit: Unit = "head") -> Ranking:
    """Heads (or other units) in a random order: the yardstick of every pruning curve."""
    scores = np.random.default_rng(seed).permutation(n_layers * n_heads).astype(np.float64)
    return Ranking(scores.reshape(n_layers, n_heads), f"random seed {seed}", unit=unit)
