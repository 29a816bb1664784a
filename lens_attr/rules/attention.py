"""Attention rules: the product A.V, the scores Q.K, and the softmax between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.graph import ModelGraph, Point
from lens_attr.rules.core import Placement, Rule, Tape, scale

ONE_HOOK_LIMIT = 4.0
"""Above this temperature pT / p overflows where p is tiny, so the two-hook form is used."""


@dataclass(frozen=True, kw_only=True)
class ScalePattern(Rule):
    """Multiply the gradient that flows through the attention pattern to queries and keys.

    Factor 1/2 is the uniform rule for Q.K (AttnLRP, Achtibat et al. 2024, Prop. 3.3; the softmax
    backward is linear, so the half may sit before it); factor 0 makes the pattern a constant (the
    LRP of Ali et al. 2022, CP-LRP). Where the pattern is computed outside the autograd graph, the
    factor is placed on q and k, which is the same: d scores is linear in each of them.
    """

    factor: float = 0.5

    vectorised = True

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At ``hook_pattern``, or at ``hook_q`` and ``hook_k``."""
        if graph.attention_in_graph:
            return (scale(point, self.factor) for point in graph.points("pattern"))
        points = [*graph.points("q"), *graph.points("k")]
        return (scale(point, self.factor) for point in points)


@dataclass(frozen=True, kw_only=True)
class ScaleZ(Rule):
    """Multiply the gradient arriving at z = A.V; 1/2 shares it between A and V (uniform rule)."""

    factor: float = 0.5

    vectorised = True

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every ``hook_z``."""
        return (scale(point, self.factor) for point in graph.points("z"))


@dataclass(frozen=True, kw_only=True)
class TemperedSoftmax(Rule):
    """Softmax gradients at a higher temperature (TSG, GIM, Edin et al. 2025).

    The softmax Jacobian is taken at softmax(scores / T), without the extra 1 / T, so that keys
    which share a query's attention do not hide each other (self-repair). T = 1 is the true one.
    """

    temperature: float = 2.0

    vectorised = True

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature must be positive and finite, got {self.temperature}.")

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At ``hook_pattern``; for T > 4 or float16 at ``hook_attn_scores``."""
        if not graph.attention_in_graph:
            raise UnsupportedModelError(
                f"{graph.architecture} on {graph.backend} computes its softmax outside the "
                "autograd graph: blocks.*.attn.hook_pattern never sees a gradient, so a tempered "
                "softmax (GIM) is impossible. Use 'attnlrp' or 'lrp', or, for BERT, a "
                "HookedEncoder on transformer-lens 3.9."
            )
        pairs = list(zip(graph.points("pattern"), graph.points("scores"), strict=True))
        if self.temperature <= ONE_HOOK_LIMIT and graph.dtype != torch.float16:
            return [self._at_pattern(pattern, scores) for pattern, scores in pairs]
        return [self._at_scores(pattern, scores) for pattern, scores in pairs]

    def _at_pattern(self, pattern: Point, scores: Point) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            return before_softmax_backward(grad, tape.value(pattern), self.temperature)

        at_scores = self._at_scores(pattern, scores)
        return Placement(pattern, transform, values=(pattern,), lowered=at_scores)

    def _at_scores(self, pattern: Point, scores: Point) -> Placement:
        def transform(grad: Tensor, tape: Tape) -> Tensor:
            return tempered_jacobian(tape.grad(pattern), tape.value(scores), self.temperature)

        return Placement(
            scores,
            transform,
            values=(scores,),
            grads=(pattern,),
            replaces=True,
            bypasses="all",
        )


def _centred(
    grad: Float[Tensor, "*rows key"], tempered: Float[Tensor, "*rows key"]
) -> Float[Tensor, "*rows key"]:
    return grad - (tempered * grad).sum(dim=-1, keepdim=True)


def before_softmax_backward(
    grad: Float[Tensor, "*rows key"], pattern: Float[Tensor, "*rows key"], temperature: float
) -> Float[Tensor, "*rows key"]:
    """The gradient at the pattern from which the ordinary softmax backward makes the tempered one.

    ``(pT / p) (g - sum(pT g))`` with pT proportional to p^(1/T); 0 where p = 0 (masked keys).
    """
    p = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
    powered = p.pow(1.0 / temperature)
    total = powered.sum(dim=-1, keepdim=True)
    tempered = torch.where(total > 0, powered / total, torch.zeros_like(p))
    ratio = torch.where(p > 0, tempered / p, torch.zeros_like(p))
    return ratio * _centred(grad.to(p.dtype), tempered)


def tempered_jacobian(
    grad: Float[Tensor, "*rows key"], scores: Float[Tensor, "*rows key"], temperature: float
) -> Float[Tensor, "*rows key"]:
    """``pT (g - sum(pT g))`` with pT = softmax(scores / T), from the scores themselves."""
    s = scores.to(torch.promote_types(scores.dtype, torch.float32))
    tempered = torch.softmax(s / temperature, dim=-1).nan_to_num_(0.0)
    return torch.ops.aten._softmax_backward_data(grad.to(s.dtype), tempered, -1, s.dtype)
