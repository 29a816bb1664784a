"""A target bound to one batch: positions, token ids, and the number they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Score = Callable[[Float[Tensor, "batch d_vocab"], "Resolved"], Float[Tensor, " batch"]]


@dataclass(frozen=True)
class Resolved:
    """What is explained, for a batch of ``batch`` examples.

    Attributes:
        position: explained position, an index into the padded row.
        score: logits at that position to one number per example.
        labels: what is explained, in words, one per example.
        unit: unit of the number, e.g. ``"logit"``.
        token_ids: the target's ids, one column per token (answer, foil), empty if it has none.
        notices: what the reader of the result must know.
        full: a score of all logits [batch, pos, d_vocab] instead, if the target needs them.
        relabel: the labels, where they depend on the logits at the position.
        form: ``"linear"`` in the logits (of the top token, where the logits choose it),
            ``"log_prob"`` of ``token_ids``, or anything else (None).
    """

    position: Int[Tensor, " batch"]
    score: Score
    labels: list[str]
    unit: str = "logit"
    token_ids: Int[Tensor, "batch n_tokens"] | None = None
    notices: tuple[str, ...] = ()
    full: Callable[[Tensor], Tensor] | None = None
    relabel: Callable[[Tensor], list[str]] | None = None
    form: Literal["linear", "log_prob"] | None = None

    def rows(self, index: Sequence[int]) -> Resolved:
        """The same target for some of the examples."""
        chosen = torch.tensor(index, device=self.position.device)
        ids = None if self.token_ids is None else self.token_ids[chosen]
        labels = [self.labels[i] for i in index]
        return replace(self, position=self.position[chosen], labels=labels, token_ids=ids)

    def pinned(self, logits: Float[Tensor, "batch d_vocab"]) -> Resolved:
        """The same target for changed inputs: what depends on the logits is settled by these.

        The top logit of a text stays the logit of that token while the text is perturbed.
        """
        if self.relabel is None:
            return self
        top = logits.argmax(dim=-1)[:, None]
        return replace(self, token_ids=top, labels=self.relabel(logits), relabel=None)

    def at(self, position: Int[Tensor, " batch"]) -> Resolved:
        """The same target at other positions (of a batch whose columns have moved)."""
        return replace(self, position=position)
