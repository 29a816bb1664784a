"""How well relevance agrees with the tokens that are known to decide the answer (LRPx, 5.1).

Every function takes the scores of one sample's tokens and a mask that is True on the tokens of
the ground truth. Tokens that are not to be judged (special ones, a question) are left out of both
before. All measures are in [0, 1] and higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from lens_attr.errors import InputError, NonFiniteError, did_you_mean

Ties = Literal["expected", "min", "dense"]
"""The rank of a token among equals.

``"expected"``: what is to be expected when equal tokens are put in random order. ``"min"``: 1 +
the number of tokens with a strictly higher score. ``"dense"``: n - r + 1, with r the dense rank
(``scipy.stats.rankdata(x, "dense")``) of n tokens, as the code published with LRPx counts; with
ties no token has rank 1, so it collapses where relevance is mostly equal.
"""

Scores = Float[NDArray[np.floating], " token"]
Inside = Bool[NDArray[np.bool_], " token"]


@dataclass(frozen=True)
class Plausibility:
    """Every measure of one sample.

    Attributes:
        pg: `pointing_game`.
        mrr: `reciprocal_rank`.
        rma: `relevance_mass_accuracy`.
        pta: `per_token_accuracy`.
        degenerate: whether every score is zero, so that the sample says nothing.
        no_positive_mass: whether no score is positive; its ``rma`` is then 0.
    """

    pg: float
    mrr: float
    rma: float
    pta: float
    degenerate: bool
    no_positive_mass: bool


def plausibility(scores: Scores, inside: Inside, ties: Ties = "expected") -> Plausibility:
    """All measures at once.

    Raises:
        InputError: no tokens, no ground truth, shapes that differ, or unknown ``ties``.
        NonFiniteError: a score is NaN or infinite.
    """
    return Plausibility(
        pg=pointing_game(scores, inside, ties),
        mrr=reciprocal_rank(scores, inside, ties),
        rma=relevance_mass_accuracy(scores, inside),
        pta=per_token_accuracy(scores, inside),
        degenerate=not scores.any(),
        no_positive_mass=not (scores > 0).any(),
    )


def pointing_game(scores: Scores, inside: Inside, ties: Ties = "expected") -> float:
    """1 if the token of highest score lies inside, else 0 (Zhang et al. 2018).

    Where several share the highest score: the share of them that lie inside (``"expected"``), or
    1 if any does (``"min"``, ``"dense"``).

    Raises:
        InputError, NonFiniteError: see `plausibility`.
    """
    _check(scores, inside, ties)
    top = scores == scores.max()
    if ties == "expected":
        return int((top & inside).sum()) / int(top.sum())
    return float((top & inside).any())


def reciprocal_rank(scores: Scores, inside: Inside, ties: Ties = "expected") -> float:
    """1 / rank of the best token inside; its mean over samples is the MRR.

    Raises:
        InputError, NonFiniteError: see `plausibility`.
    """
    _check(scores, inside, ties)
    best = scores[inside].max()
    if ties == "dense":
        dense_rank = int((np.unique(scores) <= best).sum())
        return 1.0 / (len(scores) - dense_rank + 1)
    above = int((scores > best).sum())
    if ties == "min":
        return 1.0 / (above + 1)
    tied = scores == best
    return _expected_reciprocal(above, int(tied.sum()), int((tied & inside).sum()))


@lru_cache(maxsize=4096)
def _expected_reciprocal(above: int, tied: int, hits: int) -> float:
    """Mean of 1 / (above + j), j the place of the first hit among ``tied`` in random order.

    Exact: there are C(tied - j, hits - 1) ways to put the first of the hits in place j.
    """
    ways = math.comb(tied, hits)
    terms = (
        Fraction(math.comb(tied - j, hits - 1), ways * (above + j))
        for j in range(1, tied - hits + 2)
    )
    return float(sum(terms))


def relevance_mass_accuracy(scores: Scores, inside: Inside) -> float:
    """Positive relevance inside over all positive relevance; 0 where there is none (RMA).

    Raises:
        InputError, NonFiniteError: see `plausibility`.
    """
    _check(scores, inside)
    whole = _positive_mass(scores)
    return _positive_mass(scores[inside]) / whole if whole > 0 else 0.0


def _positive_mass(scores: Scores) -> float:
    """Summed exactly, so that the order of tokens does not matter."""
    return math.fsum(scores[scores > 0].tolist())


def per_token_accuracy(scores: Scores, inside: Inside) -> float:
    """Share of tokens of the right sign: positive inside, zero or negative outside (PTA).

    Raises:
        InputError, NonFiniteError: see `plausibility`.
    """
    _check(scores, inside)
    return int(((scores > 0) == inside).sum()) / len(scores)


def conservation_gap(scores: Scores, target_value: float) -> float:
    """target - summed relevance, in the target's unit; 0 for a method that conserves.

    Of all tokens, those that are not judged included.
    """
    return target_value - math.fsum(np.asarray(scores, dtype=float).tolist())


def _check(scores: Scores, inside: Inside, ties: str = "expected") -> None:
    known: Sequence[str] = get_args(Ties)
    if ties not in known:
        raise InputError(f"unknown ties {ties!r}; {did_you_mean(str(ties), known)}")
    if scores.shape != inside.shape or scores.ndim != 1:
        raise InputError(f"scores {scores.shape} and truth {inside.shape} must be one per token.")
    if not len(scores):
        raise InputError("there are no tokens to judge.")
    if not inside.any():
        raise InputError("no token is marked as ground truth.")
    if not np.isfinite(scores).all():
        raise NonFiniteError("a score is NaN or infinite.")
