"""DeepLIFT: what each token adds to the difference between an input and a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.embeddings import (
    EMBEDDING_ROLES,
    EmbeddingExplainer,
    Embeddings,
    InputEmbeddings,
    baseline_embedding,
)
from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.gradients import Reading, firings
from lens_attr.attribution.jacobian import each_gradient
from lens_attr.attribution.recording import Recorder, Request, product_of, resolve_requests
from lens_attr.attribution.scoring import labels_of, logits_of_each, refuse_non_finite
from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.tokens import TokenBatch, token_string
from lens_attr.rules import RuleSet
from lens_attr.rules.deeplift import (
    SoftmaxForm,
    both,
    deeplift,
    difference_of,
    halves,
    log_sum_exp_multiplier,
    mean_of,
    soft_cap_gradient,
    wide,
)
from lens_attr.rules.session import Session
from lens_attr.targets import Resolved

GAP = 0.05
"""A larger relative summation gap earns a notice."""

CANCELLATION = 100.0
"""So does a sum of absolute token relevances larger than this many times |F(x) - F(x0)|."""

NO_VARIANCE = 0.5
"""Mean square of a normed vector, v / (v + eps), below which its variance v is less than eps."""

DEFAULT_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Of the tokenizer; the first that it has is the baseline where zero cannot be."""

REPLACED: tuple[Role, ...] = ("scores", "mlp_pre", "head_pre", "norm_scale")
"""The gradient that arrives here is not yet the multiplier."""


@dataclass(frozen=True, kw_only=True)
class DeepLift(EmbeddingExplainer):
    """DeepLIFT (Shrikumar et al. 2017, arXiv 1704.02685), with rules for all of a transformer.

    The relevance of a token is ``sum_d (e - e0) m``, where m is the multiplier that replaces the
    gradient: the secant (f(x) - f(x0)) / (x - x0) at elementwise functions (rescale rule), and
    (a + a0)/2 and (b + b0)/2 at a product a b (product rule): A.V, Q.K, gate x up. The softmax is
    exp(s - log sum exp s), of rescale rules and linear steps; a norm is c / sqrt(mean(c c) + eps),
    with c centred. Each step is exact, so the relevance sums to F(x) - F(x0), at the embeddings and
    at every block. The paper leaves products open; this is the symmetric rule.

    ``r.extra`` holds ``baseline_value`` F(x0) [batch] and ``summation_gap`` [batch], what the
    tokens miss of F(x) - F(x0) (rounding). ``r.flow["stream"]`` [batch, layer + 1] is the sum at
    every block's input and after the last; ``r.check()`` says where anything went. Heads and
    records are (activation - its baseline) x multiplier.

    Targets are linear in the logits (`Logit`, `LogitDiff`, `TopLogit` with the top token of x), or
    `LogProb`. Cost: one forward and one backward of [x; x0], twice the batch. Further targets cost
    one backward each.

    ``softmax="product"`` takes the softmax apart as exp(s) times a reciprocal, which sums as
    exactly but is not bounded: scores that all grew by s give multipliers of order exp(s), though
    the softmax did not change; they cancel in the sum, less so in the tokens.

    Without a ``baseline``, x0 is zero where something else is added to the token embedding. Where
    nothing is (no position embeddings, as in Llama, or ``embeddings="full"``) a zero would leave
    every norm without variance, and x0 is the tokenizer's BOS token at every position (its EOS or
    pad token where it has no BOS): a notice and the metadata say which. A zero that is asked for is
    refused where it reaches the last norm without variance. A notice says when relevances cancel
    or the sum is off.

    Attributes:
        embeddings: ``"token"``: positions stay as they are; ``"full"``: the baseline replaces them.
        baseline: x0.
        softmax: ``"log"``, or ``"product"``.
        record: roles, hook names and globs where relevance is kept too.
    """

    embeddings: Embeddings = "token"
    softmax: SoftmaxForm = "log"
    record: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.softmax not in get_args(SoftmaxForm):
            raise InputError(f"softmax must be 'log' or 'product', got {self.softmax!r}.")

    @property
    def rules(self) -> RuleSet:
        """How the backward is modified."""
        return deeplift(self.softmax)

    @property
    def keep_width(self) -> bool:
        """Records have positions."""
        return bool(self.record) or super().keep_width

    def describe(self) -> dict[str, Any]:
        """Every option, and the rules."""
        return super().describe() | {"rules": self.rules.describe(), "record": list(self.record)}

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """One forward of input and baseline together for all targets, and one backward each.

        Raises:
            InputError: a target that is neither linear in the logits nor a log-probability; a
                baseline that leaves the last norm without variance.
        """
        for target in targets:
            _refuse_target(target)
        token = _default_token(graph, self.embeddings) if self.baseline is None else None
        if token is None:
            return self._explain_many(graph, batch, targets)
        found = replace(self, baseline=token)._explain_many(graph, batch, targets)
        for each in found:
            each.metadata["baseline"] = token
            each.notices.append(_told(graph, token))
        return found

    def _explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        requests = _requests(graph, self.record)
        recorder = Recorder(batch.padding_mask, combine=_relevance)
        session = Session(graph, self.rules, strict=True)
        reading = Reading(graph, requests, recorder, session)
        inputs = InputEmbeddings()
        twice = [*range(len(batch))] * 2
        pair, aimed = batch.rows(twice), [target.rows(twice) for target in targets]
        baseline = baseline_embedding(graph, self.baseline)
        with torch.enable_grad(), ExitStack() as stack:
            _put_baseline(graph, baseline, self.embeddings, stack)
            _refuse_without_variance(graph, batch.attention_mask, stack)
            inputs.attach(graph, stack)
            stack.enter_context(recorder)
            stack.enter_context(session)
            logits = logits_of_each(graph, pair, aimed)
            aims = list(zip(targets, logits, strict=True))
            tops = [_at_the_top(graph, target, at.detach()) for target, at in aims]
            values = [(at * top.gradient).sum(dim=-1) for at, top in zip(logits, tops, strict=True)]
            read = partial(
                reading.fields,
                inputs.embedding("full"),
                inputs.embedding(self.embeddings),
                inputs.leaf.detach(),
                batch.attention_mask,
            )
            found = list(each_gradient(values, inputs.leaf, read, before=reading.clear))
        each = zip(targets, logits, tops, found, strict=True)
        return [self._explained(session, *parts) for parts in each]

    def _explained(
        self,
        session: Session,
        target: Resolved,
        logits: Float[Tensor, "pair d_vocab"],
        top: Top,
        parts: dict[str, Any],
    ) -> Explained:
        tokens = parts["tokens"]
        refuse_non_finite("relevance", tokens)
        gap = (top.value - top.baseline).to(tokens) - tokens.sum(dim=1)
        return Explained(
            target_value=top.value,
            labels=labels_of(target, halves(logits.detach())[0]),
            extra={"baseline_value": top.baseline, "summation_gap": gap},
            metadata={"fired": firings(session)},
            notices=_notices(tokens, gap, top, self.softmax),
            **parts,
        )


@dataclass(frozen=True)
class Top:
    """Where the backward starts: the target of both, and the gradient to hand to the logits."""

    value: Float[Tensor, " batch"]
    baseline: Float[Tensor, " batch"]
    gradient: Float[Tensor, "pair d_vocab"]


def _at_the_top(graph: ModelGraph, target: Resolved, pair: Float[Tensor, "pair d_vocab"]) -> Top:
    logits, logits0 = halves(wide(pair))
    refuse_non_finite("logits", logits)
    refuse_non_finite("logits of the baseline", logits0)
    if target.form == "log_prob":
        assert target.token_ids is not None
        chosen = torch.zeros_like(logits).scatter_(1, target.token_ids, 1.0)
        multiplier = chosen - log_sum_exp_multiplier(logits, logits0)
        value, baseline = target.score(logits, target), target.score(logits0, target)
    else:
        leaf = logits.clone().requires_grad_()
        (multiplier,) = torch.autograd.grad(target.score(leaf, target).sum(), leaf)
        value, baseline = ((multiplier * each).sum(dim=-1) for each in (logits, logits0))
    cap = graph.soft_cap("logits")
    gradient = both(multiplier) if cap is None else soft_cap_gradient(multiplier, wide(pair), cap)
    return Top(value, baseline, gradient.to(pair.dtype))


def _default_token(graph: ModelGraph, which: Embeddings) -> int | None:
    """The baseline where none is given; None for zero, which needs something added to it.

    Raises:
        InputError: the tokenizer has no such token.
    """
    added = which == "token" and graph.points("pos_embed")
    if added or not graph.points("norm_scale"):
        return None
    for name in DEFAULT_TOKENS:
        token = getattr(graph.tokenizer, name, None)
        if token is not None:
            return int(token)
    raise InputError(
        "nothing is added to the embeddings that deeplift replaces, so a zero baseline would leave "
        "every norm without variance, and there is no BOS, EOS or pad token to take instead: give "
        "a token or an id as baseline."
    )


def _told(graph: ModelGraph, token: int) -> str:
    return (
        f"no baseline was given, so deeplift compares with {token_string(graph, token)!r} "
        f"(baseline={token}) at every position: nothing is added to the embeddings that it "
        "replaces, and a zero would leave every norm without variance."
    )


def _refuse_without_variance(
    graph: ModelGraph, mask: Bool[Tensor, "batch pos"], stack: ExitStack
) -> None:
    """A forward raises where the baseline comes to the last norm as it went into the first.

    The multipliers of a norm without variance are of order 1 / sqrt(eps). Behind the embedding
    alone they cancel in every token; in every block, they do not.

    Raises:
        InputError: from the forward, naming the norm.
    """

    def check(normed: Tensor) -> None:
        _, normed0 = halves(normed.detach())
        lost = (wide(normed0).square().mean(dim=-1) < NO_VARIANCE) & mask
        if bool(lost.any()):
            raise InputError(
                f"the baseline of example {int(lost.any(dim=1).nonzero()[0])} comes to "
                f"{norms[-1].name} without variance, as it went into every norm before: nothing "
                "in this model is added to it, and deeplift's multipliers would be without bound. "
                'Give a token as the baseline (baseline="pad", " the", an id), or leave it out.'
            )

    norms = graph.points("normalized")
    if norms:
        norms[-1].on_forward(check, stack)


def _put_baseline(graph: ModelGraph, baseline: Tensor, which: Embeddings, stack: ExitStack) -> None:
    """The second half of the batch reads the baseline where the first reads its embedding."""

    def replace_half(value: Tensor, pair: Tensor) -> Tensor:
        own, _ = halves(pair)
        return torch.cat([own, value.expand_as(own)])

    (embed,) = graph.points("embed")
    embed.on_forward(partial(replace_half, baseline), stack)
    for role in EMBEDDING_ROLES[1:] if which == "full" else ():
        for point in graph.points(role):
            point.on_forward(partial(replace_half, torch.zeros_like(baseline)), stack)


def _relevance(activation: Tensor, grad: Tensor) -> Tensor:
    """(a - a0) x multiplier, from the activations and gradients of ``[x; x0]``."""
    return product_of(difference_of(activation), mean_of(grad))


def _requests(graph: ModelGraph, record: Sequence[str]) -> list[Request]:
    """What to record.

    Raises:
        InputError: a point where the multiplier is put together.
    """
    requests = resolve_requests(graph, record)
    (embed,) = graph.points("embed")
    places = {p.name for role in REPLACED for p in graph.points(role)} | {embed.name}
    for name in (point.name for request in requests for point in request.points):
        if name in places:
            raise InputError(
                f"deeplift cannot record {name!r}, where the multiplier is put together (or read, "
                'at the embedding). Record what follows: "pattern", "mlp_post", "residual".'
            )
    return requests


def _refuse_target(target: Resolved) -> None:
    if target.form is None:
        raise InputError(
            "deeplift explains targets that are linear in the logits, or a log-probability: "
            "la.Logit, la.LogitDiff, la.TopLogit or la.LogProb. For a metric of your own use "
            "'integrated_gradients'."
        )


REMEDY: dict[SoftmaxForm, str] = {
    "product": "Where the scores of a softmax all shift, softmax='log' stays bounded.",
    "log": "Either F is nearly the same at both, or the baseline is too far from the input: try "
    "another token.",
}


def _notices(
    tokens: Float[Tensor, "batch pos"],
    gap: Float[Tensor, " batch"],
    top: Top,
    softmax: SoftmaxForm,
) -> list[str]:
    value, value0 = top.value.to(gap), top.baseline.to(gap)
    noise = torch.finfo(top.value.dtype).eps ** 0.5 * torch.maximum(value.abs(), value0.abs())
    change, size = (value - value0).abs(), tokens.abs().sum(dim=1)
    bad = (gap.abs() > GAP * change + noise) | (size > CANCELLATION * change + noise)
    if not bool(bad.any()):
        return []
    worst = int(torch.where(bad, size, -1.0).argmax())
    return [
        f"deeplift's token relevances cancel in {int(bad.sum())} of {len(bad)} examples: their "
        f"absolute values add up to {float(size[worst]):.2g} and their sum misses F(x) - "
        f"F(baseline) = {float(value[worst] - value0[worst]):.2g} by "
        f"{float(gap[worst].abs()):.2g}. {REMEDY[softmax]}"
    ]
