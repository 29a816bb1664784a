"""lens_attr: which tokens, heads and edges made this prediction, and can you trust the answer?

    >>> import lens_attr as la
    >>> model = la.load("demo-gpt2")
    >>> target = la.LogitDiff(" are", " is")
    >>> r = la.attribute(model, "the keys to the cabinet", target, method="attnlrp")

Names are imported when first used, so that ``import lens_attr`` costs nothing by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lens_attr._version import __version__

if TYPE_CHECKING:
    from lens_attr import circuits, evaluation, plots, rules, runs
    from lens_attr.attribution import (
        Comparison,
        Generation,
        MethodTable,
        Relevance,
        SpanRelevance,
        attention_sinks,
        attribute,
        attribute_generation,
        compare,
    )
    from lens_attr.errors import (
        InputError,
        LensAttrError,
        NonFiniteError,
        Notice,
        RuleConflictError,
        RuleNotAppliedError,
        SavedResultError,
        UnsupportedModelError,
    )
    from lens_attr.graph import load
    from lens_attr.rules.audit import Audit, check
    from lens_attr.runs import Job, run
    from lens_attr.targets import Logit, LogitDiff, LogProb, Metric, TopLogit, sample_inputs
    from lens_attr.types import Sample

_HOME = {
    "Comparison": "attribution",
    "Generation": "attribution",
    "MethodTable": "attribution",
    "Relevance": "attribution",
    "SpanRelevance": "attribution",
    "attention_sinks": "attribution",
    "attribute": "attribution",
    "attribute_generation": "attribution",
    "compare": "attribution",
    "InputError": "errors",
    "LensAttrError": "errors",
    "NonFiniteError": "errors",
    "Notice": "errors",
    "RuleConflictError": "errors",
    "RuleNotAppliedError": "errors",
    "SavedResultError": "errors",
    "UnsupportedModelError": "errors",
    "load": "graph",
    "Audit": "rules.audit",
    "check": "rules.audit",
    "Job": "runs",
    "run": "runs",
    "LogProb": "targets",
    "Logit": "targets",
    "LogitDiff": "targets",
    "Metric": "targets",
    "TopLogit": "targets",
    "sample_inputs": "targets",
    "Sample": "types",
}
_MODULES = ("circuits", "evaluation", "plots", "rules", "runs")

__all__ = [
    "Audit",
    "Comparison",
    "Generation",
    "InputError",
    "Job",
    "LensAttrError",
    "LogProb",
    "Logit",
    "LogitDiff",
    "MethodTable",
    "Metric",
    "NonFiniteError",
    "Notice",
    "Relevance",
    "RuleConflictError",
    "RuleNotAppliedError",
    "Sample",
    "SavedResultError",
    "SpanRelevance",
    "TopLogit",
    "UnsupportedModelError",
    "__version__",
    "attention_sinks",
    "attribute",
    "attribute_generation",
    "check",
    "circuits",
    "compare",
    "evaluation",
    "load",
    "methods",
    "plots",
    "rules",
    "run",
    "runs",
    "sample_inputs",
]


def methods() -> MethodTable:
    """Every method, what it is defined for, what it costs and where it comes from."""
    return importlib.import_module("lens_attr.attribution").MethodTable()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"lens_attr.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"lens_attr.{name}")
    raise AttributeError(f"module 'lens_attr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
