"""What ``lens-attr demo`` computes and saves; the page is made from the files alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import lens_attr as la
from lens_attr.attribution.relevance import Relevance
from lens_attr.circuits import Agreement, PruningComparison, Ranking
from lens_attr.cli.check import save_coverage
from lens_attr.cli.options import Backend, Embeddings, command_line, load_model
from lens_attr.demo import DEMO_MODELS, TASKS, generate
from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.report import write_about
from lens_attr.report.run_files import ABOUT
from lens_attr.types import Sample

METHODS = ("gradient_x_input", "lrp", "attnlrp", "gim")
SHOWN_RANKING = "attnlrp"
PRUNED_TASK = "all"
RANKING_SEED, PRUNING_SEED, SHOWN_SEED, PAIRS_SEED = 0, 1, 2, 3
CANDIDATES = 20
PAIRS = 40
EDGES_BY, CIRCUIT_SHARE, RANDOM_EDGES = "eap_ig", 0.15, 3
EMBEDDINGS: dict[str, Embeddings] = {"demo-bert": "token"}
"""BERT normalises its embeddings first, so gradient x input of whole ones is zero by design."""

TITLE = "lens_attr: which tokens and heads made the prediction?"
INTRODUCTION = """
Which words made the model predict what it predicted, and which attention heads carried that?
Every text below is coloured by the answer of several attribution methods.

The models are tiny. They were trained on sentences made by a generator, so for each prediction
it is known which word decides it, and a good explanation should find that word.
"""


@dataclass(frozen=True)
class Findings:
    """What the terminal shows of one model.

    Attributes:
        backend: the class that held it.
        pruning: every method's ranking against random orders, on samples not ranked with.
        agreement: of every method with exact patching of the heads.
        refused: the reason, by name of a method that cannot explain this model.
    """

    backend: str
    pruning: PruningComparison
    agreement: Agreement
    refused: Mapping[str, str]


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def open_folder(out: Path) -> None:
    """Write what the page opens with."""
    (out / ABOUT).unlink(missing_ok=True)
    order = list(DEMO_MODELS)
    write_about(out, "demo", command_line(), title=TITLE, prose=INTRODUCTION, order=order)


@one_thread()
def explore(name: str, backend: Backend, n: int, n_rank: int, seeds: int, folder: Path) -> Findings:
    """Explain, rank, prune and patch one model, and save every result under ``folder``.

    Heads are ranked on samples of the training split and pruned on held-out ones, which use
    combinations of words that no ranking sample contains. What an earlier demo left in the folder
    is removed.

    Raises:
        InputError: the folder holds something that is not the demo's.
    """
    _empty(folder)
    write_about(folder, "demo", command_line(), title=name)  # first: it marks the folder as ours
    model = load_model(name, backend, dtype="float32", device=None)
    embeddings = EMBEDDINGS.get(name, "full")
    samples = [_correct_sample(model, task) for task in TASKS]
    results, refused = _explain(model, samples, embeddings)
    _save_texts(samples, results, folder / "texts")
    for method in results:
        save_coverage(la.check(model, _rules(method)), folder / "coverage" / method)
    pruning = _prune(model, list(results), n, n_rank, seeds, embeddings, folder)
    agreement = _patch(model, list(results), embeddings, folder)
    try:
        _find_circuit(model, folder)
    except UnsupportedModelError as problem:
        refused["circuit"] = str(problem)
    write_about(
        folder, "demo", command_line(), refused=refused,
        methods=list(results), task="sentences of the built-in generator, all three tasks",
    )  # fmt: skip
    return Findings(type(model).__name__, pruning, agreement, refused)


def _empty(folder: Path) -> None:
    if not folder.exists():
        return
    if not (folder / ABOUT).exists():
        raise InputError(f"{folder} holds other things: give --out another folder.")
    shutil.rmtree(folder)


def _rules(method: str) -> str:
    return "gradient" if method == "gradient_x_input" else method


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


def _save_texts(samples: list[Sample], results: Mapping[str, Relevance], folder: Path) -> None:
    """One folder per text and method, with what is known of the text in the metadata."""
    for i, sample in enumerate(samples):
        known = {
            "answer": sample.answer,
            "foil": sample.foil,
            "decided_by": [sample.text[start:end] for start, end in sample.truth],
        }
        for method, result in results.items():
            one = replace(result[i], metadata={**result.metadata, "sample": known})
            one.save(folder / f"{i}-{TASKS[i]}" / method)


def _prune(
    model: Any,
    methods: list[str],
    n: int,
    n_rank: int,
    seeds: int,
    embeddings: Embeddings,
    folder: Path,
) -> PruningComparison:
    ranking_set = generate(PRUNED_TASK, n_rank, seed=RANKING_SEED, split="train")
    rankings = [_rank(model, ranking_set, method, embeddings) for method in methods]
    pruning_set = generate(PRUNED_TASK, n, seed=PRUNING_SEED, split="heldout")
    pruning = la.circuits.compare_pruning(model, pruning_set, rankings, seeds=seeds)
    pruning.save(folder)
    for ranking in rankings:
        if ranking.method == SHOWN_RANKING:
            ranking.save(folder)
    return pruning


def _rank(model: Any, samples: list[Sample], method: str, embeddings: Embeddings) -> Ranking:
    return la.circuits.head_scores(
        model, samples, method=method, pool="relu_token", embeddings=embeddings
    )


def _patch(model: Any, methods: list[str], embeddings: Embeddings, folder: Path) -> Agreement:
    """Exact patching of the heads, and how well every method agrees with it."""
    samples = generate("sva", PAIRS, seed=PAIRS_SEED, split="heldout")
    texts, target = la.sample_inputs(model, samples)
    patched = la.circuits.patch(model, texts, None, target, mode="noise", source="zero")
    relevance = {
        method: la.attribute(model, texts, target, method=method, embeddings=embeddings)
        for method in methods
    }
    agreement = la.circuits.agreement(relevance, patched)
    for result in (patched, agreement):
        result.save(folder)
    return agreement


def _find_circuit(model: Any, folder: Path) -> None:
    """Score the edges on some pairs, take the best, and run that circuit on other pairs.

    Raises:
        UnsupportedModelError: edges are not defined for this model.
    """
    scored = la.circuits.sva_pairs(PAIRS, seed=PAIRS_SEED, split="train").aligned(model)
    held_out = la.circuits.sva_pairs(PAIRS, seed=PAIRS_SEED, split="heldout").aligned(model)
    edges = la.circuits.edge_scores(model, *scored.inputs(model), method=EDGES_BY)
    n = round(CIRCUIT_SHARE * edges.wiring.n_edges)
    circuit = la.circuits.extract(edges, n, by="greedy")
    inputs = held_out.inputs(model)
    evaluation = la.circuits.evaluate(model, circuit, *inputs)
    curves = la.circuits.compare_faithfulness(
        model, [edges], *inputs, seeds=RANDOM_EDGES, by="greedy"
    )
    for result in (edges, circuit, evaluation, curves):
        result.save(folder)
