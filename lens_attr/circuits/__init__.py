"""Circuits: rank heads by relevance, prune them, patch them, and see whether the ranking holds."""

from lens_attr.circuits.agreement import Agreement, agreement
from lens_attr.circuits.heads import (
    head_scores,
    random_ranking,
    rank_heads,
    rank_units,
    unit_scores,
)
from lens_attr.circuits.pairs import Pairs, read_ioi, read_pairs, sva_pairs
from lens_attr.circuits.patch_result import PatchResult
from lens_attr.circuits.patching import patch
from lens_attr.circuits.pruning import compare_pruning, prune
from lens_attr.circuits.results import Head, PruningComparison, PruningCurve, Ranking

__all__ = [
    "Agreement",
    "Head",
    "Pairs",
    "PatchResult",
    "PruningComparison",
    "PruningCurve",
    "Ranking",
    "agreement",
    "compare_pruning",
    "head_scores",
    "patch",
    "prune",
    "random_ranking",
    "rank_heads",
    "rank_units",
    "read_ioi",
    "read_pairs",
    "sva_pairs",
    "unit_scores",
]
