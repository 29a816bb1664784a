"""What can be removed or patched, and where it stands in the model."""

from __future__ import annotations

from typing import Literal

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import ModelGraph, Point, Role

Unit = Literal["head", "mlp", "neuron"]
"""What pruning removes: an attention head (its z), an MLP layer (its output), or one neuron of an
MLP (its activation, times up where the MLP is gated)."""

ROLE_OF: dict[Unit, Role] = {"head": "z", "mlp": "mlp_out", "neuron": "mlp_post"}


def per_layer(graph: ModelGraph, unit: Unit) -> int:
    """How many units of a kind one layer has."""
    return {"head": graph.n_heads, "mlp": 1, "neuron": graph.cfg.d_mlp}[unit]


def points_of(graph: ModelGraph, role: Role) -> list[Point]:
    """The points of a role, one per layer.

    Raises:
        UnsupportedModelError: a layer has none.
    """
    points = graph.points(role)[: graph.n_layers]
    if len(points) < graph.n_layers:
        raise UnsupportedModelError(
            f"{graph.architecture} on {graph.backend} has no {role!r} hook point in every layer."
        )
    return points
