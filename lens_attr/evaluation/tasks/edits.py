"""Edits that keep what a sentence says, and files of such pairs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lens_attr.demo import generate
from lens_attr.errors import InputError, did_you_mean
from lens_attr.evaluation.tasks.documents import sample_of
from lens_attr.evaluation.tasks.files import sorted_out
from lens_attr.evaluation.tasks.paragraphs import FUNCTION_WORDS
from lens_attr.evaluation.tasks.rows import Bad, RowError, json_lines, text_of
from lens_attr.evaluation.tasks.synonyms import swaps
from lens_attr.evaluation.tasks.task import Task
from lens_attr.types import Sample

SEGMENTATION = "segmentation"
"""The edit that leaves the text alone and splits one token of it in two, which only a tokenizer
can do; see `lens_attr.evaluation.stability`."""

Edit = Callable[[Sample, random.Random], Sample | None]
"""A sample edited, or None where there is nothing in it to edit that way."""


@dataclass(frozen=True)
class Pairs:
    """Samples, and one edited version of each.

    Attributes:
        task: the samples as they were.
        versions: by name of the edit, the edited version by index of the sample.
        unedited: by name of the edit, the samples that it could do nothing with.
        segmentation: whether samples are also to be read with one token split in two.
    """

    task: Task
    versions: Mapping[str, Mapping[int, Sample]]
    unedited: Mapping[str, Sequence[int]] = field(default_factory=dict)
    segmentation: bool = False


def edited(task: Task, edits: Sequence[str], seed: int = 0) -> Pairs:
    """Every sample of a task, edited in every way.

    The words of the ground truth, the answer and the foil are never changed.

    Args:
        task: what is edited.
        edits: names from `EDITS`; `SEGMENTATION` is left to who knows the tokenizer.
        seed: of what is drawn.

    Raises:
        InputError: an unknown edit.
    """
    versions: dict[str, dict[int, Sample]] = {}
    unedited: dict[str, list[int]] = {}
    for name in edits:
        if name == SEGMENTATION:
            continue
        if name not in EDITS:
            raise InputError(f"unknown edit {name!r}; {did_you_mean(name, (*EDITS, SEGMENTATION))}")
        versions[name], unedited[name] = {}, []
        for i, sample in enumerate(task.samples):
            changed = EDITS[name](sample, random.Random(f"{seed}/{name}/{i}"))
            if changed is None:
                unedited[name].append(i)
            else:
                versions[name][i] = changed
    return Pairs(task, versions, unedited, SEGMENTATION in edits)


def same_rivals(task: Task, samples: Sequence[Sample]) -> list[Sample]:
    """Changed samples of a task, whose answers compete with what they competed with in it."""
    return [replace(one, foil="") for one in samples] if task.open_vocabulary else list(samples)


def read_pairs(path: str | Path, *, skip_bad: bool = False) -> Pairs:
    """Pairs of texts that mean the same, from a jsonl file with one object per line.

    ``text``, ``answer`` and the other fields of `tasks.read`'s own jsonl describe the sample, and
    ``edited`` is the other version of its text, which the same answer and foil continue.
    Optional: ``edit``, the name under which the pair is counted (default ``"pair"``), and
    ``edited_suffix``, what follows the explained word there.

    Args:
        path: the file.
        skip_bad: keep the good rows of a file in which others are malformed; they are counted.

    Raises:
        InputError: no such file, an empty one, or malformed rows (named with file and line).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    names: list[tuple[str, Sample]] = []
    rows: list[Sample | Bad] = []
    for number, record in json_lines(path):
        if isinstance(record, Bad):
            rows.append(record)
            continue
        try:
            sample = sample_of(record, f"{path.name} line {number}")
            names.append(_other_version(record, sample))
            rows.append(sample)
        except RowError as error:
            rows.append(Bad(number, str(error)))
    samples, left_out = sorted_out(path, rows, skip_bad)
    versions: dict[str, dict[int, Sample]] = {}
    for i, (name, version) in enumerate(names):
        versions.setdefault(name, {})[i] = version
    return Pairs(Task(path.stem, samples, f"pairs of {path.name}", left_out), versions)


def _other_version(record: dict[str, Any], sample: Sample) -> tuple[str, Sample]:
    text = text_of(record, "edited")
    if not sample.answer:
        raise RowError("has no 'answer'")
    if not text.strip():
        raise RowError("'edited' is empty")
    name = text_of(record, "edit", default="pair")
    if not name.strip():
        raise RowError("'edit' is empty")
    suffix = text_of(record, "edited_suffix", default=sample.suffix)
    return name, replace(sample, text=text, suffix=suffix, truth=(), context=None)


# ---------------------------------------------------------------------------- the edits


def _changed(sample: Sample, start: int, end: int, new: str) -> Sample:
    """The sample with other characters in a place; spans behind it move with the text."""
    by = len(new) - (end - start)

    def moved(span: tuple[int, int]) -> tuple[int, int]:
        first, last = span
        return first + by * (first >= end), last + by * (last >= end and last > start)

    return replace(
        sample,
        text=sample.text[:start] + new + sample.text[end:],
        truth=tuple(map(moved, sample.truth)),
        context=None if sample.context is None else moved(sample.context),
    )


def _protected(sample: Sample) -> set[str]:
    """Words that decide, answer or compete: never changed, wherever they stand."""
    decisive = [sample.text[start:end] for start, end in sample.truth]
    return {word for part in (*decisive, sample.answer, sample.foil) for word in words_of(part)}


def words_of(text: str) -> list[str]:
    """The words of a text without punctuation, in lower case."""
    return [text[start:end].casefold() for start, end in word_spans(text)]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each word stands; punctuation belongs to none."""
    return [found.span() for found in re.finditer(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text)]


def _swap_synonym(sample: Sample, rng: random.Random) -> Sample | None:
    protected = _protected(sample)
    found = [
        (start, end, others)
        for start, end, others in swaps(sample.text)
        if not protected & {*words_of(sample.text[start:end])}
    ]
    if not found:
        return None
    start, end, others = rng.choice(found)
    return _changed(sample, start, end, rng.choice(others))


def _change_punctuation(sample: Sample, rng: random.Random) -> Sample | None:
    """One comma goes; where there is none, one comes after a content word."""
    comma = re.search(r"\s?,", sample.text)
    if comma:
        return _changed(sample, *comma.span(), "")
    places = [
        end
        for start, end in word_spans(sample.text)[1:-1]
        if sample.text[start:end].lower() not in FUNCTION_WORDS
        and not any(a < end < b for a, b in sample.truth)
    ]
    if not places:
        return None
    spaced = re.search(r"\s[.,]", sample.text + sample.suffix)
    at = rng.choice(places)
    return _changed(sample, at, at, " ," if spaced else ",")


def _add_neutral(sample: Sample, rng: random.Random) -> Sample | None:
    (sentence,) = distractors([sample], 1, rng)[0]
    return preceded(sample, [sentence])


def _change_case(sample: Sample, rng: random.Random) -> Sample | None:
    """The first letter in the other case; "I" stays."""
    first = sample.text[:1]
    if not first.isalpha() or re.match(r"I\b", sample.text) or len(first.swapcase()) != 1:
        return None
    return _changed(sample, 0, 1, first.swapcase())


EDITS: Mapping[str, Edit] = {
    "synonym": _swap_synonym,
    "punctuation": _change_punctuation,
    "neutral_sentence": _add_neutral,
    "casing": _change_case,
}
"""``"synonym"`` swaps one word of `synonyms.SYNONYMS`, ``"punctuation"`` drops the first comma or
adds one, ``"neutral_sentence"`` puts a sentence about something else before the text, ``"casing"``
changes the case of the first letter."""

ALL_EDITS = (*EDITS, SEGMENTATION)


# ------------------------------------------------------------------- sentences in front


def distractors(
    samples: Sequence[Sample], count: int, rng: random.Random | None = None
) -> list[list[str]]:
    """Sentences for the front of each sample, from the project's generator.

    No sentence shares a content word with its sample, nor holds its answer or foil. The first
    sentences of a larger ``count`` are those of a smaller one.

    Args:
        samples: what the sentences go before.
        count: how many for each.
        rng: which; None always gives the same.
    """
    rng = rng or random.Random(0)
    pool = [
        f"{s.text}{s.answer}{s.suffix}"
        for s in generate("sva", _POOL, seed=_POOL_SEED, split="train", attractor="none")
    ]
    found = []
    for sample in samples:
        order = iter(rng.sample(pool, len(pool)))
        avoided = _protected(sample) | ({*words_of(sample.text)} - FUNCTION_WORDS)
        free = (one for one in order if not avoided & {*words_of(one)})
        chosen = [sentence for _, sentence in zip(range(count), free, strict=False)]
        if len(chosen) < count:
            raise InputError(f"there are only {len(chosen)} sentences for {sample.text!r}.")
        found.append(chosen)
    return found


_POOL, _POOL_SEED = 200, 7


def preceded(sample: Sample, sentences: Sequence[str]) -> Sample:
    """The sample with sentences before it, which then belong to the context that is judged.

    The last stands first, so that a longer list only adds to the front.
    """
    front = "".join(f"{sentence} " for sentence in reversed(sentences))
    moved = _changed(sample, 0, 0, front)
    context = None if moved.context is None else (0, moved.context[1])
    return replace(moved, context=context)
