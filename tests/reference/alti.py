"""ALTI and ALTI-Logit as the papers write them: every [head, query, key, d] tensor in full.

``blocks_of_trace`` takes the explicit forward pass of `model`; the others run Hugging Face's own
modules, block by block, and assert that the blocks give the model's hidden states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .model import Norm, Trace, normalise


@dataclass(frozen=True)
class Block:
    x: Tensor  # [pos, d] the stream before the block
    pattern: Tensor  # [head, query, key]
    value: Tensor  # [head, key, dh], shared values repeated
    weight: Tensor  # [head, dh, d]
    bias: Tensor  # [d]
    mlp: Tensor | None  # [pos, d] what the MLP adds; None in a post-norm block
    norm: Norm | None = None  # behind attention
    post_norm: bool = False  # whether that norm takes in x as well


@dataclass(frozen=True)
class Mixed:
    heads: Tensor  # [head, query, key, d]: what each head carries from key to query
    constant: Tensor  # [query, d]: what attention adds whatever the tokens
    y: Tensor  # [query, d]
    contributions: Tensor  # [query, key]: C


@dataclass(frozen=True)
class AltiLogit:
    tokens: Tensor  # [pos]
    head_tokens: Tensor  # [layer, pos, head]
    heads_relu_dim: Tensor  # [layer, head]
    initial: Tensor  # []
    mlps: Tensor  # [layer]
    attention_biases: Tensor  # [layer]
    final_bias: Tensor  # []
    target: Tensor  # [] their sum


def mix(block: Block) -> Mixed:
    n = len(block.x)
    values = torch.einsum("hje,hed->hjd", block.value, block.weight)
    heads = block.pattern[..., None] * values[:, None]
    own = torch.eye(n, dtype=torch.float64)[..., None] * block.x[:, None]
    constant = block.bias.expand(n, -1)
    if block.norm is not None:
        read = heads.sum(dim=(0, 2)) + constant
        sigma = normalise(block.norm, read + block.x if block.post_norm else read).sigma
        heads = linear(block.norm, heads) / sigma[:, None]
        own = linear(block.norm, own) / sigma[:, None] if block.post_norm else own
        constant = linear(block.norm, constant) / sigma
        constant = constant if block.norm.bias is None else constant + block.norm.bias
    transformed = heads.sum(dim=0) + own
    y = transformed.sum(dim=1) + constant
    contributions = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            distance = (y[i] - transformed[i, j]).abs().sum()
            contributions[i, j] = max(0.0, float(y[i].abs().sum() - distance))
        total = contributions[i].sum()
        contributions[i] = contributions[i] / total if total > 0 else torch.eye(n)[i]
    return Mixed(heads, constant, y, contributions)


def linear(norm: Norm, x: Tensor) -> Tensor:
    return norm.weight * (x - x.mean(-1, keepdim=True) if norm.centred else x)


def alti(blocks: Sequence[Block], position: int) -> Tensor:
    """[pos]: one row of the product of all C."""
    mixture = torch.eye(len(blocks[0].x), dtype=torch.float64)
    for block in blocks:
        mixture = mix(block).contributions @ mixture
    return mixture[position]


def alti_logit(
    blocks: Sequence[Block], norm: Norm, unembed: Tensor, u_bias: Tensor | float, position: int
) -> AltiLogit:
    """Everything that ``unembed`` [d] (one column, or the difference of two) reads at a position.

    ``u_bias`` is what the unembedding adds by itself.
    """
    mixed = [mix(block) for block in blocks]
    stream = mixed[-1].y + blocks[-1].mlp
    direction = norm.weight * unembed
    direction = direction - direction.mean() if norm.centred else direction
    direction = direction / normalise(norm, stream).sigma[position]
    mixture = torch.eye(len(stream), dtype=torch.float64)
    tokens, heads, relu_dim, biases = torch.zeros(len(stream)).double(), [], [], []
    for block, one in zip(blocks, mixed, strict=True):
        logits = one.heads[:, position] @ direction  # [head, key]
        tokens = tokens + logits.sum(dim=0) @ mixture
        mixture = one.contributions @ mixture
        heads.append(logits.T)
        relu_dim.append(_entries(block, position, direction).relu().sum(dim=(1, 2)))
        biases.append(one.constant[position] @ direction)
    final_bias = torch.as_tensor(u_bias) + (0 if norm.bias is None else norm.bias @ unembed)
    terms = {
        "initial": blocks[0].x[position] @ direction,
        "mlps": torch.stack([block.mlp[position] @ direction for block in blocks]),
        "attention_biases": torch.stack(biases),
        "final_bias": torch.as_tensor(final_bias, dtype=torch.float64),
    }
    target = tokens.sum() + sum(term.sum() for term in terms.values())
    return AltiLogit(
        tokens, torch.stack(heads), torch.stack(relu_dim), target=torch.as_tensor(target), **terms
    )


def _entries(block: Block, position: int, direction: Tensor) -> Tensor:
    """[head, key, dh]: A v_d (W_O u~)_d, the share of every entry of z."""
    if block.norm is not None:
        assert not block.post_norm
        values = torch.einsum("hje,hed->hjd", block.value, block.weight)
        read = torch.einsum("hj,hjd->d", block.pattern[:, position], values) + block.bias
        direction = block.norm.weight * direction
        direction = direction - direction.mean() if block.norm.centred else direction
        direction = direction / normalise(block.norm, read).sigma
    read_by_head = torch.einsum("hed,d->he", block.weight, direction)
    return block.pattern[:, position, :, None] * block.value * read_by_head[:, None]


# ------------------------------------------------------------------------------------- the blocks


def blocks_of_trace(trace: Trace) -> list[Block]:
    """GPT-2-like and Llama-like models."""
    model = trace.model
    blocks = []
    for layer, one in zip(model.layers, trace.layers, strict=True):
        bias = layer.o.bias
        blocks.append(
            Block(
                x=one.norm1.x,
                pattern=one.pattern,
                value=one.v.repeat_interleave(model.group, dim=0),
                weight=layer.o.weight.reshape(model.n_heads, model.head_dim, -1),
                bias=torch.zeros(layer.o.weight.shape[1]).double() if bias is None else bias,
                mlp=one.mlp_out,
            )
        )
    return blocks


def _run(model: Any, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    with torch.no_grad():
        out = model(ids[None], output_hidden_states=True, output_attentions=True)
    return [h[0] for h in out.hidden_states], [a[0] for a in out.attentions]


def _split(values: Tensor, width: int) -> Tensor:
    """[pos, head * dh] to [head, pos, dh]."""
    return values.reshape(len(values), -1, width).transpose(0, 1)


def _heads_of(linear: Any, width: int) -> tuple[Tensor, Tensor]:
    """W_O [head, dh, d] and b_O [d] of a Hugging Face output projection."""
    weight = linear.weight.detach().T
    bias = torch.zeros(weight.shape[1]).double() if linear.bias is None else linear.bias.detach()
    return weight.reshape(-1, width, weight.shape[1]), bias


def _layer_norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.bias.detach(), True, module.eps)


def _checked(blocks: list[Block], last: Callable[[Block, Tensor], Tensor], want: Tensor) -> None:
    got = last(blocks[-1], mix(blocks[-1]).y)
    assert torch.allclose(got, want, atol=1e-9), "the reference blocks are not the model's"


@torch.no_grad()
def blocks_of_bert(model: Any, ids: Tensor) -> list[Block]:
    states, patterns = _run(model, ids)
    width = model.config.hidden_size // model.config.num_attention_heads
    blocks = []
    for layer, x, pattern in zip(model.bert.encoder.layer, states, patterns, strict=False):
        weight, bias = _heads_of(layer.attention.output.dense, width)
        value = _split(layer.attention.self.value(x), width)
        norm = _layer_norm(layer.attention.output.LayerNorm)
        blocks.append(Block(x, pattern, value, weight, bias, None, norm, post_norm=True))
    top = model.bert.encoder.layer[-1]
    _checked(blocks, lambda _, y: top.output(top.intermediate(y[None]), y[None])[0], states[-1])
    return blocks


@torch.no_grad()
def blocks_of_gemma3(model: Any, ids: Tensor) -> tuple[list[Block], Norm]:
    states, patterns = _run(model, ids)
    width = model.config.head_dim

    def gemma_norm(module: Any) -> Norm:
        return Norm(1 + module.weight.detach(), None, False, module.eps)

    blocks = []
    for layer, x, pattern in zip(model.model.layers, states, patterns, strict=False):
        weight, bias = _heads_of(layer.self_attn.o_proj, width)
        shared = _split(layer.self_attn.v_proj(layer.input_layernorm(x)), width)
        value = shared.repeat_interleave(len(pattern) // len(shared), dim=0)
        norm = gemma_norm(layer.post_attention_layernorm)
        y = mix(Block(x, pattern, value, weight, bias, None, norm)).y
        inner = layer.mlp(layer.pre_feedforward_layernorm(y))
        mlp = layer.post_feedforward_layernorm(inner)
        blocks.append(Block(x, pattern, value, weight, bias, mlp, norm))
    _checked(blocks, lambda block, y: model.model.norm(y + block.mlp), states[-1])
    return blocks, gemma_norm(model.model.norm)


@torch.no_grad()
def blocks_of_neox(model: Any, ids: Tensor) -> tuple[list[Block], Norm]:
    states, patterns = _run(model, ids)
    width = model.config.hidden_size // model.config.num_attention_heads
    blocks = []
    for layer, x, pattern in zip(model.gpt_neox.layers, states, patterns, strict=False):
        weight, bias = _heads_of(layer.attention.dense, width)
        fused = layer.attention.query_key_value(layer.input_layernorm(x))
        value = fused.reshape(len(x), len(pattern), 3, width)[:, :, 2].transpose(0, 1)
        mlp = layer.mlp(layer.post_attention_layernorm(x))
        blocks.append(Block(x, pattern, value, weight, bias, mlp))
    _checked(blocks, lambda block, y: model.gpt_neox.final_layer_norm(y + block.mlp), states[-1])
    return blocks, _layer_norm(model.gpt_neox.final_layer_norm)
