"""Text from its tokens, and what larger units tokens make up: words, sentences, any characters.

A result holds the strings of its tokens but no tokenizer, and every tokenizer writes words in its
own way. This is the one place that knows how:

- byte-level BPE and SentencePiece: the first token of a word carries the space before it;
- WordPiece: a token that goes on with a word starts with ``##``, and spaces are lost;
- special tokens (BOS, [CLS], ...) stand for no character of the text.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn

from lens_attr.errors import InputError

Span = tuple[int, int]
"""Characters of a text: from the first up to, without it, the second."""

CONTINUES = "##"
"""How WordPiece marks a token that does not start a word."""

SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]")
"""What special tokens look like, where nothing is known of the tokenizer."""

_SENTENCE = re.compile(
    r"(?=\S).*?(?:[.!?\u2026]+[\"'\u201d\u2019\u00bb)\]]*(?=\s|$)"
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*|$)",
    flags=re.MULTILINE,
)


@dataclass(frozen=True)
class Spelling:
    """A text as its tokens spell it.

    Attributes:
        text: without special tokens, and without the space that may stand before the first word.
        spans: characters of each token, whitespace around it left out; None for special tokens.
    """

    text: str
    spans: list[Span | None]


def carries_spaces(tokens: Iterable[str]) -> bool:
    """Whether words are marked by the space before them, as far as these tokens tell."""
    return any(token.startswith(" ") and token.strip() for token in tokens)


def looks_special(token: str) -> bool:
    """Whether a token is written like BOS, [CLS], ..."""
    return SPECIAL.fullmatch(token) is not None


def word_starts(tokens: Sequence[str], spaces: bool | None = None) -> list[bool]:
    """Which tokens start a word.

    >>> word_starts([" the", " ke", "ys"]), word_starts(["the", "ke", "##ys"])
    ([True, True, False], [True, True, False])

    Args:
        tokens: one string per token.
        spaces: whether words are marked by the space before them; default: as the tokens tell.
    """
    spaces = carries_spaces(tokens) if spaces is None else spaces
    if spaces:
        return [token[:1].isspace() for token in tokens]
    return [not token.startswith(CONTINUES) for token in tokens]


def spell(
    tokens: Sequence[str], special: Sequence[bool] | None = None, spaces: bool | None = None
) -> Spelling:
    """The text that tokens spell, and where in it each of them stands.

    >>> spell(["[CLS]", "the", "key", "##s", "."])
    Spelling(text='the keys .', spans=[None, (0, 3), (4, 7), (7, 8), (9, 10)])

    Args:
        tokens: one string per token.
        special: which of them stand for no character; default: those that look like it.
        spaces: whether words are marked by the space before them; default: as the tokens tell.
    """
    if special is None:
        special = [looks_special(token) for token in tokens]
    spaces = carries_spaces(tokens) if spaces is None else spaces
    pieces = []
    for i, (token, apart) in enumerate(zip(tokens, special, strict=True)):
        piece = "" if apart else token if spaces else _with_space(token)
        torn = i > 0 and special[i - 1] and not piece[:1].isspace()
        pieces.append(f" {piece}" if piece and torn else piece)
    text = "".join(pieces)
    lead = int(text.startswith(" "))
    ends = [max(end - lead, 0) for end in accumulate(map(len, pieces))]
    text = text[lead:]
    spans: list[Span | None] = [
        None if apart else trimmed(text, start, end)
        for start, end, apart in zip([0, *ends], ends, special, strict=False)
    ]
    return Spelling(text, spans)


def _with_space(token: str) -> str:
    return token[len(CONTINUES) :] if token.startswith(CONTINUES) else f" {token}"


def trimmed(text: str, start: int, end: int) -> Span:
    """A span without the whitespace at both its ends; empty, at its end, where nothing is left."""
    piece = text[start:end]
    inner = start + len(piece) - len(piece.lstrip())
    return inner, max(inner, start + len(piece.rstrip()))


# ------------------------------------------------------------------------------------- units


def words(text: str) -> list[Span]:
    """Where the words stand: everything between whitespace, punctuation included."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def sentences(text: str) -> list[Span]:
    """Where the sentences stand: they end with ``.``, ``!``, ``?`` and their like, or a line break.

    No list of abbreviations is consulted: "Mr. Smith" is cut in two.
    """
    return [match.span() for match in _SENTENCE.finditer(text) if match[0].strip()]


def grouped(units: Sequence[Span], spans: Sequence[Span | None]) -> list[list[int]]:
    """The tokens of each unit, in order; a token belongs where its first character stands.

    Tokens that are nothing but whitespace belong to the unit that follows; those after the last
    unit make one more. Tokens without a span belong to none.
    """
    ends = [end for _, end in units]
    found: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        if span is not None:
            found.setdefault(bisect.bisect_right(ends, span[0]), []).append(i)
    return list(found.values())


def covering(spans: Sequence[Span | None], start: int, end: int) -> list[int] | None:
    """The tokens that make up some characters; None where a token sticks out of them."""
    found = [i for i, span in enumerate(spans) if span and span[0] < end and span[1] > start]
    edges = [spans[i] for i in found]
    exact = found and all(edge and start <= edge[0] and edge[1] <= end for edge in edges)
    return found if exact else None


def with_spaces_before(tokens: Sequence[str], found: Sequence[int]) -> list[int]:
    """Some tokens in a row, and before them those that hold nothing but the space they start with.

    >>> with_spaces_before(["a", " ", "T", "he"], [2, 3])
    [1, 2, 3]
    """
    first = found[0]
    while first > 0 and tokens[first - 1] and not tokens[first - 1].strip(" "):
        first -= 1
    return [*range(first, found[0]), *found]


def occurrences(text: str, wanted: str) -> list[Span]:
    """Where a string stands in a text; if nowhere, regardless of letter case and spacing.

    (Uncased tokenizers drop the first, WordPiece the second.)
    """
    wanted = wanted.strip()
    if not wanted:
        raise InputError("the string to look for is empty.")
    exact = [match.span() for match in re.finditer(re.escape(wanted), text)]
    if exact:
        return exact
    parts = map(re.escape, re.findall(r"\w+|[^\w\s]", wanted))
    return [match.span() for match in re.finditer(r"\s*".join(parts), text, re.IGNORECASE)]


def find(spelling: Spelling, wanted: str, occurrence: int = 0, what: str = "text") -> Span:
    """Where a string stands that must occur, on whole tokens.

    Args:
        spelling: the text and its tokens.
        wanted: what to look for.
        occurrence: which one, counted from 0; negative from the end.
        what: how messages call the text.

    Raises:
        InputError: it does not occur (that often), or only inside of tokens; no whole number.
    """
    if isinstance(occurrence, bool) or not isinstance(occurrence, int):
        raise InputError(f"occurrence must be a whole number, got {occurrence!r}.")
    every = occurrences(spelling.text, wanted)
    found = [span for span in every if covering(spelling.spans, *span)]
    if every and not found:
        refuse_cut(spelling, *every[0], what=f"{wanted!r}")
    if not -len(found) <= occurrence < len(found):
        shown = spelling.text if len(spelling.text) <= 80 else f"{spelling.text[:77]}..."
        raise InputError(
            f"{wanted!r} occurs {len(found)} times in the {what}, so there is no occurrence "
            f"{occurrence} (they count from 0, -1 is the last). The {what} reads {shown!r}."
        )
    return found[occurrence]


def refuse_cut(spelling: Spelling, start: int, end: int, what: str) -> NoReturn:
    """Raise because a span does not consist of whole tokens.

    Raises:
        InputError: naming the tokens that stick out, or that there is nothing.
    """
    inside = [one for one in spelling.spans if one and one[0] < end and one[1] > start]
    if not inside:
        raise InputError(
            f"{what} holds no token: the text has {len(spelling.text)} characters and reads "
            f"{spelling.text[:60]!r}."
        )
    widest = inside[0][0], inside[-1][1]
    raise InputError(
        f"{what} starts or ends inside a token, whose relevance cannot be split: take "
        f"{spelling.text[slice(*widest)]!r}, characters {widest[0]} to {widest[1]}."
    )
