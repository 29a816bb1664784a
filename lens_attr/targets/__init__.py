"""What is explained: `Logit`, `LogitDiff`, `LogProb`, `TopLogit`, `Metric`."""

from lens_attr.targets.greater_than import GreaterThan
from lens_attr.targets.resolved import Resolved
from lens_attr.targets.samples import sample_inputs
from lens_attr.targets.targets import (
    Logit,
    LogitDiff,
    LogProb,
    Metric,
    Target,
    TopLogit,
    refuse_no_target,
)

__all__ = [
    "GreaterThan",
    "LogProb",
    "Logit",
    "LogitDiff",
    "Metric",
    "Resolved",
    "Target",
    "TopLogit",
    "refuse_no_target",
    "sample_inputs",
]
