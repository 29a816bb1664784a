"""Circuits: rank heads and edges, prune, patch, extract, run: and see whether a ranking holds."""

from lens_attr.circuits.agreement import Agreement, agreement
from lens_attr.circuits.attribution_patching import node_scores
from lens_attr.circuits.circuit import Circuit
from lens_attr.circuits.edge_scores import EdgeScores, Ordering
from lens_attr.circuits.edges import edge_scores
from lens_attr.circuits.exact_edges import exact_edge_effects
from lens_attr.circuits.extraction import auroc, extract, random_edges
from lens_attr.circuits.faithfulness import compare_faithfulness, evaluate, faithfulness_curve
from lens_attr.circuits.faithfulness_results import (
    CircuitEvaluation,
    FaithfulnessComparison,
    FaithfulnessCurve,
)
from lens_attr.circuits.heads import (
    head_scores,
    random_ranking,
    rank_heads,
    rank_units,
    unit_scores,
)
from lens_attr.circuits.node_results import NodeScores
from lens_attr.circuits.pairs import Pairs, read_ioi, read_pairs, sva_pairs
from lens_attr.circuits.patch_result import PatchResult
from lens_attr.circuits.patching import patch
from lens_attr.circuits.pruning import compare_pruning, prune
from lens_attr.circuits.results import Head, PruningComparison, PruningCurve, Ranking
from lens_attr.circuits.score_ablation import self_repair
from lens_attr.circuits.score_agreement import ScoreAgreement, score_agreement
from lens_attr.circuits.self_repair_results import SelfRepair
from lens_attr.circuits.wiring import Node, Wiring

__all__ = [
    "Agreement",
    "Circuit",
    "CircuitEvaluation",
    "EdgeScores",
    "FaithfulnessComparison",
    "FaithfulnessCurve",
    "Head",
    "Node",
    "NodeScores",
    "Ordering",
    "Pairs",
    "PatchResult",
    "PruningComparison",
    "PruningCurve",
    "Ranking",
    "ScoreAgreement",
    "SelfRepair",
    "Wiring",
    "agreement",
    "auroc",
    "compare_faithfulness",
    "compare_pruning",
    "edge_scores",
    "evaluate",
    "exact_edge_effects",
    "extract",
    "faithfulness_curve",
    "head_scores",
    "node_scores",
    "patch",
    "prune",
    "random_edges",
    "random_ranking",
    "rank_heads",
    "rank_units",
    "read_ioi",
    "read_pairs",
    "score_agreement",
    "self_repair",
    "sva_pairs",
    "unit_scores",
]
