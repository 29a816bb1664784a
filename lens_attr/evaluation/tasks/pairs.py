"""Minimal pairs: BLiMP, Marvin & Linzen (2018), and Linzen, Dupoux & Goldberg (2016).

A pair of sentences that differ in one word gives the answer and the foil. Which word decides is
found by a rule for each kind of pair. Where the rule finds none a parser is asked
(`annotation.Fallback`), if the extra ``spacy`` is installed; otherwise the pair is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_attr.errors import InputError
from lens_attr.evaluation.tasks import english
from lens_attr.evaluation.tasks.annotation import Annotators, Fallback
from lens_attr.evaluation.tasks.rows import (
    Bad,
    LeftOut,
    Row,
    RowError,
    columns,
    json_lines,
    text_of,
)
from lens_attr.types import Sample

Finder = Callable[[Sequence[str]], "int | None"]
"""The words before the answer in, the index of the word that decides out."""


def _last(words: Sequence[str]) -> int | None:
    return len(words) - 1


def _before_preposition(words: Sequence[str]) -> int | None:
    return english.head_before(words, english.PREPOSITIONS)


def _before_relative_pronoun(words: Sequence[str]) -> int | None:
    return english.head_before(words, english.RELATIVE_PRONOUNS)


def _last_the_noun_verb(words: Sequence[str]) -> int | None:
    """The noun of a final "the noun verb": the mechanics said the author hurt -> author."""
    return len(words) - 2 if len(words) > 2 and words[-3].lower() == "the" else None


BLIMP_RULES: dict[str, tuple[str, Finder]] = {
    "anaphor_gender_agreement": ("ra", english.simple_noun),
    "anaphor_number_agreement": ("ra", english.simple_noun),
    "regular_plural_subject_verb_agreement_1": ("sva", _last),
    "irregular_plural_subject_verb_agreement_1": ("sva", _last),
    "distractor_agreement_relational_noun": ("sva", _before_preposition),
    "distractor_agreement_relative_clause": ("sva", _before_relative_pronoun),
    "regular_plural_subject_verb_agreement_2": ("sva", _last),
    "irregular_plural_subject_verb_agreement_2": ("sva", _last),
}
"""Task and rule of every paradigm: BLiMP's prefix of the first four is the noun phrase (and the
verb); a distractor stands behind the first preposition or relative pronoun."""

_FIRST, _NEAREST = english.simple_noun, _last
MARVIN_LINZEN_RULES: dict[str, tuple[str, Finder]] = {
    "simple_agrmt": ("sva", _FIRST),
    "prep_anim": ("sva", _FIRST),
    "prep_inanim": ("sva", _FIRST),
    "subj_rel": ("sva", _FIRST),
    "obj_rel_across_anim": ("sva", _FIRST),
    "obj_rel_across_inanim": ("sva", _FIRST),
    "obj_rel_no_comp_across_anim": ("sva", _FIRST),
    "obj_rel_no_comp_across_inanim": ("sva", _FIRST),
    "vp_coord": ("sva", _FIRST),
    "long_vp_coord": ("sva", _FIRST),
    "sent_comp": ("sva", _NEAREST),
    "obj_rel_within_anim": ("sva", _NEAREST),
    "obj_rel_within_inanim": ("sva", _NEAREST),
    "obj_rel_no_comp_within_anim": ("sva", _NEAREST),
    "obj_rel_no_comp_within_inanim": ("sva", _NEAREST),
    "simple_reflexives": ("ra", _FIRST),
    "reflexives_across": ("ra", _FIRST),
    "reflexive_sent_comp": ("ra", _last_the_noun_verb),
}
"""The subject is the first noun, or where a clause is embedded the noun nearest to the verb."""


@dataclass(frozen=True)
class _Origin:
    """Where a pair comes from, and who is asked where the rule finds nothing."""

    source: str
    tags: dict[str, str]
    fallback: Fallback
    licence: str = ""


def read_blimp(path: Path, annotators: Annotators | None = None) -> Iterator[Row]:
    """BLiMP's jsonl (Warstadt et al. 2020): ``sentence_good``, ``sentence_bad``, ``UID``, ..."""
    fallback = Fallback(annotators)
    for number, record in json_lines(path):
        if isinstance(record, Bad):
            yield record
            continue
        try:
            yield _blimp_row(record, f"BLiMP {path.name} line {number}", fallback)
        except RowError as error:
            yield Bad(number, str(error))


def _blimp_row(record: dict[str, Any], where: str, fallback: Fallback) -> Row:
    good, bad = (text_of(record, f"sentence_{side}") for side in ("good", "bad"))
    paradigm = text_of(record, "UID")
    if paradigm not in BLIMP_RULES:
        return LeftOut(f"no rule finds the deciding word of paradigm {paradigm}")
    task, finder = BLIMP_RULES[paradigm]
    tags = {"paradigm": paradigm, "pair": str(record.get("pairID", ""))}
    origin = _Origin(where, tags, fallback, "CC BY 4.0")
    if "two_prefix_word" in record:
        return _subject_pair(good, bad, task, origin)
    return _pair_row(good, bad, task, finder, origin)


def _pair_row(good: str, bad: str, task: str, finder: Finder, origin: _Origin) -> Row:
    """The sample of two sentences that differ in the word to be predicted."""
    words, others = good.split(), bad.split()
    at = _one_difference(words, others)
    if isinstance(at, LeftOut):
        return at
    answer, foil, stop = _without_end(words[at], others[at])
    deciding = finder(words[:at])
    because = "the rule finds no single word that decides"
    return _sample(words, at, (answer, foil, stop), task, deciding, origin, because)


def _subject_pair(good: str, bad: str, task: str, origin: _Origin) -> Row:
    """The sample of two sentences that differ in the subject and share the verb after it.

    The foil is the verb in the other number.
    """
    words, others = good.split(), bad.split()
    subject = _one_difference(words, others)
    if isinstance(subject, LeftOut):
        return subject
    if subject + 1 >= len(words):
        raise RowError("nothing follows the word in which the sentences differ")
    verb, _, stop = _without_end(words[subject + 1], "")
    pair = (verb, english.other_number(verb), stop)
    return _sample(words, subject + 1, pair, task, subject, origin)


def _one_difference(words: Sequence[str], others: Sequence[str]) -> int | LeftOut:
    if len(words) != len(others):
        return LeftOut("the sentences differ in more than one word")
    different = [i for i, (a, b) in enumerate(zip(words, others, strict=True)) if a != b]
    if not different:
        raise RowError("the two sentences are equal")
    return (
        different[0]
        if len(different) == 1
        else LeftOut("the sentences differ in more than one word")
    )


def _without_end(word: str, other: str) -> tuple[str, str, str]:
    """Both words without the full stop that follows them, and the full stop."""
    bare = word.rstrip(".!?,;")
    return bare, other.rstrip(".!?,;"), word[len(bare) :]


def _sample(
    words: Sequence[str],
    at: int,
    pair: tuple[str, str, str],
    task: str,
    deciding: int | None,
    origin: _Origin,
    because: str = "",
) -> Row:
    """The sample; ``because`` says why ``deciding``, the index of a word, may be None."""
    if at == 0:
        return LeftOut("the sentence starts with the word to be predicted")
    answer, foil, stop = pair
    rest = " ".join(words[at + 1 :])
    text, suffix, tags = " ".join(words[:at]), stop + (f" {rest}" if rest else ""), origin.tags
    if deciding is not None:
        truth = english.spans(words)[deciding]
    else:
        truth = origin.fallback.find(text, answer, suffix)
        if isinstance(truth, str):
            return LeftOut(f"{because}; {truth}")
        tags = {**tags, "truth": "parsed"}
    return Sample(
        text=text,
        answer=f" {answer}",
        foil=f" {foil}",
        truth=(truth,),
        task=task,
        suffix=suffix,
        source=origin.source,
        tags=tags,
        licence=origin.licence,
    )


def read_marvin_linzen(path: Path, annotators: Annotators | None = None) -> Iterator[Row]:
    """Lines of ``type TAB case TAB good TAB bad``, as the templates of LM_syneval write them.

    One of the leading columns must name the kind of pair (`MARVIN_LINZEN_RULES`).

    Raises:
        InputError: no row names a kind that is known.
    """
    unknown: list[int] = []
    known = False
    fallback = Fallback(annotators)
    for number, cells in columns(path):
        if isinstance(cells, Bad):
            yield cells
            continue
        if len(cells) < 3:
            yield Bad(number, f"has {len(cells)} columns, needs type, (case,) good and bad")
            continue
        kind = next((cell for cell in cells[:-2] if cell in MARVIN_LINZEN_RULES), None)
        if kind is None:
            unknown.append(number)
            named = _KIND.fullmatch(cells[0])
            yield LeftOut(f"no rule finds the deciding word of {cells[0] if named else _UNNAMED}")
            continue
        known = True
        task, finder = MARVIN_LINZEN_RULES[kind]
        try:
            where = f"Marvin & Linzen {path.name} line {number}"
            good, bad = cells[-2:]
            yield _pair_row(good, bad, task, finder, _Origin(where, {"kind": kind}, fallback))
        except RowError as error:
            yield Bad(number, str(error))

    if unknown and not known:
        raise InputError(
            f"{path} line {unknown[0]} and {len(unknown) - 1} more name no kind of Marvin-Linzen "
            f"pair ({', '.join(MARVIN_LINZEN_RULES)}). If the file is another one, name its format "
            "(--format), or its columns in a header."
        )


_KIND = re.compile(r"[a-z]+(?:_[a-z]+)*")
"""How kinds of pairs are named in LM_syneval."""
_UNNAMED = "rows whose first column names no kind"

MASK = "***mask***"
LINZEN_COLUMNS = ("orig_sentence", "subj_index", "verb_index")


def read_linzen(path: Path, annotators: Annotators | None = None) -> Iterator[Row]:
    """Linzen et al.'s tab file with a header (``orig_sentence``, ``subj_index``, ``verb_index``).

    Indices count words from 1. The foil is the verb in the other number. Goldberg's five columns
    (attractors, sentence, sentence with ``***mask***``, verb, other verb) are read too; the
    subject is then taken from a sixth column with its index, and without one from a parser.
    """
    header: list[str] | None = None
    fallback = Fallback(annotators)
    for number, cells in columns(path):
        if isinstance(cells, Bad):
            yield cells
        elif header is None and set(LINZEN_COLUMNS) <= set(cells):
            header = cells
        else:
            try:
                yield _linzen_row(header, cells, f"Linzen {path.name} line {number}", fallback)
            except RowError as error:
                yield Bad(number, str(error))


def _linzen_row(header: list[str] | None, cells: list[str], where: str, fallback: Fallback) -> Row:
    if header is not None:
        if len(cells) != len(header):
            raise RowError(f"has {len(cells)} columns, the header has {len(header)}")
        record = dict(zip(header, cells, strict=True))
        words = record["orig_sentence"].split()
        subject, verb = (_index(record[f"{one}_index"], words) for one in ("subj", "verb"))
        tags = {"attractors": record.get("n_diff_intervening", "")}
        foil = english.other_number(words[verb])
        return _linzen_sample(words, verb, foil, subject, _Origin(where, tags, fallback))
    if len(cells) not in (5, 6):
        raise RowError(f"has {len(cells)} columns, needs 5 or 6 (or a header line)")
    words, verb = cells[2].split(), cells[3]
    if words.count(MASK) != 1:
        raise RowError(f"the third column must hold {MASK} once")
    at = words.index(MASK)
    words[at] = verb
    subject = _index(cells[5], words) if len(cells) == 6 else None
    origin = _Origin(where, {"attractors": cells[0]}, fallback)
    return _linzen_sample(words, at, cells[4], subject, origin)


def _linzen_sample(
    words: list[str],
    verb: int,
    foil: str,
    subject: int | None,
    origin: _Origin,
) -> Row:
    if subject is not None and subject >= verb:
        return LeftOut("the subject stands behind the verb")
    because = "the subject is not annotated"
    return _sample(words, verb, (words[verb], foil, ""), "sva", subject, origin, because)


def _index(cell: str, words: Sequence[str]) -> int:
    """A word index counted from 1, as one counted from 0."""
    if not cell.isdecimal() or not 1 <= int(cell) <= len(words):
        raise RowError(f"word index {cell!r} is outside the sentence of {len(words)} words")
    return int(cell) - 1
