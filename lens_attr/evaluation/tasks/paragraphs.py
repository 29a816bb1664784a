"""Texts without a question: which word of them is explained, and how long they are (AIEG 4.1)."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

from lens_attr.errors import InputError, did_you_mean
from lens_attr.evaluation.tasks.interest import Words
from lens_attr.evaluation.tasks.task import Task
from lens_attr.evaluation.tasks.view import view
from lens_attr.graph import ModelGraph
from lens_attr.graph.tokens import character_spans, encode_prompt
from lens_attr.types import Sample

Interest = Literal["last", "random"]
"""Which word is predicted: the last content word, or any of them, drawn with a seed."""

WORDS_BEFORE = 2
"""Words that must stand before the word of interest, so that there is something to delete."""

FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an the and or but nor so yet if then than that this these those there here it its he",
        "she they we you i me him her us them his hers our ours your yours their theirs my mine",
        "who whom whose which what when where why how is are was were be been being am do does",
        "did has have had will would shall should can could may might must no not as at by for",
        "from in into of on onto out over to under up with about after before between through",
        "during very too also just only all any both each few more most other some such own same",
    )
    for word in line.split()
)


def paragraphs(
    graph: ModelGraph,
    task: Task,
    lengths: Sequence[int] = (),
    *,
    n: int | None = None,
    interest: Interest | Words = "last",
    seed: int = 0,
) -> list[Task]:
    """Texts cut to some numbers of tokens, with a word of interest in each.

    A causal model reads what stands before the word and predicts it, a masked one reads the rest
    as well. Shorter texts are left out and counted. Every length that has samples at all has as
    many as the one with the fewest; what is cut for that is left out and counted too.

    Args:
        graph: the model whose tokens are counted, special ones apart.
        task: texts without answers; samples that have one keep their own place.
        lengths: one task per length, as ``"imdb/50"``; empty leaves texts whole.
        n: at most so many samples for each length.
        interest: see `Interest`; or the characters of each text's word, from
            `tasks.read_interest`. Texts without one, and words that were cut off, are left out
            and counted.
        seed: of the drawing.

    Raises:
        InputError: unknown ``interest``, or a length below 4.
    """
    if isinstance(interest, str) and interest not in get_args(Interest):
        raise InputError(f"unknown interest {interest!r}; {did_you_mean(interest, ('last',))}")
    if any(length < 4 for length in lengths):
        raise InputError(f"paragraphs need at least 4 tokens, got lengths {list(lengths)}.")
    by_rule = isinstance(interest, str)
    if all(sample.answer for sample in task.samples) and not lengths and by_rule:
        return [replace(task, samples=task.samples[:n])]
    found = []
    for length in lengths or (None,):
        left_out = Counter(task.left_out)
        samples = _placed(graph, task.samples, length, interest, seed, n, left_out)
        name = task.name if length is None else f"{task.name}/{length}"
        found.append(Task(name, samples, task.source, left_out))
    return _in_equal_numbers(found) if lengths else found


def _in_equal_numbers(tasks: Sequence[Task]) -> list[Task]:
    """As many samples of each task as of the smallest that has any."""
    fewest = min((len(task.samples) for task in tasks if task.samples), default=0)
    reason = "more than there are texts of another length"
    return [
        replace(
            task.first(fewest),
            left_out=Counter(task.left_out) + Counter({reason: len(task.samples[fewest:])}),
        )
        for task in tasks
    ]


def _placed(
    graph: ModelGraph,
    samples: Sequence[Sample],
    length: int | None,
    interest: Interest | Words,
    seed: int,
    n: int | None,
    left_out: Counter[str],
) -> list[Sample]:
    found: list[Sample] = []
    for i, sample in enumerate(samples):
        if n is not None and len(found) == n:
            break
        text = sample.text if length is None else _cut(graph, sample.text, length)
        if text is None:
            left_out[f"shorter than {length} tokens"] += 1
            continue
        word = _word_of(sample.text, text, interest, random.Random(f"{seed}/{i}"))
        if isinstance(word, str):
            left_out[word] += 1
            continue
        placed = view(graph, Task("", [_with_word(sample, text, *word)]), truth=False)
        left_out.update(placed.dropped)
        found += [one.sample for one in placed.samples]
    return found


def _word_of(
    whole: str, text: str, interest: Interest | Words, rng: random.Random
) -> tuple[int, int] | str:
    """The word of interest of a text that was cut from the whole one, or why it has none."""
    if not isinstance(interest, str):
        if whole not in interest:
            return "the file names no word of interest for the text"
        cut_off = interest[whole][1] > len(text)
        return "the word of interest was cut off" if cut_off else interest[whole]
    words = list(_content_words(text))
    if not words:
        return f"no content word after the first {WORDS_BEFORE} words"
    return words[-1] if interest == "last" else rng.choice(words)


def _cut(graph: ModelGraph, text: str, length: int) -> str | None:
    """The first ``length`` tokens; None where there are fewer."""
    spans = [span for span in character_spans(graph, text, encode_prompt(graph, text)) if span]
    return None if len(spans) < length else text[: spans[length - 1][1]]


def _content_words(text: str) -> Iterator[tuple[int, int]]:
    for i, word in enumerate(re.finditer(r"\S+", text)):
        bare = re.match(r"[^\W\d_]{2,}(?:['-][^\W\d_]+)*", word.group())
        if i >= WORDS_BEFORE and bare and bare.group().lower() not in FUNCTION_WORDS:
            yield word.start(), word.start() + bare.end()


def _with_word(sample: Sample, text: str, start: int, end: int) -> Sample:
    """The sample whose word of interest is predicted from what stands around it."""
    before = text[:start].rstrip()
    return replace(
        sample,
        text=before,
        answer=f" {text[start:end]}",
        suffix=text[end:],
        truth=tuple(span for span in sample.truth if span[1] <= len(before)),
        context=None,
    )
