"""AIEG: integrated gradients weighted by emphasis factors, then by attention."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr.attribution.attention import MeanAttention, Row, query_of, refuse_bad_row
from lens_attr.attribution.completeness import incomplete, remedy
from lens_attr.attribution.embeddings import masked_sum
from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.layers import visiting_blocks
from lens_attr.attribution.paths import (
    MOST_STEPS,
    Function,
    beside,
    between,
    chunks,
    value_and_gradients,
)
from lens_attr.attribution.perturbation import (
    Inputs,
    PerturbationExplainer,
    model_function,
    read_inputs,
    value_at,
)
from lens_attr.attribution.scoring import refuse_non_finite
from lens_attr.errors import InputError, checked_count
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved

Output = Literal["logit", "probability", "embedding_l1"]
"""F: the target as given, the probability of its token, or the l1 norm of the output embedding."""

# --------------------------------------------------------------------- the maths, on any function


def emphasis_factors(outputs: Float[Tensor, "*batch point"]) -> Float[Tensor, "*batch point"]:
    """``EF_k = |F_k - F_(k-1)| / (|F_k| + |F_(k-1)|)``: how much the output moves, in [0, 1].

    EF_0 = 0, and 0 where both outputs are 0.
    """
    before, after = outputs[..., :-1], outputs[..., 1:]
    size = before.abs() + after.abs()
    moved = torch.where(size > 0, (after - before).abs() / size.where(size > 0, 1.0), 0.0)
    return torch.cat([torch.zeros_like(outputs[..., :1]), moved.clamp(max=1.0)], dim=-1)


def positive_norm(scores: Float[Tensor, "*batch pos"]) -> Float[Tensor, "*batch pos"]:
    """The positive scores as shares of their sum; all zero where none is positive."""
    positive = scores.relu()
    total = positive.sum(dim=-1, keepdim=True)
    return positive / total.where(total > 0, 1.0)


@dataclass(frozen=True)
class EmphasisPath:
    """The output along the path and the two mean gradients it gives.

    Attributes:
        alpha: places on the path, 0 to 1.
        output: F there.
        emphasis: EF there.
        gradient: plain mean over k >= 1, that of integrated gradients (right Riemann sum).
        emphasised: the same with every gradient multiplied by its emphasis factor.
    """

    alpha: Float[Tensor, " point"]
    output: Float[Tensor, "*target example point"]
    emphasis: Float[Tensor, "*target example point"]
    gradient: Float[Tensor, "*target example ..."]
    emphasised: Float[Tensor, "*target example ..."]

    def of_target(self, k: int) -> EmphasisPath:
        """The path of one target."""
        parts = (self.output, self.emphasis, self.gradient, self.emphasised)
        return EmphasisPath(self.alpha, *(part[k] for part in parts))


def emphasis_path(
    function: Function,
    start: Float[Tensor, "example ..."],
    end: Float[Tensor, "example ..."],
    steps: int,
    size: int,
    at_once: int = 1,
) -> EmphasisPath:
    """Walk from ``start`` to ``end`` in ``steps`` equal steps, ``size`` rows per call.

    ``steps + 1`` outputs and, for each target, ``steps`` gradients, ``at_once`` of them as one.
    Memory does not grow with the steps, and with the targets only by the result.
    """
    alpha = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=end.device)
    first = value_at(function, start, size)
    output = first.new_zeros(*first.shape, steps + 1)
    output[..., 0] = first
    gradient = end.new_zeros(*first.shape[:-1], *end.shape)
    emphasised = torch.zeros_like(gradient)
    totals = gradient.view(-1, *end.shape), emphasised.view(-1, *end.shape)
    for step, example in chunks(steps, len(end), size, end.device):
        k = step + 1
        point = between(start[example], end[example], alpha[k])
        value, gradients = value_and_gradients(function, point, example, at_once)
        output[..., example, k] = value
        pairs = torch.stack([output[..., example, k - 1], value], dim=-1)
        weights = emphasis_factors(pairs)[..., 1].reshape(-1, len(example))
        for here, weight, plain, weighted in zip(gradients, weights, *totals, strict=True):
            plain.index_add_(0, example, here / steps)
            weighted.index_add_(0, example, beside(weight, here) * here / steps)
    return EmphasisPath(alpha, output, emphasis_factors(output), gradient, emphasised)


# ------------------------------------------------------------------------------ on a transformer


@dataclass(frozen=True, kw_only=True)
class AIEG(PerturbationExplainer):
    """Attended integrated and emphasised gradients (ICLR 2025 submission, "Enhancing IG ...").

    With F_k the output at x0 + k/N (x - x0) and EF the emphasis factors (`emphasis_factors`)::

        G = 1/N sum_{k=1..N} EF_k dF_k/dx
        a = sum_d (x - x0)_d G_d
        relevance = PosNorm(a) * NetAttention

    The result, ``tokens`` [batch, pos], has no unit, is never negative and sums to no more than 1.
    Its parts stand in ``extra``: ``alpha``, ``output`` (F) and ``emphasis`` (EF) [batch, N + 1];
    per token [batch, pos] ``integrated_gradients`` (the same without EF), ``emphasised`` (a, before
    PosNorm), ``emphasised_normalised`` (after), ``net_attention``, and the l2 norms
    ``gradient_norm`` and ``emphasised_gradient_norm`` of the mean gradients; ``none_positive``
    [batch] where PosNorm had nothing to keep, so that all relevance is 0; and, of the plain
    integrated gradients, ``baseline_value`` F(x0) and ``completeness_gap`` [batch], their sum less
    F(x) - F(x0), of which a notice speaks above 5 %.

    Where the paper is ambiguous: PosNorm divides by the sum of the positive scores (its A.3; Eq.
    13 is circular). NetAttention is the mean attention weight over layers and heads, without the
    values V (A.3; Eq. 10 has them). EF_0 = 0, so the gradient at the baseline never counts. F is
    the explained number by default. The paper calls the method linear; it is not, since EF
    depends on F (a test holds a counterexample).

    Cost: ``steps`` forwards and backwards, and 2 forwards (of the text, which is where the
    attention is read, and of the baseline). Further targets cost ``steps`` backwards each,
    and memory for two gradients of the size of the embeddings.

    Attributes:
        steps: N; the paper does not say how many.
        output: F, see `Output`. ``"probability"`` needs a target of a single token.
        row: whose attention counts, see `Row`. ``"token"`` is the paper's Figure 1b.
        occurrence: which occurrence of the token in the text, for ``row="token"``.
    """

    per_token: ClassVar = (
        "integrated_gradients",
        "emphasised",
        "emphasised_normalised",
        "net_attention",
        "gradient_norm",
        "emphasised_gradient_norm",
    )

    steps: int = 50
    output: Output = "logit"
    row: Row = "predicting"
    occurrence: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("steps", self.steps, most=MOST_STEPS)
        refuse_bad_row(self.row, self.occurrence)
        if self.output not in get_args(Output):
            known = ", ".join(map(repr, get_args(Output)))
            raise InputError(f"output must be one of {known}, got {self.output!r}.")

    @property
    def keep_width(self) -> bool:
        """The parts have positions."""
        return True

    @property
    def prefix_exact(self) -> bool:
        """The token of interest is looked for in the whole text."""
        return self.row == "predicting"

    def forwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """See `Explainer.forwards`."""
        return 1 + self.calls(self.steps, batch, targets) + self.calls(1, batch, targets)

    def backwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """See `Explainer.backwards`."""
        return self.calls(self.steps, batch, targets) * len(targets)

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """The forwards of the path serve every target. See `Explainer.explain_many`."""
        queries = [query_of(graph, batch, t, self.row, self.occurrence) for t in targets]
        attention = MeanAttention(batch, queries)
        with visiting_blocks(graph, ["pattern"], attention.visit):
            inputs = read_inputs(graph, batch, targets, self.embeddings, self.baseline)
        explained = [self._aim(target) for target in inputs.targets]
        path = emphasis_path(
            self._function(graph, batch, explained),
            inputs.start,
            inputs.end,
            self.steps,
            self.rows_per_call(batch, targets),
            self.backwards_at_once(graph, self.steps, batch, targets),
        )
        paths = [path.of_target(k) for k in range(len(targets))]
        each = zip(explained, paths, attention.rows.to(inputs.end), strict=True)
        return [self._explained(batch, inputs, *parts) for parts in each]

    def _explained(
        self,
        batch: TokenBatch,
        inputs: Inputs,
        target: Resolved,
        path: EmphasisPath,
        net: Float[Tensor, "batch pos"],
    ) -> Explained:
        mask, step = batch.attention_mask, inputs.end - inputs.start
        scores = masked_sum(step * path.emphasised, mask)
        shares = positive_norm(scores)
        plain = masked_sum(step * path.gradient, mask)
        none_positive = ~(scores > 0).any(dim=1)
        first, last = path.output[:, 0], path.output[:, -1]
        gap = plain.sum(dim=1) - (last - first)
        refuse_non_finite("relevance", scores)
        return Explained(
            tokens=shares * net,
            target_value=last,
            labels=target.labels,
            unit="share of positive relevance x attention",
            extra={
                "alpha": path.alpha.to(step).expand(len(batch), -1),
                "output": path.output,
                "emphasis": path.emphasis,
                "baseline_value": first,
                "integrated_gradients": plain,
                "completeness_gap": gap,
                "emphasised": scores,
                "emphasised_normalised": shares,
                "net_attention": net,
                "gradient_norm": masked_sum(path.gradient.square(), mask).sqrt(),
                "emphasised_gradient_norm": masked_sum(path.emphasised.square(), mask).sqrt(),
                "none_positive": none_positive,
            },
            notices=[
                *_degenerate(none_positive),
                *incomplete(
                    'r.extra["integrated_gradients"]',
                    last,
                    first,
                    gap,
                    remedy("steps", self.steps, self.baseline),
                ),
            ],
        )

    def _aim(self, target: Resolved) -> Resolved:
        """The target with F in its place, as far as that is a function of the logits."""
        if self.output == "embedding_l1":
            labels = ["l1 norm of the output embedding"] * len(target.labels)
            return replace(target, labels=labels)
        if self.output == "logit":
            return target
        if target.token_ids is None or target.token_ids.shape[1] != 1:
            raise InputError(
                'output="probability" needs one token: give la.Logit(token) or la.TopLogit().'
            )
        labels = [label.replace("logit of", "probability of") for label in target.labels]
        labels = [label.replace("log-probability", "probability") for label in labels]
        return replace(target, score=_probability, labels=labels)

    def _function(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> Function:
        if self.output == "embedding_l1":
            return output_norm_function(graph, batch, targets, self.embeddings)
        return model_function(graph, batch, targets, self.embeddings)


def _probability(
    logits: Float[Tensor, "batch d_vocab"], target: Resolved
) -> Float[Tensor, " batch"]:
    assert target.token_ids is not None
    return logits.softmax(dim=-1).gather(1, target.token_ids)[:, 0]


def output_norm_function(
    graph: ModelGraph,
    batch: TokenBatch,
    targets: Sequence[Resolved],
    which: Literal["full", "token"],
) -> Function:
    """The l1 norm of what is unembedded at the explained position, [target, row]."""
    found: list[Tensor] = []

    def norms(stream: Tensor, example: Tensor) -> None:
        every = torch.arange(len(example), device=example.device)
        each = [stream[every, target.position[example]] for target in targets]
        found[:] = [torch.stack([one.abs().sum(dim=-1) for one in each])]

    def values(point: Tensor, example: Tensor) -> Tensor:
        (unembed_in,) = graph.points("unembed_in")
        with ExitStack() as stack:
            unembed_in.on_forward(lambda stream: norms(stream, example), stack)
            model_function(graph, batch, targets, which)(point, example)
        return found.pop()

    return values


def _degenerate(none_positive: Bool[Tensor, " batch"]) -> list[str]:
    if not bool(none_positive.any()):
        return []
    return [
        "in some examples no token has a positive emphasised score, so PosNorm leaves nothing and "
        'all relevance is 0: see r.extra["none_positive"].'
    ]
