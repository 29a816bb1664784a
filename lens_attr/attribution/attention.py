"""Attention weights themselves: their mean, and their rollout through the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.attribution.alti import rolled_out, target_free
from lens_attr.attribution.explainer import Explained, Explainer
from lens_attr.attribution.layers import Activations, visiting_blocks
from lens_attr.attribution.mixing import row_normalised, seen_positions, square
from lens_attr.attribution.scoring import labels_of, target_values
from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch, token_string
from lens_attr.targets import Resolved

Row = Literal["predicting", "token"]
"""Whose attention is read: the position that predicts, or the token of interest in the text."""

ROUNDING = 1e-2


@dataclass(frozen=True, kw_only=True)
class AttentionExplainer(Explainer):
    """A method that reads attention patterns of one forward and nothing else."""

    def processing_notices(self, processing: Sequence[str]) -> list[str]:
        """Patterns do not depend on how weights are processed."""
        return []


@dataclass(frozen=True, kw_only=True)
class AttentionOnly(AttentionExplainer):
    """Mean attention weight over all blocks and heads.

        tokens_j = 1 / (L H) sum_l sum_h A^{l,h}_ij

    ``tokens`` [batch, pos]. Non-negative, summing to 1. Cost: 1 forward. NetAttention of AIEG
    (2025), without values; that paper leaves open whether the row i is that of the position
    predicting the token or of the token itself, so it is an option.

    Attributes:
        row: ``"predicting"``: i is the explained position. ``"token"``: i is where the target's
            first token stands in the text.
        occurrence: which of them, where it stands there several times.
    """

    row: Row = "predicting"
    occurrence: int = -1

    def __post_init__(self) -> None:
        refuse_bad_row(self.row, self.occurrence)

    @property
    def prefix_exact(self) -> bool:
        """The token of interest is looked for in the whole text."""
        return self.row == "predicting"

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """One forward for all. See `Explainer.explain_many`.

        Raises:
            InputError: ``row="token"``, and the text does not hold the target's token so often.
        """
        queries = [query_of(graph, batch, t, self.row, self.occurrence) for t in targets]
        attention = MeanAttention(batch, queries)
        with torch.no_grad(), visiting_blocks(graph, ["pattern"], attention.visit):
            scored = target_values(graph, batch, targets)
        each = zip(attention.rows, targets, scored, strict=True)
        return [
            Explained(row, value, labels_of(target, logits), unit="attention")
            for row, target, (value, logits) in each
        ]


class MeanAttention:
    """Mean attention weight over blocks and heads, of one query per target and example.

    Its ``visit`` goes to `visiting_blocks`.
    """

    def __init__(self, batch: TokenBatch, queries: Sequence[Int[Tensor, " batch"]]) -> None:
        self._batch = batch
        self._queries = torch.stack(list(queries), dim=1)
        self._blocks: list[Float[Tensor, "target batch pos"]] = []

    def visit(self, layer: int, activations: Activations) -> None:
        """Read one block."""
        here = zip(activations["pattern"], self._queries, self._batch.attention_mask, strict=True)
        means = [torch.where(mask, _head_mean(p[:, rows], layer), 0.0) for p, rows, mask in here]
        self._blocks.append(torch.stack(means, dim=1))

    @property
    def rows(self) -> Float[Tensor, "target batch pos"]:
        """After the forward."""
        return torch.stack(self._blocks).mean(dim=0)


def query_of(
    graph: ModelGraph, batch: TokenBatch, target: Resolved, row: Row, occurrence: int
) -> Int[Tensor, " batch"]:
    """The query whose attention is read, see `Row`.

    Raises:
        InputError: ``row="token"``, and the text does not hold the target's token so often.
    """
    if row == "predicting":
        return target.position
    if target.token_ids is None:
        raise InputError('row="token" needs a target that names a token: la.Logit(token), ...')
    rows = []
    for example, token in enumerate(target.token_ids[:, 0]):
        here = (batch.token_ids[example] == token) & batch.attention_mask[example]
        places = here.nonzero().flatten().tolist()
        if not -len(places) <= occurrence < len(places):
            raise InputError(
                f"example {example} holds the token {token_string(graph, int(token))!r} "
                f"{len(places)} times, so there is no occurrence {occurrence}: "
                'row="token" reads a token of the text; use row="predicting", or append it.'
            )
        rows.append(places[occurrence])
    return torch.tensor(rows, device=target.position.device)


def refuse_bad_row(row: object, occurrence: object) -> None:
    """Raise unless both are what `query_of` takes.

    Raises:
        InputError: naming the option.
    """
    if row not in get_args(Row):
        raise InputError(f"row must be 'predicting' or 'token', got {row!r}.")
    if isinstance(occurrence, bool) or not isinstance(occurrence, int):
        raise InputError(f"occurrence must be a whole number, got {occurrence!r}.")


@dataclass(frozen=True, kw_only=True)
class AttentionRollout(AttentionExplainer):
    """Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928).

    Every block's pattern, averaged over heads, plus the identity for the residual connection, rows
    divided by their sum; multiplied through the blocks:

        A_l = normalise(mean_h A^{l,h} + I),    tokens = row t of A_L A_{L-1} ... A_1

    with t the explained position; ``tokens`` [batch, pos]. Target-free. Non-negative, summing to 1.
    Cost: 1 forward.
    """

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """One forward for all targets. See `Explainer.explain_many`."""
        seen = seen_positions(graph, batch, targets)
        matrices: list[list[Tensor]] = [[] for _ in seen]

        def visit(layer: int, activations: Activations) -> None:
            for own, pattern, positions in zip(matrices, activations["pattern"], seen, strict=True):
                mean = _head_mean(square(pattern, positions), layer)
                own.append(row_normalised(mean + torch.eye(len(mean)).to(mean)))

        with torch.no_grad(), visiting_blocks(graph, ["pattern"], visit):
            scored = target_values(graph, batch, targets)
        each = [rolled_out(matrices, seen, target.position, batch) for target in targets]
        return target_free(each, targets, scored, "attention")


def _head_mean(
    pattern: Float[Tensor, "head *query key"], layer: int
) -> Float[Tensor, "*query key"]:
    """Averaged over heads, in at least float32.

    Raises:
        UnsupportedModelError: not attention weights, which are at least 0 and sum to 1 (to less
            where a hook of the user's cuts some).
    """
    mean = pattern.to(torch.promote_types(pattern.dtype, torch.float32)).mean(dim=0)
    if float(mean.min()) < 0 or float(mean.sum(dim=-1).max()) > 1 + ROUNDING:
        raise UnsupportedModelError(
            f"the pattern hook of block {layer} carries no attention weights: they must not be "
            "negative, nor sum to more than 1. If a forward hook of yours edits them, remove it."
        )
    return mean
