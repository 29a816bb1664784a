"""What ``lens-attr demo`` computes; the page is put together in `lens_attr.report.demo`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import lens_attr as la
from lens_attr.attribution.relevance import Relevance
from lens_attr.circuits import Ranking
from lens_attr.cli.options import Backend, Embeddings, load_model
from lens_attr.demo import TASKS, generate
from lens_attr.errors import UnsupportedModelError
from lens_attr.report import Explanation, ModelStory
from lens_attr.types import Sample

METHODS = ("gradient_x_input", "lrp", "attnlrp", "gim")
SHOWN_RANKING = "attnlrp"
PRUNED_TASK = "all"
RANKING_SEED, PRUNING_SEED, SHOWN_SEED = 0, 1, 2
CANDIDATES = 20
EMBEDDINGS: dict[str, Embeddings] = {"demo-bert": "token"}
"""BERT normalises its embeddings first, so gradient x input of whole ones is zero by design."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def tell(name: str, backend: Backend, n: int, n_rank: int, seeds: int) -> ModelStory:
    """Everything the page says about one model.

    Heads are ranked on samples of the training split and pruned on held-out ones, which use
    combinations of words that no ranking sample contains.
    """
    model = load_model(name, backend, dtype="float32", device=None)
    samples = [_correct_sample(model, task) for task in TASKS]
    embeddings = EMBEDDINGS.get(name, "full")
    results, refused = _explain(model, samples, embeddings)
    ranking_set = generate(PRUNED_TASK, n_rank, seed=RANKING_SEED, split="train")
    rankings = {method: _rank(model, ranking_set, method, embeddings) for method in results}
    pruning_set = generate(PRUNED_TASK, n, seed=PRUNING_SEED, split="heldout")
    pruning = la.circuits.compare_pruning(model, pruning_set, list(rankings.values()), seeds=seeds)
    return ModelStory(
        name=name,
        backend=type(model).__name__,
        explanations=[
            Explanation(sample, {method: result[i] for method, result in results.items()})
            for i, sample in enumerate(samples)
        ],
        ranking=rankings[SHOWN_RANKING],
        pruning=pruning,
        task=PRUNED_TASK,
        n_rank=n_rank,
        refused=refused,
    )


def _correct_sample(model: Any, task: str) -> Sample:
    """The first of some samples that the model predicts correctly; else the first of all."""
    samples = generate(task, CANDIDATES, seed=SHOWN_SEED, split="heldout", attractor="any")
    texts, target = la.sample_inputs(model, samples)
    margins = la.attribute(
        model, texts, target, method=SHOWN_RANKING, progress=False
    ).target_value.tolist()
    return next((s for s, margin in zip(samples, margins, strict=True) if margin > 0), samples[0])


def _explain(
    model: Any, samples: list[Sample], embeddings: Embeddings
) -> tuple[dict[str, Relevance], dict[str, str]]:
    """The result of every method, and why the others are refused."""
    texts, target = la.sample_inputs(model, samples)
    results: dict[str, Relevance] = {}
    refused: dict[str, str] = {}
    for method in METHODS:
        try:
            result = la.attribute(
                model, texts, target, method=method, embeddings=embeddings, progress=False
            )
        except UnsupportedModelError as problem:
            refused[method] = str(problem)
        else:
            results[method] = result
    return results, refused


def _rank(model: Any, samples: list[Sample], method: str, embeddings: Embeddings) -> Ranking:
    return la.circuits.head_scores(
        model, samples, method=method, pool="relu_token", embeddings=embeddings
    )
