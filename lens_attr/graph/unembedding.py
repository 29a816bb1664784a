"""The end of HookedTransformer's forward, without its copy of the unembedding.

TransformerLens 3 writes ``F.linear(stream, W_U.T.contiguous(), b_U)``: every forward copies the
largest matrix of the model, which takes half the time of a short text at Llama-3.2-1B shape. The
same product over a view copies nothing. All hook points fire as they do in its own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

WRONG_VIEWS = ("mps",)
"""Devices where ``linear`` of a view may be silently wrong: torch 2.8 (pytorch issue 161640)."""


def unembeds_by_copy(model: nn.Module) -> bool:
    """Whether `logits_from` may stand in for the end of this forward.

    Not for a subclass or another unembedding, nor where someone's hook waits on the modules whose
    own forward would be left out, nor on a device of `WRONG_VIEWS`.
    """
    if not _is_lens(model, "HookedTransformer"):
        return False
    unembed: Any = model.unembed
    left_out = _is_lens(unembed, "Unembed") and not (_has_hooks(model) or _has_hooks(unembed))
    return left_out and unembed.W_U.device.type not in WRONG_VIEWS


def logits_from(
    model: Any, stream: Float[Tensor, "row pos d_model"], soft_cap: float | None
) -> Float[Tensor, "row n_logits d_vocab"]:
    """Logits of the stream after the last block."""
    if model.cfg.normalization_type is not None:
        stream = model.ln_final(stream)
    unembed = model.unembed
    logits = unembed.hook_out(linear(unembed.hook_in(stream), unembed.W_U.T, unembed.b_U))
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


def _is_lens(module: nn.Module, name: str) -> bool:
    """Whether it is TransformerLens's own class of that name, and runs its own forward."""
    cls = type(module)
    own = cls.__name__ == name and cls.__module__.startswith("transformer_lens.")
    return own and "forward" not in vars(module)


def _has_hooks(module: nn.Module) -> bool:
    tables = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return any(tables)
