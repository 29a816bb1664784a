"""Normalisation rules: LayerNorm and RMSNorm, wherever they stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lens_attr.graph import ModelGraph
from lens_attr.rules.core import Placement, Rule, scale


@dataclass(frozen=True, kw_only=True)
class FreezeNorm(Rule):
    """Treat the standard deviation of every norm as a constant (factor 0 at ``hook_scale``).

    The LN rule of Ali et al. 2022 and LRPx C.5: the norm becomes linear, so relevance passes
    through it without loss. Covers ln1, ln2, the final norm, Gemma's post norms, query and key
    norms, and BERT's embedding and masked-word-head norms.

    Attributes:
        factor: what the gradient at ``hook_scale`` is multiplied by; 1 is the true gradient.
    """

    factor: float = 0.0

    vectorised = True

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every ``hook_scale``."""
        return (scale(point, self.factor) for point in graph.points("norm_scale"))

    def absent(self, graph: ModelGraph) -> bool:
        """True for a model built without norms."""
        return graph.cfg.normalization_type is None
