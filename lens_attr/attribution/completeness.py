"""How far relevance is from adding up to F(x) - F(baseline), and what the reader is told of it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lens_attr.attribution.embeddings import Baseline, is_zero

TOLERATED_GAP = 0.05
"""Completeness gap, as a share of F(x) - F(baseline), above which the result carries a notice."""

ROUNDING = 1e-5
"""Of the two values themselves: below it a gap means nothing."""


def incomplete(
    what: str,
    value: Float[Tensor, " batch"],
    baseline_value: Float[Tensor, " batch"],
    gap: Float[Tensor, " batch"],
    remedy: str,
) -> list[str]:
    """The notice where the gap is too large, else nothing.

    Args:
        what: has the gap.
        value: F(x).
        baseline_value: F(baseline).
        gap: the sum of the relevance, less their difference.
        remedy: what makes it smaller, a sentence.
    """
    change = (value - baseline_value).abs()
    rounding = ROUNDING * (value.abs() + baseline_value.abs())
    off = gap.abs() > TOLERATED_GAP * change + rounding
    if not bool(off.any()):
        return []
    worst = float((gap.abs() / change.clamp_min(1e-30))[off].max())
    return [
        f"{what} does not sum to F(x) - F(baseline): the completeness gap is up to {worst:.0%} of "
        f'that difference (r.extra["completeness_gap"]). {remedy}'
    ]


def remedy(unit: str, number: int, baseline: Baseline) -> str:
    """What makes the gap of a path smaller.

    Args:
        unit: what the path is made of: ``"steps"``, ``"samples"``.
        number: how many there are now.
        baseline: where the path starts.
    """
    if is_zero(baseline):
        return (
            f"Take more {unit} (now {number}), or a token as the baseline (baseline="
            '"pad"): a model that normalises its embeddings first changes abruptly near zero.'
        )
    return f"Take more {unit} (now {number}), or a baseline nearer to the text."
