"""The one family of exceptions: everything this library refuses, it refuses with one of these.

Messages name what is wrong, where (hook point, argument), and the way out.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable
from math import inf
from numbers import Integral
from typing import Any


class LensAttrError(Exception):
    """Base class of every error this library raises on purpose."""


class InputError(LensAttrError, ValueError):
    """An argument cannot be used: unknown name, wrong shape, position out of range, ..."""


class UnsupportedModelError(LensAttrError):
    """The model, or one of its settings, cannot be explained faithfully by what was asked."""


class RuleConflictError(LensAttrError):
    """Two things want to change the gradient at one hook point."""


class RuleNotAppliedError(LensAttrError):
    """A rule matched nothing, or its hook never fired: the result would silently be wrong."""


class NonFiniteError(LensAttrError):
    """Logits, target or relevance contain NaN or infinity."""


class SavedResultError(LensAttrError):
    """A saved result is missing, truncated, altered or of an unknown format."""


class Notice(UserWarning):
    """Something the reader of a result should know; it stands in the metadata as well."""


LARGEST = 1e18
"""Of the numbers that options take; still exact as an integer of 64 bits."""


def refuse_no_number(
    name: str, value: Any, least: float | int = -LARGEST, *, infinite: bool = False
) -> None:
    """Raise unless ``value`` is a number from ``least`` to `LARGEST`, or infinite if that may be.

    Raises:
        InputError: naming the option.
    """
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if numeric and (least <= value <= LARGEST or (infinite and abs(value) == inf)):
        return
    span = f"from {least:g} to {LARGEST:g}" + (", or infinite" if infinite else "")
    raise InputError(f"{name} must be a number {span}, got {value!r}.")


def checked_count(name: str, value: Any, least: int = 1, most: int = 10**9) -> int:
    """``value`` as a Python int, if it is a whole number (numpy's too) from ``least`` to ``most``.

    Raises:
        InputError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    if int(value) > most:
        raise InputError(f"{name} must be at most {most}, got {value}.")
    return int(value)


def checked_optional_count(name: str, value: Any) -> int | None:
    """`checked_count`, where None leaves the choice to the library.

    Raises:
        InputError: naming the option.
    """
    return None if value is None else checked_count(name, value)


WRAPPERS = ("lens_attr", "torch", "jaxtyping", "beartype")
"""Packages whose frames stand between a user's line and the notice it causes."""


def give_notice(message: str) -> None:
    """Warn with a `Notice` that names the line of the caller, not one of this library's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_wrapper(str(frame.f_globals.get("__name__"))):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, Notice, stacklevel=level)


NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
"""In the text of a notice."""


def notice_kind(text: str) -> str:
    """A notice without its numbers: those that differ in nothing else are of one kind."""
    return NUMBER.sub("#", text)


def _is_wrapper(module: str) -> bool:
    return module.partition(".")[0] in WRAPPERS


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The tail of an unknown-name message: a suggestion if one is close, else the known names."""
    known = sorted(set(known))
    return close_to(name, known) or f"known: {', '.join(known)}."


def close_to(name: object, known: Iterable[str]) -> str:
    """A suggestion if a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), sorted(set(known)), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
