"""The engine: one forward, one modified backward, and activation x gradient read where wanted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.recording import (
    FLOW,
    Recorder,
    Request,
    per_example,
    product_of,
    resolve_requests,
)
from lens_attr.errors import InputError, NonFiniteError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.tokens import TokenBatch, continuation
from lens_attr.rules import RuleSet
from lens_attr.rules.session import Session
from lens_attr.targets import Resolved

Embeddings = Literal["full", "token"]
Baseline = str | int | Tensor | None

EMBEDDING_ROLES: tuple[Role, ...] = ("embed", "pos_embed", "type_embed")


@dataclass(frozen=True)
class GradientOptions:
    """What `explain` reads besides the target.

    Attributes:
        rules: how the backward is modified.
        embeddings: ``"full"`` explains token + position (+ type) embedding, ``"token"`` the first.
        baseline: subtracted from the embedding: None (zero), a token string or id, or a tensor.
        record: roles, hook names and globs.
    """

    rules: RuleSet
    embeddings: Embeddings = "full"
    baseline: Baseline = None
    record: Sequence[str] = ()


@dataclass
class Explained:
    """Raw results of one batch."""

    tokens: Float[Tensor, "batch pos"]
    target_value: Float[Tensor, " batch"]
    labels: list[str]
    head_tokens: Float[Tensor, "batch layer pos head"]
    heads_relu_dim: Float[Tensor, "batch layer head"]
    records: dict[str, Tensor] = field(default_factory=dict)
    flow: dict[str, Tensor] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)


def explain(
    graph: ModelGraph, batch: TokenBatch, target: Resolved, options: GradientOptions
) -> Explained:
    """Explain one batch: one forward and one backward, whatever is recorded.

    Works under ``no_grad``; leaves ``.grad``, hooks and flags untouched.

    Raises:
        NonFiniteError: NaN or infinite logits or relevance.
        RuleNotAppliedError, RuleConflictError, UnsupportedModelError: from the rules.
        InputError: a baseline that does not fit, a record entry that matches nothing.
    """
    requests = resolve_requests(graph, options.record)
    baseline = baseline_embedding(graph, options.baseline)
    recorder = Recorder(batch.padding_mask)
    _want_heads_and_flow(graph, recorder)
    (embed,) = graph.points("embed")
    at_leaf = [r for r in requests if r.points[0].name == embed.name]
    elsewhere = [r for r in requests if r.points[0].name != embed.name]
    for request in elsewhere:
        for point in request.points:
            recorder.want(point, f"record {request.key}", request.reduce)
    inputs = _Inputs()
    session = Session(graph, options.rules, strict=True)
    with torch.enable_grad(), ExitStack() as stack:
        inputs.attach(graph, stack)
        stack.enter_context(recorder)
        stack.enter_context(session)
        value, logits = _target_value(graph, batch, target)
        (grad,) = torch.autograd.grad(value.sum(), inputs.leaf)
    embedding = inputs.embedding(options.embeddings) - baseline
    tokens = _masked_sum(product_of(embedding, grad), batch.attention_mask)
    _refuse_non_finite("relevance", tokens)
    whole = _masked_sum(product_of(inputs.embedding("full"), grad), batch.attention_mask)
    return Explained(
        tokens=tokens,
        target_value=value.detach(),
        labels=target.labels if target.relabel is None else target.relabel(logits),
        head_tokens=_stack(graph, recorder, "z", "per head"),
        heads_relu_dim=_stack(graph, recorder, "z", "relu_dim"),
        records={r.key: _collect(recorder, r) for r in elsewhere}
        | {r.key: _at_leaf(inputs.leaf.detach(), grad, batch.attention_mask) for r in at_leaf},
        flow={"embedding": whole.sum(dim=1)} | _flow(graph, recorder),
        fired=session.fired,
    )


class _Inputs:
    """The embeddings of one forward; the token embedding becomes the leaf of the graph."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def attach(self, graph: ModelGraph, stack: ExitStack) -> None:
        (embed,) = graph.points("embed")
        stack.callback(embed.on_forward(self._make_leaf))
        for role in EMBEDDING_ROLES[1:]:
            for point in graph.points(role):
                stack.callback(point.on_forward(self._keeper(role)))

    def _make_leaf(self, embedding: Tensor) -> Tensor:
        self._parts["embed"] = embedding.detach().requires_grad_()
        return self._parts["embed"]

    def _keeper(self, role: str):
        def keep(embedding: Tensor) -> None:
            self._parts[role] = embedding.detach()

        return keep

    @property
    def leaf(self) -> Float[Tensor, "batch pos d_model"]:
        return self._parts["embed"]

    def embedding(self, which: Embeddings) -> Float[Tensor, "batch pos d_model"]:
        token = self.leaf.detach()
        if which == "token":
            return token
        others = [part for role, part in self._parts.items() if role != "embed"]
        return torch.stack([token, *(part.expand_as(token) for part in others)]).sum(dim=0)


def _target_value(
    graph: ModelGraph, batch: TokenBatch, target: Resolved
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch d_vocab"]]:
    mask = batch.padding_mask
    if target.full is None:
        logits = graph.logits_at(batch.token_ids, mask, target.position)
        value = target.score(logits, target)
    else:
        every = graph.forward(batch.token_ids, mask)
        value = target.full(every)
        logits = every[torch.arange(len(batch), device=every.device), target.position]
    _refuse_non_finite("logits", logits)
    if not isinstance(value, Tensor) or value.shape != (len(batch),):
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the metric must give one number per example [{len(batch)}], got {shape}")
    if not value.requires_grad:
        raise InputError("the target does not depend on the logits, so there is no gradient.")
    return value, logits.detach()


def _refuse_non_finite(what: str, values: Tensor) -> None:
    bad = ~torch.isfinite(values).flatten(1).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"NaN or infinite {what} in example {int(bad.nonzero()[0])}: check the weights, or "
            "use a wider dtype (dtype='float32' in la.load)."
        )


def _masked_sum(
    product: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    return torch.where(mask, product.sum(dim=-1), 0.0)


def _at_leaf(
    leaf: Float[Tensor, "batch pos d"],
    grad: Float[Tensor, "batch pos d"],
    mask: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d"]:
    """A record of the embedding itself: no backward hook fires at the leaf of the graph."""
    return torch.where(mask[..., None], product_of(leaf, grad), 0.0)


def _want_heads_and_flow(graph: ModelGraph, recorder: Recorder) -> None:
    for point in graph.points("z"):
        recorder.want(point, "per head", lambda product: product.sum(dim=-1))
        recorder.want(point, "relu_dim", lambda product: product.relu().sum(dim=(1, 3)))
    for role in FLOW:
        for point in graph.points(role):
            recorder.want(point, "flow", per_example)


def _stack(graph: ModelGraph, recorder: Recorder, role: Role, key: str) -> Tensor:
    return torch.stack([recorder.get(point, key) for point in graph.points(role)], dim=1)


def _flow(graph: ModelGraph, recorder: Recorder) -> dict[str, Tensor]:
    names = {role: ("stream" if role == "residual" else role) for role in FLOW}
    present: list[Role] = [role for role in FLOW if graph.points(role)]
    return {names[role]: _stack(graph, recorder, role, "flow") for role in present}


def _collect(recorder: Recorder, request: Request) -> Tensor:
    values = [recorder.get(point, f"record {request.key}") for point in request.points]
    return torch.stack(values, dim=1) if request.stacked else values[0]


def baseline_embedding(graph: ModelGraph, baseline: Baseline) -> Tensor:
    """What is subtracted from the embedding: zero, a token's embedding, or a given tensor.

    Raises:
        InputError: several tokens, or an id out of range.
    """
    if baseline is None:
        return torch.zeros((), device=graph.device, dtype=graph.dtype)
    if isinstance(baseline, Tensor):
        return baseline.to(graph.device, graph.dtype)
    return graph.token_embedding(_baseline_id(graph, baseline))


def refuse_misfit(graph: ModelGraph, baseline: Baseline, batch: TokenBatch) -> None:
    """Raise unless a baseline tensor broadcasts to the embeddings of the whole batch.

    Raises:
        InputError: naming both shapes.
    """
    if not isinstance(baseline, Tensor):
        return
    wanted = (*batch.token_ids.shape, graph.cfg.d_model)
    try:
        fits = torch.broadcast_shapes(baseline.shape, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits or baseline.ndim == 0 or baseline.shape[-1] != wanted[-1]:
        raise InputError(
            f"a baseline tensor must be [d_model], [pos, d_model] or [batch, pos, d_model]; "
            f"{list(baseline.shape)} does not fit the input {list(wanted)}."
        )


def _baseline_id(graph: ModelGraph, baseline: Any) -> int:
    if isinstance(baseline, str):
        ids = continuation(graph, baseline)
        if len(ids) != 1:
            raise InputError(f"the baseline {baseline!r} is {len(ids)} tokens; give one, or an id.")
        return ids[0]
    if isinstance(baseline, bool) or not isinstance(baseline, int):
        raise InputError(
            f"baseline must be None, a token, an id or a tensor, got {type(baseline).__name__}."
        )
    if not 0 <= baseline < graph.d_vocab:
        raise InputError(f"baseline id {baseline} is out of range 0 to {graph.d_vocab - 1}.")
    return baseline
