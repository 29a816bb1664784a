"""The backward pass in multiplier form: m = dy/dx under the rules, R = x * m.

Every step is a vector-Jacobian product written out by hand, most with the Jacobian as an explicit
matrix, per position and per head. With the default ``Rules()`` this is the gradient.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import (
    Layer,
    LayerTrace,
    Linear,
    Model,
    Norm,
    NormTrace,
    Trace,
    gelu_new_derivative,
    merge_heads,
    silu_derivative,
    split_heads,
)
from .rules import Rules


@dataclass(frozen=True)
class Elements:
    """Elementwise relevance at the points the tests read."""

    tokens: Tensor  # [pos, d] token embedding
    full: Tensor  # [pos, d] token plus position embedding
    resid: Tensor  # [layer, pos, d] residual stream before each layer
    z: Tensor  # [layer, head, pos, dh]
    post: Tensor  # [layer, pos, mlp]


def propagate(trace: Trace, direction: Tensor, position: int, rules: Rules) -> Elements:
    """Relevance of y = direction . logits[position], from the top layer down."""
    model = trace.model
    m_logits = torch.zeros_like(trace.logits)
    m_logits[position] = direction
    m = norm_vjp(model.final_norm, trace.final_norm, linear_vjp(model.unembed, m_logits), rules)
    resid, z, post = [], [], []
    for layer, t in zip(reversed(model.layers), reversed(trace.layers), strict=True):
        m_post = linear_vjp(layer.down, m)
        m = m + norm_vjp(layer.norm2, t.norm2, mlp_vjp(layer, t, m_post, rules), rules)
        m_z = split_heads(linear_vjp(layer.o, m), model.n_heads)
        m_norm1 = attention_vjp(model, layer, t, trace.rotation, m_z, rules)
        m = m + norm_vjp(layer.norm1, t.norm1, m_norm1, rules)
        resid.insert(0, t.norm1.x * m)
        z.insert(0, t.z * m_z)
        post.insert(0, t.post * m_post)
    return Elements(
        tokens=trace.token_embedding * m,
        full=trace.embedding * m,
        resid=torch.stack(resid),
        z=torch.stack(z),
        post=torch.stack(post),
    )


def linear_vjp(linear: Linear, m: Tensor) -> Tensor:
    """y = x W + b: m_x = m_y W^T. A bias takes its share of relevance and keeps it."""
    return m @ linear.weight.T


def norm_vjp(norm: Norm, t: NormTrace, m: Tensor, rules: Rules) -> Tensor:
    """y = weight * C x / sigma + bias, with C = I - 11^T/d (LayerNorm) or I (RMSNorm).

    Frozen (LRPx C.5): sigma is a constant, the Jacobian is diag(weight) C / sigma.
    True: with n = C x / sigma, d n_i / d x_j = (C_ij - n_i n_j / d) / sigma.
    """
    d = t.x.shape[-1]
    centring = centring_matrix(d, norm.centred)
    rows = []
    for pos in range(len(t.x)):
        jacobian = centring.clone()
        if rules.norm == "true":
            jacobian -= torch.outer(t.hat[pos], t.hat[pos]) / d
        jacobian = norm.weight[:, None] * jacobian / t.sigma[pos]
        rows.append(m[pos] @ jacobian)
    return torch.stack(rows)


def centring_matrix(d: int, centred: bool) -> Tensor:
    identity = torch.eye(d, dtype=torch.float64)
    return identity - 1 / d if centred else identity


def mlp_vjp(layer: Layer, t: LayerTrace, m_post: Tensor, rules: Rules) -> Tensor:
    """From the neurons to the MLP's normalised input."""
    slope = activation_slope(t, rules)
    if layer.up is None or t.up is None:
        return linear_vjp(layer.pre, m_post * slope)
    to_act, to_up = rules.gate_factors
    m_gate = to_act * m_post * t.up * slope
    m_up = to_up * m_post * t.act
    return linear_vjp(layer.pre, m_gate) + linear_vjp(layer.up, m_up)


def activation_slope(t: LayerTrace, rules: Rules) -> Tensor:
    """f'(x), or the identity rule's f(x)/x (here with epsilon), 0 at x = 0 (LRPx C.3)."""
    if rules.act == "true":
        return gelu_new_derivative(t.pre) if t.up is None else silu_derivative(t.pre)
    below = t.pre + rules.epsilon
    return torch.where(t.pre == 0, 0.0, t.act / torch.where(below == 0, 1.0, below))


def attention_vjp(
    model: Model,
    layer: Layer,
    t: LayerTrace,
    rotation: Tensor | None,
    m_z: Tensor,
    rules: Rules,
) -> Tensor:
    """From z [head, pos, dh] to the normalised input: value path plus query-key path."""
    m_q, m_k, m_v = torch.zeros_like(t.q), torch.zeros_like(t.k), torch.zeros_like(t.v)
    for head in range(model.n_heads):
        kv = head // model.group
        # z = A V. Uniform rule: one half to each factor (AttnLRP, matrix multiplication; GIM).
        m_v[kv] += rules.z * t.pattern[head].T @ m_z[head]
        m_pattern = rules.z * m_z[head] @ t.v[kv].T
        m_scores = softmax_vjp(t.scores[head], m_pattern, rules.temperature)
        # scores = Q K^T / sqrt(dh). Again one half each; a factor 0 keeps A constant.
        scale = rules.pattern / math.sqrt(model.head_dim)
        m_q[head] += scale * m_scores @ t.k[kv]
        m_k[kv] += scale * m_scores.T @ t.q[head]
    return (
        linear_vjp(layer.q, merge_heads(rotate_back(m_q, rotation)))
        + linear_vjp(layer.k, merge_heads(rotate_back(m_k, rotation)))
        + linear_vjp(layer.v, merge_heads(m_v))
    )


def softmax_vjp(scores: Tensor, m: Tensor, temperature: float) -> Tensor:
    """m J with J = diag(p) - p p^T, row by row, at p = softmax(scores / T).

    T = 1 is the softmax Jacobian (and, times the scores, AttnLRP's Proposition 3.1). T > 1 is GIM's
    temperature-adjusted softmax gradient: the factor 1/T of the true derivative is left out.
    """
    rows = []
    for s, row in zip(scores, m, strict=True):
        weights = torch.exp((s - s.max()) / temperature)
        p = weights / weights.sum()
        rows.append((torch.diag(p) - torch.outer(p, p)) @ row)
    return torch.stack(rows)


def rotate_back(m: Tensor, rotation: Tensor | None) -> Tensor:
    """The transpose of the rotary matrix of each position."""
    return m if rotation is None else torch.einsum("tij,hti->htj", rotation, m)
