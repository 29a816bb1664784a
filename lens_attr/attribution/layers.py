"""Activations of one block at a time, handed on as soon as a forward has them and then let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import ModelGraph, Role

Activations = dict[Role, Tensor]
"""What one block computed, by role."""

Visit = Callable[[int, Activations], None]
"""Takes a block's index and its activations."""


@contextmanager
def visiting_blocks(graph: ModelGraph, roles: Sequence[Role], visit: Visit) -> Iterator[None]:
    """The forward inside calls ``visit`` once per block, in order.

    Nothing is kept beyond the visit: the patterns of a whole model would need n_layers times the
    memory of one block's.

    Raises:
        UnsupportedModelError: a block whose activations did not come, named.
    """
    reader = _BlockReader(roles, visit)
    with ExitStack() as stack:
        for role in roles:
            for layer, point in enumerate(graph.points(role)[: graph.n_layers]):
                point.on_forward(partial(reader.arrived, layer, role), stack)
        yield
    reader.refuse_unread(graph.n_layers)


class _BlockReader:
    """Collects what each block fires until it is complete."""

    def __init__(self, roles: Sequence[Role], visit: Visit) -> None:
        self._roles = roles
        self._visit = visit
        self._waiting: dict[int, Activations] = {}
        self._visited: set[int] = set()

    def arrived(self, layer: int, role: Role, activation: Tensor) -> None:
        """Forward hook."""
        if layer in self._visited:
            return
        present = self._waiting.setdefault(layer, {})
        present[role] = activation.detach()
        if len(present) == len(self._roles):
            self._visited.add(layer)
            self._visit(layer, self._waiting.pop(layer))

    def refuse_unread(self, n_layers: int) -> None:
        """Raise unless every block was visited."""
        for layer in set(range(n_layers)) - self._visited:
            missing = sorted(set(self._roles) - set(self._waiting.get(layer, {})))
            raise UnsupportedModelError(
                f"block {layer} fired no hook for {', '.join(missing)}, which this method reads; "
                'on the Bridge patterns need attn_implementation="eager".'
            )
