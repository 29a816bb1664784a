"""What scalar is explained: a logit, a logit difference, a log-probability, or any callable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import TokenBatch, continuation, mask_positions, token_string
from lens_attr.targets.resolved import Resolved
from lens_attr.types import whole_number

TokenSpec = str | int | Sequence[str] | Sequence[int] | Tensor
"""A string (read as the continuation of the text) or an id; one, or one per example."""


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A number read off the logits of one position.

    Attributes:
        position: which prediction is explained, counted in real tokens; negative from the end.
            One for all or one per example; several for a single text explain each of them. -1 is
            the last token, for masked models the mask.
    """

    position: int | Sequence[int] = -1

    def __post_init__(self) -> None:
        each, alone = _elements(self.position)
        whole = tuple(whole_number(one) for one in each)
        if not each or None in whole:
            raise InputError(
                f"position must be an integer, or several, got {self.position!r}: -1 is the last."
            )
        object.__setattr__(self, "position", whole[0] if alone else whole)

    @abstractmethod
    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """Bind to a batch.

        Raises:
            InputError: strings that are no single token, positions out of range, a number of
                targets that does not fit the batch.
        """

    def copies(self, batch: TokenBatch) -> int:
        """How many rows each text becomes: one per explained position of a single text."""
        several = not isinstance(self.position, int) and len(batch) == 1
        return len(self.position) if several and not isinstance(self.position, int) else 1


def resolve_positions(
    graph: ModelGraph, batch: TokenBatch, position: int | Sequence[int]
) -> Int[Tensor, " batch"]:
    """Positions counted in real tokens, as indices into the padded rows.

    Raises:
        InputError: out of range, or not one per example, or no single mask to explain.
    """
    if graph.is_masked_model and position == -1:
        return torch.tensor(_single_masks(graph, batch), device=batch.token_ids.device)
    each = [position] * len(batch) if isinstance(position, int) else list(position)
    if len(each) != len(batch):
        raise InputError(f"{len(each)} positions for {len(batch)} examples: give one each.")
    found = []
    for example, (wanted, mask) in enumerate(zip(each, batch.attention_mask, strict=True)):
        real = mask.nonzero().flatten().tolist()
        if not -len(real) <= wanted < len(real):
            raise InputError(
                f"position {wanted} of example {example} is out of range or on padding: it has "
                f"{len(real)} tokens."
            )
        found.append(real[wanted])
    return torch.tensor(found, device=batch.token_ids.device)


def _single_masks(graph: ModelGraph, batch: TokenBatch) -> list[int]:
    masks = mask_positions(graph, batch)
    for example, found in enumerate(masks):
        if len(found) != 1:
            token = graph.tokenizer.mask_token
            raise InputError(
                f"example {example} has {len(found)} {token} tokens: put one where the explained "
                "word stands, or pass position=."
            )
    return [found[0] for found in masks]


def _elements(value: Any) -> tuple[list[Any], bool]:
    """What a sequence, tensor or array holds; or the value alone, and True."""
    listed = value.tolist() if hasattr(value, "tolist") else value
    alone = isinstance(listed, (str, bytes)) or not isinstance(listed, Sequence)
    return ([listed] if alone else list(listed)), alone


def _per_example(spec: TokenSpec, n: int, what: str) -> list[str | int]:
    each, alone = _elements(spec)
    tokens = [one if isinstance(one, str) else whole_number(one) for one in each]
    found = [token for token in tokens if token is not None]
    if len(found) < len(each):
        got = f"{type(spec).__name__} {spec!r}"
        raise InputError(f"the {what} must be a string or a token id, got {got}: one, or one each.")
    if not alone and len(found) != n:
        raise InputError(f"{len(found)} {what}s for {n} examples: give one for all, or one each.")
    return found * n if alone else found


def _ids_of(graph: ModelGraph, batch: TokenBatch, spec: TokenSpec, what: str) -> list[list[int]]:
    """Token ids of each example's target, as it continues that example's text."""
    found = []
    for example, one in enumerate(_per_example(spec, len(batch), what)):
        if isinstance(one, str):
            prompt = None if batch.texts is None else batch.texts[example]
            found.append(continuation(graph, one, prompt))
        elif 0 <= one < graph.d_vocab:
            found.append([one])
        else:
            raise InputError(
                f"{what} id {one} is out of range: ids run from 0 to {graph.d_vocab - 1}."
            )
    return found


def _single_ids(graph: ModelGraph, batch: TokenBatch, spec: TokenSpec, what: str) -> list[int]:
    ids = _ids_of(graph, batch, spec, what)
    for pieces in ids:
        if len(pieces) > 1:
            shown = " + ".join(repr(token_string(graph, piece)) for piece in pieces)
            raise InputError(
                f"the {what} is {len(pieces)} tokens ({shown}); one prediction explains one token. "
                f"Give the first piece's id ({pieces[0]}), in a shell as id:{pieces[0]}, or a foil "
                "that differs at it (la.LogitDiff)."
            )
    return [pieces[0] for pieces in ids]


def _first_difference(
    graph: ModelGraph, answers: list[list[int]], foils: list[list[int]]
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """First tokens of both, which must differ; a notice where either has more."""
    notices = []
    for answer, foil in zip(answers, foils, strict=True):
        first, other = token_string(graph, answer[0]), token_string(graph, foil[0])
        if answer[0] == foil[0]:
            raise InputError(
                f"target and foil both start with the token {first!r}, so this prediction cannot "
                f"tell them apart: append {first!r} to the text and explain the next token."
            )
        if len(answer) > 1 or len(foil) > 1:
            notices.append(
                f"target or foil is several tokens: explained at the first, {first!r} against "
                f"{other!r}"
            )
    return [a[0] for a in answers], [f[0] for f in foils], tuple(dict.fromkeys(notices))


def _without_space(
    graph: ModelGraph, batch: TokenBatch, position: Int[Tensor, " batch"], *specs: TokenSpec
) -> tuple[str, ...]:
    """A notice if words go on with the word before them although they have tokens of their own.

    After a line break, a bracket or BOS a word needs no space; WordPiece spells words without.
    """
    if graph.tokenizer is None or graph.is_masked_model:
        return ()
    last = batch.token_ids.gather(1, position[:, None])[:, 0].tolist()
    ends = [token_string(graph, token)[-1:] for token in last]
    glued = {
        word: None
        for spec in specs
        for word, end in zip(_per_example(spec, len(batch), "target"), ends, strict=True)
        if isinstance(word, str) and word.isalpha() and (end.isalnum() or end in (",", ";", ":"))
    }
    found = [word for word in glued if _is_token_after_space(graph, word)]
    if not found:
        return ()
    shown, meant = ", ".join(map(repr, found[:3])), ", ".join(repr(f" {w}") for w in found[:3])
    return (
        f"{shown}: without a leading space, so it goes on with the word before it; the word here "
        f"is {meant}",
    )


def _is_token_after_space(graph: ModelGraph, word: str) -> bool:
    try:
        ids = continuation(graph, f" {word}")
    except InputError:  # the tokenizer does not know it
        return False
    return len(ids) == 1 and token_string(graph, ids[0]) == f" {word}"


def _column(ids: list[int], like: Tensor) -> Int[Tensor, " batch"]:
    return torch.tensor(ids, device=like.device)


@dataclass(frozen=True)
class Logit(Target):
    """The logit of one token.

    Attributes:
        token: string or id; one, or one per example.
    """

    token: TokenSpec

    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """See `Target.resolve`."""
        ids = _single_ids(graph, batch, self.token, "target")
        position = resolve_positions(graph, batch, self.position)
        labels = [f"logit of {token_string(graph, i)!r}" for i in ids]
        column = _column(ids, position)[:, None]
        notices = _without_space(graph, batch, position, self.token)
        return Resolved(position, _logit, labels, "logit", column, notices, form="linear")


@dataclass(frozen=True)
class LogProb(Target):
    """The natural-log probability of one token.

    Attributes:
        token: string or id; one, or one per example.
    """

    token: TokenSpec

    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """See `Target.resolve`."""
        ids = _single_ids(graph, batch, self.token, "target")
        position = resolve_positions(graph, batch, self.position)
        labels = [f"log-probability of {token_string(graph, i)!r}" for i in ids]
        token_ids = _column(ids, position)[:, None]
        notices = _without_space(graph, batch, position, self.token)
        return Resolved(position, _log_prob, labels, "nat", token_ids, notices, form="log_prob")


@dataclass(frozen=True)
class LogitDiff(Target):
    """logit(token) - logit(foil): why this and not that (contrastive; LRPx 3.1).

    Where a string is several tokens and the two differ at the first, that token is explained,
    with a notice in the result's metadata.

    Attributes:
        token: string or id; one, or one per example.
        foil: what it competes with, likewise.
    """

    token: TokenSpec
    foil: TokenSpec

    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """See `Target.resolve`."""
        answers = _ids_of(graph, batch, self.token, "target")
        foils = _ids_of(graph, batch, self.foil, "foil")
        first, other, notices = _first_difference(graph, answers, foils)
        position = resolve_positions(graph, batch, self.position)
        notices += _without_space(graph, batch, position, self.token, self.foil)
        names = [
            (token_string(graph, a), token_string(graph, b))
            for a, b in zip(first, other, strict=True)
        ]
        labels = [f"logit of {a!r} - logit of {b!r}" for a, b in names]
        ids = torch.stack([_column(first, position), _column(other, position)], dim=1)
        return Resolved(position, _logit_diff, labels, "logit", ids, notices, form="linear")


@dataclass(frozen=True)
class TopLogit(Target):
    """The logit of the token the model finds most likely, per example."""

    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """See `Target.resolve`."""
        position = resolve_positions(graph, batch, self.position)

        def relabel(logits: Tensor) -> list[str]:
            top = logits.argmax(dim=-1).tolist()
            return [f"logit of {token_string(graph, i)!r} (the top logit)" for i in top]

        labels = ["top logit"] * len(batch)
        return Resolved(position, _top_logit, labels, relabel=relabel, form="linear")


@dataclass(frozen=True)
class Metric(Target):
    """Any function of all logits [batch, pos, d_vocab] that gives one number per example [batch].

    Attributes:
        function: differentiable; rows must not depend on each other.
        name: how results call it.
        unit: unit of the number.
    """

    function: Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]
    name: str = "metric"
    unit: str = "metric"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise InputError(
                f"la.Metric takes a function of the logits, got {type(self.function).__name__}."
            )

    def resolve(self, graph: ModelGraph, batch: TokenBatch) -> Resolved:
        """See `Target.resolve`."""
        position = resolve_positions(graph, batch, self.position)
        labels = [self.name] * len(batch)
        return Resolved(position, _unused, labels, self.unit, full=self.function)


def _gather(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids[:, None])[:, 0]


def _logit(logits: Tensor, target: Resolved) -> Tensor:
    assert target.token_ids is not None
    return _gather(logits, target.token_ids[:, 0])


def _log_prob(logits: Tensor, target: Resolved) -> Tensor:
    return _logit(logits.log_softmax(dim=-1), target)


def _logit_diff(logits: Tensor, target: Resolved) -> Tensor:
    assert target.token_ids is not None
    return _logit(logits, target) - _gather(logits, target.token_ids[:, 1])


def _top_logit(logits: Tensor, target: Resolved) -> Tensor:
    return logits.max(dim=-1).values if target.token_ids is None else _logit(logits, target)


def _unused(logits: Tensor, target: Resolved) -> Tensor:
    raise AssertionError("a Metric reads all logits")


def refuse_no_target(value: object, *, or_several: bool = False) -> None:
    """Nothing, if it is a target.

    Args:
        value: what was given as one.
        or_several: a list of them would do as well.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, Target):
        return
    kinds = "la.Logit, la.LogitDiff, la.LogProb, la.TopLogit or la.Metric"
    raise InputError(
        f"target must be {kinds}{', or a list of them' * or_several}, got "
        f"{type(value).__name__}: write la.Logit({value!r})."
    )
