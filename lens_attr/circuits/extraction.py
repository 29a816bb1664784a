"""From edge scores to a circuit: top-n or greedy, and AUROC against a known circuit."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from numbers import Integral
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from lens_attr.circuits.checks import check_kind
from lens_attr.circuits.circuit import Circuit, known_edges
from lens_attr.circuits.edge_scores import EdgeScores, Ordering
from lens_attr.circuits.wiring import Node, Wiring
from lens_attr.errors import InputError, did_you_mean

By = Literal["top", "greedy"]

SCORED = "la.circuits.edge_scores(model, clean, corrupted, target) makes one"


def extract(
    scores: EdgeScores,
    n: int,
    *,
    by: By = "top",
    ordering: Ordering = "absolute",
    prune: bool = True,
) -> Circuit:
    """The circuit of the ``n`` most important edges.

    Args:
        scores: of every edge.
        n: edges to choose, before pruning.
        by: ``"top"`` takes the best of all edges; ``"greedy"`` grows from the logits, always
            taking the best edge into a node that the circuit already has (Hanna et al. 2024).
        ordering: ``"absolute"`` or ``"signed"``, see `Ordering`.
        prune: drop edges on no path from the input to the logits; they cannot matter.

    Raises:
        InputError: unknown option, or ``n`` out of range.
    """
    check_kind("scores", scores, EdgeScores, SCORED)
    if by not in get_args(By):
        raise InputError(f"unknown by {by!r}; {did_you_mean(str(by), get_args(By))}")
    if isinstance(n, bool) or not isinstance(n, Integral) or not 0 <= n <= scores.wiring.n_edges:
        raise InputError(f"n must be from 0 to {scores.wiring.n_edges} edges, got {n!r}.")
    importance = scores.importance(ordering)
    kept = _top(importance, n) if by == "top" else _greedy(scores.wiring, importance, n)
    metadata = {
        "method": scores.method,
        "by": by,
        "ordering": ordering,
        "n_chosen": int(n),
        "pruned": prune,
        "unit": scores.unit,
    }
    circuit = Circuit(scores.wiring, kept, scores.scores, metadata)
    return circuit.pruned if prune else circuit


def _top(
    importance: Float[NDArray[np.float64], "source receiver"], n: int
) -> Bool[NDArray[np.bool_], "source receiver"]:
    """Ties go to the earlier edge."""
    kept = np.zeros(importance.size, dtype=bool)
    kept[np.argsort(-importance, axis=None, kind="stable")[:n]] = True
    return kept.reshape(importance.shape)


def _greedy(
    wiring: Wiring, importance: Float[NDArray[np.float64], "source receiver"], n: int
) -> Bool[NDArray[np.bool_], "source receiver"]:
    kept = np.zeros(importance.shape, dtype=bool)
    readers = _receivers_of(wiring)
    candidates: list[tuple[float, int, int]] = []
    open_columns: set[int] = set()

    def reach(node: Node) -> None:
        for column in readers.get(node, ()):
            if column not in open_columns:
                open_columns.add(column)
                for row in np.flatnonzero(wiring.exists[:, column]):
                    heapq.heappush(candidates, (-importance[row, column], int(row), column))

    reach(Node("logits"))
    while candidates and int(kept.sum()) < n:
        _, row, column = heapq.heappop(candidates)
        kept[row, column] = True
        reach(wiring.sources[row])
    return kept


def _receivers_of(wiring: Wiring) -> dict[Node, list[int]]:
    found: dict[Node, list[int]] = {}
    for column, receiver in enumerate(wiring.receivers):
        for node in receiver.nodes:
            found.setdefault(node, []).append(column)
    return found


def random_edges(wiring: Wiring, seed: int) -> EdgeScores:
    """Edges in a random order: the yardstick of every faithfulness curve."""
    order = np.random.default_rng(seed).permutation(wiring.exists.size) + 1.0
    scores = np.where(wiring.exists, order.reshape(wiring.exists.shape), 0.0)
    return EdgeScores(wiring, -scores, f"random seed {seed}", unit="rank")


def auroc(
    scores: EdgeScores,
    known: Circuit | Sequence[tuple[str, str]],
    ordering: Ordering = "absolute",
) -> float:
    """The chance that a random edge of the known circuit is scored above a random other edge.

    1 is perfect, 0.5 chance; ties count half (Mann-Whitney).

    Raises:
        InputError: the known circuit has no edge, every edge, or belongs to another model.
    """
    check_kind("scores", scores, EdgeScores, SCORED)
    exists = scores.wiring.exists
    importance = scores.importance(ordering)[exists]
    inside = known_edges(known, scores.wiring)[exists]
    if inside.all() or not inside.any():
        raise InputError("AUROC needs edges inside and outside the known circuit.")
    ranks = _mean_ranks(importance)
    n, m = int(inside.sum()), int((~inside).sum())
    return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * m))


def _mean_ranks(values: Float[NDArray[np.float64], " edge"]) -> Float[NDArray[np.float64], " edge"]:
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
