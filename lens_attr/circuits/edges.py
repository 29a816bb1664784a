"""Edge attribution patching: what every edge of a model is worth, from one or a few backwards."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.scoring import refuse_non_finite
from lens_attr.circuits.aligned import Aligned, aligned, refuse_lengths
from lens_attr.circuits.edge_scores import EdgeScores
from lens_attr.circuits.reading import ReadGradients, read_gradients
from lens_attr.circuits.stream import (
    Anatomy,
    Change,
    Outputs,
    anatomy,
    change,
    listen,
    outputs_of,
    refuse_unexplained,
)
from lens_attr.errors import (
    InputError,
    RuleConflictError,
    checked_count,
    checked_optional_count,
    did_you_mean,
)
from lens_attr.graph import Point, resolve
from lens_attr.graph.tokens import Text
from lens_attr.rules import FreezeNorm, RuleSet, preset
from lens_attr.targets import Target

EdgeMethod = Literal["eap", "eap_ig", "relp", "gim", "attnlrp", "lrp"]
METHODS: dict[str, str] = {name: name for name in get_args(EdgeMethod)} | {
    "eap": "gradient",
    "eap_ig": "gradient",
}
"""The preset behind each method."""

IG_STEPS = 5


@torch.inference_mode(False)
def edge_scores(
    model: Any,
    clean: Text,
    corrupted: Text,
    target: Target,
    method: EdgeMethod | RuleSet = "eap",
    *,
    steps: int | None = None,
    per_position: bool = False,
    batch_size: int | None = None,
    progress: bool | None = None,
    **switches: Any,
) -> EdgeScores:
    """Score every edge: (a_u corrupted - a_u clean) . dy / d in_v, averaged over the samples.

    a_u is what node u writes to the residual stream and in_v the stream as receiver v alone reads
    it, before its norm. The score predicts how much the target changes when the edge carries its
    corrupted value. Nothing of size [head, position, d_model] is stored: gradients are read at q,
    k, v, and the MLP's pre-activations and taken through weights and norm a few positions at a
    time, so memory grows as that of z.

    Methods: ``"eap"`` (Syed et al. 2023) uses the true gradient, ``"eap_ig"`` (Hanna et al. 2024,
    EAP-IG inputs) its mean over ``steps`` points k/steps, k = 1..steps, between the corrupted and
    the clean embeddings, ``"relp"`` (Jafari et al. 2025), ``"gim"``, ``"attnlrp"`` and ``"lrp"``
    the gradient under these rules. Behind a norm of its own (Gemma) a head's output is taken
    linear, with the norm's scale of its own run.

    Args:
        model: a TransformerLens model that reads left to right.
        clean: texts or token ids [batch, pos].
        corrupted: as many, with the same number of tokens each.
        target: what is explained, on the clean inputs.
        method: a name, or a `RuleSet`.
        steps: points of the path; default: 5 for ``"eap_ig"``, 1 (no path) otherwise. Other
            methods than ``"eap"`` and ``"eap_ig"`` are then called after them: ``"gim, 5 steps"``.
        per_position: also keep the score at every position, in `EdgeScores.by_position` and
            `EdgeScores.positions_to_pandas`, to look at; circuits are of whole edges. All inputs
            must be of one length.
        batch_size: examples at a time; default: all.
        progress: show a bar; default: where there is more than one batch.
        switches: of the preset, e.g. ``temperature=3.0``.

    Raises:
        InputError: inputs that do not align, unknown method or switch, steps below 1, or several
            for ``"eap"``.
        UnsupportedModelError: the stream of this model is no sum of its nodes (BERT), or the
            rules cannot act on it.
        RuleConflictError: a rule of your own acts inside the norms before q, k, v or MLP.
        NonFiniteError: NaN or infinite logits or scores.
    """
    graph = resolve(model)
    rules, n_steps, name = rules_of(method, steps, switches)
    batch_size = checked_optional_count("batch_size", batch_size)
    parts = anatomy(graph)
    factors = _norm_factors(parts, rules)
    pairs = aligned(graph, clean, corrupted, target)
    if per_position:
        refuse_lengths(pairs)
    score = partial(_score_batch, parts, rules, factors, n_steps, per_position)
    batches = pairs.batches(batch_size, "scoring edges", progress)
    total = np.sum([score(batch) for batch in batches], axis=0) / len(pairs)
    by_position = total if per_position else None
    return EdgeScores(
        wiring=parts.wiring,
        scores=total.sum(axis=-1) if per_position else total,
        method=name,
        unit=pairs.target.unit,
        n=len(pairs),
        by_position=by_position,
        metadata={
            "model": graph.describe(),
            "rules": rules.describe(),
            "steps": n_steps,
            "notices": list(pairs.target.notices),
        },
    )


def rules_of(method: Any, steps: Any, switches: dict[str, Any]) -> tuple[RuleSet, int, str]:
    """The rules, the number of steps and the name behind the arguments of `edge_scores`.

    Raises:
        InputError: unknown method or switch, steps below 1, or several for ``"eap"``.
    """
    if isinstance(method, RuleSet):
        if switches:
            raise InputError(f"switches {sorted(switches)} go with a method's name, not a RuleSet.")
        rules = method
    elif method in METHODS:
        rules = preset(METHODS[method], **switches)
    else:
        raise InputError(f"unknown method {method!r}; {did_you_mean(str(method), METHODS)}")
    default = IG_STEPS if method == "eap_ig" else 1
    n_steps = default if steps is None else checked_count("steps", steps)
    if method == "eap" and n_steps > 1:
        raise InputError(
            f"'eap' is one gradient, without a path of {n_steps} steps: with one it is called "
            'method="eap_ig".'
        )
    name = method if isinstance(method, str) else method.name
    on_a_path = n_steps > 1 and name != "eap_ig"
    return rules, n_steps, f"{name}, {n_steps} steps" if on_a_path else name


# ------------------------------------------------------------------ gradients where they are read


def _norm_factors(parts: Anatomy, rules: RuleSet) -> dict[str, float]:
    """What the rules multiply the gradient at each ``hook_scale`` before a reader with.

    Raises:
        RuleConflictError: a rule whose effect between stream and projection is not known.
    """
    placed = rules.placements(parts.graph)
    factors = {}
    for reader in (reader for block in parts.readers for reader in block):
        if reader.scale is None:
            continue
        scale, factor = reader.scale.name, 1.0
        inside = [name for name in placed if name.startswith(scale.rpartition(".")[0] + ".")]
        for rule, _ in (pair for name in inside for pair in placed[name]):
            if not isinstance(rule, FreezeNorm):
                raise RuleConflictError(
                    f"{rule.name} acts at {inside[0]}, between the residual stream and what reads "
                    "it, where only FreezeNorm can be taken into account for edges."
                )
            factor *= rule.factor
        factors[scale] = factor
    return factors


@dataclass(frozen=True)
class Backward:
    """One forward and backward: what was written and read, and the gradients where it was read."""

    outputs: Outputs
    gradients: ReadGradients


def _every_point(parts: Anatomy) -> tuple[Point, ...]:
    projections = [p.point for block in parts.readers for r in block for p in r.projections]
    return (*projections, parts.graph.points("residual")[-1])


def run_backward(
    parts: Anatomy,
    rules: RuleSet,
    pairs: Aligned,
    share: float = 1.0,
    from_embedding: Tensor | None = None,
) -> Backward:
    """Forward and backward on the clean inputs, the latter under rules.

    Args:
        parts: the model.
        rules: how the backward is modified.
        pairs: the inputs and the target.
        share: the embeddings become ``from + share * (own - from)``.
        from_embedding: where that path starts, [batch, pos, d_model].
    """

    def on_the_path(own: Tensor) -> Tensor:
        return own if from_embedding is None else from_embedding + share * (own - from_embedding)

    with ExitStack() as stack:
        found = listen(parts, pairs.clean, stack)
        points = _every_point(parts)
        gradients, _ = read_gradients(
            parts.graph, rules, points, pairs.clean, pairs.target, on_the_path
        )
    return Backward(found, gradients)


# ------------------------------------------------------------------------------------ the scores


def _score_batch(
    parts: Anatomy,
    rules: RuleSet,
    factors: dict[str, float],
    n_steps: int,
    per_position: bool,
    pairs: Aligned,
) -> np.ndarray:
    """Scores summed over the examples of a batch, [source, receiver] or [..., pos]."""
    corrupted, start = _corrupted_run(parts, pairs)
    mask = pairs.clean.attention_mask
    clean_run = run_backward(parts, rules, pairs)
    refuse_unexplained(parts, clean_run.outputs)
    difference = change(parts, corrupted, clean_run.outputs, mask)
    positions = _positions(mask) if per_position else None
    total = _contract(parts, difference, clean_run, factors, mask, positions)
    for k in range(1, n_steps):
        run = run_backward(parts, rules, pairs, k / n_steps, start)
        total = total + _contract(parts, difference, run, factors, mask, positions)
    refuse_non_finite("edge scores", total[None])
    return (total / n_steps).cpu().numpy()


@torch.no_grad()
def _corrupted_run(parts: Anatomy, pairs: Aligned) -> tuple[Outputs, Tensor]:
    """What the corrupted run writes, and its token embeddings."""
    kept: list[Tensor] = []
    (embed,) = parts.graph.points("embed")
    with ExitStack() as stack:
        embed.on_forward(lambda embedding: kept.append(embedding.detach()), stack)
        found = outputs_of(parts, pairs.corrupted, pairs.target)
    return found, kept[0]


def _positions(mask: Bool[Tensor, "batch pos"]) -> Tensor:
    """Position of every real token, counted in real tokens."""
    return (mask.cumsum(dim=1) - 1)[mask]


def _contract(
    parts: Anatomy,
    difference: Change,
    run: Backward,
    factors: dict[str, float],
    mask: Bool[Tensor, "batch pos"],
    positions: Tensor | None,
) -> Float[Tensor, "source receiver *pos"]:
    """Change of every source times gradient of every receiver, summed over examples."""
    wiring = parts.wiring
    shape = (len(wiring.sources), len(wiring.receivers))
    extra = () if positions is None else (int(positions.max()) + 1,)
    total = torch.zeros(*shape, *extra, dtype=torch.float64, device=mask.device)
    for reader in (reader for block in parts.readers for reader in block):
        n, columns = parts.n_visible(reader), parts.columns(reader)
        gradients = [_rows(run.gradients[p.point], mask, parts.dtype) for p in reader.projections]
        stream = run.outputs.read_by(reader)[mask]
        factor = factors[reader.scale.name] if reader.scale is not None else 1.0
        for rows in difference.chunks(reader.n_units):
            pulled = reader.pull([g[rows] for g in gradients], stream[rows], factor)
            _add(total[:n, columns], difference.in_stream(rows, n), pulled, positions, rows)
    final = run.gradients[parts.graph.points("residual")[-1]]
    final = final[mask].to(parts.dtype)[:, None]
    for rows in difference.chunks(1):
        everything = difference.in_stream(rows, shape[0])
        _add(total[:, -1:], everything, final[rows], positions, rows)
    return total


def _rows(gradient: Tensor, mask: Tensor, dtype: torch.dtype) -> Float[Tensor, "row unit d_out"]:
    """Real positions only; an MLP gets its single unit."""
    kept = gradient[mask].to(dtype)
    return kept if kept.ndim == 3 else kept[:, None]


def _add(
    total: Tensor,
    sources: Float[Tensor, "source row d_model"],
    gradients: Float[Tensor, "row unit d_model"],
    positions: Tensor | None,
    rows: slice,
) -> None:
    if positions is None:
        total += torch.einsum("snd,nud->su", sources, gradients).double()
    else:
        each = torch.einsum("snd,nud->sun", sources, gradients).double()
        total.index_add_(2, positions[rows], each)
