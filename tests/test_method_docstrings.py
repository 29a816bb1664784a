"""Every method says in its docstring what it computes, in what shape, at what cost, from where."""

from __future__ import annotations

import inspect
import re

import pytest

import lens_attr as la
from lens_attr.attribution import registry
from lens_attr.attribution.gradients import GradientTimesInput
from lens_attr.attribution.registry import METHODS

FORMULA = r"``[^`]*(sum|F\(x\)|dF)[^`]*``|^    \S.*="
SHAPE = r"\[batch(, \w+)*\]"
COST = r"\bCost: .*\b(forwards?|steps|n_samples)\b"
SOURCE = r"\b20\d\d\b"


def docstring(method: str) -> str:
    """Of the explainer, and of the preset where one stands behind it."""
    explainer = METHODS[method].explainer()
    found = [type(explainer).__doc__ or ""]
    if isinstance(explainer, GradientTimesInput):
        found.append(getattr(la.rules, explainer.rules.name).__doc__)
    return "\n".join(map(inspect.cleandoc, found))


@pytest.mark.parametrize("what", [FORMULA, SHAPE, COST, SOURCE])
@pytest.mark.parametrize("method", METHODS)
def test_it_says(method: str, what: str) -> None:
    assert re.search(what, docstring(method), flags=re.MULTILINE), docstring(method)


def test_a_docstring_that_says_nothing_is_found() -> None:
    assert not any(re.search(one, la.Relevance.save.__doc__ or "") for one in (SHAPE, COST, SOURCE))


def test_a_formula_is_an_indented_block_of_its_own() -> None:
    """Markdown would run it into the paragraph without an empty line on both sides."""
    for method in METHODS:
        lines = ["", *docstring(method).partition("Attributes:")[0].splitlines(), ""]
        for before, line in zip(lines, lines[1:], strict=False):
            starts, ends = line.startswith("    "), before.startswith("    ")
            assert not (starts and before and not ends), f"{method}: {line}"
            assert not (ends and line and not starts), f"{method}: {before}"


def test_methods_that_read_the_same_hook_are_defined_for_the_same_models() -> None:
    readers = ("aieg", "attention_only", "attention_rollout", "alti")
    assert {METHODS[name].defined_for for name in readers} == {registry.EVERY_FAMILY}
