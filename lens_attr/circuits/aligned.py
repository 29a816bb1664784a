"""Clean and corrupted inputs, token for token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lens_attr.attribution.scoring import target_value
from lens_attr.errors import InputError, give_notice
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import Text, TokenBatch, str_tokens, tokenize, unknown_words
from lens_attr.targets import Resolved, Target, refuse_no_target


@dataclass(frozen=True)
class Aligned:
    """Clean and corrupted inputs of the same lengths, and the target of both.

    Attributes:
        clean: what the model is explained on.
        corrupted: the same number of tokens in every example.
        target: resolved on the clean inputs.
    """

    clean: TokenBatch
    corrupted: TokenBatch
    target: Resolved

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def swapped(self) -> Aligned:
        """Corrupted as clean and the other way round."""
        return Aligned(self.corrupted, self.clean, self.target)

    def batches(self, size: int | None, title: str, progress: bool | None) -> Iterator[Aligned]:
        """Some examples at a time, without columns that are padding in all of them."""
        n = len(self)
        size = size or n
        starts = list(range(0, n, size))
        if progress or (progress is None and len(starts) > 1):
            bar = track(starts, title, console=Console(stderr=True), transient=True)
        else:
            bar = starts
        for start in bar:
            yield self.rows(list(range(start, min(start + size, n))))

    def rows(self, index: list[int]) -> Aligned:
        """Some examples, repeated or not, without columns that are padding in all of them.

        A target that reads all logits sees the columns of the whole batch.
        """
        used = self.clean.attention_mask[index].any(dim=0)
        used = used if self.target.full is None else torch.ones_like(used)
        columns = used.nonzero().flatten()
        target = self.target.rows(index)
        return Aligned(
            self.clean.rows(index, columns),
            self.corrupted.rows(index, columns),
            target.at(torch.searchsorted(columns, target.position)),
        )


def aligned(graph: ModelGraph, clean: Text, corrupted: Text, target: Target) -> Aligned:
    """Tokenise both and bind the target to the clean inputs.

    Raises:
        InputError: not a target, different numbers of examples, or of tokens in an example.
    """
    refuse_no_target(target)
    good, bad = tokenize(graph, clean), tokenize(graph, corrupted)
    refuse_misaligned(good, bad)
    resolved = noting_equal_pairs(settled(graph, good, target.resolve(graph, good)), good, bad)
    announce(graph, [good, bad], resolved)
    return Aligned(good, bad, resolved)


def refuse_misaligned(clean: TokenBatch, corrupted: TokenBatch) -> None:
    """Raise unless both have as many examples, each with as many tokens.

    Raises:
        InputError: naming the first row that does not align.
    """
    if len(clean) != len(corrupted):
        raise InputError(
            f"{len(clean)} clean but {len(corrupted)} corrupted prompts: they go in pairs."
        )
    lengths = zip(clean.lengths, corrupted.lengths, strict=True)
    for row, (one, other) in enumerate(lengths):
        if one != other:
            text = "" if clean.texts is None else clean.texts[row]
            raise InputError(f"row {row}: {different_lengths(one, other, text)}")


def settled(graph: ModelGraph, batch: TokenBatch, target: Resolved) -> Resolved:
    """The target, and where it is the top logit, that of the token that is on top here.

    Every run of an intervention is then measured by the same token.
    """
    if target.relabel is None:
        return target
    with torch.no_grad():
        return target.pinned(target_value(graph, batch, target)[1])


def real_tokens(graph: ModelGraph, batch: TokenBatch) -> list[list[str]]:
    """The tokens of each example, without padding."""
    rows = zip(str_tokens(graph, batch), batch.attention_mask.tolist(), strict=True)
    return [[token for token, real in zip(*row, strict=True) if real] for row in rows]


def real_positions(mask: Bool[Tensor, "batch pos"], position: Int[Tensor, " batch"]) -> list[int]:
    """Positions of padded rows, counted in real tokens."""
    return [int(row[:at].sum()) for row, at in zip(mask, position.tolist(), strict=True)]


def noting_equal_pairs(target: Resolved, clean: TokenBatch, corrupted: TokenBatch) -> Resolved:
    """The target, with a notice where both prompts of a pair are the same."""
    same = [
        row for row in range(len(clean)) if torch.equal(_real(clean, row), _real(corrupted, row))
    ]
    if not same:
        return target
    notice = (
        f"clean and corrupted prompt are the same in {len(same)} of {len(clean)} pairs (first: row "
        f"{same[0]}): there is no difference to measure."
    )
    return replace(target, notices=(*target.notices, notice))


def _real(batch: TokenBatch, row: int) -> Int[Tensor, " pos"]:
    return batch.token_ids[row, batch.attention_mask[row]]


def different_lengths(clean: int, corrupted: int, text: str) -> str:
    """What is wrong with a pair of so many tokens."""
    shown = f" ({text!r})" if text else ""
    return (
        f"clean has {clean} tokens{shown}, corrupted {corrupted}. Patching puts the activation of "
        "one token in the place of another, so pairs need equally many."
    )


def announce(graph: ModelGraph, batches: Sequence[TokenBatch], target: Resolved) -> None:
    """Warn of what the reader of a result must know, each once."""
    unknown = [notice for batch in batches for notice in unknown_words(graph, batch)]
    for notice in dict.fromkeys([*unknown, *target.notices]):
        give_notice(notice)


def refuse_lengths(pairs: Aligned) -> None:
    """Raise unless all inputs have one length, as scores per position need.

    Raises:
        InputError: ...
    """
    if len(set(pairs.clean.lengths)) > 1:
        raise InputError("per_position needs inputs of the same number of tokens.")


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """Zero on padding, where activations may be anything; ``mask`` is [batch, pos]."""
    return torch.where(mask.view(*mask.shape, *[1] * (tensor.ndim - 2)), tensor, 0.0)
