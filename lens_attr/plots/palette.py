"""The colours of every figure, page and terminal line.

Relevance runs from blue (lowers the target) over near-white to orange (raises it). Blue against
orange stays apart under every common colour blindness, and both ends are light enough for dark
text, so a coloured token reads the same on a light and on a dark page.
"""

from __future__ import annotations

import itertools

INK = "#16181d"
"""Text on any colour of `SCALE`."""

SCALE: tuple[tuple[float, str], ...] = (
    (0.0, "#4c84c9"),
    (0.25, "#a9c6e8"),
    (0.5, "#f7f6f3"),
    (0.75, "#f8bf92"),
    (1.0, "#e5772a"),
)

POSITIVE: tuple[tuple[float, str], ...] = ((0.0, "#f7f6f3"), (0.5, "#b4dcbf"), (1.0, "#58b368"))
"""Near-white to green, for relevance of which only the positive part is shown."""

LINES = ("#3b82c4", "#e2701f", "#1a9e77", "#c65fa5", "#a98600", "#8673d1", "#5b9aa0", "#c0504d")
"""One per curve; each has a contrast of at least 3 on white and on the dark page."""

RANDOM = "#8a8f98"


def shade(share: float) -> str:
    """The colour of ``share``, from -1 (blue) over 0 to 1 (orange); beyond it saturates."""
    place = (min(max(share, -1.0), 1.0) + 1.0) / 2.0
    for (left, start), (right, end) in itertools.pairwise(SCALE):
        if place <= right:
            return _mix(start, end, (place - left) / (right - left))
    return SCALE[-1][1]


def _mix(start: str, end: str, amount: float) -> str:
    """The colour ``amount`` of the way from ``start`` to ``end``."""
    channels = []
    for i in (1, 3, 5):
        low, high = int(start[i : i + 2], 16), int(end[i : i + 2], 16)
        channels.append(round(low + (high - low) * amount))
    return "#" + "".join(f"{channel:02x}" for channel in channels)
