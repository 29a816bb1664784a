"""Circuits: rank heads by relevance, prune them, and see whether the ranking was right."""

from lens_attr.circuits.heads import (
    head_scores,
    random_ranking,
    rank_heads,
    rank_units,
    unit_scores,
)
from lens_attr.circuits.pruning import compare_pruning, prune
from lens_attr.circuits.results import Head, PruningComparison, PruningCurve, Ranking

__all__ = [
    "Head",
    "PruningComparison",
    "PruningCurve",
    "Ranking",
    "compare_pruning",
    "head_scores",
    "prune",
    "random_ranking",
    "rank_heads",
    "rank_units",
    "unit_scores",
]
