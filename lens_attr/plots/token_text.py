"""Tokens as people can read them, and texts broken into lines of boxes."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lens_attr.errors import InputError
from lens_attr.spelling import word_starts

_MARKS = {"Ġ": " ", "▁": " ", "Ċ": "↵", "\n": "↵", "\r": "␍", "\t": "⇥"}
_PADDING, _WORD_GAP, _PIECE_GAP = 1.3, 0.7, 0.15
"""Room inside a box, before a word and before a piece of a word, in characters."""


def readable(token: str) -> str:
    """A token as it reads in its text.

    The space marks of tokenizers become spaces, line breaks and tabs become visible signs, and a
    token of nothing but spaces shows one ``·`` for each.

    >>> readable("Ġkeys"), readable("\\n"), readable("  ")
    (' keys', '↵', '··')
    """
    text = "".join(_MARKS.get(letter, letter) for letter in token)
    if not text.strip():
        return "·" * len(text) or "∅"
    return text


def plotly_text(text: str) -> str:
    """Text that plotly shows letter by letter: no tags, leading spaces kept."""
    return html.escape(text, quote=False).replace(" ", "\u00a0")


def columns(text: str) -> int:
    """Width in monospace columns: wide letters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    marks = sum(bool(unicodedata.combining(letter)) for letter in text)
    return len(text) + wide - marks


@dataclass(frozen=True)
class Box:
    """Where a token stands: its text, line, left edge and width in characters."""

    text: str
    line: int
    left: float
    width: float


def boxes(tokens: Sequence[str], wrap: int) -> list[Box]:
    """Place tokens one after the other on lines of ``wrap`` characters.

    A token that starts a word stands a little apart from the one before it, the pieces of a word
    stand close together.

    Raises:
        InputError: ``wrap`` is not above zero.
    """
    if not wrap > 0:
        raise InputError(f"wrap is {wrap}; give the number of characters on a line, above zero.")
    placed: list[Box] = []
    line, right = 0, 0.0
    for text, starts in zip(map(readable, tokens), _starts(tokens), strict=True):
        left = right + (_WORD_GAP if starts else _PIECE_GAP)
        width = max(columns(text.strip()), 1) + _PADDING
        if right > 0 and left + width > wrap:
            line, left = line + 1, 0.0
        placed.append(Box(text.strip(), line, left if right > 0 else 0.0, width))
        right = placed[-1].left + width
    return placed


def in_line(tokens: Sequence[str]) -> list[str]:
    """Readable tokens with a space in front where one starts a word, to stand side by side.

    >>> in_line(["the", "ke", "##ys"]), in_line(["<s>", " the", "m"])
    ([' the', ' ke', '##ys'], ['<s>', ' the', 'm'])
    """
    texts = zip(map(readable, tokens), _starts(tokens), strict=True)
    return [f" {text.lstrip(' ')}" if starts else text for text, starts in texts]


def _starts(tokens: Sequence[str]) -> list[bool]:
    """Which tokens start a word; white space, which is shown by signs of its own, does not."""
    pairs = zip(tokens, word_starts(tokens), strict=True)
    return [starts and bool(token.strip()) for token, starts in pairs]


def largest(values: Iterable[float]) -> float:
    """The largest absolute value; 1 when all are zero, so that it can divide and limit.

    Raises:
        InputError: a value is NaN or infinite.
    """
    sizes = [abs(value) for value in values]
    if not all(map(math.isfinite, sizes)):
        raise InputError("the relevance contains NaN or infinity; it cannot be drawn.")
    return max(sizes, default=0.0) or 1.0


def shares(values: Sequence[float]) -> list[float]:
    """Each value divided by the largest absolute one, between -1 and 1."""
    top = largest(values)
    return [value / top for value in values]
