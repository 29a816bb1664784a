"""The only part of the project that knows TransformerLens: hook names, flags and backends."""

from lens_attr.graph.loading import load
from lens_attr.graph.model import (
    VALUE_BIASES_FOLDED,
    WRITING_WEIGHTS_CENTRED,
    ModelGraph,
    backend_class,
    resolve,
)
from lens_attr.graph.naming import ROLES, Role
from lens_attr.graph.points import Activation, Point

__all__ = [
    "ROLES",
    "VALUE_BIASES_FOLDED",
    "WRITING_WEIGHTS_CENTRED",
    "Activation",
    "ModelGraph",
    "Point",
    "Role",
    "backend_class",
    "load",
    "resolve",
]
