"""Clamping the gradient in the residual stream, against gradients that explode on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isnan

from torch import Tensor

from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph, Point
from lens_attr.rules.core import Placement, Rule, Tape


@dataclass(frozen=True, kw_only=True)
class ClampGradient(Rule):
    """Clamp, elementwise, the gradient that arrives at the residual stream before every block.

    IGCG, the gradient-clipped variant of Integrated Gradients that the AIEG paper compares with,
    clips the recurrence dh_t / dh_(t-1) of a recurrent network. A transformer has no such
    recurrence; its nearest counterpart is the gradient handed from one block to the one below.

    Attributes:
        low: smallest entry let through.
        high: largest entry let through.
    """

    low: float = -inf
    high: float = inf

    def __post_init__(self) -> None:
        if isnan(self.low) or isnan(self.high) or not self.low <= self.high:
            raise InputError(
                f"the gradient is clamped to [low, high], so low must not exceed high: got "
                f"[{self.low}, {self.high}]."
            )

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every block's ``hook_resid_pre``."""
        return [self._at(point) for point in graph.points("residual")[:-1]]

    def _at(self, point: Point) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            return grad.clamp(self.low, self.high)

        return Placement(point, transform)
