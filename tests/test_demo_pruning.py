"""On the demo models a good ranking beats chance: the claim that the demo page shows."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest

import lens_attr as la
from lens_attr.circuits import PruningCurve, Ranking, head_scores, prune, random_ranking
from lens_attr.demo import DEMO_MODELS, generate

N_RANK, N_PRUNE, SEEDS = 200, 200, 10


@cache
def ranked_model(name: str) -> tuple[object, Ranking]:
    """Heads ranked by AttnLRP on training samples of all three tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = la.load(name)
        samples = generate("all", N_RANK, seed=0, split="train")
        return model, head_scores(model, samples, method="attnlrp", progress=False)


def curve(name: str, ranking: Ranking) -> PruningCurve:
    """Accuracy on held-out samples, which no ranking has seen."""
    model, _ = ranked_model(name)
    return prune(model, generate("all", N_PRUNE, seed=1, split="heldout"), ranking)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_pruning_by_attnlrp_keeps_more_accuracy_than_random_orders(name: str) -> None:
    _, ranking = ranked_model(name)
    chance = [curve(name, random_ranking(*ranking.scores.shape, seed)) for seed in range(SEEDS)]
    areas = np.array([random.area for random in chance])
    area = curve(name, ranking).area
    assert area > areas.max()
    assert area > areas.mean() + 2 * areas.std(ddof=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_the_ranking_upside_down_is_worse_than_chance(name: str) -> None:
    """Negative control: the area measures the order, not the model."""
    model, ranking = ranked_model(name)
    samples = generate("all", N_PRUNE, seed=1, split="heldout")
    upside_down = prune(model, samples, ranking, order="most")
    chance = [curve(name, random_ranking(*ranking.scores.shape, seed)).area for seed in range(3)]
    assert upside_down.area < min(chance)
