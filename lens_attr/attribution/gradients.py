"""Gradient x input under rules: one forward, one modified backward, read where wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.embeddings import (
    EmbeddingExplainer,
    InputEmbeddings,
    baseline_embedding,
    is_zero,
    masked_sum,
)
from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.jacobian import at_once, each_gradient
from lens_attr.attribution.recording import (
    FLOW,
    Recorder,
    Request,
    per_example,
    product_of,
    resolve_requests,
)
from lens_attr.attribution.scoring import labels_of, refuse_non_finite, target_values
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
    """``sum_d (x - x0)_d g_d``: embedding times gradient (Denil et al. 2014, arXiv 1412.6815).

    g is dF/dx, the backward modified by rules: without any the plain gradient x input, with those
    of a preset of `lens_attr.rules` LRP, AttnLRP, GIM or RelP, whose sources stand there. x0 is
    zero, or the baseline.

    ``tokens`` [batch, pos]; ``head_tokens`` [batch, layer, pos, head] is ``sum_d z_d dF/dz_d``;
    ``records`` hold activation x gradient of the places in ``record``, in their own shape; ``flow``
    the sums [batch, layer] at the joints of every block, for `Relevance.check`.

    Cost: 1 forward and 1 backward; further targets cost 1 backward each. With ``checkpoint`` every
    backward runs each block forward again.

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

    def forwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """One, and every block once more in every backward of a checkpointed forward."""
        return 1 + self.checkpoint * len(targets)

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """One forward for all, and one backward each, whatever is recorded."""
        requests = resolve_requests(graph, self.record)
        baseline = baseline_embedding(graph, self.baseline)
        lowered = not self.record
        alone = self.checkpoint or not lowered
        together = 1 if alone else at_once(graph, batch.token_ids.shape, targets, self.rules)
        session = Session(graph, self.rules, strict=True, lowered=lowered)
        reading = Reading(graph, requests, Recorder(batch.padding_mask, lowered=lowered), session)
        recorder, inputs = reading.recorder, InputEmbeddings()
        with torch.enable_grad(), ExitStack() as stack:
            inputs.attach(graph, stack)
            for context in (session, recorder) if lowered else (recorder, session):
                stack.enter_context(context)
            segments = _cut(graph, session, recorder, stack) if self.checkpoint else None
            scored = target_values(graph, batch, targets)
            read = partial(
                reading.fields,
                inputs.embedding("full"),
                inputs.embedding(self.embeddings) - baseline,
                inputs.leaf.detach(),
                batch.attention_mask,
            )
            values = [value for value, _ in scored]
            found = list(
                each_gradient(
                    values,
                    inputs.leaf,
                    read,
                    before=reading.clear,
                    at_once=together,
                    segments=segments,
                )
            )
        each = zip(targets, scored, found, strict=True)
        return [self._explained(graph, session, t, *pair, parts) for t, pair, parts in each]

    def _explained(
        self,
        graph: ModelGraph,
        session: Session,
        target: Resolved,
        value: Tensor,
        logits: Tensor,
        parts: dict[str, Any],
    ) -> Explained:
        refuse_non_finite("relevance", parts["tokens"])
        return Explained(
            target_value=value.detach(),
            labels=labels_of(target, logits),
            metadata={"fired": firings(session)},
            notices=self._degenerate(graph, session),
            **parts,
        )

    def _degenerate(self, graph: ModelGraph, session: Session) -> list[str]:
        """A LayerNorm right after the embeddings makes their plain gradient x input zero."""
        embedding_norms = {p.name for p in graph.points("norm_scale") if p.name.startswith("embed")}
        zero_baseline = is_zero(self.baseline) and self.embeddings == "full"
        if not embedding_norms or embedding_norms & set(session.fired) or not zero_baseline:
            return []
        return [
            "the embeddings pass a LayerNorm first, which does not change when they are scaled: "
            "with its true gradient the relevance of the full embedding is zero up to rounding. "
            'Use embeddings="token", a baseline, or a method that freezes norms (lrp, attnlrp).'
        ]


class Reading:
    """What is kept of every backward of one forward."""

    def __init__(
        self, graph: ModelGraph, requests: Sequence[Request], recorder: Recorder, session: Session
    ) -> None:
        (embed,) = graph.points("embed")
        self.graph, self.recorder, self.session = graph, recorder, session
        self.at_leaf = [r for r in requests if r.points[0].name == embed.name]
        self.elsewhere = [r for r in requests if r.points[0].name != embed.name]
        want(graph, recorder, self.elsewhere)

    def clear(self) -> None:
        """Forget what the backward before has recorded and counted."""
        self.recorder.clear()
        self.session.clear_counts()

    def fields(
        self,
        full: Float[Tensor, "row pos d"],
        change: Float[Tensor, "row pos d"],
        leaf: Float[Tensor, "row pos d"],
        mask: Bool[Tensor, "batch pos"],
        grad: Float[Tensor, "row pos d"],
    ) -> dict[str, Any]:
        """The fields of `Explained` that the gradient at the leaf and the recorder give.

        Args:
            full: all that is embedded.
            change: the part that is explained, less its baseline.
            leaf: the token embedding.
            mask: True on real tokens.
            grad: what arrived at the leaf.
        """
        self.session.verify()
        recorder = self.recorder
        whole = masked_sum(recorder.combine(full, grad), mask).sum(dim=1)
        return {
            "tokens": masked_sum(recorder.combine(change, grad), mask),
            "head_tokens": stacked(self.graph, recorder, "z", "per head"),
            "heads_relu_dim": stacked(self.graph, recorder, "z", "relu_dim"),
            "records": {r.key: collect(recorder, r) for r in self.elsewhere}
            | {r.key: _at_leaf(leaf, grad, mask) for r in self.at_leaf},
            "flow": {"embedding": whole} | flow_of(self.graph, recorder),
        }


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
