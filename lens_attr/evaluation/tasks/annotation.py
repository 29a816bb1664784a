"""Plain sentences as samples: spaCy finds the subject, fastcoref the antecedent.

Both are the optional extra ``spacy``. They are needed only to annotate: samples can be written to
a jsonl of one's own afterwards and read without them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lens_attr.errors import InputError
from lens_attr.evaluation.tasks.rows import Bad, LeftOut, Row, lines
from lens_attr.types import Sample

PARSER = "en_core_web_sm"
SUBJECTS = ("nsubj", "nsubjpass", "nsubj:pass")
REFLEXIVE = re.compile(r"\w+sel(?:f|ves)", re.I)
_CHOICE = re.compile(r"\[([^\[\]|]+)\|([^\[\]|]+)\]")

Span = tuple[int, int]


Parser = Callable[[str], Any]
"""A text to a spaCy ``Doc``; of its tokens ``idx``, ``text``, ``dep_`` and ``head`` are read."""

Coreference = Callable[[str], Sequence[Sequence[Span]]]
"""A text to clusters of mentions, as character spans."""


@dataclass(frozen=True)
class Annotators:
    """What finds the words that decide.

    Attributes:
        parser: finds subjects and the head word of a mention.
        coreference: finds what a pronoun refers to.
    """

    parser: Callable[[], Parser]
    coreference: Callable[[], Coreference]


def read_choices(path: Path, annotators: Annotators | None = None) -> Iterator[Row]:
    """Plain sentences, one per line, with the explained word as a choice ``[right|wrong]``.

    ``The keys to the cabinet [are|is] old.`` is a sample of ``sva``: the truth is the head noun
    of the verb's subject, found by a spaCy parser. ``The king the women liked hurt
    [himself|themselves].`` is one of ``ra``, because the choice is a reflexive pronoun: the truth
    is the head noun of the mention nearest before it that fastcoref says is the same. Sentences
    in which none is found before the choice are left out and counted.

    Args:
        path: the file.
        annotators: what finds them; default: spaCy's ``en_core_web_sm`` and fastcoref.

    Raises:
        InputError: spaCy, fastcoref or one of their models is needed and not installed.
    """
    chosen = annotators or Annotators(spacy_parser, fastcoref)
    for number, line in lines(path):
        if isinstance(line, Bad):
            yield line
            continue
        choices = list(_CHOICE.finditer(line))
        if len(choices) != 1:
            yield Bad(number, f"has {len(choices)} choices of the form [right|wrong], not one")
            continue
        (choice,) = choices
        before, (right, wrong) = line[: choice.start()].strip(), choice.groups()
        if not before or not right.strip() or right.strip() == wrong.strip():
            yield Bad(number, "needs text before the choice, and two different words in it")
            continue
        after = line[choice.end() :].rstrip()
        yield _sample(
            before, right.strip(), wrong.strip(), after, f"{path.name} line {number}", chosen
        )


def _sample(
    before: str, right: str, wrong: str, after: str, source: str, annotators: Annotators
) -> Row:
    reflexive = REFLEXIVE.fullmatch(right) is not None
    truth = _deciding(before, right, after, annotators)
    if truth is None:
        return LeftOut(f"no {_what(reflexive)} found before the choice")
    return Sample(
        text=before,
        answer=f" {right}",
        foil=f" {wrong}",
        truth=(truth,),
        task="ra" if reflexive else "sva",
        suffix=after,
        source=source,
    )


def _deciding(before: str, right: str, after: str, annotators: Annotators) -> Span | None:
    """The characters of the word before the choice that decides it."""
    whole, at = f"{before} {right}{after}", len(before) + 1
    words = annotators.parser()(whole)
    if REFLEXIVE.fullmatch(right):
        truth = _antecedent(words, annotators.coreference()(whole), at)
    else:
        truth = _subject(words, at)
    return truth if truth is not None and truth[1] <= len(before) else None


class Fallback:
    """Finds what decides where no rule does; where the extra is not installed it says so."""

    def __init__(self, annotators: Annotators | None = None) -> None:
        self._annotators = annotators or Annotators(spacy_parser, fastcoref)
        self._missing: dict[bool, str] = {}

    def find(self, before: str, right: str, after: str) -> Span | str:
        """The characters of the word that decides, or why there is none."""
        reflexive = REFLEXIVE.fullmatch(right) is not None
        if reflexive not in self._missing:
            try:
                found = _deciding(before, right, after, self._annotators)
            except InputError as error:
                self._missing[reflexive] = str(error)
            else:
                return found or f"nor does a parser find the {_what(reflexive)}"
        return self._missing[reflexive]


def _what(reflexive: bool) -> str:
    return "antecedent" if reflexive else "subject"


def _subject(words: Any, at: int) -> Span | None:
    """The subject of the verb at a character; an auxiliary's is that of its main verb."""
    verb = next((word for word in words if word.idx == at), None)
    while verb is not None:
        for word in words:
            if word.head.idx == verb.idx and word.idx != verb.idx and word.dep_ in SUBJECTS:
                return word.idx, word.idx + len(word.text)
        verb = verb.head if verb.dep_ in ("aux", "auxpass", "aux:pass", "cop") else None
    return None


def _antecedent(words: Any, clusters: Sequence[Sequence[Span]], at: int) -> Span | None:
    """The head word of the mention nearest before the pronoun at a character."""
    for cluster in clusters:
        earlier = [(start, end) for start, end in cluster if end <= at]
        if earlier and any(start == at for start, _ in cluster):
            start, end = max(earlier, key=lambda span: span[1])
            return _head(words, start, end)
    return None


def _head(words: Any, start: int, end: int) -> Span | None:
    """The word of a phrase that depends on none in it."""
    inside = [word for word in words if start <= word.idx < end]
    places = {word.idx for word in inside}
    for word in inside:
        if word.head.idx == word.idx or word.head.idx not in places:
            return word.idx, word.idx + len(word.text)
    return None


# ------------------------------------------------------------------------- the extra


@lru_cache(maxsize=1)
def spacy_parser(name: str = PARSER) -> Parser:
    """A spaCy pipeline with a dependency parser.

    Raises:
        InputError: spaCy or the pipeline is not installed, or it has no parser.
    """
    try:
        spacy = importlib.import_module("spacy")
    except ImportError as error:
        raise InputError(
            "finding subjects needs spaCy: pip install 'lens-attr[spacy]', then "
            f"python -m spacy download {name}."
        ) from error
    try:
        pipeline = spacy.load(name)
    except OSError as error:
        raise InputError(
            f"spaCy has no pipeline {name!r}: python -m spacy download {name}."
        ) from error
    return parsing(pipeline)


def parsing(pipeline: Any) -> Parser:
    """A spaCy pipeline, checked to parse.

    Raises:
        InputError: it has no dependency parser.
    """
    if "parser" not in pipeline.pipe_names:
        raise InputError(
            f"the spaCy pipeline has no dependency parser, only {', '.join(pipeline.pipe_names)}."
        )
    return pipeline


@lru_cache(maxsize=1)
def fastcoref() -> Coreference:
    """fastcoref's small model.

    Raises:
        InputError: fastcoref or its model is not installed.
    """
    try:
        make = importlib.import_module("fastcoref").FCoref
    except ImportError as error:
        raise InputError(
            "finding antecedents needs fastcoref: pip install 'lens-attr[spacy]'."
        ) from error
    try:
        model = make(enable_progress_bar=False)
    except OSError as error:
        raise InputError(
            f"fastcoref's model could not be loaded; it is fetched from the hub once: {error}"
        ) from error
    return lambda text: model.predict(texts=[text])[0].get_clusters(as_strings=False)
