"""Gradients of several numbers over one graph: the backwards of many targets after one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.attribution.progress import backwards_done
from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph
from lens_attr.graph.segments import Segments
from lens_attr.rules import RuleSet
from lens_attr.targets import Resolved

MEMORY_AT_ONCE = {"cpu": 16 * 2**20, "cuda": 2**30}
"""Bytes that backwards which run as one may hold, by device. Batching saves up to a half of the
time of short texts and nothing for long ones, while its memory grows with the targets
(benchmarks/many_targets.py)."""

TOKENS_ALONE = {"cpu": 256}
"""One backward of so many tokens is as fast alone, by device."""

STREAMS, HIDDENS, PATTERNS = 6, 2, 3
"""Gradients of the size of the residual stream, of an MLP's hidden layer, and of all patterns that
a backward holds at a time, at its largest (a test counts them)."""

Read = Callable[[Tensor], dict[str, Any]]
"""The gradient at the leaf to what is kept of one backward: tensors, or dicts of tensors."""


def at_once(
    graph: ModelGraph,
    shape: Sequence[int],
    targets: Sequence[Resolved],
    rules: RuleSet | None = None,
) -> int:
    """How many backwards may run as one, see `each_gradient`.

    As many as fit `MEMORY_AT_ONCE`. One by one where that is as fast, and where what runs
    backwards may not be vectorised: a rule or a metric of the user's own, or backward hooks that
    stand on the model already.

    Args:
        graph: the model.
        shape: of the token ids that went forward, [row, pos].
        targets: what is explained.
        rules: how the backwards are modified, if they are.
    """
    rules = rules or RuleSet()
    own = any(target.full is not None for target in targets) or not rules.vectorised
    rows, length = shape
    device = graph.device.type
    enough = rows * length >= TOKENS_ALONE.get(device, inf)
    if own or enough or any(point.watched for point in graph.every_point):
        return 1
    budget = MEMORY_AT_ONCE.get(device, MEMORY_AT_ONCE["cpu"])
    return max(1, budget // bytes_of_backward(graph, rows, length))


def bytes_of_backward(graph: ModelGraph, rows: int, length: int) -> int:
    """What one backward holds at a time, at its largest: the gradients within one block."""
    cfg = graph.cfg
    hidden = cfg.d_mlp or 4 * cfg.d_model
    per_token = STREAMS * cfg.d_model + HIDDENS * hidden + PATTERNS * cfg.n_heads * length
    return rows * (length * per_token + graph.d_vocab) * graph.dtype.itemsize


def each_gradient(
    values: Sequence[Float[Tensor, " batch"]],
    leaf: Tensor,
    read: Read,
    *,
    before: Callable[[], None] = lambda: None,
    at_once: int = 1,
    segments: Segments | None = None,
) -> Iterator[dict[str, Any]]:
    """``read(d value / d leaf)`` of every value in turn; the graph is freed after the last.

    Every parameter's ``.grad`` is left alone, and the progress bar moves on.

    Args:
        values: one number per example, of one forward.
        leaf: what is differentiated by.
        read: called once per backward; may also gather what hooks have recorded meanwhile.
        before: called before every backward.
        at_once: how many run as one, vectorised over the targets; 1 with segments.
        segments: the forward of the values in segments, if it was cut.

    Raises:
        InputError: a value that does not depend on the logits.
    """
    if not all(value.requires_grad for value in values):
        raise InputError("the target does not depend on the logits, so there is no gradient.")
    with torch.enable_grad():
        totals = [value.sum() for value in values]
    for first in range(0, len(totals), at_once):
        some = totals[first : first + at_once]
        keep = first + at_once < len(totals)
        before()
        if len(some) == 1:
            found = [read(_gradient(some[0], leaf, segments, keep))]
        else:
            found = _vectorised(some, leaf, read, keep)
        backwards_done(len(some))
        yield from found


def _gradient(total: Tensor, leaf: Tensor, segments: Segments | None, keep: bool) -> Tensor:
    if segments is not None:
        return segments.gradient(total, leaf, keep=keep)
    return torch.autograd.grad(total, leaf, retain_graph=keep)[0]


def _vectorised(
    each: Sequence[Float[Tensor, ""]], leaf: Tensor, read: Read, keep: bool
) -> list[dict[str, Any]]:
    """One backward for all, each tensor in it with an invisible axis of targets."""

    with torch.enable_grad():
        totals = torch.stack(list(each))

    def one(direction: Tensor) -> dict[str, Any]:
        return read(torch.autograd.grad(totals, leaf, direction, retain_graph=keep)[0])

    found = torch.vmap(one)(torch.eye(len(totals), dtype=totals.dtype, device=totals.device))
    return [_of_target(found, k) for k in range(len(totals))]


def _of_target(found: Any, k: int) -> Any:
    if isinstance(found, dict):
        return {name: _of_target(value, k) for name, value in found.items()}
    return None if found is None else found[k]
