"""How attention mixes tokens: ALTI's contribution of every token to every other, in one block.

Attention and the residual connection around it are a sum over the tokens they read,
y_i = sum_j T_i(x_j) + constant, once the pattern and the scale of every norm are held constant. The
contribution of token j to position i is how much closer T_i(x_j) brings it to y_i,

    c_ij = max(0, |y_i|_1 - |y_i - T_i(x_j)|_1),  divided by its row's sum

(Ferrando et al. 2022, arXiv 2203.04212; with the pre-norm y, Ferrando et al. 2023, arXiv
2305.12535). A row that is zero throughout becomes the row of the identity.

The transformed vectors T_i(x_j) of all pairs would fill [pos, pos, d_model], those of all heads
n_heads times as much. Here they exist for a few pairs at a time, already summed over heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.attribution.layers import Activations
from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.tokens import TokenBatch
from lens_attr.graph.weights import AttentionOutput, attention_output
from lens_attr.targets import Resolved

MIXING_ROLES: tuple[Role, ...] = ("residual", "v", "pattern", "attn_out")
"""What `linearised` reads of a block."""

TOLERANCE = {torch.float64: 2e-4, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""By the model's dtype: the largest relative difference that is still rounding, of two numbers
that are equal in theory. Hugging Face computes norms in float32 whatever the dtype."""

MIB = 2**20
KEYS_AT_A_TIME = 16


@dataclass(frozen=True)
class Mixing:
    """One attention block reading one sequence, as a sum over its tokens.

    T_i(x_j) = scale_i * sum_h A^h_ij weight^h v_j^h, plus ``skip_i`` where i = j.

    Attributes:
        pattern: A, after softmax.
        values: v_j, value bias included; heads that share one are not repeated.
        weight: W_O, followed by the linear part of a norm behind it.
        scale: 1 / sigma of that norm, 1 without one.
        skip: the residual connection's share.
        constant: what no token brings: b_O and the norm's bias.
        mixed: y, the stream after attention.
    """

    pattern: Float[Tensor, "head query key"]
    values: Float[Tensor, "key kv_head d_head"]
    weight: Float[Tensor, "head d_head d_model"]
    scale: Float[Tensor, "query 1"]
    skip: Float[Tensor, "query d_model"]
    constant: Float[Tensor, "query d_model"]
    mixed: Float[Tensor, "query d_model"]

    def head_outputs(self, keys: slice) -> Float[Tensor, "key head d_model"]:
        """weight^h v_j^h of some tokens."""
        weight = rearrange(self.weight, "(k g) e d -> k g e d", k=self.values.shape[1])
        outputs = rearrange(self.values[keys], "j k e -> k 1 j e") @ weight
        return rearrange(outputs, "k g j d -> j (k g) d")


def linearised(
    graph: ModelGraph, layer: int, activations: Activations, seen: Sequence[Int[Tensor, " _"]]
) -> Iterator[Mixing]:
    """The attention of one block, for each example in turn.

    Args:
        graph: the model.
        layer: the block.
        activations: what it computed, by the roles in `MIXING_ROLES`.
        seen: the positions of each example that matter; none of them may attend elsewhere.

    Raises:
        UnsupportedModelError: the sum over tokens is not what the model computed.
    """
    output = attention_output(graph, layer)
    # At least float32: the differences of l1 norms drown in half precision.
    weight = output.linear_weight(torch.promote_types(graph.dtype, torch.float32))
    for example, positions in enumerate(seen):
        yield _linearise(output, weight, activations, example, positions)


def _linearise(
    output: AttentionOutput,
    weight: Float[Tensor, "head d_head d_model"],
    activations: Activations,
    example: int,
    seen: Int[Tensor, " seen"],
) -> Mixing:
    dtype = weight.dtype
    pattern = square(activations["pattern"][example], seen).to(dtype)
    x, attn_out = (activations[role][example, seen].to(dtype) for role in ("residual", "attn_out"))
    values = activations["v"][example, seen].to(dtype)
    written = _written(output, pattern, values)
    norm, bias = output.norm, output.bias.to(dtype).expand_as(x)
    if norm is None:
        scale, skip, constant = torch.ones_like(x[:, :1]), x, bias
    else:
        scale = 1 / norm.sigma(x + written if output.post_norm else written)
        skip = scale * norm.linear(x) if output.post_norm else x
        constant = scale * norm.linear(bias)
        constant = constant if norm.bias is None else constant + norm.bias.to(dtype)
    mixing = Mixing(pattern, values, weight, scale, skip, constant, output.mixed(x, attn_out))
    linear = written - bias if norm is None else norm.linear(written - bias)
    tolerance = TOLERANCE[activations["attn_out"].dtype]
    _refuse_difference(skip + scale * linear + constant, mixing.mixed, tolerance)
    return mixing


def mixing_matrix(
    mixing: Mixing, causal: bool, memory_budget: float | int
) -> Float[Tensor, "query key"]:
    """C: how much of each position comes from each token, rows summing to 1.

    Args:
        mixing: the block.
        causal: no position reads a later one, so those pairs are skipped.
        memory_budget: MiB that the transformed vectors of some pairs may take at a time.
    """
    size = mixing.mixed.abs().sum(dim=-1)
    closer = torch.zeros_like(mixing.pattern[0])
    for keys, queries in _pairs(mixing, causal, memory_budget):
        outputs = mixing.head_outputs(keys)
        for rows in queries:
            closer[rows, keys] = size[rows, None] - _distance(mixing, outputs, rows, keys).T
    return row_normalised(closer.relu_())


def square(
    pattern: Float[Tensor, "head pos pos"], seen: Int[Tensor, " seen"]
) -> Float[Tensor, "head seen seen"]:
    """The part of a pattern between some positions; no copy where they are consecutive."""
    first, last = int(seen[0]), int(seen[-1])
    if last - first + 1 == len(seen):
        return pattern[:, first : last + 1, first : last + 1]
    return pattern[:, seen][:, :, seen]


def row_normalised(matrix: Float[Tensor, "pos pos"]) -> Float[Tensor, "pos pos"]:
    """Rows that sum to 1; one that is zero throughout becomes that of the identity."""
    total = matrix.sum(dim=1, keepdim=True)
    return torch.where(total > 0, matrix / total, torch.eye(len(matrix)).to(matrix))


def _written(
    output: AttentionOutput,
    pattern: Float[Tensor, "head query key"],
    values: Float[Tensor, "key kv_head d_head"],
) -> Float[Tensor, "query d_model"]:
    """z W_O + b_O, from the pattern and the values."""
    dtype = values.dtype
    repeats = len(pattern) // values.shape[1]
    z = pattern @ rearrange(values, "j k e -> k j e").repeat_interleave(repeats, dim=0)
    return torch.einsum("hie,hed->id", z, output.weight.to(dtype)) + output.bias.to(dtype)


def _refuse_difference(
    summed: Float[Tensor, "query d_model"],
    mixed: Float[Tensor, "query d_model"],
    tolerance: float,
) -> None:
    error = float((summed - mixed).abs().max() / mixed.abs().max())
    if error > tolerance:
        raise UnsupportedModelError(
            f"attention is not the sum over tokens that this method takes it for (relative error "
            f"{error:.1e}): the model computes something else there, or a forward hook of yours "
            "changes z or the output of attention. Remove that hook, or use a gradient method."
        )


def _distance(
    mixing: Mixing, outputs: Float[Tensor, "key head d_model"], rows: slice, keys: slice
) -> Float[Tensor, "key query"]:
    """|y_i - T_i(x_j)|_1 for some pairs."""
    weights = rearrange(mixing.pattern[:, rows, keys] * mixing.scale[rows], "h i j -> j i h")
    target = mixing.mixed[rows].expand(len(outputs), -1, -1)
    rest = torch.baddbmm(target, weights, outputs, alpha=-1)
    first, last = max(rows.start, keys.start), min(rows.stop, keys.stop)
    for same in range(first, last):
        rest[same - keys.start, same - rows.start] -= mixing.skip[same]
    return rest.abs_().sum(dim=-1)


def _pairs(
    mixing: Mixing, causal: bool, memory_budget: float | int
) -> Iterator[tuple[slice, list[slice]]]:
    """Blocks of keys, and for each the blocks of queries that read them."""
    n, d_model = mixing.mixed.shape
    heads = len(mixing.weight)
    pairs = int(memory_budget * MIB / (mixing.mixed.element_size() * d_model))
    block = max(1, min(KEYS_AT_A_TIME, pairs // (4 * heads)))
    height = max(1, pairs // block - 2 * heads)
    for start in range(0, n, block):
        keys = slice(start, min(start + block, n))
        tops = range(start if causal else 0, n, height)
        yield keys, [slice(top, min(top + height, n)) for top in tops]


def seen_positions(
    graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
) -> list[Int[Tensor, " _"]]:
    """The positions of each example that can reach an explained one.

    How they mix is the same for every target: in a causal model a position reads none behind it,
    so that what reaches it is the leading block of what reaches the last.
    """
    seen = batch.attention_mask
    if not graph.is_masked_model:
        last = torch.stack([target.position for target in targets]).amax(dim=0)
        seen = seen & (torch.arange(seen.shape[1], device=seen.device) <= last[:, None])
    return [row.nonzero().flatten() for row in seen]
