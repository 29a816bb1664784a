"""Occlusion: what the explained number loses when a token is replaced or removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_attr.attribution.explainer import Explained
from lens_attr.attribution.perturbation import (
    Inputs,
    PerturbationExplainer,
    model_function,
    read_inputs,
)
from lens_attr.attribution.scoring import (
    by_position,
    refuse_non_finite,
    target_values,
)
from lens_attr.errors import InputError, checked_count
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch, special_tokens
from lens_attr.targets import Resolved

REMOVE = "remove"

NOTHING_OCCLUDED = (
    "an example holds nothing but tokens that are left alone, so its relevance is 0: pass "
    'special_tokens="occlude" to occlude special tokens too.'
)

SpecialTokens = Literal["keep", "occlude"]
"""``"keep"``: BOS, [CLS], [SEP], [MASK] are never occluded and get 0; ``"occlude"``: they are."""

Hidden = Bool[Tensor, "row pos"]
"""Which tokens are occluded in each row."""


@dataclass(frozen=True, kw_only=True)
class Occlusion(PerturbationExplainer):
    """``F(x) - F(x without token i)`` (Zeiler & Fergus 2014; leave-one-out, Li et al. 2016).

    ``tokens`` [batch, pos]: the mean of that difference over the windows that cover the token.

    A token is occluded by putting ``baseline`` in the place of its embedding, or, with
    ``baseline="remove"``, by taking it out of the text, so that later positions move up; where
    the removed token is the one that predicts, the token before it predicts. The true change of
    the model, not an approximation by gradients; it does not sum to the target.

    Cost: 1 forward, and 1 for each occluded window, in batches of ``max_batch_tokens``. Further
    targets cost nothing, wherever they stand (in a masked model, ``"remove"`` keeps what predicts,
    so that each position has texts of its own).

    Attributes:
        embeddings: which part of the embedding gives way; not with ``"remove"``, which takes away
            all of it.
        window: how many neighbouring tokens are occluded together. Every window of the text is
            occluded once, and a token gets the mean over the windows that cover it.
        special_tokens: whether special tokens are left alone, see `SpecialTokens`.
    """

    window: int = 1
    special_tokens: SpecialTokens = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("window", self.window)
        if self.special_tokens not in get_args(SpecialTokens):
            raise InputError(
                f"special_tokens must be 'keep' or 'occlude', got {self.special_tokens!r}."
            )
        if self._removes and self.embeddings != "token":
            raise InputError(
                'baseline="remove" takes tokens out of the text, with all that is embedded of '
                'them: embeddings="full" belongs to the baselines that take their place.'
            )

    def refuse(self, graph: ModelGraph, batch: TokenBatch) -> None:
        """See `Explainer.refuse`."""
        if not self._removes:
            super().refuse(graph, batch)

    def forwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """See `Explainer.forwards`."""
        found = 0
        for group in self._groups(graph, targets):
            some = [targets[k] for k in group]
            occludable = self._occludable(graph, batch, some[0])
            rows = Windows.of(occludable, self.window).rows(_whole_batch(some))
            found += 1 + -(-len(rows) // self.rows_per_call(batch, some))
        return found

    def backwards(self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]) -> int:
        """None. See `Explainer.backwards`."""
        return 0

    def explain_many(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        """Every occluded text serves all targets. See `Explainer.explain_many`."""
        found: dict[int, Explained] = {}
        for group in self._groups(graph, targets):
            some = [targets[k] for k in group]
            found |= zip(group, self._together(graph, batch, some), strict=True)
        return [found[k] for k in range(len(targets))]

    def _groups(self, graph: ModelGraph, targets: Sequence[Resolved]) -> list[list[int]]:
        """Indices of the targets that share their occluded texts."""
        own_texts = self._removes and graph.is_masked_model
        return by_position(targets) if own_texts else [list(range(len(targets)))]

    def _together(
        self, graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
    ) -> list[Explained]:
        baseline = None if self._removes else self.baseline
        inputs = read_inputs(graph, batch, targets, self.embeddings, baseline)
        occludable = self._occludable(graph, batch, targets[0])
        if self._removes:
            run = _removing(graph, batch, inputs.targets)
        else:
            run = self._replacing(graph, batch, inputs)
        windows = Windows.of(occludable, self.window)
        drops = self._mean_drops(batch, inputs, windows, run)
        notices = [] if bool((windows.number > 0).all()) else [NOTHING_OCCLUDED]
        for tokens in drops:
            refuse_non_finite("relevance", tokens)
        each = zip(drops, inputs.values, inputs.labels, strict=True)
        return [Explained(*parts, notices=list(notices)) for parts in each]

    @property
    def prefix_exact(self) -> bool:
        """A window of several tokens also covers some of what comes later."""
        return self.window == 1

    @property
    def _removes(self) -> bool:
        return isinstance(self.baseline, str) and self.baseline == REMOVE

    def _occludable(
        self, graph: ModelGraph, batch: TokenBatch, target: Resolved
    ) -> Bool[Tensor, "batch pos"]:
        allowed = batch.attention_mask.clone()
        if self.special_tokens == "keep":
            allowed &= ~special_tokens(graph, batch)
        if self._removes and graph.is_masked_model:  # the question itself
            allowed.scatter_(1, target.position[:, None], False)
        return allowed

    def _mean_drops(
        self,
        batch: TokenBatch,
        inputs: Inputs,
        windows: Windows,
        run: Callable[[Tensor, Hidden], Tensor],
    ) -> Float[Tensor, "target batch pos"]:
        """F(x) - F(occluded), of every token the mean over the windows that cover it."""
        covered = inputs.end.new_zeros(batch.token_ids.shape)
        total = covered.new_zeros(len(inputs.targets), *covered.shape)
        rows = windows.rows(_whole_batch(inputs.targets))
        size = self.rows_per_call(batch, inputs.targets)
        for first in range(0, len(rows), size):
            window, example = rows[first : first + size].unbind(dim=1)
            hidden = windows.hidden(window, example)
            with torch.no_grad():
                values = run(example, hidden)
            drops = (inputs.values[:, example] - values).to(total)
            total.index_add_(1, example, hidden * drops[..., None])
            covered.index_add_(0, example, hidden.to(total))
        return total / covered.clamp_min(1)

    def _replacing(
        self, graph: ModelGraph, batch: TokenBatch, inputs: Inputs
    ) -> Callable[[Tensor, Hidden], Tensor]:
        function = model_function(graph, batch, inputs.targets, self.embeddings)

        def run(example: Tensor, hidden: Hidden) -> Tensor:
            start, end = inputs.start[example], inputs.end[example]
            return function(torch.where(hidden[..., None], start, end), example)

        return run


@dataclass(frozen=True)
class Windows:
    """Every run of ``size`` occludable tokens; one shorter run where an example has fewer.

    Tokens that are not occludable are passed over.

    Attributes:
        rank: how many occludable tokens stand before each; -1 where a token is not occludable.
        number: of windows, per example.
        size: tokens per window.
    """

    rank: Int[Tensor, "batch pos"]
    number: Int[Tensor, " batch"]
    size: int

    @staticmethod
    def of(occludable: Bool[Tensor, "batch pos"], size: int) -> Windows:
        """The windows of a batch."""
        count = occludable.sum(dim=1)
        number = torch.where(count > 0, (count - size).clamp_min(0) + 1, 0)
        return Windows(torch.where(occludable, occludable.cumsum(dim=1) - 1, -1), number, size)

    def rows(self, whole_batch: bool) -> Int[Tensor, "row 2"]:
        """(window, example) pairs, window by window.

        With ``whole_batch`` every example stands beside every window, also one that it lacks.
        """
        window = torch.arange(int(self.number.max()), device=self.rank.device)
        wanted = window[:, None] < self.number
        return (torch.ones_like(wanted) if whole_batch else wanted).nonzero()

    def hidden(self, window: Int[Tensor, " row"], example: Int[Tensor, " row"]) -> Hidden:
        """What each row occludes; nothing where the example lacks the window."""
        rank, start = self.rank[example], window[:, None]
        there = start < self.number[example][:, None]
        return (rank >= start) & (rank < start + self.size) & there


def _whole_batch(targets: Sequence[Resolved]) -> bool:
    """Whether every call must hold all examples."""
    return any(target.full is not None for target in targets)


def _removing(
    graph: ModelGraph, batch: TokenBatch, targets: Sequence[Resolved]
) -> Callable[[Tensor, Hidden], Tensor]:
    def run(example: Tensor, hidden: Hidden) -> Tensor:
        rows = example.tolist()
        whole = batch.rows(rows)
        shorter = [without(graph, whole, target.rows(rows), hidden) for target in targets]
        moved = [target for _, target in shorter]
        return torch.stack([value for value, _ in target_values(graph, shorter[0][0], moved)])

    return run


def without(
    graph: ModelGraph, batch: TokenBatch, target: Resolved, hidden: Hidden
) -> tuple[TokenBatch, Resolved]:
    """The texts without their hidden tokens, and the target at the position that now predicts.

    Raises:
        InputError: nothing is left to predict from.
    """
    kept = batch.attention_mask & ~hidden
    on_right = graph.is_masked_model or not bool(batch.attention_mask[:, -1].all())
    order = torch.argsort(~kept if on_right else kept, dim=1, stable=True)
    ids, mask = batch.token_ids.gather(1, order), kept.gather(1, order)
    predicts = _last_kept(kept, target.position)
    if bool((predicts < 0).any()):
        raise InputError(
            "removing these tokens leaves nothing to predict from: use a smaller window, or "
            "replace tokens (baseline=None) instead of removing them."
        )
    position = (order == predicts[:, None]).int().argmax(dim=1)
    columns = mask.any(dim=0).nonzero().flatten()
    moved = target.at(torch.searchsorted(columns, position))
    return TokenBatch(ids[:, columns], mask[:, columns]), moved


def _last_kept(kept: Bool[Tensor, "row pos"], position: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The explained position, or the nearest one before it that is kept; -1 if there is none."""
    columns = torch.arange(kept.shape[1], device=kept.device)
    eligible = kept & (columns <= position[:, None])
    return torch.where(eligible, columns, -1).max(dim=1).values
