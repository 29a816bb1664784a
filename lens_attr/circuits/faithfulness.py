"""How faithful is a circuit: run it with everything outside corrupted, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float

from lens_attr.attribution.scoring import target_value
from lens_attr.circuits.aligned import Aligned, aligned
from lens_attr.circuits.checks import check_kind, check_kinds
from lens_attr.circuits.circuit import Circuit
from lens_attr.circuits.circuit_run import patched_edges
from lens_attr.circuits.edge_scores import EdgeScores, Ordering
from lens_attr.circuits.extraction import SCORED, By, extract, random_edges
from lens_attr.circuits.faithfulness_results import (
    Axis,
    CircuitEvaluation,
    FaithfulnessComparison,
    FaithfulnessCurve,
)
from lens_attr.circuits.stream import Anatomy, anatomy, outputs_of
from lens_attr.circuits.wiring import Wiring
from lens_attr.errors import InputError, checked_optional_count, did_you_mean
from lens_attr.graph import resolve
from lens_attr.graph.tokens import Text
from lens_attr.targets import Target

PERCENTAGES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Of the edges of the model, as in MIB (Mueller et al. 2025)."""


@torch.no_grad()
def evaluate(
    model: Any,
    circuit: Circuit,
    clean: Text,
    corrupted: Text,
    target: Target,
    *,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> CircuitEvaluation:
    """Run the circuit: every edge outside carries what the corrupted run writes, exactly.

    Each receiver reads its own stream: what its sources inside the circuit write in this very
    run, and what all others wrote in the corrupted run. With all edges this is the clean run to
    the last bit, with none the corrupted one up to rounding.

    Args:
        model: a TransformerLens model that reads left to right.
        circuit: of this model.
        clean: texts or token ids [batch, pos].
        corrupted: as many, with the same number of tokens each.
        target: what is measured.
        batch_size: examples at a time; default: all.
        progress: show a bar; default: where there is more than one batch.

    Raises:
        InputError: inputs that do not align, or a circuit of another model.
        UnsupportedModelError: the stream of this model is no sum of its nodes.
        NonFiniteError: NaN or infinite logits.
    """
    check_kind("circuit", circuit, Circuit, "la.circuits.extract(scores, n) makes one")
    graph = resolve(model)
    batch_size = checked_optional_count("batch_size", batch_size)
    parts = anatomy(graph)
    _check_wiring(parts, circuit.wiring)
    pairs = aligned(graph, clean, corrupted, target)
    outside = torch.from_numpy(circuit.wiring.exists & ~circuit.kept).to(graph.device)
    found: dict[str, list[np.ndarray]] = {"circuit": [], "clean": [], "corrupted": []}
    for batch in pairs.batches(batch_size, "running the circuit", progress):
        found["clean"].append(_values(parts, batch))
        found["corrupted"].append(_values(parts, batch.swapped))
        other = outputs_of(parts, batch.corrupted, batch.target)
        with patched_edges(parts, other, outside, batch.clean.attention_mask):
            found["circuit"].append(_values(parts, batch))
    joined = {name: np.concatenate(values) for name, values in found.items()}
    return CircuitEvaluation(
        **joined,
        n_edges=len(circuit),
        n_edges_model=circuit.wiring.n_edges,
        unit=pairs.target.unit,
    )


def _check_wiring(parts: Anatomy, wiring: Wiring) -> None:
    if wiring != parts.wiring:
        raise InputError(
            f"the circuit belongs to a model of another shape: it has {wiring}, this model "
            f"{parts.wiring}."
        )


def _values(parts: Anatomy, pairs: Aligned) -> Float[np.ndarray, " sample"]:
    return target_value(parts.graph, pairs.clean, pairs.target)[0].double().cpu().numpy()


def faithfulness_curve(
    model: Any,
    scores: EdgeScores,
    clean: Text,
    corrupted: Text,
    target: Target,
    *,
    by: By = "top",
    ordering: Ordering = "absolute",
    axis: Axis = "fraction",
    percentages: Sequence[float] = PERCENTAGES,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> FaithfulnessCurve:
    """Extract circuits of growing size from one ranking of edges and run each of them.

    Use samples that the ranking has not seen.

    Args:
        model: a TransformerLens model that reads left to right.
        scores: what ranks the edges, from `edge_scores`, `exact_edge_effects` or `random_edges`.
        clean: as in `evaluate`, as ``corrupted``, ``target`` and ``batch_size``.
        by: see `extract`, as ``ordering``; dangling edges are pruned.
        axis: see `FaithfulnessCurve`.
        percentages: of the model's edges, ascending, above 0 and up to 100; CPR and CMD need two.
        progress: show a bar.

    Raises:
        InputError: as in `evaluate` and `extract`; unknown axis; percentages out of range.
    """
    check_kind("scores", scores, EdgeScores, SCORED)
    if axis not in get_args(Axis):
        raise InputError(f"unknown axis {axis!r}; {did_you_mean(str(axis), get_args(Axis))}")
    steps = list(percentages)
    if not steps or steps != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] <= 100:
        raise InputError(f"percentages must ascend between 0 and 100, got {steps}.")
    run = partial(
        evaluate,
        model,
        clean=clean,
        corrupted=corrupted,
        target=target,
        batch_size=batch_size,
        progress=progress,
    )
    sizes = [max(1, round(scores.wiring.n_edges * step / 100)) for step in steps]
    circuits = [extract(scores, n, by=by, ordering=ordering) for n in sizes]
    evaluations = [run(circuit) for circuit in circuits]
    metadata = {"scored_on": scores.n, "unit": scores.unit}
    return FaithfulnessCurve(steps, evaluations, scores.method, by, ordering, axis, metadata)


def compare_faithfulness(
    model: Any,
    scores: Sequence[EdgeScores],
    clean: Text,
    corrupted: Text,
    target: Target,
    *,
    seeds: int = 3,
    **options: Any,
) -> FaithfulnessComparison:
    """Curves of several rankings and of ``seeds`` random orders, on the same samples.

    Args:
        model: a TransformerLens model that reads left to right.
        scores: one curve each; `exact_edge_effects` is the patching-based yardstick.
        clean: as in `faithfulness_curve`, as the others.
        seeds: number of random orders, seeds 0, 1, ...
        options: of `faithfulness_curve`.

    Raises:
        InputError: no scores, or as in `faithfulness_curve`.
    """
    check_kinds("scores", scores, EdgeScores, SCORED)
    chance = [random_edges(scores[0].wiring, seed) for seed in range(seeds)]
    run = partial(
        faithfulness_curve, model, clean=clean, corrupted=corrupted, target=target, **options
    )
    return FaithfulnessComparison([run(one) for one in scores], [run(one) for one in chance])
