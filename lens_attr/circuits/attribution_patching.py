"""Attribution patching of nodes and neurons, and the QK fix of AtP* (Kramar et al. 2024)."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.scoring import refuse_non_finite
from lens_attr.circuits.aligned import (
    Aligned,
    aligned,
    masked,
    real_positions,
    real_tokens,
    refuse_lengths,
)
from lens_attr.circuits.edges import EdgeMethod, rules_of
from lens_attr.circuits.node_results import NodeScores
from lens_attr.circuits.reading import read_gradients
from lens_attr.errors import InputError, UnsupportedModelError, checked_optional_count, did_you_mean
from lens_attr.graph import ModelGraph, Point, Role, resolve
from lens_attr.graph.tokens import Text, TokenBatch
from lens_attr.rules import RuleSet
from lens_attr.targets import Resolved, Target

NodeUnit = Literal["head", "q", "k", "v", "attn_out", "mlp_out", "resid", "neuron"]

NODES: dict[NodeUnit, tuple[Role, str]] = {
    "head": ("z", "head"),
    "q": ("q", "head"),
    "k": ("k", "head"),
    "v": ("v", "head"),
    "attn_out": ("attn_out", ""),
    "mlp_out": ("mlp_out", ""),
    "resid": ("residual", ""),
    "neuron": ("mlp_post", "neuron"),
}
"""Where a node stands, and the axis that tells its nodes apart ("": one per layer)."""


@torch.inference_mode(False)
def node_scores(
    model: Any,
    clean: Text,
    corrupted: Text,
    target: Target,
    method: EdgeMethod | RuleSet = "eap",
    *,
    unit: NodeUnit = "head",
    qk_fix: bool = False,
    steps: int | None = None,
    per_position: bool = False,
    batch_size: int | None = None,
    progress: bool | None = None,
    **switches: Any,
) -> NodeScores:
    """Score every node: (a corrupted - a clean) . dy / da, averaged over the samples.

    Predicts what ``patch(mode="noise")`` measures, for all nodes at once (attribution patching,
    Nanda 2023). The methods are those of `edge_scores`; the gradient is read as it arrives.

    With ``qk_fix`` (AtP*, Kramar et al. 2024) queries and keys are scored as
    (P patched - P) . dy / dP, where the softmax is recomputed with the corrupted queries or keys:
    a saturated softmax hides nothing. It costs one more forward.

    Args:
        model: a TransformerLens model.
        clean: as in `edge_scores`, as all arguments that are not explained here.
        unit: ``"head"`` (z), ``"q"``, ``"k"``, ``"v"`` (per key-value head), ``"attn_out"``,
            ``"mlp_out"``, ``"resid"`` (the stream before every block) or ``"neuron"``.
        qk_fix: for ``"q"`` and ``"k"``.
        per_position: a score per position; all inputs must be of one length.

    Raises:
        InputError: inputs that do not align, unknown options, or ``qk_fix`` with another unit.
        UnsupportedModelError: with ``qk_fix``, a softmax outside the autograd graph; or a model
            without such nodes.
        NonFiniteError: NaN or infinite logits or scores.
    """
    graph = resolve(model)
    rules, n_steps, name = rules_of(method, steps, switches)
    batch_size = checked_optional_count("batch_size", batch_size)
    points = _points(graph, unit, qk_fix)
    pairs = aligned(graph, clean, corrupted, target)
    if per_position:
        refuse_lengths(pairs)
    one = partial(_fixed_qk, unit) if qk_fix else _linear
    found = [
        one(graph, points, rules, n_steps, batch)
        for batch in pairs.batches(batch_size, "scoring nodes", progress)
    ]
    scores = sum(_summed(part, NODES[unit][1], per_position) for part in found) / len(pairs)
    refuse_non_finite("node scores", torch.as_tensor(scores)[None])
    axis = NODES[unit][1]
    return NodeScores(
        scores=np.asarray(scores),
        unit=unit,
        axes=("layer", *([axis] if axis else []), *(["pos"] if per_position else [])),
        method=name + " + QK fix" * qk_fix,
        target_unit=pairs.target.unit,
        n=len(pairs),
        metadata={
            "model": graph.describe(),
            "rules": rules.describe(),
            "steps": n_steps,
            "notices": list(pairs.target.notices),
        },
        target=list(pairs.target.labels),
        str_tokens=real_tokens(graph, pairs.clean),
        position=real_positions(pairs.clean.attention_mask, pairs.target.position),
    )


def _points(graph: ModelGraph, unit: NodeUnit, qk_fix: bool) -> list[Point]:
    if unit not in NODES:
        raise InputError(f"unknown unit {unit!r}; {did_you_mean(str(unit), get_args(NodeUnit))}")
    if qk_fix and unit not in ("q", "k"):
        raise InputError(f"qk_fix goes with unit 'q' or 'k', not {unit!r}.")
    if qk_fix and not graph.attention_in_graph:
        raise UnsupportedModelError(
            f"{graph.architecture} on {graph.backend} computes its softmax outside the autograd "
            "graph: dy/dP is never seen there, so the QK fix is impossible."
        )
    points = graph.points(NODES[unit][0])
    points = points[:-1] if unit == "resid" else points
    if not points:
        raise UnsupportedModelError(f"this {graph.architecture} has no {unit!r} nodes.")
    return points


Scored = list[Float[Tensor, "batch pos *unit"]]


def _summed(scores: Scored, axis: str, per_position: bool) -> np.ndarray:
    """[layer, unit, pos] of a batch, summed over its examples (and positions)."""
    stacked = torch.stack([one.double().sum(dim=0) for one in scores])
    stacked = stacked.movedim(1, -1) if axis else stacked
    return (stacked if per_position else stacked.sum(dim=-1)).cpu().numpy()


def _values(
    graph: ModelGraph, points: list[Point], batch: TokenBatch, target: Resolved
) -> list[Tensor]:
    """Activations at some points in one run; zero on padding."""
    kept: list[Tensor] = []
    with torch.no_grad(), ExitStack() as stack:
        for point in points:
            point.on_forward(lambda a: kept.append(a.detach()), stack)
        graph.logits_at(batch.token_ids, batch.padding_mask, target.position)
    return kept


def _gradients(
    graph: ModelGraph, points: list[Point], rules: RuleSet, n_steps: int, pairs: Aligned
) -> list[Tensor]:
    """Gradients arriving at the points, averaged over the path from the corrupted embeddings."""
    start: list[Tensor] = []
    if n_steps > 1:
        start = _values(graph, graph.points("embed"), pairs.corrupted, pairs.target)
    total: list[Tensor] = []
    for k in range(1, n_steps + 1):
        path = partial(_between, start[0], k / n_steps) if start else None
        found, _ = read_gradients(
            graph, rules, points, pairs.clean, pairs.target, path, arriving=True
        )
        here = [found[point] for point in points]
        total = [a + b for a, b in zip(total, here, strict=True)] if total else here
    return [gradient / n_steps for gradient in total]


def _between(start: Tensor, share: float, own: Tensor) -> Tensor:
    return start + share * (own - start)


def _linear(
    graph: ModelGraph, points: list[Point], rules: RuleSet, n_steps: int, pairs: Aligned
) -> Scored:
    """(a corrupted - a clean) . gradient, summed over the last axis but for neurons."""
    new = _values(graph, points, pairs.corrupted, pairs.target)
    old = _values(graph, points, pairs.clean, pairs.target)
    gradients = _gradients(graph, points, rules, n_steps, pairs)
    mask = pairs.clean.attention_mask
    products = [
        masked((a - b).double() * g.double(), mask)
        for a, b, g in zip(new, old, gradients, strict=True)
    ]
    neurons = points[0].name == graph.points("mlp_post")[0].name
    return products if neurons else [product.sum(dim=-1) for product in products]


# ------------------------------------------------------------------------------------- the QK fix


def _fixed_qk(
    unit: NodeUnit,
    graph: ModelGraph,
    points: list[Point],
    rules: RuleSet,
    n_steps: int,
    pairs: Aligned,
) -> Scored:
    new = _values(graph, points, pairs.corrupted, pairs.target)
    patterns = graph.points("pattern")
    gradients = _gradients(graph, patterns, rules, n_steps, pairs)
    plain = _values(graph, graph.points("scores"), pairs.clean, pairs.target)
    patched = _patched_scores(graph, points, new, pairs)
    score = _query_effect if unit == "q" else _key_effect
    mask = pairs.clean.attention_mask
    real = mask[:, None, :, None] & mask[:, None, None, :]
    found = []
    for before, after, gradient, keys in zip(plain, patched, gradients, new, strict=True):
        visible = real & (before > torch.finfo(before.dtype).min / 4)
        effect = score(before.double(), after.double(), gradient.double(), visible)
        heads = keys.shape[2]  # several query heads share a key
        found.append(effect.unflatten(1, (heads, -1)).sum(dim=2).transpose(1, 2))
    return found


def _patched_scores(
    graph: ModelGraph, points: list[Point], new: list[Tensor], pairs: Aligned
) -> list[Float[Tensor, "batch head query key"]]:
    """Attention scores of every layer with corrupted queries (or keys) and all else clean.

    One forward: each layer's z is put back to its clean value, so no layer sees another's change.
    """
    clean_z = _values(graph, graph.points("z"), pairs.clean, pairs.target)
    kept: list[Tensor] = []
    with torch.no_grad(), ExitStack() as stack:
        for point, value in zip(points, new, strict=True):
            point.on_forward(lambda _, value=value: value, stack)
        for point in graph.points("scores"):
            point.on_forward(lambda scores: kept.append(scores.detach()), stack)
        for point, value in zip(graph.points("z"), clean_z, strict=True):
            point.on_forward(lambda _, value=value: value, stack)
        batch, target = pairs.clean, pairs.target
        graph.logits_at(batch.token_ids, batch.padding_mask, target.position)
    return kept


def _pattern(scores: Tensor, visible: Bool[Tensor, "batch head query key"]) -> Tensor:
    """Softmax over the visible keys; rows of padding are zero."""
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1).nan_to_num(0.0)


def _query_effect(
    before: Tensor, after: Tensor, gradient: Tensor, visible: Tensor
) -> Float[Tensor, "batch head query"]:
    """Every query patched alone: its own row changes."""
    moved = _pattern(after, visible) - _pattern(before, visible)
    return (moved * torch.where(visible, gradient, 0.0)).sum(dim=-1)


def _key_effect(
    before: Tensor, after: Tensor, gradient: Tensor, visible: Tensor
) -> Float[Tensor, "batch head key"]:
    """Every key patched alone: one score in each later row changes, the softmax with it.

    With r the key's new weight before normalisation, in units of the old sum, the row's
    P . g goes from G to (G - p g + r g) / (1 - p + r).
    """
    p = _pattern(before, visible)
    g = torch.where(visible, gradient, 0.0)
    r = p * torch.where(visible, after - before, 0.0).clamp(max=500.0).exp()
    total = (p * g).sum(dim=-1, keepdim=True)
    rest = (1 - p + r).clamp(min=torch.finfo(p.dtype).tiny)
    moved = (total - p * g + r * g) / rest - total
    return torch.where(visible, moved, 0.0).sum(dim=-2)
