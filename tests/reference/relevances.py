"""The backward pass in relevance form: R itself is passed down, no multiplier is ever formed.

This is layer-wise relevance propagation as the LRP literature writes it. Every step shares the
relevance of an output among the terms that add up to it, in proportion to their values:

    z_k = sum_j a_j w_jk + b_k,    R_j = sum_k (a_j w_jk / z_k) R_k        (LRP-0)

A bias is a term like the others and keeps what it gets. The identity rule is literally "R_pre =
R_post", the uniform rule on a product is "half of R to each factor", the softmax is AttnLRP's
Proposition 3.1. It exists for rules that are expressible that way: frozen norms, identity
activations, T = 1 (lrp, attnlrp, relp).

No epsilon is needed. z_k may be near zero, but R_k then is z_k times a moderate number: rounding in
R_k is relative to z_k, so R_k / z_k is accurate to about 1e-16 of the sum of the absolute
multipliers, however small z_k is. Only a z_k that is exactly 0 (or underflows) loses its message;
``share`` returns 0 where R is 0 too, as for an activation at 0, and raises otherwise. What stays
outside: an intermediate of exactly 0 whose cancelling terms would each have been non-zero.
"""

import math

import torch
from torch import Tensor

from .model import Layer, LayerTrace, Linear, Model, Norm, NormTrace, Trace, merge_heads
from .multipliers import Elements, centring_matrix
from .rules import Rules


def propagate(trace: Trace, direction: Tensor, position: int, rules: Rules) -> Elements:
    """Relevance of y = direction . logits[position], from the top layer down."""
    if rules.norm != "frozen" or rules.act != "identity" or rules.temperature != 1:
        raise ValueError(f"{rules} has no relevance form")
    model = trace.model
    r_logits = torch.zeros_like(trace.logits)
    r_logits[position] = direction * trace.logits[position]
    r = through_linear(model.unembed, trace.final_norm.out, trace.logits, r_logits)
    r = through_norm(model.final_norm, trace.final_norm, r)
    resid, zs, posts = [], [], []
    for layer, t in zip(reversed(model.layers), reversed(trace.layers), strict=True):
        r, r_out = through_sum(t.norm2.x, t.mlp_out, t.resid_post, r)
        r_post = through_linear(layer.down, t.post, t.mlp_out, r_out)
        r = r + through_norm(layer.norm2, t.norm2, through_mlp(layer, t, r_post, rules))
        r, r_out = through_sum(t.norm1.x, t.attn_out, t.norm2.x, r)
        r_z_flat = through_linear(layer.o, merge_heads(t.z), t.attn_out, r_out)
        r_z = r_z_flat.reshape(len(r), model.n_heads, -1).transpose(0, 1)
        r_in = through_attention(model, layer, t, trace.rotation, r_z, rules)
        r = r + through_norm(layer.norm1, t.norm1, r_in)
        resid.insert(0, r)
        zs.insert(0, r_z)
        posts.insert(0, r_post)
    tokens = trace.token_embedding * share(r, trace.embedding)
    return Elements(tokens, r, torch.stack(resid), torch.stack(zs), torch.stack(posts))


def share(r: Tensor, z: Tensor) -> Tensor:
    """R / z, where 0 / 0 is 0."""
    if bool(((z == 0) & (r != 0)).any()):
        raise ZeroDivisionError("relevance arrives at a value that is exactly zero")
    return torch.where(r == 0, 0.0, r / torch.where(z == 0, 1.0, z))


def through_linear(linear: Linear, a: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """LRP-0, sample by sample: messages a_j w_jk / z_k * R_k, summed over k."""
    return torch.stack(
        [
            (a[pos][:, None] * linear.weight * share(r[pos], z[pos])[None, :]).sum(1)
            for pos in range(len(a))
        ]
    )


def through_sum(a: Tensor, b: Tensor, total: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Residual connection: both branches in proportion to what they add."""
    s = share(r, total)
    return a * s, b * s


def through_norm(norm: Norm, t: NormTrace, r: Tensor) -> Tensor:
    """With sigma constant (LRPx C.5) a norm is the linear layer C diag(weight) / sigma, plus bias.

    For RMSNorm this is the identity rule R_x = R_y.
    """
    centring = centring_matrix(t.x.shape[-1], norm.centred)
    rows = []
    for pos in range(len(r)):
        linear = Linear(centring * norm.weight[None, :] / t.sigma[pos])
        one = slice(pos, pos + 1)
        rows.append(through_linear(linear, t.x[one], t.out[one], r[one]))
    return torch.cat(rows)


def through_mlp(layer: Layer, t: LayerTrace, r_post: Tensor, rules: Rules) -> Tensor:
    """Identity rule on the activation (LRPx C.3); constant or halved gate."""
    r_pre = r_post
    if rules.epsilon:  # LXT's stabiliser keeps a little relevance back
        r_pre = r_post * t.pre / (t.pre + rules.epsilon)
    if layer.up is None or t.up is None:
        return through_linear(layer.pre, t.norm2.out, t.pre, r_pre)
    to_act, to_up = rules.gate_factors
    r_gate = through_linear(layer.pre, t.norm2.out, t.pre, to_act * r_pre)
    r_up = through_linear(layer.up, t.norm2.out, t.up, to_up * r_post)
    return r_gate + r_up


def through_attention(
    model: Model,
    layer: Layer,
    t: LayerTrace,
    rotation: Tensor | None,
    r_z: Tensor,
    rules: Rules,
) -> Tensor:
    """From z to the normalised input, by query, key and value."""
    r_q, r_k, r_v = torch.zeros_like(t.q), torch.zeros_like(t.k), torch.zeros_like(t.v)
    for head in range(model.n_heads):
        kv = head // model.group
        for i in range(r_z.shape[1]):
            # z_id = sum_j A_ij v_jd: one message per source position j and feature d.
            past = slice(0, i + 1)
            messages = t.pattern[head, i, past, None] * t.v[kv, past]
            messages = messages * share(r_z[head, i], t.z[head, i])
            r_v[kv, past] += rules.z * messages
            if rules.pattern == 0:
                continue
            r_pattern = rules.z * messages.sum(1)
            # AttnLRP, Proposition 3.1: R_s = s (R_A - p sum R_A).
            p, s = t.pattern[head, i, past], t.scores[head, i, past]
            r_scores = s * (r_pattern - p * r_pattern.sum())
            # s_ij = sum_d q_id k_jd / sqrt(dh).
            terms = t.q[head, i] * t.k[kv, past] / math.sqrt(model.head_dim)
            terms = rules.pattern * terms * share(r_scores, s)[:, None]
            r_q[head, i] += terms.sum(0)
            r_k[kv, past] += terms
    r_in = through_heads(layer.v, t.norm1.out, t.v, r_v)
    if rules.pattern != 0:
        r_q = through_rotation(t.q_flat, t.q, rotation, r_q)
        r_k = through_rotation(t.k_flat, t.k, rotation, r_k)
        r_in = r_in + through_heads(layer.q, t.norm1.out, t.q_flat, r_q)
        r_in = r_in + through_heads(layer.k, t.norm1.out, t.k_flat, r_k)
    return r_in


def through_heads(linear: Linear, a: Tensor, heads: Tensor, r: Tensor) -> Tensor:
    return through_linear(linear, a, merge_heads(heads), merge_heads(r))


def through_rotation(x: Tensor, y: Tensor, rotation: Tensor | None, r: Tensor) -> Tensor:
    """A rotation is a linear layer of its own at every position."""
    if rotation is None:
        return r
    out = torch.zeros_like(r)
    for head in range(len(x)):
        for pos in range(x.shape[1]):
            one = slice(pos, pos + 1)
            linear = Linear(rotation[pos].T)
            out[head, one] = through_linear(linear, x[head, one], y[head, one], r[head, one])
    return out
