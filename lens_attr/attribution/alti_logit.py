"""ALTI-Logit: a logit as a sum of what every attention block brought from every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.attribution.alti import MixingExplainer
from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.layers import Activations, visiting_blocks
from lens_attr.attribution.mixing import (
    MIXING_ROLES,
    TOLERANCE,
    Mixing,
    linearised,
    mixing_matrix,
    seen_positions,
)
from lens_attr.attribution.scoring import (
    by_position,
    gradient_of,
    labels_of,
    refuse_non_finite,
    target_values,
)
from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.tokens import TokenBatch
from lens_attr.graph.weights import (
    AttentionOutput,
    attention_output,
    final_norm,
    logit_soft_cap,
    unembedding,
)
from lens_attr.targets import Resolved

Initial = Literal["separate", "last_token"]
"""Where the embedding of the explained position goes: a term of its own, or that token's score."""


@dataclass(frozen=True, kw_only=True)
class AltiLogit(MixingExplainer):
    """ALTI-Logit (Ferrando et al. 2023, arXiv 2305.12535), exact and without its large tensors.

    With t the explained position, u~ the direction in the last stream that the target reads (the
    unembedding of the token, or the difference of two, through the final norm with its scale held
    constant), a_t(j) what the heads of block l carry from position j to t, and C_l as in `Alti`:

        d_l(j) = a_t(j) . u~                   what block l adds to the target from position j
        tokens = sum_l d_l C_{l-1} ... C_1     traced back from position j to the input tokens

    The rest of the target belongs to no token and is in ``extra``: ``initial`` [batch] (the
    embedding of t), ``mlps`` and ``attention_biases`` [batch, layer] (each MLP; b_O, with the bias
    of a norm behind it), ``final_bias`` [batch] (of the final norm and the unembedding). Tokens and
    extras sum to the target, up to rounding; a model in which they do not is refused.

    ``head_tokens`` is d_l head by head: what head h of block l adds to the target from source
    position j, not traced back; ``relu_dim`` splits it by d_head as A v_d (W_O u~)_d.

    The target must be a weighted sum of logits: `Logit`, `LogitDiff`, `TopLogit`. Cost: 1 forward,
    and per block n_heads * d_model operations for each pair of tokens up to t; further targets,
    wherever they stand, cost one product with each C_l. Memory beyond the forward's: C_l and the
    values of every block, never [head, pos, pos, d_model].

    Attributes:
        initial: ``"separate"``, or ``"last_token"`` to add ``initial`` to the score of the
            explained position's own token, as the official evaluation and LRPx B.1 do.
    """

    initial: Initial = "separate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial not in get_args(Initial):
            raise InputError(f"initial must be 'separate' or 'last_token', got {self.initial!r}.")

    def refuse(self, graph: ModelGraph, batch: TokenBatch) -> None:
        """With the final norm's scale held constant, logits must be linear in the last stream."""
        if graph.is_masked_model:
            raise UnsupportedModelError(
                "alti_logit is not defined for post-norm models such as BERT: every block "
                "normalises the whole stream, so a logit is no sum of what the blocks add to it. "
                'Use method="alti", or a gradient method.'
            )
        cap = logit_soft_cap(graph)
        if cap is not None:
            raise UnsupportedModelError(
                f"alti_logit is not defined for this {graph.architecture}: its logits pass a soft "
                f"cap ({cap:g} tanh), so they are no sum of what the blocks add to the stream. Use "
                'method="alti", or a gradient method.'
            )

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """One forward and mixing for all targets. See `Explainer.explain_many`.

        Raises:
            InputError: a target is not a weighted sum of logits.
            UnsupportedModelError: the terms do not sum to the target.
        """
        if any(target.form != "linear" for target in targets):
            raise InputError(
                "alti_logit splits a weighted sum of logits, and this target is none: explain "
                "la.Logit, la.LogitDiff or la.TopLogit, or use a gradient method."
            )
        seen = seen_positions(graph, batch, targets)
        groups = by_position(targets)
        tracing = _Tracing(graph, seen, [targets[group[0]].position for group in groups])
        roles: list[Role] = [*MIXING_ROLES, *(["mlp_out"] if graph.points("mlp_out") else [])]
        visit = partial(tracing.visit, self.memory_budget)
        with torch.no_grad(), visiting_blocks(graph, roles, visit):
            scored = target_values(graph, batch, targets)
        found = {
            k: self._explained(graph, batch, seen, traces, targets[k], *scored[k])
            for group, traces in zip(groups, tracing.traces, strict=True)
            for k in group
        }
        return [found[k] for k in range(len(targets))]

    def _explained(
        self,
        graph: ModelGraph,
        batch: TokenBatch,
        seen: Sequence[Int[Tensor, " _"]],
        traces: Sequence[Sequence[_Trace]],
        target: Resolved,
        value: Float[Tensor, " batch"],
        logits: Float[Tensor, "batch d_vocab"],
    ) -> Explained:
        directions, final_bias = _directions(graph, target, logits, traces)
        with torch.no_grad():
            splits = [_split(*pair) for pair in zip(traces, directions, strict=True)]
            tokens, head_tokens = _scattered(splits, seen, batch)
        extra = {name: torch.stack([getattr(one, name) for one in splits]) for name in SEPARATE}
        if self.initial == "last_token":
            tokens[torch.arange(len(batch)), target.position] += extra.pop("initial")
        extra["final_bias"] = final_bias
        refuse_non_finite("relevance", tokens)
        _refuse_gap(value, tokens, extra)
        return Explained(
            tokens=tokens,
            target_value=value,
            labels=labels_of(target, logits),
            head_tokens=head_tokens,
            heads_relu_dim=torch.stack([one.heads_relu_dim for one in splits]),
            extra=extra,
        )


SEPARATE = ("initial", "mlps", "attention_biases")
"""Terms of a `_Split` that belong to no token."""


@dataclass(frozen=True)
class _Trace:
    """What one block leaves behind of one example, for the explained position t.

    Attributes:
        pattern: A of t's row, over the scale of a norm behind attention.
        values: v of every position that t sees.
        output: the weights behind them, as the model holds them.
        before: the stream of t before the block.
        constant: what attention adds to it whatever the tokens.
        mlp: what the MLP adds to it.
        after: the stream of t after the block.
        matrix: C, None where no block follows.
    """

    pattern: Float[Tensor, "head key"]
    values: Float[Tensor, "key kv_head d_head"]
    output: AttentionOutput
    before: Float[Tensor, " d_model"]
    constant: Float[Tensor, " d_model"]
    mlp: Float[Tensor, " d_model"]
    after: Float[Tensor, " d_model"]
    matrix: Float[Tensor, "key key"] | None

    @staticmethod
    def of(
        output: AttentionOutput,
        mixing: Mixing,
        mlp: Tensor | None,
        matrix: Tensor | None,
        t: int,
    ) -> _Trace:
        """Copies of row ``t``; of the values and C, which all positions share, what t sees."""
        mixed, own = mixing.mixed[t], slice(0, t + 1)
        mlp = torch.zeros_like(mixed) if mlp is None else mlp.to(mixed.dtype)
        return _Trace(
            pattern=mixing.pattern[:, t, own] * mixing.scale[t],
            values=mixing.values[own],
            output=output,
            before=mixing.skip[t].clone(),
            constant=mixing.constant[t].clone(),
            mlp=mlp.clone(),
            after=mixed + mlp,
            matrix=None if matrix is None else matrix[own, own],
        )


class _Tracing:
    """What every block leaves behind for each explained position, from one forward.

    Attributes:
        traces: by position, example and block.
    """

    def __init__(
        self,
        graph: ModelGraph,
        seen: Sequence[Int[Tensor, " _"]],
        positions: Sequence[Int[Tensor, " batch"]],
    ) -> None:
        self._graph, self._seen, self._positions = graph, seen, positions
        self._outputs = [attention_output(graph, layer) for layer in range(graph.n_layers)]
        self.traces: list[list[list[_Trace]]] = [[[] for _ in seen] for _ in positions]

    def visit(self, memory_budget: float | int, layer: int, activations: Activations) -> None:
        """Read one block."""
        mlp_out = activations.get("mlp_out")
        above = layer < self._graph.n_layers - 1  # what the last block mixes is read by none
        mixings = linearised(self._graph, layer, activations, self._seen)
        for example, mixing in enumerate(mixings):
            matrix = mixing_matrix(mixing, True, memory_budget) if above else None
            for traces, position in zip(self.traces, self._positions, strict=True):
                at = position[example]
                mlp = None if mlp_out is None else mlp_out[example, at]
                t = int(torch.searchsorted(self._seen[example], at))
                trace = _Trace.of(self._outputs[layer], mixing, mlp, matrix, t)
                traces[example].append(trace)


@dataclass(frozen=True)
class _Split:
    """The target of one example as a sum: tokens + initial + mlps + attention_biases + a bias."""

    tokens: Float[Tensor, " key"]
    head_tokens: Float[Tensor, "layer key head"]
    heads_relu_dim: Float[Tensor, "layer head"]
    initial: Float[Tensor, ""]
    mlps: Float[Tensor, " layer"]
    attention_biases: Float[Tensor, " layer"]


def _directions(
    graph: ModelGraph,
    target: Resolved,
    logits: Float[Tensor, "batch d_vocab"],
    traces: Sequence[Sequence[_Trace]],
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, " batch"]]:
    """u~ and what the target has apart from u~ . stream, per example."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        coefficients = gradient_of(target.score(leaf, target), leaf)
    stream = torch.stack([trace[-1].after for trace in traces])
    weight, bias = unembedding(graph)
    used = coefficients.any(dim=0).nonzero().flatten()  # a few columns, in the wider dtype
    coefficients = coefficients[:, used].to(stream.dtype)
    u = coefficients @ weight[:, used].T.to(stream.dtype)
    constant = coefficients @ bias[used].to(stream.dtype)
    norm = final_norm(graph)
    if norm is None:
        return u, constant
    if norm.bias is not None:
        constant = constant + u @ norm.bias.to(u.dtype)
    return norm.transposed(u) / norm.sigma(stream), constant


def _split(traces: Sequence[_Trace], direction: Float[Tensor, " d_model"]) -> _Split:
    """Every term of one example, the tokens by Horner's rule from the top block down."""
    tokens = torch.zeros_like(traces[0].pattern[0])
    heads, relu_dim = [], []
    for trace in reversed(traces):
        product = _head_products(trace, direction)
        heads.append(product.sum(dim=-1))
        relu_dim.append(product.relu().sum(dim=(0, 2)))
        below = tokens if trace.matrix is None else tokens @ trace.matrix
        tokens = below + heads[-1].sum(dim=-1)
    return _Split(
        tokens=tokens,
        head_tokens=torch.stack(heads[::-1]),
        heads_relu_dim=torch.stack(relu_dim[::-1]),
        initial=traces[0].before @ direction,
        mlps=torch.stack([trace.mlp for trace in traces]) @ direction,
        attention_biases=torch.stack([trace.constant for trace in traces]) @ direction,
    )


def _head_products(
    trace: _Trace, direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "key head d_head"]:
    """A v_d (W_O u~)_d: what each entry of each head's value adds to the target."""
    read = trace.output.reading(direction)
    repeats = len(read) // trace.values.shape[1]
    values = trace.values.repeat_interleave(repeats, dim=1)
    return values * read * rearrange(trace.pattern, "h j -> j h 1")


def _scattered(
    splits: Sequence[_Split], seen: Sequence[Int[Tensor, " _"]], batch: TokenBatch
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch layer pos head"]]:
    """Tokens and heads of every example on the positions of the batch, 0 where t does not see."""
    rows, width = batch.token_ids.shape
    layers, _, heads = splits[0].head_tokens.shape
    tokens = splits[0].tokens.new_zeros(rows, width)
    head_tokens = tokens.new_zeros(rows, layers, width, heads)
    for example, (split, positions) in enumerate(zip(splits, seen, strict=True)):
        own = positions[: len(split.tokens)]
        tokens[example, own] = split.tokens
        head_tokens[example, :, own] = split.head_tokens
    return tokens, head_tokens


def _refuse_gap(
    value: Float[Tensor, " batch"], tokens: Float[Tensor, "batch pos"], extra: dict[str, Tensor]
) -> None:
    """Raise unless all terms sum to the target, up to rounding of what they are made of.

    Raises:
        UnsupportedModelError: naming the relative difference.
    """
    terms = torch.cat([tokens, *(part.reshape(len(part), -1) for part in extra.values())], dim=1)
    gap = (value - terms.sum(dim=1)).abs()
    allowed = TOLERANCE[value.dtype] * (terms.abs().sum(dim=1) + value.abs())
    if bool((gap > allowed).any()):
        raise UnsupportedModelError(
            "the terms of alti_logit do not sum to the target (largest difference "
            f"{float(gap.max()):.2e}): this model computes something that is none of them, or a "
            "forward hook of yours changes the residual stream or the logits. Remove that hook, "
            "or use a gradient method."
        )
