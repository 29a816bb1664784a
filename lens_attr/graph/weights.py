"""The weights a decomposition of the forward pass needs, in the same layout on every backend.

Raw or processed, whatever the model holds: what is read here is what its forward multiplies with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_attr.errors import UnsupportedModelError
from lens_attr.graph.model import ModelGraph


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
        reads_after_norm: whether the role ``"attn_out"`` lies after that norm, stream included
            (BERT on the Bridge).
    """

    weight: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"]
    norm: Norm | None
    post_norm: bool
    reads_after_norm: bool

    def mixed(
        self, x: Float[Tensor, "*batch d_model"], attn_out: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The stream after attention, from the activations ``"residual"`` and ``"attn_out"``."""
        if self.reads_after_norm:
            return attn_out
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
        reads_after_norm=post_norm and graph.backend == "TransformerBridge",
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
