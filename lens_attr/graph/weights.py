"""The weights a decomposition of the forward pass needs, in the same layout on every backend.

Raw or processed, whatever the model holds: what is read here is what its forward multiplies with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph.model import ModelGraph
from lens_attr.graph.points import HookedPoint, Point


@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm: gain * (x - mean) / sigma + bias, the mean for LayerNorm only.

    With sigma held constant it is linear: `linear` / sigma + bias.

    Attributes:
        gain: None where it was folded into the weights behind it.
        bias: None where there is none.
        centred: whether the mean is subtracted (LayerNorm).
        eps: added to the variance.
    """

    gain: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    centred: bool
    eps: float

    def sigma(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The scale the norm divides by."""
        centred = x - x.mean(dim=-1, keepdim=True) if self.centred else x
        return (centred.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def linear(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """gain * (x - mean)."""
        centred = x - x.mean(dim=-1, keepdim=True) if self.centred else x
        return centred if self.gain is None else centred * self.gain.to(x.dtype)

    def transposed(self, u: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The direction v with v . x = u . linear(x) for every x."""
        scaled = u if self.gain is None else u * self.gain.to(u.dtype)
        return scaled - scaled.mean(dim=-1, keepdim=True) if self.centred else scaled

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        normed = self.linear(x) / self.sigma(x)
        return normed if self.bias is None else normed + self.bias.to(x.dtype)


@dataclass(frozen=True)
class AttentionOutput:
    """How the heads of one block reach the residual stream x.

    Plainly as x + z W_O + b_O; with a norm of its own (Gemma) as x + norm(z W_O + b_O); in a
    post-norm block (BERT) as norm(x + z W_O + b_O).

    Attributes:
        weight: W_O of each head.
        bias: b_O, zero where there is none.
        norm: the norm that follows, None where none does.
        post_norm: whether that norm takes in the residual stream.
    """

    weight: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"]
    norm: Norm | None
    post_norm: bool

    def mixed(
        self, x: Float[Tensor, "*batch d_model"], attn_out: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The stream after attention, from the activations ``"residual"`` and ``"attn_out"``."""
        return self.norm(x + attn_out) if self.norm and self.post_norm else x + attn_out

    def linear_weight(self, dtype: torch.dtype) -> Float[Tensor, "head d_head d_model"]:
        """W_O, followed by the linear part of the norm."""
        weight = self.weight.to(dtype)
        return weight if self.norm is None else self.norm.linear(weight)

    def reading(self, direction: Float[Tensor, " d_model"]) -> Float[Tensor, "head d_head"]:
        """What ``direction`` reads of each entry of z, through `linear_weight`."""
        direction = direction if self.norm is None else self.norm.transposed(direction)
        return self.weight.to(direction.dtype) @ direction


def attention_output(graph: ModelGraph, layer: int) -> AttentionOutput:
    """W_O, b_O and the norm behind them, of one block.

    Raises:
        UnsupportedModelError: a kind of norm that is not known.
    """
    block = graph.model.blocks[layer]
    weight = block.attn.W_O.detach()
    bias = block.attn.b_O
    post_norm = graph.is_masked_model
    behind = block.ln1 if post_norm else getattr(block, "ln1_post", None)
    return AttentionOutput(
        weight=weight,
        bias=weight.new_zeros(weight.shape[-1]) if bias is None else bias.detach(),
        norm=None if behind is None else _norm(graph, behind),
        post_norm=post_norm,
    )


def final_norm(graph: ModelGraph) -> Norm | None:
    """The norm before the unembedding, None where the model has none.

    Raises:
        UnsupportedModelError: a kind of norm that is not known.
    """
    module = getattr(graph.model, "ln_final", None)
    return None if module is None or isinstance(module, nn.Identity) else _norm(graph, module)


def unembedding(
    graph: ModelGraph,
) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_vocab"]]:
    """W_U and b_U: logits = norm(x) W_U + b_U, before a soft cap."""
    unembed = graph.model.unembed
    weight = unembed.W_U.detach()
    bias = unembed.b_U
    return weight, weight.new_zeros(weight.shape[-1]) if bias is None else bias.detach()


def logit_soft_cap(graph: ModelGraph) -> float | None:
    """c in logits = c tanh(logits / c) (Gemma 2), None where the logits are not capped."""
    cap = getattr(graph.cfg, "output_logits_soft_cap", None)
    return float(cap) if cap is not None and cap > 0 else None


def _norm(graph: ModelGraph, module: Any) -> Norm:
    if graph.backend == "TransformerBridge":
        return _bridge_norm(graph, module)
    kind = type(module).__name__
    if kind not in ("LayerNorm", "LayerNormPre", "RMSNorm", "RMSNormPre"):
        raise UnsupportedModelError(
            f"{kind} is not a norm whose linear part is known: LayerNorm and RMSNorm are."
        )
    gain, bias = getattr(module, "w", None), getattr(module, "b", None)
    return Norm(_detached(gain), _detached(bias), kind.startswith("LayerNorm"), float(module.eps))


def _bridge_norm(graph: ModelGraph, module: Any) -> Norm:
    """Gemma's norms on the Bridge keep Hugging Face's weight, which is the gain less 1."""
    inner = module.original_component
    eps = getattr(inner, "eps", getattr(inner, "variance_epsilon", None))
    gain = module.weight.detach()
    if module.uses_rms_norm and getattr(graph.cfg, "rmsnorm_uses_offset", False):
        gain = 1 + gain
    bias = None if module.uses_rms_norm else _detached(getattr(inner, "bias", None))
    eps = graph.cfg.eps if eps is None else eps
    return Norm(gain, bias, not module.uses_rms_norm, float(eps))


def _detached(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach()


# ------------------------------------------------------------- what reads the residual stream


@dataclass(frozen=True)
class Projection:
    """norm(x) W, plus a bias, at a hook point.

    Attributes:
        point: where the result stands: [batch, pos, unit, d_out], without the unit axis for MLPs.
        weight: one matrix per unit.
    """

    point: Point
    weight: Float[Tensor, "unit d_model d_out"]


@dataclass(frozen=True)
class Reader:
    """The queries, keys or values of one block, one unit per head, or its MLP, a single unit.

    Attributes:
        kind: what it is.
        layer: index of the block.
        norm: the norm between the residual stream and the projections, None where none is.
        scale: the ``hook_scale`` of that norm.
        after_attention: whether it reads the stream after the block's attention.
        projections: one; two for gated MLPs, gate and up.
    """

    kind: Literal["q", "k", "v", "mlp"]
    layer: int
    norm: Norm | None
    scale: Point | None
    after_attention: bool
    projections: tuple[Projection, ...]

    @property
    def n_units(self) -> int:
        """Query heads, key-value heads, or 1."""
        return self.projections[0].weight.shape[0]

    def pull(
        self,
        gradients: Sequence[Float[Tensor, "row unit d_out"]],
        stream: Float[Tensor, "row d_model"],
        factor: float = 1.0,
    ) -> Float[Tensor, "row unit d_model"]:
        """The gradient in the stream as each unit reads it, from those at the projections.

        Args:
            gradients: one per projection.
            stream: what is read, before the norm.
            factor: of the gradient through the norm's standard deviation; 0 freezes it.
        """
        pulled = [
            torch.einsum("nuk,udk->nud", gradient, p.weight.to(gradient.dtype))
            for gradient, p in zip(gradients, self.projections, strict=True)
        ]
        total = pulled[0] if len(pulled) == 1 else pulled[0] + pulled[1]
        if self.norm is None:
            return total
        return norm_vjp(self.norm, stream[:, None], total, factor)

    def push(
        self,
        stream: Float[Tensor, "row d_model"],
        change: Float[Tensor, "row unit d_model"],
    ) -> list[Float[Tensor, "row unit d_out"]]:
        """What each projection gains when each unit reads ``stream + change`` instead."""
        if self.norm is not None:
            before = self.norm(stream)[:, None]
            change = self.norm(stream[:, None] + change) - before
        return [
            torch.einsum("nud,udk->nuk", change, p.weight.to(change.dtype))
            for p in self.projections
        ]


def norm_vjp(
    norm: Norm,
    x: Float[Tensor, "*#batch d_model"],
    grad: Float[Tensor, "*batch d_model"],
    factor: float = 1.0,
) -> Float[Tensor, "*batch d_model"]:
    """The gradient before a norm from the one after it.

    With c the (centred) input, s the scale, n = c / s and h = gain * grad, the true one is
    (centred h - n mean(n h)) / s; its second part comes from s and is multiplied by ``factor``.
    """
    sigma = norm.sigma(x)
    through = norm.transposed(grad) / sigma
    if factor == 0:
        return through
    unit = (x - x.mean(dim=-1, keepdim=True) if norm.centred else x) / sigma
    gained = grad if norm.gain is None else grad * norm.gain.to(grad.dtype)
    return through - factor * unit * (gained * unit).mean(dim=-1, keepdim=True) / sigma


def is_parallel(graph: ModelGraph) -> bool:
    """Whether attention and MLP of a block read the same stream (GPT-J, GPT-NeoX)."""
    return bool(getattr(graph.cfg, "parallel_attn_mlp", False))


def has_mlps(graph: ModelGraph) -> bool:
    """False for attention-only models."""
    return not getattr(graph.cfg, "attn_only", False)


def readers(graph: ModelGraph, layer: int) -> list[Reader]:
    """Everything in a block that reads the residual stream: queries, keys, values, MLP.

    Raises:
        UnsupportedModelError: a block whose norm does not stand before its readers.
    """
    if graph.is_masked_model:
        raise UnsupportedModelError(
            f"{graph.architecture} normalises the residual stream itself (post-norm), so what a "
            "block reads is no sum of earlier outputs."
        )
    block = graph.model.blocks[layer]
    before_attention = _norm_before(graph, block, "ln1")
    found = [
        Reader(kind, layer, *before_attention, False, (_head_projection(graph, layer, kind),))
        for kind in ("q", "k", "v")
    ]
    if has_mlps(graph):
        shared = not hasattr(block, "ln2")  # GPT-J on the Bridge
        before_mlp = before_attention if shared else _norm_before(graph, block, "ln2")
        projections = _mlp_projections(graph, layer)
        found.append(Reader("mlp", layer, *before_mlp, not is_parallel(graph), projections))
    return found


def _norm_before(graph: ModelGraph, block: Any, name: str) -> tuple[Norm | None, Point | None]:
    module = getattr(block, name, None)
    if module is None or isinstance(module, nn.Identity):
        return None, None
    scales = [p for p in graph.points("norm_scale") if isinstance(p, HookedPoint)]
    scale = next(p for p in scales if p.hook_point is module.hook_scale)
    return _norm(graph, module), scale


def _head_projection(graph: ModelGraph, layer: int, kind: Literal["q", "k", "v"]) -> Projection:
    """HookedTransformer repeats grouped keys and values in W_K and W_V, but not at their hooks."""
    attn, name = graph.model.blocks[layer].attn, f"W_{kind.upper()}"
    grouped = graph.backend != "TransformerBridge" and not getattr(
        graph.cfg, "ungroup_grouped_query_attention", False
    )
    stored = getattr(attn, f"_{name}", None) if grouped else None
    weight = getattr(attn, name) if stored is None else stored
    return Projection(graph.points(kind)[layer], weight.detach())


def _mlp_projections(graph: ModelGraph, layer: int) -> tuple[Projection, ...]:
    site, mlp = graph.activations()[layer], graph.model.blocks[layer].mlp
    if site.up is None:
        return (Projection(site.pre, mlp.W_in.detach()[None]),)
    return (
        Projection(site.pre, mlp.W_gate.detach()[None]),
        Projection(site.up, mlp.W_in.detach()[None]),
    )


# ------------------------------------------------------------------------------- other parts


def mlp_output(graph: ModelGraph, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """W_out of a block's MLP."""
    return graph.model.blocks[layer].mlp.W_out.detach()


@dataclass(frozen=True)
class Rotation:
    """Rotary positions: the first entries of queries and keys are turned, halves as pairs.

    Attributes:
        cos: of the angle of every entry, the second half as the first.
        sin: likewise.
    """

    cos: Float[Tensor, "pos d_rotary"]
    sin: Float[Tensor, "pos d_rotary"]

    def turned(
        self, x: Float[Tensor, "pos head d_head"], back: bool = False
    ) -> Float[Tensor, "pos head d_head"]:
        """x at its positions; ``back`` is the inverse, which is the transpose."""
        n = self.cos.shape[-1]
        first, second = x[..., :n].chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1) * self.sin[:, None]
        turned = x[..., :n] * self.cos[:, None] + (-across if back else across)
        return torch.cat([turned, x[..., n:]], dim=-1)


def rotation(graph: ModelGraph, layer: int, length: int) -> Rotation | None:
    """The rotation of a block's queries and keys, None where positions are embedded.

    Raises:
        UnsupportedModelError: neighbours are pairs (GPT-J).
    """
    if getattr(graph.cfg, "positional_embedding_type", "") != "rotary":
        return None
    if getattr(graph.cfg, "rotary_adjacent_pairs", False):
        raise UnsupportedModelError(f"{graph.architecture} turns neighbouring entries as pairs.")
    if graph.backend != "TransformerBridge":
        attn = graph.model.blocks[layer].attn
        return Rotation(attn.rotary_cos[:length], attn.rotary_sin[:length])
    places = torch.arange(length, device=graph.device)[None]
    rotary = graph.model.rotary_emb.original_component
    cos, sin = rotary(torch.empty(0, device=graph.device, dtype=graph.dtype), places)
    return Rotation(cos[0].detach(), sin[0].detach())
