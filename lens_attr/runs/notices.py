"""Notices of many batches: those that differ in their numbers only are one, with a count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lens_attr.errors import NUMBER, notice_kind


class Notices:
    """What the reader of the results should know, each kind once."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, int]] = {}

    def add(self, texts: Iterable[str] | Mapping[str, int]) -> None:
        """More of them; a mapping says how often each was given."""
        counted = texts if isinstance(texts, Mapping) else dict.fromkeys(texts, 1)
        for text, times in counted.items():
            kind = notice_kind(text)
            shown, before = self._kinds.get(kind, (text, 0))
            self._kinds[kind] = max(shown, text, key=_numbers), before + times

    def counted(self) -> dict[str, int]:
        """How many there were of each kind, by the text with the highest numbers."""
        return dict(self._kinds.values())

    def lines(self) -> list[str]:
        """For people."""
        return [
            text
            if times == 1
            else f"{text} (the highest of {times} such notices)"
            if NUMBER.search(text)
            else f"{text} ({times} times)"
            for text, times in self._kinds.values()
        ]


def _numbers(text: str) -> list[float]:
    return [_size(number) for number in NUMBER.findall(text)]


def _size(number: str) -> float:
    try:
        return abs(float(number.replace(",", "")))
    except ValueError:  # a version, 3.9.0, has none
        return 0.0
