"""Late binding from a result object to its figure.

Results live low in the house and figures high, and imports point downwards only. This is the one
deliberate exception, kept in one place: ``result.plot()`` looks the plots package up by name when
it is called, so that importing a result never imports plotly.
"""

from __future__ import annotations

import importlib
from typing import Any


def figure_of(kind: str, result: Any, /, **options: Any) -> Any:
    """The plotly figure that ``lens_attr.plots.<kind>(result, **options)`` draws."""
    plots = importlib.import_module("lens_attr.plots")
    return getattr(plots, kind)(result, **options)
