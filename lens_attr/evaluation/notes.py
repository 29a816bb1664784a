"""Notes: what the reader of results must know of a method, once per kind and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from lens_attr.errors import NUMBER, notice_kind

Notes = dict[str, int]
"""In how many batches each kind of note was given, by the text of the first."""

_ATTRIBUTE = "notes"


def merged(many: Iterable[Mapping[str, int]]) -> Notes:
    """All notes; texts that differ in nothing but numbers are one kind."""
    found: dict[str, tuple[str, int]] = {}
    for notes in many:
        for text, count in notes.items():
            kind = notice_kind(text)
            first, before = found.get(kind, (text, 0))
            found[kind] = first, before + count
    return dict(found.values())


def shown(method: str, notes: Mapping[str, int]) -> list[str]:
    """Every note of a method as a sentence."""
    return [f"{method}: {text}{_how_often(text, count)}" for text, count in notes.items()]


def _how_often(text: str, batches: int) -> str:
    if batches == 1:
        return ""
    whose = "; the numbers are of the first" if NUMBER.search(text) else ""
    return f" (in {batches} batches{whose})"


def notes_of(rows: pd.DataFrame) -> Notes:
    """The notes that a per-sample table carries."""
    return dict(rows.attrs.get(_ATTRIBUTE, {}))


def with_notes(rows: pd.DataFrame, notes: Mapping[str, int]) -> pd.DataFrame:
    """A per-sample table that carries notes, in its file as well, so that no resumed run loses
    what was said of the rows it takes over."""
    rows = rows.copy(deep=False)
    rows.attrs = {_ATTRIBUTE: dict(notes)} if notes else {}
    return rows
