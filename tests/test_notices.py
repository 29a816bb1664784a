"""A notice names the line of the user's code that caused it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import small
import tiny

import lens_attr as la

NAME = small.GPT2[0]
TEXT = "w5 w6 w7"
SEVERAL = la.LogitDiff(" w8 w9", " w10")


def attribute() -> Any:
    return la.attribute(small.model(NAME), TEXT, SEVERAL)


def attribute_token_ids_in_a_nested_call() -> Any:
    return [la.attribute(small.model(NAME), text, SEVERAL) for text in (TEXT,)]


def compare() -> Any:
    return la.compare(tiny.model("neo", "bridge"), TEXT)  # gim is left out


def generated() -> Any:
    return la.attribute_generation(small.model(NAME), f"{TEXT} unknown", max_new_tokens=1)


CASES = [attribute, attribute_token_ids_in_a_nested_call, compare, generated]


@pytest.mark.parametrize("call", CASES, ids=lambda call: call.__name__)
def test_it_names_the_line_that_called(call: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    notices = [warning for warning in caught if warning.category is la.Notice]
    first = call.__code__.co_firstlineno
    assert notices
    assert {notice.filename for notice in notices} == {__file__}
    assert {notice.lineno for notice in notices} == {first + 1}
