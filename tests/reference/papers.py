"""The attribution methods as the papers define them, slow and in float64.

    reference = relevance(state_dict, config, tokens, contrast(vocab, 5, 9), "attnlrp")
    reference.tokens, reference.heads, reference.target

Sources:

- LRP: Arras et al. 2025 (LRPx, arXiv 2502.15886), C.3 identity rule on activations, C.5 constant
  standard deviation in norms; attention weights and gates are constants (Ali et al. 2022).
- AttnLRP: Achtibat et al. 2024 (arXiv 2402.05602), Proposition 3.1 (softmax) and the uniform rule
  for matrix multiplication and gated products.
- GIM: Edin et al. 2025 (arXiv 2505.17630), frozen norms, temperature-adjusted softmax gradients,
  and gradients of products divided by the number of factors; activations keep their derivative.
- RelP: Jafari et al. 2025 (arXiv 2508.21258), LN-rule, identity rule, half rule.

``rules`` holds the presets as data. Relevance at a point is value times the multiplier arriving
there, before any rule placed on that point changes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from . import multipliers, relevances
from .model import forward
from .rules import PRESETS, Rules

__all__ = ["PRESETS", "Reference", "Rules", "contrast", "forward", "relevance"]


@dataclass(frozen=True)
class Reference:
    """Relevance in float64; sums over the features of each point."""

    tokens: Tensor  # [pos] token embedding only
    full: Tensor  # [pos] token plus position embedding (equal to tokens with rotary)
    heads: Tensor  # [layer, pos, head] z times its multiplier, summed over d_head
    resid: Tensor  # [layer, pos] residual stream before each layer
    neurons: Tensor  # [layer, pos, neuron] MLP post
    target: float  # direction . logits[position]


def relevance(
    state_dict: Mapping[str, Tensor],
    config: Any,
    tokens: Sequence[int] | Tensor,
    direction: Tensor,
    preset: str | Rules,
    *,
    temperature: float | None = None,
    position: int = -1,
    form: Literal["multiplier", "relevance"] = "multiplier",
    rotary_dtype: torch.dtype = torch.float64,
) -> Reference:
    """Relevance of ``direction . logits[position]`` for one sequence.

    ``preset`` is a name in ``PRESETS`` or any ``Rules`` (``dataclasses.replace`` one for an
    ablation); ``temperature`` overrides its temperature. The two forms are independent derivations
    of the same numbers: ``relevances`` says which rules the relevance form exists for.
    """
    rules = PRESETS[preset] if isinstance(preset, str) else preset
    if temperature is not None:
        rules = replace(rules, temperature=temperature)
    propagate = {"multiplier": multipliers.propagate, "relevance": relevances.propagate}[form]
    with torch.no_grad():
        trace = forward(state_dict, config, tokens, rotary_dtype=rotary_dtype)
        direction = direction.double()
        elements = propagate(trace, direction, position, rules)
    return Reference(
        tokens=elements.tokens.sum(-1),
        full=elements.full.sum(-1),
        heads=elements.z.sum(-1).transpose(1, 2),
        resid=elements.resid.sum(-1),
        neurons=elements.post,
        target=float(trace.logits[position] @ direction),
    )


def contrast(vocab: int, positive: int, negative: int | None = None) -> Tensor:
    """The direction of one logit, or of a difference of two."""
    direction = torch.zeros(vocab, dtype=torch.float64)
    direction[positive] += 1
    if negative is not None:
        direction[negative] -= 1
    return direction
