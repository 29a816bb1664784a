"""Samples as one model's tokens: spans of characters become masks of tokens, exactly or not at all.

A span that starts or ends inside a token cannot be mapped: the sample is dropped and counted,
never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lens_attr.errors import InputError
from lens_attr.evaluation.tasks.task import Task
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import character_spans, continuation, encode_prompt
from lens_attr.spelling import covering
from lens_attr.types import Sample

Spans = Sequence[tuple[int, int] | None]


@dataclass(frozen=True)
class TokenSample:
    """One sample as a model reads it.

    Attributes:
        index: place in the task's list of samples.
        sample: what it was made of.
        token_ids: the prompt, BOS or [CLS] and shared pieces included.
        spans: characters of each token in the model's text, None for special tokens and pieces
            that were appended.
        inside: True on the tokens of the ground truth.
        special: True on tokens that stand for no word: BOS, [CLS], [SEP], the mask.
        context: True on the tokens of the sample's context; on all of them if it has none.
        position: the explained position.
        answer: id of the answer's first token that is not shared with the foil; None where the
            sample has no answer (deletion).
        foil: likewise of the foil; None where the answer competes with the whole vocabulary.
        shared: how many pieces that answer and foil share were appended to the prompt.
        pieces: how many tokens the answer has.
    """

    index: int
    sample: Sample
    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]
    inside: tuple[bool, ...]
    special: tuple[bool, ...]
    context: tuple[bool, ...]
    position: int
    answer: int | None
    foil: int | None
    shared: int = 0
    pieces: int = 1

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class View:
    """A task as one model reads it.

    Attributes:
        task: what it was made of.
        samples: those that could be mapped.
        dropped: how many could not, by reason.
    """

    task: Task
    samples: Sequence[TokenSample]
    dropped: Counter[str]

    @property
    def several_pieces(self) -> int:
        """How many samples' answers are several tokens, and so are explained at one of them."""
        return sum(one.pieces > 1 for one in self.samples)

    @property
    def shared_pieces(self) -> int:
        """How many samples had pieces that answer and foil share appended to the prompt."""
        return sum(one.shared > 0 for one in self.samples)


class _Unmappable(Exception):
    """The reason why a sample has no exact counterpart in tokens."""


def view(graph: ModelGraph, task: Task, *, truth: bool = True) -> View:
    """Tokenise a task.

    Args:
        graph: the model.
        task: what to tokenise.
        truth: whether samples need a ground truth; deletion does without.

    Raises:
        InputError: the model has no tokenizer, or one that gives no offsets.
    """
    if not getattr(graph.tokenizer, "is_fast", False):
        raise InputError("tasks need a model whose tokenizer gives character offsets.")
    kept: list[TokenSample] = []
    dropped: Counter[str] = Counter()
    for index, sample in enumerate(task.samples):
        try:
            kept.append(_tokenised(graph, index, sample, task.open_vocabulary, truth))
        except _Unmappable as reason:
            dropped[str(reason)] += 1
    return View(task, kept, dropped)


def _tokenised(
    graph: ModelGraph, index: int, sample: Sample, open_vocabulary: bool, truth: bool
) -> TokenSample:
    text = _text_of(graph, sample)
    try:
        ids = encode_prompt(graph, text)
        spans = list(character_spans(graph, text, ids))
    except InputError as error:
        raise _Unmappable(str(error)) from error
    position = _position(graph, ids)
    answer, foil = _targets(graph, sample, open_vocabulary, text)
    shared = _shared(answer, foil)
    at = position if graph.is_masked_model else position + 1
    ids[at:at] = answer[:shared]
    spans[at:at] = [None] * shared
    if len(ids) > graph.n_ctx:
        raise _Unmappable(f"longer than the {graph.n_ctx} tokens that the model reads")
    inside = _mask(spans, sample.truth, "ground truth") if sample.truth else [False] * len(ids)
    if truth and not any(inside):
        raise _Unmappable("no ground truth")
    context = _mask(spans, [sample.context], "context") if sample.context else [True] * len(ids)
    if truth and not any(a and b for a, b in zip(inside, context, strict=True)):
        raise _Unmappable("the ground truth lies outside the context")
    position += shared
    appended = range(at, at + shared)
    special = [span is None and i not in appended for i, span in enumerate(spans)]
    special[position] |= graph.is_masked_model
    return TokenSample(
        index=index,
        sample=sample,
        token_ids=tuple(ids),
        spans=tuple(spans),
        inside=tuple(inside),
        special=tuple(special),
        context=tuple(context),
        position=position,
        answer=answer[shared] if answer else None,
        foil=foil[shared] if foil else None,
        shared=shared,
        pieces=len(answer),
    )


def text_read(graph: ModelGraph, sample: Sample) -> str:
    """What the model reads of a sample: the text, for a masked model with mask and suffix."""
    if not graph.is_masked_model:
        return sample.text
    return f"{sample.text} {graph.tokenizer.mask_token}{sample.suffix}"


def _text_of(graph: ModelGraph, sample: Sample) -> str:
    mask = graph.tokenizer.mask_token if graph.is_masked_model else None
    if mask and mask in sample.text + sample.suffix:
        raise _Unmappable(f"the text itself holds {mask}")
    return text_read(graph, sample)


def _position(graph: ModelGraph, ids: list[int]) -> int:
    return ids.index(graph.tokenizer.mask_token_id) if graph.is_masked_model else len(ids) - 1


def _targets(
    graph: ModelGraph, sample: Sample, open_vocabulary: bool, text: str
) -> tuple[list[int], list[int]]:
    """Ids of answer and foil as they continue the text; empty where there is none."""
    strings = (sample.answer, "" if open_vocabulary else sample.foil)
    try:
        answer, foil = (continuation(graph, s, text) if s else [] for s in strings)
    except InputError as error:
        raise _Unmappable("the answer is no continuation of the prompt in tokens") from error
    return answer, foil


def _shared(answer: list[int], foil: list[int]) -> int:
    """How many first tokens are the same in both."""
    if not foil:
        return 0
    pairs = enumerate(zip(answer, foil, strict=False))
    different = next((i for i, (a, b) in pairs if a != b), None)
    if different is None:
        raise _Unmappable("answer and foil are the same tokens, or one starts with the other")
    return different


def _mask(spans: Spans, wanted: Sequence[tuple[int, int]], what: str) -> list[bool]:
    """True on the tokens that make up the wanted characters, which they must do exactly."""
    inside = [False] * len(spans)
    for start, end in wanted:
        tokens = covering(spans, start, end)
        if tokens is None:
            raise _Unmappable(f"the {what} starts or ends inside a token")
        for i in tokens:
            inside[i] = True
    return inside
