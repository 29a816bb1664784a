"""Special tokens and attention sinks: how much relevance they hold, and results without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_attr.attribution.layers import Activations, visiting_blocks
from lens_attr.errors import InputError, did_you_mean
from lens_attr.graph import resolve
from lens_attr.graph.tokens import Text, TokenBatch, tokenize

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance

Policy = Literal["keep", "ignore", "separate"]
"""``"keep"``: as they are. ``"ignore"``: their relevance is 0. ``"separate"``: likewise, and it
stands apart in ``extra["special_tokens"]``, so that nothing is lost from the sum."""

Also = Bool[Tensor, "B P"] | str | Sequence[str] | None
"""More tokens to treat as special: a mask, or their strings as in ``str_tokens``."""


APART, MASS = "special_tokens", "special_mass"
"""The parts in ``extra`` that hold what was set apart, and the share that was set aside."""


def mass_on(tokens: Float[Tensor, "B P"], special: Bool[Tensor, "B P"]) -> Float[Tensor, " B"]:
    """Share of the absolute relevance that some tokens hold; 0 where there is no relevance."""
    return share(torch.where(special, tokens, 0.0), torch.where(special, 0.0, tokens))


def share(part: Float[Tensor, "B P"], rest: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
    """What a part is of the absolute relevance of both; 0 where there is none."""
    size = part.abs().sum(dim=1)
    total = size + rest.abs().sum(dim=1)
    return size / total.where(total > 0, 1.0)


def under_policy(relevance: Relevance, policy: str, also: Also) -> Relevance:
    """See `Relevance.with_special_tokens`."""
    if policy not in get_args(Policy):
        hint = did_you_mean(str(policy), get_args(Policy))
        raise InputError(f"unknown policy for special tokens {policy!r}; {hint}")
    special = chosen(relevance, also)
    if policy == "keep":
        return replace(relevance, special=special)
    if MASS in relevance.extra:
        raise InputError("the special tokens of this result are set aside already.")
    extra = {MASS: mass_on(relevance.tokens, special)}
    per_token = relevance.per_token
    if policy == "separate":
        extra[APART] = torch.where(special, relevance.tokens, 0.0)
        per_token = (*per_token, APART)
    return replace(
        relevance,
        tokens=torch.where(special, 0.0, relevance.tokens),
        special=special,
        extra={**relevance.extra, **extra},
        per_token=per_token,
        metadata={**relevance.metadata, "special_tokens": policy},
    )


def special_note(relevance: Relevance, row: str) -> list[str]:
    """What special tokens hold, in words; nothing where they hold none.

    Args:
        relevance: any result.
        row: what its rows are, e.g. ``"example"``.
    """
    mass = relevance.special_mass
    if not bool((mass > 0).any()):
        return []
    each = f", mean of {len(mass)} {row}s (at most {mass.max():.0%})" if len(mass) > 1 else ""
    fate = {"ignore": " (left out)", "separate": f' (in r.extra["{APART}"])'}
    policy = fate.get(relevance.metadata.get("special_tokens", ""), "")
    return [f"special tokens hold {mass.mean():.0%} of the absolute relevance{each}{policy}"]


def chosen(relevance: Relevance, also: Also) -> Bool[Tensor, "B P"]:
    """The special tokens of a result, and others.

    Raises:
        InputError: a mask of another shape, or a string that is no token of the result.
    """
    special = relevance.special
    special = torch.zeros_like(relevance.attention_mask) if special is None else special
    if also is None:
        return special
    if isinstance(also, Tensor):
        if also.shape != special.shape or also.dtype != torch.bool:
            raise InputError(
                f"also must be a boolean mask {list(special.shape)}, got {also.dtype} "
                f"{list(also.shape)}: compare with a threshold, la.attention_sinks(...) > 0.5."
            )
        return special | (also.to(special.device) & relevance.attention_mask)
    return special | (_called(relevance, also) & relevance.attention_mask)


def _called(relevance: Relevance, strings: str | Sequence[str]) -> Bool[Tensor, "B P"]:
    wanted = [strings] if isinstance(strings, str) else list(strings)
    present = {token for row in relevance.str_tokens for token in row}
    for string in wanted:
        if string not in present:
            raise InputError(f"no token is {string!r}; {did_you_mean(str(string), present)}")
    rows = [[token in wanted for token in row] for row in relevance.str_tokens]
    return torch.tensor(rows, device=relevance.tokens.device)


@torch.inference_mode(False)
def attention_sinks(
    model: Any,
    text: Text,
    threshold: float = 0.3,
    *,
    attention_mask: Bool[Tensor, "B P"] | Int[Tensor, "B P"] | None = None,
) -> Float[Tensor, "B P"]:
    """For how many heads is each token an attention sink, as a share of all heads.

    Token j is a sink of a head if it receives more than ``threshold`` of the attention on average
    over the positions that can see it (in causal models those from j on):
    ``mean_i A_ij > threshold`` (Gu et al. 2025, arXiv 2410.10781, with its threshold 0.3). The last
    tokens are seen by few positions, so that theirs is a mean over few. Cost: 1 forward.

    Example::

        sinks = la.attention_sinks(model, text) > 0.5
        r.with_special_tokens("separate", also=sinks)

    Args:
        model: as in `attribute`, as ``text`` and ``attention_mask``.
        text: one or several.
        threshold: mean attention that makes a sink, from 0 to 1.
        attention_mask: for token ids with padding.

    Raises:
        InputError: an argument that cannot be used.
        UnsupportedModelError: the model does not show its attention pattern.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise InputError(f"threshold must be a number from 0 to 1, got {threshold!r}.")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a number from 0 to 1, got {threshold!r}.")
    graph = resolve(model)
    batch = tokenize(graph, text, attention_mask)
    found: list[Float[Tensor, "B P"]] = []
    seen_by = _readers(batch, causal=not graph.is_masked_model)

    def visit(layer: int, activations: Activations) -> None:
        pattern = torch.where(seen_by[:, None], activations["pattern"].float(), 0.0)
        received = pattern.sum(dim=2) / seen_by.sum(dim=1)[:, None].clamp_min(1)
        found.append((received > threshold).float().mean(dim=1))

    with torch.no_grad(), visiting_blocks(graph, ["pattern"], visit):
        graph.logits_at(batch.token_ids, batch.padding_mask, batch.attention_mask.int().argmax(1))
    return torch.stack(found).mean(dim=0).cpu()


def _readers(batch: TokenBatch, causal: bool) -> Bool[Tensor, "B query key"]:
    """Which positions can see which; none where either is padding."""
    mask = batch.attention_mask
    pairs = mask[:, :, None] & mask[:, None, :]
    return pairs.tril() if causal else pairs
