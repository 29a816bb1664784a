"""Uncertainty of a mean over samples: bootstrap intervals and paired tests, seeded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr.errors import InputError

RESAMPLES = 2000
LEVEL = 0.95
_DRAWN_AT_ONCE = 4_000_000
"""Resampled values held in memory at a time."""

Values = Float[NDArray[np.floating], " n"]


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that its bootstrap distribution covers.

    Attributes:
        value: the mean; NaN without samples.
        low: lower end.
        high: upper end.
        n: number of samples.
    """

    value: float
    low: float
    high: float
    n: int

    def apart(self, other: Interval) -> bool:
        """Whether the two intervals do not touch."""
        return self.low > other.high or other.low > self.high


def mean_interval(
    values: Values, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """The mean with its percentile bootstrap interval (Efron 1979).

    Raises:
        InputError: a value is NaN or infinite, or ``level`` is not between 0 and 1.
    """
    return ratio_interval(values, np.ones(len(values)), seed, resamples, level)


def mean_intervals(values: Mapping[str, Values], seed: int) -> dict[str, Interval]:
    """`mean_interval` of each."""
    return {name: mean_interval(one, seed) for name, one in values.items()}


def ratio_interval(
    above: Values, below: Values, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """mean(above) / mean(below) over the same resampled samples.

    Raises:
        InputError: as `mean_interval`, or the two differ in length.
    """
    _check(above, below, resamples, level)
    n = len(above)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    pairs = [
        (above[index].mean(axis=1), below[index].mean(axis=1))
        for index in _resampled(rng, n, resamples)
    ]
    tops, bottoms = (np.concatenate(side) for side in zip(*pairs, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.quantile(tops / bottoms, [(1 - level) / 2, (1 + level) / 2])
        value = above.mean() / below.mean()
    return Interval(float(value), float(low), float(high), n)


def median_interval(
    values: Values, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """The median with its percentile bootstrap interval, for what has outliers (times).

    Raises:
        InputError: as `mean_interval`.
    """
    _check(values, values, resamples, level)
    if not len(values):
        return Interval(np.nan, np.nan, np.nan, 0)
    parts = _resampled(np.random.default_rng(seed), len(values), resamples)
    medians = np.concatenate([np.median(values[index], axis=1) for index in parts])
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.median(values)), float(low), float(high), len(values))


def _check(above: Values, below: Values, resamples: int, level: float) -> None:
    if len(above) != len(below):
        raise InputError(f"{len(above)} values over {len(below)}: give one each.")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        raise InputError("a value is NaN or infinite: its mean says nothing.")
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"level must be in (0, 1) and resamples positive: {level}, {resamples}.")


def _resampled(rng: np.random.Generator, n: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Indices [some resamples, n], a bounded number at a time."""
    at_once = max(1, _DRAWN_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        yield rng.integers(n, size=(min(at_once, resamples - start), n))


@dataclass(frozen=True)
class Paired:
    """The mean difference of two measurements of the same samples.

    Attributes:
        difference: mean of first - second, with its bootstrap interval.
        p: two-sided p-value of the sign-flip permutation test: how often a difference at least
            as large comes up when the two are exchanged at random, sample by sample.
    """

    difference: Interval
    p: float


def paired_test(first: Values, second: Values, seed: int = 0, flips: int = RESAMPLES) -> Paired:
    """Compare two measurements of the same samples.

    Raises:
        InputError: different lengths, or values that are not finite.
    """
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} samples cannot be paired.")
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    interval = mean_interval(differences, seed)
    if not len(differences):
        return Paired(interval, np.nan)
    rng = np.random.default_rng([seed, 1])
    observed, reached = abs(differences.sum()), 0
    for index in _resampled(rng, len(differences), flips):
        signs = rng.integers(2, size=index.shape) * 2 - 1
        reached += int((np.abs(signs @ differences) >= observed * (1 - 1e-12)).sum())
    return Paired(interval, (reached + 1) / (flips + 1))
