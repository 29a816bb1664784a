"""What the contract tests share: three families on every backend, and the world around a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jaxtyping
import tiny
import torch
from torch import Tensor

from lens_attr.graph import resolve

BACKENDS = tiny.BACKENDS
GPT2 = [f"gpt2-{backend}" for backend in BACKENDS]
CAUSAL = GPT2 + [f"llama-{backend}" for backend in BACKENDS]
MASKED = [f"bert-{backend}" for backend in BACKENDS]
EVERY = CAUSAL + MASKED


def model(name: str, dtype: str = "float32") -> Any:
    """The shared model called ``"gpt2-hooked"``, ``"llama-bridge"``, ..."""
    return tiny.model(*name.split("-"), dtype)


def fresh(name: str, dtype: str = "float32") -> Any:
    """The same model, to spoil."""
    return tiny.fresh(*name.split("-"), dtype)


def text(name: str, words: str = "w5 w9 w12 w7") -> str:
    """A prompt for this model: BERT's second word is the mask."""
    first, _, rest = words.partition(" ")
    return f"{first} [MASK] {rest}".strip() if name.startswith("bert") else words


def run(model: Any, ids: Tensor, position: int = -1) -> tuple[Tensor, Tensor]:
    """A forward of one's own: logit(w6) - logit(w8), and the token embedding as a leaf."""
    leaves: list[Tensor] = []

    def make_leaf(embedding: Tensor) -> Tensor:
        leaves.append(embedding.detach().requires_grad_(torch.is_grad_enabled()))
        return leaves[0]

    (embed,) = resolve(model).points("embed")
    with ExitStack() as stack:
        embed.on_forward(make_leaf, stack)
        logits = model(ids)
    return logits[0, position, 6] - logits[0, position, 8], leaves[0]


@contextmanager
def untyped() -> Iterator[None]:
    """Without the suite's runtime type checker, which users do not have."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def world(model: Any) -> dict[str, Any]:
    """Everything around a model that an explanation must leave alone."""
    inner = getattr(model, "original_model", model)
    everyone = [*model.modules(), *inner.modules(), *model.hook_dict.values()]
    modules = list({id(module): module for module in everyone}.values())
    parameters = [*model.parameters(), *inner.parameters()]
    tokenizer = model.tokenizer
    with torch.no_grad():
        logits = model(torch.tensor([[5, 9, 12, 7], [8, 8, 30, 6]]))
    return {
        "torch hooks": [list(getattr(m, table).items()) for m in modules for table in HOOK_TABLES],
        "hook points": [(list(h.fwd_hooks), list(h.bwd_hooks)) for h in model.hook_dict.values()],
        "training": [module.training for module in modules],
        "requires_grad": [parameter.requires_grad for parameter in parameters],
        "gradients": [parameter.grad is not None for parameter in parameters],
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random state": bytes(torch.get_rng_state().tolist()),
        "configuration": repr(model.cfg),
        "tokenizer": (
            tokenizer.padding_side,
            tokenizer.special_tokens_map,
            tokenizer.vocab_size,
        ),
        "logits": logits.numpy().tobytes(),
    }
