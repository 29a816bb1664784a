"""Plain data shared by every layer; nothing here knows a model."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any


def whole_number(value: Any) -> int | None:
    """One whole number of any type (numpy's, a 0-d tensor) as an int, None for everything else.

    True and False are no numbers here.
    """
    plain = value.tolist() if hasattr(value, "tolist") else value
    try:
        return None if isinstance(plain, bool) else operator.index(plain)
    except TypeError:
        return None


@dataclass(frozen=True)
class Sample:
    """One prediction with a known reason, independent of any tokenizer.

    A causal model reads ``text`` and predicts the next word. A masked model reads
    ``text + " " + mask + suffix`` and predicts the mask. ``answer`` and ``foil`` are
    continuations and carry their leading space (`" are"`).

    Attributes:
        text: the prompt, without trailing space.
        answer: the correct continuation, with its leading space.
        foil: the wrong one it competes with, with its leading space; empty where it competes
            with the whole vocabulary.
        truth: character spans ``(start, end)`` in ``text`` of the words that decide the answer.
        task: ``"sva"``, ``"ra"`` or ``"qa"``.
        suffix: what follows the explained word (read by masked models only).
        source: where the sample comes from, e.g. ``"lens_attr generator, seed 3"``.
        tags: free labels, e.g. ``{"attractor": "pp", "number": "plural"}``.
        context: the part of ``text`` that is read to answer a question, as a character span;
            None where the text has no such part.
        licence: of the text, empty where the source does not state it.
    """

    text: str
    answer: str
    foil: str
    truth: tuple[tuple[int, int], ...] = ()
    task: str = ""
    suffix: str = ""
    source: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    context: tuple[int, int] | None = None
    licence: str = ""
