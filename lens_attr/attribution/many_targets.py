"""A list of targets: bound to the texts, and their explanations in one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from lens_attr.attribution.explainer import Explained
from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved, Target, TopLogit


def resolve_targets(
    graph: ModelGraph, batch: TokenBatch, target: Target | Sequence[Target] | None
) -> tuple[TokenBatch, list[Resolved]]:
    """The texts and what is explained of each of them; every target is bound to all texts.

    A single target with several positions of one text takes a copy of that text for each. In a
    list it counts as so many targets instead.

    Raises:
        InputError: a target that does not fit the texts, or targets of different units.
    """
    if target is None or isinstance(target, Target):
        target = target or TopLogit()
        copies = target.copies(batch)
        batch = batch.rows([0] * copies) if copies != 1 else batch
        return batch, [target.resolve(graph, batch)]
    found = [one for each in target for one in _of_every_position(graph, batch, each)]
    units = list(dict.fromkeys(one.unit for one in found))
    if len(units) > 1:
        raise InputError(
            f"targets of one call must have one unit, got {' and '.join(units)}: explain them in "
            "calls of their own."
        )
    return batch, found


def _of_every_position(graph: ModelGraph, batch: TokenBatch, target: Target) -> list[Resolved]:
    copies = target.copies(batch)
    if copies == 1:
        return [target.resolve(graph, batch)]
    resolved = target.resolve(graph, batch.rows([0] * copies))
    return [resolved.rows([i]) for i in range(copies)]


def target_ids(targets: Sequence[Resolved]) -> list[list[int] | None] | None:
    """The targets' token ids (answer, foil), one row per explained row, to explain it again.

    None for a target that names no tokens, and where none does.
    """
    n = len(targets[0].labels)
    each = [t.token_ids.tolist() if t.token_ids is not None else [None] * n for t in targets]
    rows = [row for of_text in zip(*each, strict=True) for row in of_text]
    return None if all(row is None for row in rows) else rows


def text_major(parts: Sequence[Explained]) -> Explained:
    """One explanation per target as one, the rows of each text next to each other."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        field.name: _interleaved([getattr(part, field.name) for part in parts])
        for field in fields(Explained)
        if field.name not in ("unit", "metadata", "notices")
    }
    notices = list(dict.fromkeys(notice for part in parts for notice in part.notices))
    return replace(parts[0], notices=notices, **joined)


def _interleaved(values: Sequence[Any]) -> Any:
    """Batch axes: tensors, lists, dicts of tensors, or None."""
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.stack(list(values), dim=1).flatten(0, 1)
    if isinstance(first, dict):
        return {name: _interleaved([value[name] for value in values]) for name in first}
    return [label for of_text in zip(*values, strict=True) for label in of_text]
