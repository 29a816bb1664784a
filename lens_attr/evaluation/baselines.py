"""Scores that know nothing of the model: what every method has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

Judged = Bool[NDArray[np.bool_], " token"]
Scores = Float[NDArray[np.floating], " token"]


def _random(judged: Judged, seed: int, index: int) -> Scores:
    """Normal noise, the same for a sample whatever stands beside it in a batch."""
    return np.random.default_rng([seed, index]).normal(size=len(judged))


def _first_token(judged: Judged, seed: int, index: int) -> Scores:
    scores = np.zeros(len(judged))
    scores[np.flatnonzero(judged)[0]] = 1.0
    return scores


def _last_token(judged: Judged, seed: int, index: int) -> Scores:
    return _first_token(judged[::-1], seed, index)[::-1]


def _uniform(judged: Judged, seed: int, index: int) -> Scores:
    return np.ones(len(judged))


BASELINES: dict[str, Callable[[Judged, int, int], Scores]] = {
    "random": _random,
    "first_token": _first_token,
    "last_token": _last_token,
    "uniform": _uniform,
}
"""From the mask of judged tokens, the seed and the sample's index to one score per token."""
