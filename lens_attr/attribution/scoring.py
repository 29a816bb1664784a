"""The explained number of a batch, and the refusal of values that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.errors import InputError, NonFiniteError
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved

Scored = tuple[Float[Tensor, " batch"], Float[Tensor, "batch d_vocab"]]
"""The explained number, and the logits at the explained position (detached)."""


def target_value(graph: ModelGraph, batch: TokenBatch, target: Resolved) -> Scored:
    """One forward: the explained number and the logits at its position.

    Raises:
        NonFiniteError: NaN or infinite logits.
        InputError: a metric that does not give one number per example.
    """
    return target_values(graph, batch, [target])[0]


def target_values(
    graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
) -> list[Scored]:
    """One forward for all targets, whatever their positions; raises as `target_value` does."""
    mask = batch.padding_mask
    if all(target.full is None for target in targets):
        at_each = logits_of_each(graph, batch, targets)
        for logits in at_each:
            refuse_non_finite("logits", logits)
        values = [target.score(at, target) for target, at in zip(targets, at_each, strict=True)]
        return [(value, at.detach()) for value, at in zip(values, at_each, strict=True)]
    every = graph.forward(batch.token_ids, mask)
    rows = torch.arange(len(batch), device=every.device)
    found = []
    for target in targets:
        logits = every[rows, target.position]
        refuse_non_finite("logits", logits)
        value = target.score(logits, target) if target.full is None else target.full(every)
        found.append((_one_per_example(value, len(batch)), logits.detach()))
    return found


def logits_of_each(
    graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
) -> list[Float[Tensor, "batch d_vocab"]]:
    """One forward: the logits at every target's position, unembedded once where they share it."""
    groups = by_position(targets)
    positions = torch.stack([targets[group[0]].position for group in groups], dim=1)
    every = graph.logits_at_each(batch.token_ids, batch.padding_mask, positions).unbind(dim=1)
    at = {k: logits for group, logits in zip(groups, every, strict=True) for k in group}
    return [at[k] for k in range(len(targets))]


def by_position(targets: Sequence[Resolved]) -> list[list[int]]:
    """Indices of the targets, those together that explain the same position of every example."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, target in enumerate(targets):
        groups.setdefault(tuple(target.position.tolist()), []).append(k)
    return list(groups.values())


def _one_per_example(value: Any, n: int) -> Float[Tensor, " batch"]:
    if isinstance(value, Tensor) and value.shape == (n,):
        return value
    shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"the metric must give one number per example [{n}], got {shape}")


def gradient_of(value: Float[Tensor, " batch"], leaf: Tensor) -> Tensor:
    """d value / d leaf, leaving every parameter's ``.grad`` alone.

    Args:
        value: what is differentiated, summed over the batch.
        leaf: where the gradient is read.

    Raises:
        InputError: the value does not depend on the logits.
    """
    if not value.requires_grad:
        raise InputError("the target does not depend on the logits, so there is no gradient.")
    return torch.autograd.grad(value.sum(), leaf)[0]


def labels_of(target: Resolved, logits: Float[Tensor, "batch d_vocab"]) -> list[str]:
    """What is explained, in words, one per example."""
    return target.labels if target.relabel is None else target.relabel(logits)


def refuse_non_finite(what: str, values: Tensor) -> None:
    """Raise on NaN or infinity, naming the example.

    Raises:
        NonFiniteError: ...
    """
    bad = ~torch.isfinite(values).flatten(1).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"NaN or infinite {what} in example {int(bad.nonzero()[0])}: check the weights, or "
            "use a wider dtype (dtype='float32' in la.load)."
        )
