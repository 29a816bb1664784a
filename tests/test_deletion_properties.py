"""Deletion and the conservation gap: what holds for every input, and a slow twin in loops."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_attr.evaluation import Deletion
from lens_attr.evaluation.deletion import count, headline, kept_tokens, ranked
from lens_attr.evaluation.plausibility import conservation_gap

METRICS = ("comprehensiveness", "sufficiency", "log_odds")
whole_numbers = st.integers(-50, 50)
probability = st.floats(1e-6, 1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@st.composite
def texts(draw: st.DrawFn, distinct: bool = False) -> tuple[list[list[int]], np.ndarray]:
    """Words of one to three tokens behind a special one, and whole-numbered scores."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    ends = np.cumsum(sizes)
    words = [list(range(end - n + 1, end + 1)) for n, end in zip(sizes, ends.tolist(), strict=True)]
    scores = np.zeros(1 + sum(sizes))
    scores[0] = 1000
    totals = draw(
        st.lists(whole_numbers, min_size=len(words), max_size=len(words), unique=distinct)
    )
    for word, total in zip(words, totals, strict=True):
        scores[word[0]] = total
        if len(word) > 1:
            scores[word[0]] -= 7
            scores[word[-1]] += 7
    return words, scores


def totals(words: list[list[int]], scores: np.ndarray) -> list[float]:
    return [float(sum(scores[i] for i in word)) for word in words]


# --- ranking


@given(texts(), st.integers(0, 9))
def test_every_word_is_ranked_once_and_none_above_a_higher_one(text: Any, seed: int) -> None:
    words, scores = text
    order = ranked(words, scores, rng(seed))
    assert sorted(order) == list(range(len(words)))
    values = [totals(words, scores)[i] for i in order]
    assert values == sorted(values, reverse=True)
    assert order == ranked(words, scores, rng(seed))


@given(texts(distinct=True), st.randoms(use_true_random=False))
def test_the_order_of_words_does_not_matter(text: Any, random: Any) -> None:
    words, scores = text
    places = list(range(len(words)))
    random.shuffle(places)
    order = ranked([words[i] for i in places], scores, rng())
    assert [places[i] for i in order] == ranked(words, scores, rng(5))


@given(texts(), st.sampled_from([0.25, 2.0, 3.0, 1024.0]))
def test_a_positive_factor_does_not_matter(text: Any, factor: float) -> None:
    words, scores = text
    assert ranked(words, factor * scores, rng()) == ranked(words, scores, rng())


@given(st.integers(1, 6))
def test_scores_that_are_all_zero_are_ranked_as_chance_has_it(n: int) -> None:
    words = [[i] for i in range(n)]
    firsts = {ranked(words, np.zeros(n), rng(seed))[0] for seed in range(99)}
    assert firsts == set(range(n))


# --- what goes and what stays


@given(texts(), st.data())
def test_every_word_goes_from_one_of_both_sides_and_special_tokens_from_none(
    text: Any, data: Any
) -> None:
    words, scores = text
    top = data.draw(st.integers(1, len(words)))
    order = ranked(words, scores, rng())
    without, only = kept_tokens(words, order, top, len(scores))
    assert without[0] and only[0]
    assert (without[1:] ^ only[1:]).all()
    assert sum(not without[word].any() for word in words) == top
    gone = [total for word, total in zip(words, totals(words, scores), strict=True)
            if not without[word[0]]]  # fmt: skip
    left = [total for word, total in zip(words, totals(words, scores), strict=True)
            if without[word[0]]]  # fmt: skip
    assert not left or min(gone) >= max(left)


@given(st.floats(0.1, 99.9), probability, probability)
def test_of_one_token_everything_goes_and_everything_stays(k: float, p: float, none: float) -> None:
    without, only = kept_tokens([[1]], ranked([[1]], np.zeros(2), rng()), count(k, 1), 2)
    assert without.tolist() == [True, False] and only.all()
    row = {"p": p, f"without_{k:g}": none, f"only_{k:g}": p, "degenerate": True}
    found = headline(pd.DataFrame([row]), Deletion(k=k, sweep=(k,)))
    assert found["sufficiency"] == 0 and found["comprehensiveness"] == p - none


@given(texts(), st.data())
def test_positive_mass_inside_goes_first_and_stays_alone(text: Any, data: Any) -> None:
    words, _ = text
    inside = data.draw(st.sets(st.integers(0, len(words) - 1), min_size=1))
    scores = np.zeros(1 + sum(map(len, words)))
    for i in inside:
        scores[words[i]] = data.draw(st.floats(0.1, 9.0))
    order = ranked(words, scores, rng())
    without, only = kept_tokens(words, order, len(inside), len(scores))
    for i, word in enumerate(words):
        assert without[word].all() == (i not in inside) and only[word].all() == (i in inside)


# --- the measures


def random_frame(seed: int) -> tuple[pd.DataFrame, Deletion]:
    """A per-sample table as `bench_deletion` makes it, with probabilities down to zero."""
    draw = rng(seed)
    sweep = sorted(draw.choice(np.arange(1, 100), size=draw.integers(1, 6), replace=False).tolist())
    settings = Deletion(k=float(draw.choice(sweep)), sweep=[float(k) for k in sweep])
    n = int(draw.integers(1, 8))
    columns: dict[str, Any] = {"sample": range(n), "p": draw.random(n)}
    for k in settings.percents:
        for side in ("without", "only"):
            values = draw.random(n) ** draw.integers(1, 60)
            columns[f"{side}_{k:g}"] = np.where(draw.random(n) < 0.1, 0.0, values)
    columns["degenerate"] = draw.random(n) < 0.3
    return pd.DataFrame(columns), settings


def by_loops(frame: pd.DataFrame, settings: Deletion) -> list[dict[str, float]]:
    """AIEG A.4, sample by sample, with the sign of comprehensiveness of DeYoung et al."""
    smallest = 2.0**-1022
    found = []
    for _, row in frame.iterrows():
        at = {}
        for k in settings.percents:
            p, without, only = row["p"], row[f"without_{k:g}"], row[f"only_{k:g}"]
            odds = math.log(without if without > smallest else smallest)
            odds -= math.log(p if p > smallest else smallest)
            at[k] = {"comprehensiveness": p - without, "sufficiency": p - only, "log_odds": odds}
        line = {metric: at[settings.k][metric] for metric in METRICS}
        for metric in METRICS:
            total = 0.0
            for k in settings.sweep:
                total += at[k][metric]
            line[f"aopc_{metric}"] = total / len(settings.sweep)
        found.append(line)
    return found


def test_a_thousand_random_tables_agree_with_loops() -> None:
    for seed in range(1000):
        frame, settings = random_frame(seed)
        found = headline(frame, settings)
        assert set(found) == {*METRICS, *(f"aopc_{name}" for name in METRICS), "degenerate"}
        assert found["degenerate"].tolist() == frame["degenerate"].tolist()
        for i, line in enumerate(by_loops(frame, settings)):
            for metric, value in line.items():
                if "log_odds" in metric:
                    assert found[metric][i] == pytest.approx(value, rel=1e-13, abs=1e-13)
                else:
                    assert found[metric][i] == value, (seed, metric)


@given(st.integers(0, 500), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(seed: int, random: Any) -> None:
    frame, settings = random_frame(seed)
    places = list(range(len(frame)))
    random.shuffle(places)
    found = headline(frame, settings)
    shuffled = headline(frame.iloc[places], settings)
    assert all(shuffled[name].tolist() == found[name][places].tolist() for name in found)


@given(st.integers(0, 500), st.sampled_from([0.5, 0.25, 0.125]))
def test_a_factor_on_all_probabilities_scales_differences_and_leaves_odds(
    seed: int, factor: float
) -> None:
    frame, settings = random_frame(seed)
    sides = [name for name in frame if name == "p" or "_" in str(name)]
    frame[sides] = frame[sides].clip(lower=1e-6)
    scaled = frame.copy()
    scaled[sides] *= factor
    found, other = headline(frame, settings), headline(scaled, settings)
    for name in found:
        expected = found[name] if name.endswith(("odds", "degenerate")) else factor * found[name]
        np.testing.assert_allclose(other[name], expected, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 500))
def test_deleting_what_does_not_matter_is_zero_and_a_sweep_of_one_is_the_measure(seed: int) -> None:
    frame, settings = random_frame(seed)
    frame = frame[["sample", "p", "degenerate"]]
    same = {f"{side}_{settings.k:g}": frame["p"] for side in ("without", "only")}
    found = headline(frame.assign(**same), Deletion(k=settings.k, sweep=(settings.k,)))
    for name in METRICS:
        assert (found[name] == 0).all() and (found[f"aopc_{name}"] == 0).all()


# --- the conservation gap

relevance = st.lists(st.floats(-1e6, 1e6), max_size=12)
target = st.floats(-1e6, 1e6)


@given(relevance, target)
def test_the_gap_is_the_exact_sum_missing_from_the_target(scores: list[float], y: float) -> None:
    whole = float(sum(map(Fraction, scores), Fraction(0)))
    assert conservation_gap(np.array(scores), y) == y - whole


@given(relevance, target, st.randoms(use_true_random=False))
def test_the_gap_knows_no_order_of_tokens(scores: list[float], y: float, random: Any) -> None:
    shuffled = random.sample(scores, len(scores))
    assert conservation_gap(np.array(shuffled), y) == conservation_gap(np.array(scores), y)


@given(relevance, target, st.sampled_from([0.5, 2.0, 64.0]))
def test_the_gap_scales_with_relevance_and_target(
    scores: list[float], y: float, factor: float
) -> None:
    gap = conservation_gap(np.array(scores), y)
    found = conservation_gap(factor * np.array(scores), factor * y)
    assert found == pytest.approx(factor * gap, rel=1e-12, abs=1e-300)


@given(st.integers(0, 9), target)
def test_relevance_that_is_zero_misses_the_whole_target(n: int, y: float) -> None:
    assert conservation_gap(np.zeros(n), y) == y
    assert conservation_gap(np.array([y]), y) == 0


@given(relevance, target)
def test_the_gap_does_not_see_how_words_are_cut(scores: list[float], y: float) -> None:
    """A token's relevance in two equal pieces is the same relevance."""
    halves = np.repeat(np.array(scores) / 2, 2)
    assert conservation_gap(halves, y) == pytest.approx(
        conservation_gap(np.array(scores), y), rel=1e-12, abs=1e-300
    )
