"""On the demo models a good ranking beats chance: the claim that the demo page shows."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

import numpy as np
import pytest

import lens_attr as la
from lens_attr.circuits import PruningCurve, Ranking, head_scores, prune, random_ranking
from lens_attr.demo import DEMO_MODELS, generate
from lens_attr.graph import backend_class

N_RANK, SEEDS = 400, 10
N_PRUNE = {"demo-gpt2": 200, "demo-llama": 200, "demo-bert": 400}

pytestmark = pytest.mark.skipif(
    backend_class("HookedTransformer") is None,
    reason="the claim is about the models: minutes on one backend are enough",
)


@cache
def ranked_model(name: str) -> tuple[object, Ranking]:
    """Heads ranked by AttnLRP on training samples of all three tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = la.load(name)
        samples = generate("all", N_RANK, seed=0, split="train")
        return model, head_scores(model, samples, method="attnlrp", progress=False)


def curve(name: str, ranking: Ranking, order: Literal["least", "most"] = "least") -> PruningCurve:
    """Accuracy on held-out samples, which no ranking has seen."""
    model, _ = ranked_model(name)
    heldout = generate("all", N_PRUNE[name], seed=1, split="heldout")
    return prune(model, heldout, ranking, order=order)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_pruning_by_attnlrp_keeps_more_accuracy_than_random_orders(name: str) -> None:
    """And upside down it keeps less: the area measures the order, not the model."""
    _, ranking = ranked_model(name)
    chance = [curve(name, random_ranking(*ranking.scores.shape, seed)) for seed in range(SEEDS)]
    areas = np.array([random.area for random in chance])
    area = curve(name, ranking).area
    assert area > areas.max()
    assert area > areas.mean() + 2 * areas.std(ddof=1)
    assert curve(name, ranking, order="most").area < areas.mean()
