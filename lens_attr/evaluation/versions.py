"""Samples and their edited versions as one model reads them, with the words that both share.

A version is left out, and counted with the reason, where it is the same tokens as before, where the
model says something else of it, or where the two share too few words to compare.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from lens_attr.evaluation.benchmark import answered
from lens_attr.evaluation.predictions import Prediction, predict
from lens_attr.evaluation.tasks import (
    SEGMENTATION,
    Pairs,
    Task,
    TokenSample,
    View,
    text_read,
    view,
)
from lens_attr.evaluation.tasks.edits import same_rivals, word_spans
from lens_attr.graph import ModelGraph

FEWEST_WORDS = 3
"""Shared words below which a rank correlation says nothing."""

PIECE_MARKS = ("Ġ", "▁", "##")
"""What byte-level BPE, SentencePiece and WordPiece write before a word, or inside of one."""

Words = list[tuple[str, list[int]]]
"""Each word of a text in lower case, with its tokens."""


@dataclass(frozen=True)
class Version:
    """One sample, edited, and the words that it shares with what it was: their tokens in both."""

    sample: TokenSample
    shared: Sequence[tuple[str, list[int], list[int]]]


@dataclass(frozen=True)
class Edited:
    """All samples of one task after one edit; ``versions`` by the index of the sample."""

    name: str
    versions: Mapping[int, Version]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """One task: its samples as they were, what the model says of them, and every edit."""

    name: str
    originals: Mapping[int, TokenSample]
    predictions: dict[int, Prediction]
    edits: Sequence[Edited]

    @property
    def wanted(self) -> list[TokenSample]:
        """The samples of which some edit is left."""
        indices = sorted({i for edit in self.edits for i in edit.versions})
        return [self.originals[i] for i in indices]

    @property
    def explanations(self) -> int:
        """How many texts every method explains."""
        return len(self.wanted) + sum(len(edit.versions) for edit in self.edits)


def plan(
    graph: ModelGraph,
    pairs: Pairs,
    views: dict[str, View],
    *,
    keep_incorrect: bool,
    seed: int,
    batch_size: int,
) -> Plan:
    """Every version as tokens; the views made on the way are added to ``views``.

    Raises:
        InputError: a sample has no answer.
    """
    task = pairs.task
    views[task.name] = original = view(graph, task, truth=False)
    predictions = predict(graph, answered(original), batch_size)
    originals = {one.index: one for one in original.samples}
    used = {i: one for i, one in originals.items() if keep_incorrect or predictions[i].correct}
    edits = []
    for name, given, versions, dropped in _versions(graph, pairs, used, seed, views):
        dropped["the unedited text cannot be mapped to tokens"] += len(given - {*originals})
        dropped["the model gets the unedited text wrong"] += len((given & {*originals}) - {*used})
        same = _same_answer(graph, versions, used, predictions, dropped, batch_size)
        shared = _with_shared_words(graph, same, used, dropped)
        edits.append(Edited(name, shared, task.facts(dropped, len(shared), read=len(given))))
    return Plan(task.name, used, predictions, edits)


def _versions(
    graph: ModelGraph,
    pairs: Pairs,
    used: Mapping[int, TokenSample],
    seed: int,
    views: dict[str, View],
) -> Iterator[tuple[str, set[int], list[TokenSample], Counter[str]]]:
    """Of each edit: its name, which samples it was to edit, the edited ones, and what was lost."""
    for edit, made in pairs.versions.items():
        name, index = f"{pairs.task.name}/{edit}", [i for i in made if i in used]
        task = Task(name, same_rivals(pairs.task, [made[i] for i in index]), pairs.task.source)
        views[name] = seen = view(graph, task, truth=False)
        samples = [replace(one, index=index[one.index]) for one in seen.samples]
        unedited = {*pairs.unedited.get(edit, ())}
        dropped = Counter({"the text has nothing that the edit changes": len(unedited & {*used})})
        yield name, unedited | {*made}, samples, dropped + seen.dropped
    if pairs.segmentation:
        vocabulary = graph.tokenizer.get_vocab()
        split = [
            resegmented(graph, one, vocabulary, random.Random(f"{seed}/{one.index}"))
            for one in used.values()
        ]
        samples = [one for one in split if one is not None]
        dropped = Counter({"no token can be split in two": len(split) - len(samples)})
        everyone = {*range(len(pairs.task.samples))}
        yield f"{pairs.task.name}/{SEGMENTATION}", everyone, samples, dropped


def resegmented(
    graph: ModelGraph, sample: TokenSample, vocabulary: Mapping[str, int], rng: random.Random
) -> TokenSample | None:
    """The same text with one token as two pieces of the vocabulary; None if no token allows it."""
    if len(sample) == graph.n_ctx:
        return None
    text = text_read(graph, sample.sample)
    found = [
        (i, cut, pieces)
        for i, span in enumerate(sample.spans)
        if span and not sample.special[i]
        for cut, pieces in _splits(graph, sample.token_ids[i], text[slice(*span)], vocabulary)
    ]
    if not found:
        return None
    i, cut, pieces = rng.choice(found)
    start, end = sample.spans[i] or (0, 0)
    twice = {
        name: (*value[:i], value[i], *value[i:])
        for name, value in (
            ("inside", sample.inside), ("special", sample.special), ("context", sample.context)
        )
    }  # fmt: skip
    return replace(
        sample,
        token_ids=(*sample.token_ids[:i], *pieces, *sample.token_ids[i + 1 :]),
        spans=(
            *sample.spans[:i], (start, start + cut), (start + cut, end), *sample.spans[i + 1 :]
        ),
        position=sample.position + (i <= sample.position),
        **twice,
    )  # fmt: skip


def _splits(
    graph: ModelGraph, token: int, letters: str, vocabulary: Mapping[str, int]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Where a token of plain letters can be cut, and the two ids."""
    piece = graph.tokenizer.convert_ids_to_tokens(token)
    mark = next((m for m in PIECE_MARKS if piece.startswith(m)), "")
    bare = piece.removeprefix(mark)
    if bare.lower() != letters.lower() or not bare.isascii() or not bare.isalpha():
        return
    inner = getattr(graph.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
    for cut in range(1, len(bare)):
        ids = (vocabulary.get(mark + bare[:cut]), vocabulary.get((inner or "") + bare[cut:]))
        if ids[0] is not None and ids[1] is not None:
            yield cut, (ids[0], ids[1])


def _same_answer(
    graph: ModelGraph,
    versions: Sequence[TokenSample],
    used: Mapping[int, TokenSample],
    predictions: Mapping[int, Prediction],
    dropped: Counter[str],
    batch_size: int,
) -> list[TokenSample]:
    """Versions that are other tokens than the original, and of which the model says the same."""
    comparable = []
    for one in versions:
        before = used[one.index]
        if one.token_ids == before.token_ids:
            dropped["the edit changes no token"] += 1
        elif (one.answer, one.foil) != (before.answer, before.foil):
            dropped["answer or foil are other tokens after the edit"] += 1
        else:
            comparable.append(one)
    after = predict(graph, comparable, batch_size)
    kept = []
    for one in comparable:
        if _says_the_same(one, predictions[one.index], after[one.index]):
            kept.append(one)
        else:
            dropped["the edit changes the model's prediction"] += 1
    return kept


def _says_the_same(sample: TokenSample, before: Prediction, after: Prediction) -> bool:
    """With a foil, which of the two is higher; otherwise the token of the highest logit."""
    if sample.foil is None:
        return before.top_id == after.top_id
    return before.correct == after.correct


def _with_shared_words(
    graph: ModelGraph,
    versions: Sequence[TokenSample],
    used: Mapping[int, TokenSample],
    dropped: Counter[str],
) -> dict[int, Version]:
    found = {}
    for one in versions:
        shared = shared_words(words(graph, used[one.index]), words(graph, one))
        if len(shared) < FEWEST_WORDS:
            dropped[f"fewer than {FEWEST_WORDS} words are shared"] += 1
        else:
            found[one.index] = Version(one, shared)
    return found


def words(graph: ModelGraph, sample: TokenSample) -> Words:
    """The words of a sample with their tokens; a token belongs to the first word it touches."""
    text = text_read(graph, sample.sample)
    spans = word_spans(text)
    tokens: list[list[int]] = [[] for _ in spans]
    for i, span in enumerate(sample.spans):
        touched = (w for w, (a, b) in enumerate(spans) if span and span[0] < b and span[1] > a)
        word = None if sample.special[i] else next(touched, None)
        if word is not None:
            tokens[word].append(i)
    return [
        (text[a:b].casefold(), mine)
        for (a, b), mine in zip(spans, tokens, strict=True)
        if mine
    ]  # fmt: skip


def shared_words(first: Words, second: Words) -> list[tuple[str, list[int], list[int]]]:
    """Words of both texts in the same order, with their tokens in each; case does not matter."""
    matcher = SequenceMatcher(None, [w for w, _ in first], [w for w, _ in second], autojunk=False)
    return [
        (*first[a + i], second[b + i][1])
        for a, b, size in matcher.get_matching_blocks()
        for i in range(size)
    ]
