"""Is an attribution right? Plausibility on ground truth, and faithfulness by deletion."""

from lens_attr.evaluation.intervals import Interval, Paired, mean_interval, paired_test
from lens_attr.evaluation.plausibility import Plausibility, Ties, plausibility

__all__ = [
    "Interval",
    "Paired",
    "Plausibility",
    "Ties",
    "mean_interval",
    "paired_test",
    "plausibility",
]
