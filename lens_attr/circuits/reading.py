"""Gradients at hook points, as they arrive or as they leave after every rule there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.attribution.scoring import gradient_of, target_value
from lens_attr.graph import ModelGraph, Point
from lens_attr.graph.tokens import TokenBatch
from lens_attr.rules import Placement, Rule, RuleSet, Tape
from lens_attr.rules.session import Session
from lens_attr.targets import Resolved


@dataclass(frozen=True, kw_only=True)
class ReadGradients(Rule):
    """Change nothing; keep the gradient at some points, as this rule's place in its set sees it.

    Attributes:
        points: where to read.
        kept: gradients by the name of their point.
    """

    points: tuple[Point, ...]
    kept: dict[str, Tensor] = field(default_factory=dict)

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every one of ``points``."""
        return [Placement(point, self._reader(point)) for point in self.points]

    def _reader(self, point: Point) -> Callable[[Tensor, Tape], Tensor]:
        def read(grad: Tensor, tape: Tape) -> Tensor:
            self.kept[point.name] = grad.detach()
            return grad

        return read

    def __getitem__(self, point: Point) -> Tensor:
        return self.kept[point.name]


def read_gradients(
    graph: ModelGraph,
    rules: RuleSet,
    points: Sequence[Point],
    batch: TokenBatch,
    target: Resolved,
    embedding: Callable[[Tensor], Tensor] | None = None,
    arriving: bool = False,
) -> tuple[ReadGradients, Float[Tensor, " batch"]]:
    """One forward and one backward under rules; nothing is left on the model.

    Args:
        graph: the model.
        rules: how the backward is modified.
        points: where the gradient is read, as it leaves them.
        batch: the inputs.
        target: what is explained.
        embedding: makes another embedding [batch, pos, d_model] out of the model's own.
        arriving: read the gradient as it arrives there instead, before the rules at the points.

    Returns:
        The gradients, and the explained number.

    Raises:
        RuleNotAppliedError: no gradient reached one of the points.
    """
    gradients = ReadGradients(points=tuple(points))
    leaf: list[Tensor] = []

    def make_leaf(own: Tensor) -> Tensor:
        own = own.detach()
        leaf.append((own if embedding is None else embedding(own)).requires_grad_())
        return leaf[0]

    (embed,) = graph.points("embed")
    with torch.enable_grad(), ExitStack() as stack:
        embed.on_forward(make_leaf, stack)
        both = RuleSet((gradients, *rules)) if arriving else rules + gradients
        stack.enter_context(Session(graph, both, strict=True))
        value, _ = target_value(graph, batch, target)
        gradient_of(value, leaf[0])
    return gradients, value.detach()
