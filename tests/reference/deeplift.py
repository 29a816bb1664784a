"""DeepLIFT of a transformer from its definitions, one elementary operation at a time.

The multiplier m of an activation a satisfies ``sum(m * (a - a0)) = y - y0``. It is propagated from
the logits down through linear maps, elementwise functions f (rescale rule: m_x = m_f * (f - f0) /
(x - x0)) and products (m_a = m_ab * (b + b0) / 2, likewise m_b), and nothing else: the softmax is
exp, sum, reciprocal and product, a norm is centring, square, mean, root, reciprocal and product
(Shrikumar et al. 2017; the product rule is the symmetric one).

No autograd and nothing of the forward but its intermediate values, per position and per head.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .model import (
    Layer,
    LayerTrace,
    Model,
    Norm,
    NormTrace,
    Trace,
    forward,
    gelu_new,
    gelu_new_derivative,
    merge_heads,
    silu,
    silu_derivative,
    split_heads,
)
from .multipliers import linear_vjp, rotate_back


@dataclass(frozen=True)
class DeepLift:
    """Relevance (a - a0) * m, summed over the features of each point."""

    tokens: Tensor  # [pos] of the explained embedding
    heads: Tensor  # [layer, pos, head]
    stream: Tensor  # [layer + 1] before each layer and after the last
    target: float  # y
    baseline: float  # y0


def deeplift(
    state_dict: Mapping[str, Tensor],
    config: Any,
    tokens: Sequence[int] | Tensor,
    baseline: Tensor,
    direction: Tensor,
    *,
    full: bool = False,
    log_form: bool = False,
) -> DeepLift:
    """Of ``direction . logits[-1]`` against an embedding ``baseline`` [pos, d].

    ``full``: the baseline stands for token plus position embedding; otherwise positions are added.
    ``log_form``: the softmax is exp(s - log(sum(exp(s)))), not exp(s) / sum(exp(s)).
    """
    with torch.no_grad():
        one = forward(state_dict, config, tokens)
        positions = one.embedding - one.token_embedding
        embedding = baseline if full else baseline + positions
        two = forward(state_dict, config, tokens, embedding=embedding)
        return _propagate(one, two, direction.double(), log_form)


def _propagate(one: Trace, two: Trace, direction: Tensor, log_form: bool) -> DeepLift:
    model = one.model
    m_logits = torch.zeros_like(one.logits)
    m_logits[-1] = direction
    m_final = linear_vjp(model.unembed, m_logits)
    m = norm(model.final_norm, one.final_norm, two.final_norm, m_final)
    stream = [summed(one.final_norm.x, two.final_norm.x, m)]
    heads = []
    for layer, a, b in reversed(list(zip(model.layers, one.layers, two.layers, strict=True))):
        m = m + norm(layer.norm2, a.norm2, b.norm2, mlp(layer, a, b, linear_vjp(layer.down, m)))
        m_z = split_heads(linear_vjp(layer.o, m), model.n_heads)
        m_in = attention(model, layer, a, b, one.rotation, m_z, log_form)
        m = m + norm(layer.norm1, a.norm1, b.norm1, m_in)
        heads.insert(0, ((a.z - b.z) * m_z).sum(-1).T)
        stream.insert(0, summed(a.norm1.x, b.norm1.x, m))
    return DeepLift(
        tokens=((one.embedding - two.embedding) * m).sum(-1),
        heads=torch.stack(heads),
        stream=torch.stack(stream),
        target=float(one.logits[-1] @ direction),
        baseline=float(two.logits[-1] @ direction),
    )


def summed(a: Tensor, b: Tensor, m: Tensor) -> Tensor:
    return ((a - b) * m).sum()


def rescale(f: Tensor, f0: Tensor, x: Tensor, x0: Tensor, slope: Tensor) -> Tensor:
    """(f - f0) / (x - x0), the derivative ``slope`` where x = x0."""
    same = x == x0
    return torch.where(same, slope, (f - f0) / torch.where(same, 1.0, x - x0))


def norm(norm: Norm, a: NormTrace, b: NormTrace, m_out: Tensor) -> Tensor:
    """out = weight c r + bias, r = 1 / sigma, sigma = sqrt(v), v = mean(c c) + eps."""
    width = a.x.shape[-1]
    rows = []
    for x, x0, m in zip(a.x, b.x, m_out * norm.weight, strict=True):
        c, c0 = (each - each.mean() if norm.centred else each for each in (x, x0))
        v, v0 = ((each * each).mean() + norm.eps for each in (c, c0))
        sigma, sigma0 = v.sqrt(), v0.sqrt()
        r, r0 = 1 / sigma, 1 / sigma0
        m_c = m * (r + r0) / 2
        m_r = (m * (c + c0) / 2).sum()
        m_sigma = m_r * rescale(r, r0, sigma, sigma0, -(r**2))
        m_v = m_sigma * rescale(sigma, sigma0, v, v0, r / 2)
        m_square = m_v / width
        m_c = m_c + m_square * (c + c0) / 2 + m_square * (c + c0) / 2
        rows.append(m_c - m_c.mean() if norm.centred else m_c)
    return torch.stack(rows)


def mlp(layer: Layer, a: LayerTrace, b: LayerTrace, m_post: Tensor) -> Tensor:
    f: Callable[[Tensor], Tensor] = gelu_new if layer.up is None else silu
    derivative = gelu_new_derivative if layer.up is None else silu_derivative
    slope = rescale(f(a.pre), f(b.pre), a.pre, b.pre, derivative(a.pre))
    if layer.up is None or a.up is None or b.up is None:
        return linear_vjp(layer.pre, m_post * slope)
    m_act, m_up = m_post * (a.up + b.up) / 2, m_post * (a.act + b.act) / 2
    return linear_vjp(layer.pre, m_act * slope) + linear_vjp(layer.up, m_up)


def attention(
    model: Model,
    layer: Layer,
    a: LayerTrace,
    b: LayerTrace,
    rotation: Tensor | None,
    m_z: Tensor,
    log_form: bool,
) -> Tensor:
    m_q, m_k, m_v = torch.zeros_like(a.q), torch.zeros_like(a.k), torch.zeros_like(a.v)
    for head in range(model.n_heads):
        kv = head // model.group
        m_v[kv] += (a.pattern[head] + b.pattern[head]).T / 2 @ m_z[head]
        m_pattern = m_z[head] @ (a.v[kv] + b.v[kv]).T / 2
        m_scores = torch.zeros_like(m_pattern)
        for query in range(len(m_scores)):
            past = slice(0, query + 1)
            m_scores[query, past] = softmax(
                a.scores[head, query, past],
                b.scores[head, query, past],
                m_pattern[query, past],
                log_form,
            )
        m_scores = m_scores / math.sqrt(model.head_dim)
        m_q[head] += m_scores @ (a.k[kv] + b.k[kv]) / 2
        m_k[kv] += m_scores.T @ (a.q[head] + b.q[head]) / 2
    return (
        linear_vjp(layer.q, merge_heads(rotate_back(m_q, rotation)))
        + linear_vjp(layer.k, merge_heads(rotate_back(m_k, rotation)))
        + linear_vjp(layer.v, merge_heads(m_v))
    )


def softmax(s: Tensor, s0: Tensor, m: Tensor, log_form: bool) -> Tensor:
    """p = E r, r = 1 / total, total = sum(E), E = exp(s): one row.

    Or p = exp(t), t = s - log(total).
    """
    e, e0 = s.exp(), s0.exp()
    total, total0 = e.sum(), e0.sum()
    if log_form:
        t, t0 = s - total.log(), s0 - total0.log()
        m_t = m * rescale(t.exp(), t0.exp(), t, t0, t.exp())
        m_total = -m_t.sum() * rescale(total.log(), total0.log(), total, total0, 1 / total)
        return m_t + m_total * rescale(e, e0, s, s0, e)
    r, r0 = 1 / total, 1 / total0
    m_e = m * (r + r0) / 2
    m_r = (m * (e + e0) / 2).sum()
    m_total = m_r * rescale(r, r0, total, total0, -(r**2))
    m_e = m_e + m_total
    return m_e * rescale(e, e0, s, s0, e)
