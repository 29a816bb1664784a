"""Gradient x input under rules: one forward, one modified backward, read where wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.embeddings import (
    EmbeddingExplainer,
    InputEmbeddings,
    baseline_embedding,
    masked_sum,
)
from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.recording import (
    FLOW,
    Recorder,
    Request,
    per_example,
    product_of,
    resolve_requests,
)
from lens_attr.attribution.scoring import gradient_of, labels_of, refuse_non_finite, target_value
from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.segments import Segments
from lens_attr.graph.tokens import TokenBatch
from lens_attr.rules import RuleSet
from lens_attr.rules.session import Session
from lens_attr.targets import Resolved

OWN_OPTIONS = ("embeddings", "baseline", "record", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class GradientTimesInput(EmbeddingExplainer):
    """Embedding times gradient, the backward modified by rules (every preset of `lens_attr.rules`).

    Attributes:
        rules: how the backward is modified.
        record: roles, hook names and globs where activation x gradient is kept too.
        checkpoint: keep what enters each block and compute the rest again in the backward: a
            fraction of the memory on long texts for about a third more time, the same bits. Your
            forward hooks fire twice.
    """

    rules: RuleSet
    record: Sequence[str] = ()
    checkpoint: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.checkpoint, bool):
            raise InputError(f"checkpoint must be True or False, got {self.checkpoint!r}.")

    @property
    def keep_width(self) -> bool:
        """Records have positions."""
        return bool(self.record) or super().keep_width

    def describe(self) -> dict[str, Any]:
        """Every option, the rules with their switches."""
        return super().describe() | {"rules": self.rules.describe(), "record": list(self.record)}

    def explain(self, graph: ModelGraph, batch: TokenBatch, target: Resolved) -> Explained:
        """One forward and one backward, whatever is recorded. See `Explainer.explain`."""
        requests = resolve_requests(graph, self.record)
        baseline = baseline_embedding(graph, self.baseline)
        (embed,) = graph.points("embed")
        at_leaf = [r for r in requests if r.points[0].name == embed.name]
        elsewhere = [r for r in requests if r.points[0].name != embed.name]
        lowered = not self.record
        recorder = Recorder(batch.padding_mask, lowered=lowered)
        want(graph, recorder, elsewhere)
        inputs = InputEmbeddings()
        session = Session(graph, self.rules, strict=True, lowered=lowered)
        with torch.enable_grad(), ExitStack() as stack:
            inputs.attach(graph, stack)
            for context in (session, recorder) if lowered else (recorder, session):
                stack.enter_context(context)
            segments = _cut(graph, session, recorder, stack) if self.checkpoint else None
            value, logits = target_value(graph, batch, target)
            grad = gradient_of(value, inputs.leaf, segments)
        mask = batch.attention_mask
        tokens = masked_sum(product_of(inputs.embedding(self.embeddings) - baseline, grad), mask)
        refuse_non_finite("relevance", tokens)
        whole = masked_sum(product_of(inputs.embedding("full"), grad), mask)
        leaf = inputs.leaf.detach()
        return Explained(
            tokens=tokens,
            target_value=value.detach(),
            labels=labels_of(target, logits),
            head_tokens=stacked(graph, recorder, "z", "per head"),
            heads_relu_dim=stacked(graph, recorder, "z", "relu_dim"),
            records={r.key: collect(recorder, r) for r in elsewhere}
            | {r.key: _at_leaf(leaf, grad, mask) for r in at_leaf},
            flow={"embedding": whole.sum(dim=1)} | flow_of(graph, recorder),
            metadata={"fired": firings(session)},
            notices=self._degenerate(graph, session),
        )

    def _degenerate(self, graph: ModelGraph, session: Session) -> list[str]:
        """A LayerNorm right after the embeddings makes their plain gradient x input zero."""
        embedding_norms = {p.name for p in graph.points("norm_scale") if p.name.startswith("embed")}
        zero_baseline = self.baseline is None and self.embeddings == "full"
        if not embedding_norms or embedding_norms & set(session.fired) or not zero_baseline:
            return []
        return [
            "the embeddings pass a LayerNorm first, which does not change when they are scaled: "
            "with its true gradient the relevance of the full embedding is zero up to rounding. "
            'Use embeddings="token", a baseline, or a method that freezes norms (lrp, attnlrp).'
        ]


def preset_explainer(preset: Callable[..., RuleSet], **options: Any) -> GradientTimesInput:
    """Gradient x input under a preset: what is no option of ours is a switch of the preset."""
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    return GradientTimesInput(rules=preset(**options), **own)


def _cut(graph: ModelGraph, session: Session, recorder: Recorder, stack: ExitStack) -> Segments:
    """Cut the next forward at its blocks; hooks let go of a block's tensors when it is done."""
    session.refuse_upward_reads()

    def done(layer: int) -> None:
        session.block_done(layer)
        recorder.block_done(layer)

    segments = Segments(graph, done)
    segments.attach(stack)
    return segments


def firings(session: Session) -> dict[str, int]:
    """How many points the rules acted at, and how often."""
    fired = session.fired
    return {"points": len(fired), "backward_calls": sum(fired.values())}


def _at_leaf(
    leaf: Float[Tensor, "batch pos d"],
    grad: Float[Tensor, "batch pos d"],
    mask: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d"]:
    """A record of the embedding itself: no backward hook fires at the leaf of the graph."""
    return torch.where(mask[..., None], product_of(leaf, grad), 0.0)


def want(graph: ModelGraph, recorder: Recorder, requests: Sequence[Request]) -> None:
    """Record the heads, the flow for `Relevance.check`, and what the user asked for."""
    for point in graph.points("z"):
        recorder.want(point, "per head", lambda product: product.sum(dim=-1))
        recorder.want(point, "relu_dim", lambda product: product.relu().sum(dim=(1, 3)))
    for role in FLOW:
        for point in graph.points(role):
            recorder.want(point, "flow", per_example)
    for request in requests:
        for point in request.points:
            recorder.want(point, f"record {request.key}", request.reduce)


def stacked(graph: ModelGraph, recorder: Recorder, role: Role, key: str) -> Tensor:
    """What was recorded at every point of a role, [batch, point, ...]."""
    return torch.stack([recorder.get(point, key) for point in graph.points(role)], dim=1)


def flow_of(graph: ModelGraph, recorder: Recorder) -> dict[str, Tensor]:
    """The summed relevance at the joints of every block, [batch, layer] each."""
    names = {role: ("stream" if role == "residual" else role) for role in FLOW}
    present: list[Role] = [role for role in FLOW if graph.points(role)]
    return {names[role]: stacked(graph, recorder, role, "flow") for role in present}


def collect(recorder: Recorder, request: Request) -> Tensor:
    """What was recorded for one entry of ``record=``."""
    values = [recorder.get(point, f"record {request.key}") for point in request.points]
    return torch.stack(values, dim=1) if request.stacked else values[0]
