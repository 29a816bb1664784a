"""Rules of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lens_attr.graph import ModelGraph
from lens_attr.rules.core import Placement, Rule


@dataclass(frozen=True, kw_only=True)
class Custom(Rule):
    """A gradient function at a role, hook name or glob."""

    at: str
    function: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        """The function's own name."""
        return getattr(self.function, "__name__", "custom")

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        """At every point of the role, or every point the name or glob matches."""
        points = graph.named(self.at)
        return (Placement(point, lambda grad, tape: self.function(grad)) for point in points)


def custom(at: str, **options: Any) -> Callable[[Callable[[Tensor], Tensor]], Custom]:
    """Turn a function of the gradient into a rule.

    Args:
        at: a role (``"z"``, ``"pattern"``, ...), a hook name, or a glob such as
            ``"blocks.*.hook_mlp_out"``.
        options: ``layers=``, ``only=`` as in `Rule`.

    Example:
        >>> import lens_attr as la
        >>> @la.rules.custom(at="z", layers=[0])
        ... def drop_first_layer_attention(grad):
        ...     return grad * 0
        >>> rules = la.rules.attnlrp() + drop_first_layer_attention
    """
    return lambda function: Custom(at=at, function=function, **options)
