"""The same rules, cheaper: nodes in the autograd graph instead of backward hooks of modules.

What a forward hook puts in can leave work out that a backward hook only throws away: gradients
that become zero and what lies behind them, and the true derivative of an operation whose gradient
a rule replaces. Backward hooks are the definition; tests hold the two forms equal.
"""

from __future__ import annotations

from collections.abc import Callable
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
    around = {hook.point.name: hook for hook in hooks if _goes_around(hook)}
    after = {_operation_end(hook): hook for hook in around.values()}
    may_cut = _cuts(graph, by_name)
    for name, hook in by_name.items():
        if name in around:
            continue
        if name in after:
            _bypass(after[name], hook, stack)
        else:
            node = partial(insert_node, backward=partial(_changed, hook))
            hook.point.on_forward(_Inserter(hook, hook.cut if may_cut(hook) else node), stack)


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
    return bool(hook.placed) and hook.placed[0][1].bypasses and not hook.point.watched


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
    """Join the points around an operation by a node of ours."""
    sources: list[Tensor] = []

    def join(activation: Tensor) -> Any:
        if not sources:  # the start never fired: its hook stays silent, which raises
            return None
        return _Bypass.apply(sources.pop(), activation, before, after)

    before.point.on_forward(_Inserter(before, sources.append), stack)
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

    ``after`` stays connected, or hooks that read the gradient there would never fire, but gets
    no gradient, so that autograd walks through the operation without computing anything.
    """

    @staticmethod
    def forward(
        ctx: Any, before: Tensor, after: Tensor, hook_before: PointHook, hook_after: PointHook
    ) -> Tensor:
        ctx.hooks = hook_after, hook_before
        return after.view_as(after)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        for hook in ctx.hooks:
            grad = _changed(hook, grad)
        return grad, None, None, None


def _changed(hook: PointHook, grad: Tensor) -> Tensor:
    result = hook(grad)
    return grad if result is None else result


def _cuts(graph: ModelGraph, ours: dict[str, PointHook]) -> Callable[[PointHook], bool]:
    """Where a zero gradient need not be computed, since no hook waits for it there or behind."""
    forks = {point.name for point in graph.points("norm_scale")}
    if graph.points("mlp_up"):
        forks |= {point.name for point in graph.points("mlp_pre")}
    patterns = {point.name: point for point in graph.points("pattern")}

    places = {hook.point.place for hook in ours.values()}

    def waits(point: Point) -> bool:
        return point.place in places or point.watched

    def may_cut(hook: PointHook) -> bool:
        name = hook.point.name
        if not hook.is_zero or hook.point.watched:
            return False
        if name in patterns:
            return not any(waits(point) for point in graph.behind_pattern(patterns[name]))
        return name in forks

    return may_cut
