"""AIEG: integrated gradients weighted by emphasis factors, then by attention."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_attr.attribution.embeddings import masked_sum
from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.paths import (
    Function,
    between,
    chunks,
    refuse_no_count,
    value_and_gradient,
)
from lens_attr.attribution.perturbation import (
    Inputs,
    PerturbationExplainer,
    model_function,
    read_inputs,
    value_at,
)
from lens_attr.attribution.scoring import refuse_non_finite
from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch, token_string
from lens_attr.targets import Resolved

Output = Literal["logit", "probability", "embedding_l1"]
"""F: the target as given, the probability of its token, or the l1 norm of the output embedding."""

Row = Literal["predicting", "token"]
"""Whose attention counts: the position that predicts, or the token of interest in the text."""


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
    output: Float[Tensor, "example point"]
    emphasis: Float[Tensor, "example point"]
    gradient: Float[Tensor, "example ..."]
    emphasised: Float[Tensor, "example ..."]


def emphasis_path(
    function: Function,
    start: Float[Tensor, "example ..."],
    end: Float[Tensor, "example ..."],
    steps: int,
    size: int,
) -> EmphasisPath:
    """Walk from ``start`` to ``end`` in ``steps`` equal steps, ``size`` rows per call.

    ``steps + 1`` outputs and ``steps`` gradients; memory does not grow with the steps.
    """
    alpha = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=end.device)
    first = value_at(function, start, size)
    output = first.new_zeros(len(end), steps + 1)
    output[:, 0] = first
    gradient, emphasised = torch.zeros_like(end), torch.zeros_like(end)
    for step, example in chunks(steps, len(end), size, end.device):
        k = step + 1
        value, here = value_and_gradient(
            function, between(start[example], end[example], alpha[k]), example
        )
        output[example, k] = value
        pairs = torch.stack([output[example, k - 1], value], dim=-1)
        weight = emphasis_factors(pairs)[:, 1].to(here).view(-1, *[1] * (here.ndim - 1))
        gradient.index_add_(0, example, here / steps)
        emphasised.index_add_(0, example, weight * here / steps)
    return EmphasisPath(alpha, output, emphasis_factors(output), gradient, emphasised)


# ------------------------------------------------------------------------------ on a transformer


@dataclass(frozen=True, kw_only=True)
class AIEG(PerturbationExplainer):
    """Attended integrated and emphasised gradients (ICLR 2025 submission, "Enhancing IG ...").

    With F_k the output at x0 + k/N (x - x0) and EF the emphasis factors (`emphasis_factors`)::

        G = 1/N sum_{k=1..N} EF_k dF_k/dx
        a = sum_d (x - x0)_d G_d
        relevance = PosNorm(a) * NetAttention

    The result has no unit, is never negative and sums to no more than 1. Its parts stand in
    ``extra``: ``alpha``, ``output`` (F) and ``emphasis`` (EF) [batch, N + 1]; per token
    ``integrated_gradients`` (the same without EF), ``emphasised`` (a, before PosNorm),
    ``emphasised_normalised`` (after), ``net_attention``, and the l2 norms ``gradient_norm`` and
    ``emphasised_gradient_norm`` of the mean gradients; ``none_positive`` [batch] where PosNorm
    had nothing to keep, so that all relevance is 0.

    Where the paper is ambiguous: PosNorm divides by the sum of the positive scores (its A.3; Eq.
    13 is circular). NetAttention is the mean attention weight over layers and heads, without the
    values V (A.3; Eq. 10 has them). EF_0 = 0, so the gradient at the baseline never counts. F is
    the explained number by default. The paper calls the method linear; it is not, since EF
    depends on F (a test holds a counterexample).

    Cost: ``steps`` forwards and backwards, and 2 forwards (of the text, which is where the
    attention is read, and of the baseline).

    Attributes:
        steps: N; the paper does not say how many.
        output: F, see `Output`. ``"probability"`` needs a target of a single token.
        row: whose attention counts, see `Row`. ``"token"`` is the paper's Figure 1b.
        occurrence: which occurrence of the token in the text, for ``row="token"``.
    """

    steps: int = 50
    output: Output = "logit"
    row: Row = "predicting"
    occurrence: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_no_count("steps", self.steps)
        for name, options in (("output", Output), ("row", Row)):
            if getattr(self, name) not in get_args(options):
                known = ", ".join(map(repr, get_args(options)))
                raise InputError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")

    @property
    def keep_width(self) -> bool:
        """The parts have positions."""
        return True

    def refuse(self, graph: ModelGraph, batch: TokenBatch) -> None:
        """The attention pattern must be there to be read."""
        super().refuse(graph, batch)
        if len(graph.points("pattern")) != graph.n_layers:
            raise _no_pattern(graph)

    def explain(self, graph: ModelGraph, batch: TokenBatch, target: Resolved) -> Explained:
        """See `Explainer.explain`."""
        attention = MeanAttention()
        with ExitStack() as stack:
            attention.attach(graph, stack)
            inputs = read_inputs(graph, batch, target, self.embeddings, self.baseline)
        explained = self._aim(inputs.target)
        net = attention.rows(graph, self._row(graph, batch, explained))
        net = torch.where(batch.attention_mask, net, 0.0).to(inputs.end)
        path = emphasis_path(
            self._function(graph, batch, explained),
            inputs.start,
            inputs.end,
            self.steps,
            self.rows_per_call(batch, target),
        )
        return self._explained(batch, inputs, explained, path, net)

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
        none_positive = ~(scores > 0).any(dim=1)
        refuse_non_finite("relevance", scores)
        return Explained(
            tokens=shares * net,
            target_value=path.output[:, -1],
            labels=target.labels,
            unit="share of positive relevance x attention",
            extra={
                "alpha": path.alpha.to(step).expand(len(batch), -1),
                "output": path.output,
                "emphasis": path.emphasis,
                "integrated_gradients": masked_sum(step * path.gradient, mask),
                "emphasised": scores,
                "emphasised_normalised": shares,
                "net_attention": net,
                "gradient_norm": masked_sum(path.gradient.square(), mask).sqrt(),
                "emphasised_gradient_norm": masked_sum(path.emphasised.square(), mask).sqrt(),
                "none_positive": none_positive,
            },
            notices=_degenerate(none_positive),
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

    def _function(self, graph: ModelGraph, batch: TokenBatch, target: Resolved) -> Function:
        if self.output == "embedding_l1":
            return output_norm_function(graph, batch, target, self.embeddings)
        return model_function(graph, batch, target, self.embeddings)

    def _row(self, graph: ModelGraph, batch: TokenBatch, target: Resolved) -> Int[Tensor, " batch"]:
        if self.row == "predicting":
            return target.position
        if target.token_ids is None:
            raise InputError('row="token" needs a target with a token: la.Logit, la.LogitDiff, ...')
        found = [
            self._occurrence(graph, batch, example, int(token))
            for example, token in enumerate(target.token_ids[:, 0])
        ]
        return torch.tensor(found, device=target.position.device)

    def _occurrence(self, graph: ModelGraph, batch: TokenBatch, example: int, token: int) -> int:
        here = (batch.token_ids[example] == token) & batch.attention_mask[example]
        places = here.nonzero().flatten().tolist()
        if not -len(places) <= self.occurrence < len(places):
            raise InputError(
                f'row="token": the token of interest must be in the text, but one holds '
                f"{token_string(graph, token)!r} {len(places)} times, so there is no occurrence "
                f'{self.occurrence}. Use row="predicting", which needs none.'
            )
        return places[self.occurrence]


class MeanAttention:
    """Attention weights of one forward, averaged over layers and heads as they pass."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._layers = 0

    def attach(self, graph: ModelGraph, stack: ExitStack) -> None:
        """Read every pattern until ``stack`` closes."""
        for point in graph.points("pattern"):
            point.on_forward(self._add, stack)

    def _add(self, pattern: Tensor) -> None:
        mean = pattern.detach().to(torch.promote_types(pattern.dtype, torch.float32)).mean(dim=1)
        self._sum = mean if self._sum is None else self._sum + mean
        self._layers += 1

    def rows(
        self, graph: ModelGraph, position: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch key"]:
        """The row of one query per example.

        Raises:
            UnsupportedModelError: a layer showed no pattern, or none whose rows sum to 1.
        """
        if self._sum is None or self._layers != graph.n_layers:
            raise _no_pattern(graph)
        every = torch.arange(len(position), device=position.device)
        rows = self._sum[every, position] / self._layers
        if not torch.allclose(rows.sum(dim=1), torch.ones_like(rows[:, 0]), atol=2e-2):
            raise _no_pattern(graph)
        return rows


def _no_pattern(graph: ModelGraph) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{graph.architecture} on {graph.backend} does not show its attention weights at every "
        'attn.hook_pattern, which NetAttention needs: load it with attn_implementation="eager", '
        "or use 'integrated_gradients'."
    )


def _probability(
    logits: Float[Tensor, "batch d_vocab"], target: Resolved
) -> Float[Tensor, " batch"]:
    assert target.token_ids is not None
    return logits.softmax(dim=-1).gather(1, target.token_ids)[:, 0]


def output_norm_function(
    graph: ModelGraph, batch: TokenBatch, target: Resolved, which: Literal["full", "token"]
) -> Function:
    """The l1 norm of what is unembedded at the explained position."""
    found: list[Tensor] = []

    def norm(stream: Tensor, position: Tensor) -> None:
        every = torch.arange(len(position), device=position.device)
        found[:] = [stream[every, position].abs().sum(dim=-1)]

    def value(point: Tensor, example: Tensor) -> Tensor:
        position = target.position[example]
        (unembed_in,) = graph.points("unembed_in")
        with ExitStack() as stack:
            unembed_in.on_forward(lambda stream: norm(stream, position), stack)
            model_function(graph, batch, target, which)(point, example)
        return found.pop()

    return value


def _degenerate(none_positive: Bool[Tensor, " batch"]) -> list[str]:
    if not bool(none_positive.any()):
        return []
    return [
        "in some examples no token has a positive emphasised score, so PosNorm leaves nothing and "
        'all relevance is 0: see r.extra["none_positive"].'
    ]
