"""Clean and corrupted inputs, token for token."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lens_attr.errors import InputError, Notice
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import Text, TokenBatch, tokenize, unknown_words
from lens_attr.targets import Resolved, Target


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
    if not isinstance(target, Target):
        raise InputError(
            f"target must be a target such as la.LogitDiff(' are', ' is'), got "
            f"{type(target).__name__}."
        )
    good, bad = tokenize(graph, clean), tokenize(graph, corrupted)
    refuse_misaligned(good, bad)
    resolved = target.resolve(graph, good)
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
            shown = "" if clean.texts is None else f" ({clean.texts[row]!r})"
            raise InputError(
                f"row {row}: clean has {one} tokens{shown}, corrupted {other}. Patching puts the "
                "activation of one token in the place of another, so pairs need equally many."
            )


def announce(graph: ModelGraph, batches: Sequence[TokenBatch], target: Resolved) -> None:
    """Warn of what the reader of a result must know, each once."""
    unknown = [notice for batch in batches for notice in unknown_words(graph, batch)]
    for notice in dict.fromkeys([*unknown, *target.notices]):
        warnings.warn(notice, Notice, stacklevel=4)


def check_batch_size(batch_size: int | None) -> None:
    """Raise unless it is None or a positive whole number.

    Raises:
        InputError: ...
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """Zero on padding, where activations may be anything; ``mask`` is [batch, pos]."""
    return torch.where(mask.view(*mask.shape, *[1] * (tensor.ndim - 2)), tensor, 0.0)
