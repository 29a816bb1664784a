"""What arguments must be, and what to pass instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lens_attr.errors import InputError, did_you_mean


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is none of the known ones.

    Raises:
        InputError: with a suggestion.
    """
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; {did_you_mean(str(value), known)}")


def check_kind(name: str, value: object, kind: type, way_out: str) -> None:
    """Refuse a value that is no ``kind``, with what makes one.

    Raises:
        InputError: ...
    """
    if not isinstance(value, kind):
        raise InputError(
            f"{name} must be la.circuits.{kind.__name__}, got {type(value).__name__}: {way_out}."
        )


def check_kinds(name: str, values: object, kind: type, way_out: str) -> None:
    """Refuse what is no list of one ``kind`` or more, with what makes one.

    Raises:
        InputError: ...
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        found = type(values).__name__
    elif not values:
        found = "an empty list"
    else:
        wrong = [type(value).__name__ for value in values if not isinstance(value, kind)]
        if not wrong:
            return
        found = f"a list with {wrong[0]}"
    raise InputError(
        f"{name} must be a list of la.circuits.{kind.__name__}, got {found}: {way_out}."
    )


def check_same(name: str, what: str, explained: Sequence[Any], measured: Sequence[Any]) -> None:
    """Refuse an attribution that speaks of something else than was measured.

    Nothing is refused where it is not known what was measured (results of earlier versions).

    Args:
        name: of the attribution.
        what: is compared, e.g. ``"the target"``.
        explained: by the attribution, one per example.
        measured: by intervention.

    Raises:
        InputError: with both.
    """
    if not measured:
        return
    if len(explained) != len(measured):
        raise InputError(
            f"{name} has {len(explained)} examples, {len(measured)} were measured: explain the "
            "same prompts."
        )
    for row, (one, other) in enumerate(zip(explained, measured, strict=True)):
        if one != other:
            raise InputError(
                f"{name} explains {what} {_shown(one)}, measured was {_shown(other)} (example "
                f"{row}): explain the same prompts, with the same target, that were measured."
            )


def _shown(value: Any) -> str:
    """Tokens as the text they are."""
    return repr("".join(value)) if isinstance(value, list | tuple) else repr(value)
