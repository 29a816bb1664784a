"""Ranking heads, MLPs and neurons by relevance (LRPx 5.3, Appendix D)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.attribution import Pool, Relevance, attribute
from lens_attr.circuits.checks import check_choice
from lens_attr.circuits.data import Data, inputs_of
from lens_attr.circuits.results import Ranking
from lens_attr.circuits.units import Unit
from lens_attr.errors import InputError
from lens_attr.rules import RuleSet

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
        relevance: one result or several (batches of a data set), made with ``record=["mlp_out"]``
            for MLPs and ``record=["neurons"]`` for neurons.
        unit: ``"head"``, ``"mlp"`` or ``"neuron"``.
        pool: how activation x gradient becomes one number per unit, see `Pool`; a neuron has one
            dimension, so its ``relu_dim`` is its ``relu_token``.

    Raises:
        InputError: no results, results of different methods, nothing recorded, or an unknown unit
            or pooling.
    """
    check_choice("unit", unit, get_args(Unit))
    check_choice("pool", pool, get_args(Pool))
    results = [relevance] if isinstance(relevance, Relevance) else list(relevance)
    if not results:
        raise InputError("there is no relevance to rank by.")
    methods = sorted({result.method for result in results})
    if len(methods) > 1:
        raise InputError(f"the results come from different methods ({', '.join(methods)}).")
    scores = torch.cat([_pooled(result, unit, pool).double() for result in results])
    return Ranking(scores.mean(dim=0).numpy(), methods[0], pool, len(scores), unit)


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

    Every neuron's relevance at every position is held in memory: for models with many, explain
    batches yourself and hand them to `rank_units`.
    """
    check_choice("unit", unit, get_args(Unit))
    texts, target = inputs_of(model, data)
    if unit != "head":
        options["record"] = [*options.get("record", ()), RECORDED[unit]]
    return rank_units(attribute(model, texts, target, method, **options), unit, pool)


def random_ranking(n_layers: int, n_heads: int, seed: int, unit: Unit = "head") -> Ranking:
    """Heads (or other units) in a random order: the yardstick of every pruning curve."""
    scores = np.random.default_rng(seed).permutation(n_layers * n_heads).astype(np.float64)
    return Ranking(scores.reshape(n_layers, n_heads), f"random seed {seed}", unit=unit)
