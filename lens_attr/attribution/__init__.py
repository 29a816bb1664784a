"""Attribution: the engine, its result, and the registry of methods."""

from lens_attr.attribution.attribute import attribute, compare
from lens_attr.attribution.comparison import Comparison
from lens_attr.attribution.conservation import Conservation
from lens_attr.attribution.registry import Method, MethodTable
from lens_attr.attribution.relevance import Pool, Relevance
from lens_attr.attribution.special_tokens import attention_sinks

__all__ = [
    "Comparison",
    "Conservation",
    "Method",
    "MethodTable",
    "Pool",
    "Relevance",
    "attention_sinks",
    "attribute",
    "compare",
]
