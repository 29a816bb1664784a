"""Rules as plain TransformerLens hook lists, for ``model.hooks`` and ``run_with_hooks``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import ModelGraph, Point
from lens_attr.rules.core import RuleSet, Tape
from lens_attr.rules.session import point_hooks

LensHook = Callable[..., "Tensor | None"]


class HookLists(TypedDict):
    """Keyword arguments of ``model.hooks``."""

    fwd_hooks: list[tuple[str, LensHook]]
    bwd_hooks: list[tuple[str, LensHook]]


def hook_lists(graph: ModelGraph, rules: RuleSet) -> HookLists:
    """The rules of one model as TransformerLens hooks that share one tape.

    Raises:
        UnsupportedModelError: a rule acts where TransformerLens has no HookPoint.
    """
    tape = Tape()
    hooks, values = point_hooks(graph, rules, tape)
    for hook in hooks:
        if hook.point.name not in graph.model.hook_dict:
            raise UnsupportedModelError(
                f"{hook.point.name} is no HookPoint, so model.hooks cannot reach it: use "
                "`with rules.on(model):` or la.attribute, which can."
            )

    def forward_hook(point: Point) -> LensHook:
        def capture(activation: Tensor, hook: Any) -> None:
            tape.record_value(point, activation)

        return capture

    def backward_hook(point_hook: Callable[[Tensor], Tensor | None]) -> LensHook:
        return lambda grad, hook: point_hook(grad)

    return {
        "fwd_hooks": [(point.name, forward_hook(point)) for point in values],
        "bwd_hooks": [(hook.point.name, backward_hook(hook)) for hook in hooks],
    }
