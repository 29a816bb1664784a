"""Attribution: the engine, its result, and the registry of methods."""

from lens_attr.attribution.attribute import attribute, compare
from lens_attr.attribution.comparison import Comparison
from lens_attr.attribution.conservation import Conservation
from lens_attr.attribution.generate import attribute_generation
from lens_attr.attribution.generation import Generation, Matrix
from lens_attr.attribution.registry import Method, MethodTable
from lens_attr.attribution.relevance import Pool, Relevance
from lens_attr.attribution.spans import SpanRelevance
from lens_attr.attribution.special_tokens import attention_sinks

__all__ = [
    "Comparison",
    "Conservation",
    "Generation",
    "Matrix",
    "Method",
    "MethodTable",
    "Pool",
    "Relevance",
    "SpanRelevance",
    "attention_sinks",
    "attribute",
    "attribute_generation",
    "compare",
]
