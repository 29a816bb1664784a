"""The same rules, cheaper: nodes in the autograd graph instead of backward hooks of modules.

What a forward hook puts in can leave work out that a backward hook only throws away: gradients
that become zero and what lies behind them, and the true derivative of an operation whose gradient
a rule replaces. Backward hooks are the definition; tests hold the two forms equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_attr.graph import ModelGraph, Point

if TYPE_CHECKING:
    from lens_attr.rules.session import PointHook


def install_lowered(graph: ModelGraph, hooks: list[PointHook], stack: ExitStack) -> None:
    """Put the rules of every point into the graph of each forward until ``stack`` closes.

    A rule that bypasses an operation is put in as ordinary nodes where someone else's backward
    hook stands at the point it would go around.
    """
    by_name = {hook.point.name: hook for hook in hooks}
    unobserved = _Unobserved(graph, hooks)
    cut = {name for name, hook in by_name.items() if unobserved.cuts(hook)}
    around = {name for name, hook in by_name.items() if name not in cut and _goes_around(hook)}
    after = {_operation_end(by_name[name]): by_name[name] for name in around}
    for name, hook in by_name.items():
        if name in around:
            continue
        if name in after:
            _bypass(after[name], hook, stack)
            continue
        node = partial(insert_node, backward=partial(_changed, hook))
        points = unobserved.factors_at(hook)
        hook.calls_per_backward = len(points)
        for point in points:
            point.on_forward(_Inserter(hook, hook.cut if name in cut else node), stack)


def read_gradient(activation: Tensor, read: Callable[[Tensor], None]) -> Tensor | None:
    """``activation``, to be returned by a forward hook; ``read`` gets the gradient that arrives."""

    def unchanged(grad: Tensor) -> Tensor:
        read(grad)
        return grad

    return insert_node(activation, unchanged)


def insert_node(activation: Tensor, backward: Callable[[Tensor], Tensor]) -> Any:
    """``activation`` with a function of the gradient behind it, if a backward can follow."""
    return _Node.apply(activation, backward) if activation.requires_grad else None


def _goes_around(hook: PointHook) -> bool:
    bypasses = hook.placed[0][1].bypasses if hook.placed else None
    return bypasses is not None and not hook.point.watched


def _operation_end(hook: PointHook) -> str:
    return hook.placed[0][1].grads[0].name


class _Inserter:
    """A forward hook that extends the graph, unless nothing will be differentiated."""

    def __init__(self, hook: PointHook, put_in: Callable[[Tensor], Tensor | None]) -> None:
        self.session = hook.session
        self.put_in = put_in

    def __call__(self, activation: Tensor) -> Tensor | None:
        suspended = self.session is not None and self.session.suspended
        return self.put_in(activation) if activation.requires_grad and not suspended else None


def _bypass(before: PointHook, after: PointHook, stack: ExitStack) -> None:
    """Join the points around an operation by a node of ours.

    Where the operation reads more than ``before`` (a gate multiplies something), what it reads of
    ``before`` is cut off and the rest keeps its gradient.
    """
    sources: list[Tensor] = []
    alone = before.placed[0][1].bypasses == "all"

    def leave(activation: Tensor) -> Tensor | None:
        sources.append(activation)
        return None if alone else activation.detach()

    def join(activation: Tensor) -> Any:
        if not sources:  # the start never fired: its hook stays silent, which raises
            return None
        return _Bypass.apply(sources.pop(), activation, before, after, alone)

    before.point.on_forward(_Inserter(before, leave), stack)
    after.point.on_forward(_Inserter(after, join), stack)


class _Node(torch.autograd.Function):
    """The identity forward; backward, a function of the gradient."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, backward: Callable[[Tensor], Any]) -> Tensor:
        ctx.change = backward
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.change(*grads), None


class _Bypass(torch.autograd.Function):
    """What an operation made of ``before``, with the rules of both ends as its backward.

    ``after`` stays connected, or hooks that read the gradient there would never fire. If the
    operation reads ``before`` alone, it gets no gradient, so that autograd walks through the
    operation without computing anything.
    """

    @staticmethod
    def forward(
        ctx: Any,
        before: Tensor,
        after: Tensor,
        hook_before: PointHook,
        hook_after: PointHook,
        alone: bool,
    ) -> Tensor:
        ctx.hooks = hook_before, hook_after
        ctx.alone = alone
        return after.view_as(after)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hook_before, hook_after = ctx.hooks
        at_end = _changed(hook_after, *grads)
        return _changed(hook_before, at_end), None if ctx.alone else at_end, None, None, None


def _changed(hook: PointHook, grad: Tensor) -> Tensor:
    result = hook(grad)
    return grad if result is None else result


class _Unobserved:
    """What nobody looks at may be computed otherwise, or not at all."""

    def __init__(self, graph: ModelGraph, ours: Sequence[PointHook]) -> None:
        self.graph = graph
        self.places = {hook.point.place for hook in ours}
        self.patterns = {point.name for point in graph.points("pattern")}
        self.sides = [*graph.points("q"), *graph.points("k")]
        self.forks = {point.name for point in graph.points("norm_scale")}
        if graph.points("mlp_up"):
            self.forks |= {point.name for point in graph.points("mlp_pre")}

    def cuts(self, hook: PointHook) -> bool:
        """Whether the gradient there is zero and need not be computed."""
        if not hook.is_zero or hook.point.watched:
            return False
        return hook.point.name in self.forks or self._behind_pattern(hook.point)

    def factors_at(self, hook: PointHook) -> list[Point]:
        """Where the hook acts: a factor of the pattern at q and k instead, which are smaller.

        Scores are linear in each of them, and so is the derivative of the softmax in its gradient.
        """
        only_factors = all(placement.factor for _, placement in hook.placed)
        movable = only_factors and not hook.is_read and not hook.point.watched
        if not (movable and self._behind_pattern(hook.point)):
            return [hook.point]
        return [point for point in self.sides if point.layer == hook.point.layer]

    def _behind_pattern(self, point: Point) -> bool:
        """Whether it is a pattern, and no hook waits for a gradient that comes through it."""
        return point.name in self.patterns and not any(
            behind.place in self.places or behind.watched
            for behind in self.graph.behind_pattern(point)
        )
