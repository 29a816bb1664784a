"""ALTI: how much of each token is in the final representation of one position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.attribution.explainer import Explained, Explainer
from lens_attr.attribution.layers import Activations, visiting_blocks
from lens_attr.attribution.mixing import (
    MIXING_ROLES,
    linearised,
    mixing_matrix,
    seen_positions,
)
from lens_attr.attribution.scoring import (
    Scored,
    labels_of,
    refuse_non_finite,
    target_values,
)
from lens_attr.errors import InputError
from lens_attr.graph import VALUE_BIASES_FOLDED, WRITING_WEIGHTS_CENTRED, ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved

NOT_INVARIANT = (WRITING_WEIGHTS_CENTRED, VALUE_BIASES_FOLDED)


@dataclass(frozen=True, kw_only=True)
class MixingExplainer(Explainer):
    """A method that measures how attention mixes tokens, by l1 norms.

    Attributes:
        memory_budget: MiB for the transformed vectors that exist at a time. More is not faster on
            a CPU; the result does not depend on it.
    """

    memory_budget: float | int = 32

    def __post_init__(self) -> None:
        budget = self.memory_budget
        number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
        if not number or not 0 < budget < float("inf"):
            raise InputError(f"memory_budget must be a positive number of MiB, got {budget!r}.")

    def processing_notices(self, processing: Sequence[str]) -> list[str]:
        """Centring changes l1 norms; a folded value bias is no longer shared among the tokens."""
        changed = [step for step in processing if step in NOT_INVARIANT]
        if not changed:
            return []
        return [
            f"the weights of this model were processed ({', '.join(changed)}), which changes the "
            "l1 norms and the split between tokens and biases that this method measures: its "
            "relevance differs from that of the raw weights. Load it with la.load to compare."
        ]


@dataclass(frozen=True, kw_only=True)
class Alti(MixingExplainer):
    """Aggregation of layer-wise token-to-token interactions (Ferrando et al. 2022).

    Every block's attention is written as a sum over tokens, y_i = sum_j T_i(x_j) + constant, with
    the pattern and the scales of norms held constant. C_l holds the contributions c_ij of token j
    to position i (see `mixing`), and

        tokens = row t of C_L C_{L-1} ... C_1

    with t the explained position; ``tokens`` [batch, pos]. Target-free; non-negative, summing to 1.
    Source: arXiv 2203.04212. Cost: 1 forward, and per block n_heads * d_model operations for each
    pair of tokens.

    In a post-norm block (BERT) y comes after the first norm, which is linearised; in a pre-norm
    block it is the stream after attention, as in ALTI-Logit. A norm behind attention alone (Gemma)
    is linearised too. MLPs, parallel ones included (GPT-NeoX, GPT-J), mix no tokens and are left
    out.
    """

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """One forward and mixing for all targets. See `Explainer.explain_many`."""
        seen = seen_positions(graph, batch, targets)
        matrices: list[list[Tensor]] = [[] for _ in seen]

        def visit(layer: int, activations: Activations) -> None:
            mixings = linearised(graph, layer, activations, seen)
            for own, mixing in zip(matrices, mixings, strict=True):
                own.append(mixing_matrix(mixing, not graph.is_masked_model, self.memory_budget))

        with torch.no_grad(), visiting_blocks(graph, MIXING_ROLES, visit):
            scored = target_values(graph, batch, targets)
        each = [rolled_out(matrices, seen, target.position, batch) for target in targets]
        for tokens in each:
            refuse_non_finite("relevance", tokens)
        return target_free(each, targets, scored, "share")


def target_free(
    tokens: Sequence[Float[Tensor, "batch pos"]],
    targets: Sequence[Resolved],
    scored: Sequence[Scored],
    unit: str,
) -> list[Explained]:
    """The relevance of every target's position, beside what is explained there."""
    each = zip(tokens, targets, scored, strict=True)
    return [Explained(own, v, labels_of(target, at), unit=unit) for own, target, (v, at) in each]


def rolled_out(
    matrices: Sequence[Sequence[Float[Tensor, "_ _"]]],
    seen: Sequence[Int[Tensor, " _"]],
    position: Int[Tensor, " batch"],
    batch: TokenBatch,
) -> Float[Tensor, "batch pos"]:
    """Row ``position`` of the product of each example's matrices (first block first)."""
    tokens = matrices[0][0].new_zeros(batch.token_ids.shape)
    for example, (layers, positions) in enumerate(zip(matrices, seen, strict=True)):
        row = (positions == position[example]).to(tokens.dtype)
        for matrix in reversed(layers):
            row = row @ matrix
        tokens[example, positions] = row
    return tokens
