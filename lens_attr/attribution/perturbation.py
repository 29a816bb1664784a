"""What methods share that run many variants of a text: the inputs, the budget, the function."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.attribution.embeddings import (
    Baseline,
    EmbeddingExplainer,
    Embeddings,
    InputEmbeddings,
    baseline_embedding,
    replaced_embedding,
)
from lens_attr.attribution.jacobian import at_once
from lens_attr.attribution.paths import Function
from lens_attr.attribution.scoring import labels_of, target_values
from lens_attr.errors import checked_count
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.rules import RuleSet
from lens_attr.targets import Resolved


@dataclass(frozen=True, kw_only=True)
class PerturbationExplainer(EmbeddingExplainer):
    """A method that runs many variants of the same text.

    Attributes:
        embeddings: which part of the embedding is varied; with ``"token"`` positions stay.
        baseline: what it is varied towards: None or ``"zero"``, ``"pad"``, a token, an id, or a
            tensor [d_model], [pos, d_model] or [batch, pos, d_model]. It stands in the place of
            all that ``embeddings`` names, so with ``"full"`` zero zeroes token and position.
        max_batch_tokens: how many tokens go through the model at a time, padding included; fewer
            need less memory. A single text is never split, and a `la.Metric` always sees the
            batch it was written for.
    """

    embeddings: Embeddings = "token"
    max_batch_tokens: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("max_batch_tokens", self.max_batch_tokens)

    def processing_notices(self, processing: Sequence[str]) -> list[str]:
        """The relevance of tokens does not depend on how weights are processed."""
        return []

    def calls(self, variants: int, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """How many forwards so many variants of every example take."""
        return -(-variants * len(batch) // self.rows_per_call(batch, targets))

    def rows_per_call(self, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """How many variants go through the model together."""
        if any(target.full is not None for target in targets):
            return len(batch)
        return max(1, self.max_batch_tokens // batch.token_ids.shape[1])

    def backwards_at_once(
        self,
        graph: ModelGraph,
        variants: int,
        batch: TokenBatch,
        targets: Sequence[Resolved],
        rules: RuleSet | None = None,
    ) -> int:
        """How many backwards of a call run as one, see `at_once`."""
        rows = min(variants * len(batch), self.rows_per_call(batch, targets))
        return at_once(graph, (rows, batch.token_ids.shape[1]), targets, rules)


@dataclass(frozen=True)
class Inputs:
    """One batch as it is and as its baseline, in at least float32.

    Attributes:
        end: the embeddings that are explained.
        start: the baseline, which equals ``end`` on padding.
        values: the explained numbers.
        targets: what is explained, also where the input changes.
        labels: the same in words, per target and example.
    """

    end: Float[Tensor, "batch pos d_model"]
    start: Float[Tensor, "batch pos d_model"]
    values: Float[Tensor, "target batch"]
    targets: list[Resolved]
    labels: list[list[str]]


def read_inputs(
    graph: ModelGraph,
    batch: TokenBatch,
    targets: Sequence[Resolved],
    which: Embeddings,
    baseline: Baseline,
) -> Inputs:
    """One forward of the text as it is.

    Raises:
        InputError: a baseline that is no single token.
        NonFiniteError: NaN or infinite logits.
    """
    start = baseline_embedding(graph, baseline)
    inputs = InputEmbeddings()
    with torch.no_grad(), ExitStack() as stack:
        inputs.attach(graph, stack)
        scored = target_values(graph, batch, targets)
    end = inputs.embedding(which)
    end = end.to(torch.promote_types(end.dtype, torch.float32))
    real = batch.attention_mask[..., None]
    pairs = [(target, logits) for target, (_, logits) in zip(targets, scored, strict=True)]
    return Inputs(
        end=end,
        start=torch.where(real, start.to(end).expand_as(end), end),
        values=torch.stack([value for value, _ in scored]),
        targets=[target.pinned(logits) for target, logits in pairs],
        labels=[labels_of(target, logits) for target, logits in pairs],
    )


def model_function(
    graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved], which: Embeddings
) -> Function:
    """The explained numbers [target, row] as a function of the embeddings."""

    def values(point: Tensor, example: Tensor) -> Tensor:
        rows = example.tolist()
        with replaced_embedding(graph, point.to(graph.dtype), which):
            some = [target.rows(rows) for target in targets]
            return torch.stack([v for v, _ in target_values(graph, batch.rows(rows), some)])

    return values


def value_at(
    function: Function, points: Float[Tensor, "example ..."], size: int
) -> Float[Tensor, "*target example"]:
    """The explained numbers at one point per example, without gradients."""
    every = torch.arange(len(points), device=points.device)
    with torch.no_grad():
        return torch.cat([function(points[rows], rows) for rows in every.split(size)], dim=-1)
