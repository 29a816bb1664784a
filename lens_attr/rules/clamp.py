"""Clamping the gradient in the residual stream, against gradients that explode on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from torch import Tensor

from lens_attr.errors import InputError, refuse_no_number
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

    vectorised = True

    low: float = -inf
    high: float = inf

    def __post_init__(self) -> None:
        refuse_no_interval("low", self.low, "high", self.high)

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every block's ``hook_resid_pre``."""
        return [self._at(point) for point in graph.points("residual")[:-1]]

    def _at(self, point: Point) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            return grad.clamp(self.low, self.high)

        return Placement(point, transform)


def refuse_no_interval(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raise unless both are numbers, possibly infinite, in this order.

    Raises:
        InputError: naming the option.
    """
    refuse_no_number(low_name, low, infinite=True)
    refuse_no_number(high_name, high, infinite=True)
    if not (low <= high and low < inf and high > -inf):
        raise InputError(
            f"the gradient is clamped to [{low_name}, {high_name}], so {low_name} must not exceed "
            f"{high_name}, and some number must lie between: got [{low}, {high}]."
        )
