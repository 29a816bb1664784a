"""Agreement with a known truth: closed forms, properties, and an independent slow twin."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from lens_attr.errors import InputError, NonFiniteError
from lens_attr.evaluation.intervals import mean_interval, paired_test, ratio_interval
from lens_attr.evaluation.plausibility import (
    Ties,
    conservation_gap,
    per_token_accuracy,
    plausibility,
    pointing_game,
    reciprocal_rank,
    relevance_mass_accuracy,
)

TIES: tuple[Ties, ...] = ("expected", "min", "dense")


def case(scores: list[float], inside: list[int]) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(len(scores), dtype=bool)
    mask[inside] = True
    return np.array(scores, dtype=float), mask


# --- closed forms


def test_each_measure_by_hand() -> None:
    scores, inside = case([0.5, 2.0, -1.0, 1.5], [1, 2])
    assert pointing_game(scores, inside) == 1.0
    assert reciprocal_rank(scores, inside) == 1.0
    assert relevance_mass_accuracy(scores, inside) == 2.0 / 4.0
    assert per_token_accuracy(scores, inside) == 1 / 4
    assert conservation_gap(scores, 4.0) == 1.0


def test_rank_of_the_best_token_inside() -> None:
    scores, inside = case([4.0, 3.0, 2.0, 1.0], [2, 3])
    for ties in TIES:
        assert reciprocal_rank(scores, inside, ties) == 1 / 3
        assert pointing_game(scores, inside, ties) == 0.0


def test_ties_are_counted_three_ways() -> None:
    scores, inside = case([1.0, 1.0, 0.0], [0])
    assert pointing_game(scores, inside, "expected") == 0.5
    assert pointing_game(scores, inside, "min") == pointing_game(scores, inside, "dense") == 1.0
    assert reciprocal_rank(scores, inside, "expected") == (1 + 1 / 2) / 2
    assert reciprocal_rank(scores, inside, "min") == 1.0
    assert reciprocal_rank(scores, inside, "dense") == 1 / 2


def test_equal_scores_say_as_much_as_chance() -> None:
    scores, inside = case([1.0] * 8, [2, 5])
    assert pointing_game(scores, inside) == 2 / 8
    assert relevance_mass_accuracy(scores, inside) == 2 / 8
    assert per_token_accuracy(scores, inside) == 2 / 8
    assert reciprocal_rank(scores, inside, "dense") == 1 / 8


def test_all_zero_relevance_is_degenerate() -> None:
    found = plausibility(*case([0.0] * 4, [1]))
    assert found.degenerate and found.no_positive_mass
    assert (found.pg, found.rma, found.pta) == (1 / 4, 0.0, 3 / 4)
    assert found.mrr == float(Fraction(25, 12) / 4)


def test_negative_relevance_has_no_mass_but_is_not_degenerate() -> None:
    found = plausibility(*case([-1.0, -2.0], [0]))
    assert not found.degenerate and found.no_positive_mass
    assert (found.pg, found.mrr, found.rma, found.pta) == (1.0, 1.0, 0.0, 1 / 2)


@pytest.mark.parametrize("score", [-1.0, 0.0, 2.0])
def test_one_token(score: float) -> None:
    found = plausibility(*case([score], [0]))
    assert (found.pg, found.mrr) == (1.0, 1.0)
    assert found.rma == found.pta == float(score > 0)


@pytest.mark.parametrize(
    ("scores", "inside", "error"),
    [
        ([], [], InputError),
        ([1.0], [], InputError),
        ([math.nan, 1.0], [0], NonFiniteError),
        ([math.inf, 1.0], [0], NonFiniteError),
    ],
)
def test_what_cannot_be_judged_is_refused(
    scores: list[float], inside: list[int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        plausibility(*case(scores, inside))


def test_unknown_ties_and_shapes_are_refused() -> None:
    scores, inside = case([1.0, 2.0], [0])
    with pytest.raises(InputError, match="did you mean 'dense'"):
        plausibility(scores, inside, "dens")  # type: ignore[arg-type]
    with small.untyped(), pytest.raises(InputError, match="one per token"):
        plausibility(scores, inside[:1])


# --- properties

values = st.integers(-40, 40).map(lambda i: i / 8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    scores = draw(st.lists(values, min_size=1, max_size=9))
    inside = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    inside[draw(st.integers(0, len(scores) - 1))] = True
    return np.array(scores), np.array(inside)


@given(cases(), st.randoms(use_true_random=False), st.sampled_from(TIES))
def test_the_order_of_tokens_does_not_matter(
    sample: tuple[np.ndarray, np.ndarray], rng: random.Random, ties: Ties
) -> None:
    scores, inside = sample
    order = list(range(len(scores)))
    rng.shuffle(order)
    assert plausibility(scores[order], inside[order], ties) == plausibility(scores, inside, ties)


@given(cases(), st.floats(1e-6, 1e6), st.sampled_from(TIES))
def test_a_positive_factor_does_not_matter(
    sample: tuple[np.ndarray, np.ndarray], factor: float, ties: Ties
) -> None:
    scores, inside = sample
    plain, scaled = plausibility(scores, inside, ties), plausibility(scores * factor, inside, ties)
    assert scaled.rma == pytest.approx(plain.rma, rel=1e-12)
    assert (scaled.pg, scaled.mrr, scaled.pta) == (plain.pg, plain.mrr, plain.pta)
    assert scaled.degenerate == plain.degenerate


@given(cases())
def test_a_negative_factor_does_matter_where_anything_differs(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, inside = sample
    pointed = pointing_game(scores, inside, "min"), pointing_game(-scores, inside, "min")
    lowest, highest = scores == scores.min(), scores == scores.max()
    assert pointed == (float((highest & inside).any()), float((lowest & inside).any()))


@given(cases(), st.sampled_from(TIES))
def test_everything_lies_between_zero_and_one(
    sample: tuple[np.ndarray, np.ndarray], ties: Ties
) -> None:
    found = plausibility(*sample, ties)
    assert all(0.0 <= one <= 1.0 for one in (found.pg, found.mrr, found.rma, found.pta))
    assert found.pg <= found.mrr or ties == "dense"


@given(cases(), st.sampled_from(TIES))
def test_all_positive_mass_inside_is_perfect(
    sample: tuple[np.ndarray, np.ndarray], ties: Ties
) -> None:
    _, inside = sample
    distinct = np.where(inside, 1.0 + np.arange(len(inside)), -np.arange(len(inside)) / 2)
    found = plausibility(distinct, inside, ties)
    assert (found.pg, found.mrr, found.rma, found.pta) == (1.0, 1.0, 1.0, 1.0)


@given(cases())
def test_without_ties_the_three_ranks_agree(sample: tuple[np.ndarray, np.ndarray]) -> None:
    _, inside = sample
    distinct = np.random.default_rng(len(inside)).permutation(len(inside)).astype(float)
    assert len({reciprocal_rank(distinct, inside, ties) for ties in TIES}) == 1
    assert len({pointing_game(distinct, inside, ties) for ties in TIES}) == 1


@given(st.integers(1, 12), st.data())
def test_all_zero_counts_as_a_uniform_guess(n: int, data: st.DataObject) -> None:
    inside = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    inside[0] = True
    found = plausibility(np.zeros(n), inside)
    assert found.degenerate and found.pg == inside.mean()


# --- an independent slow twin, in rational numbers, over every order of equal tokens


def slow(scores: list[Fraction], inside: list[bool], ties: Ties) -> dict[str, float]:
    positive = [max(score, Fraction(0)) for score in scores]
    mass = sum(positive)
    hit = sum(p for p, is_in in zip(positive, inside, strict=True) if is_in)
    right = [(score > 0) == is_in for score, is_in in zip(scores, inside, strict=True)]
    return {
        "pg": float(slow_pointing(scores, inside, ties)),
        "mrr": float(slow_rank(scores, inside, ties)),
        "rma": float(Fraction(hit) / mass) if mass else 0.0,
        "pta": float(Fraction(sum(right), len(right))),
    }


def orders(scores: list[Fraction], inside: list[bool]) -> list[list[bool]]:
    """The truth of the tokens from best to worst, in every equally likely way."""
    levels = sorted(set(scores), reverse=True)
    groups = [[i for s, i in zip(scores, inside, strict=True) if s == level] for level in levels]
    ways = [sorted(set(itertools.permutations(group))) for group in groups]
    return [[one for group in way for one in group] for way in itertools.product(*ways)]


def slow_pointing(scores: list[Fraction], inside: list[bool], ties: Ties) -> Fraction:
    if ties == "expected":
        found = orders(scores, inside)
        return Fraction(sum(order[0] for order in found), len(found))
    best = max(scores)
    return Fraction(any(i for s, i in zip(scores, inside, strict=True) if s == best))


def slow_rank(scores: list[Fraction], inside: list[bool], ties: Ties) -> Fraction:
    if ties == "expected":
        found = orders(scores, inside)
        return sum(Fraction(1, order.index(True) + 1) for order in found) / len(found)
    if ties == "min":
        ranks = [1 + sum(other > score for other in scores) for score in scores]
    else:
        dense = rankdata([float(score) for score in scores], "dense").astype(int).tolist()
        ranks = [len(scores) - rank + 1 for rank in dense]
    return Fraction(1, min(rank for rank, i in zip(ranks, inside, strict=True) if i))


@pytest.mark.parametrize("ties", TIES)
def test_a_thousand_random_cases_agree_exactly(ties: Ties) -> None:
    rng = random.Random(f"plausibility {ties}")
    for _ in range(1000):
        n = rng.randint(1, 8)
        levels = rng.choice([1, 2, 3, 16])
        scores = [Fraction(rng.randint(-levels, levels), 8) for _ in range(n)]
        inside = [rng.random() < 0.4 for _ in range(n)]
        inside[rng.randrange(n)] = True
        found = plausibility(np.array([float(s) for s in scores]), np.array(inside), ties)
        expected = slow(scores, inside, ties)
        assert {name: getattr(found, name) for name in expected} == expected, (scores, inside)


# --- intervals


def test_an_interval_is_seeded_and_holds_its_mean() -> None:
    rng = np.random.default_rng(3)
    sample = rng.normal(size=400)
    before = np.random.get_state()[1].tolist()
    first, second, other = (mean_interval(sample, seed) for seed in (0, 0, 1))
    assert np.random.get_state()[1].tolist() == before
    assert first == second != other
    assert first.low < first.value < first.high and first.n == 400
    assert first.high - first.low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.15)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        interval = mean_interval((rng.random(80) < 0.3).astype(float), seed, resamples=400)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_intervals_of_nothing_and_of_one() -> None:
    empty = mean_interval(np.array([]))
    assert math.isnan(empty.value) and empty.n == 0
    one = mean_interval(np.array([0.5]))
    assert (one.value, one.low, one.high) == (0.5, 0.5, 0.5)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        mean_interval(np.array([1.0, math.nan]))


def test_a_ratio_of_means_resamples_both_together() -> None:
    below = np.array([1.0, 2.0, 4.0, 8.0])
    interval = ratio_interval(below * 3, below)
    assert (interval.value, interval.low, interval.high) == (3.0, 3.0, 3.0)


def test_paired_samples_find_what_separate_intervals_miss() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=200)
    better = base + 0.05 + 0.05 * rng.normal(size=200)
    assert not mean_interval(base).apart(mean_interval(better))
    assert paired_test(better, base).p < 0.01
    assert paired_test(better, base).difference.low > 0


def test_equal_runs_are_not_told_apart() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(size=100)
    assert paired_test(same, same).p == 1.0
    p_values = [
        paired_test(rng.normal(size=40), rng.normal(size=40), seed, flips=200).p
        for seed in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
