"""One model, several threads: a second explanation is refused, and nobody else is disturbed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import small
import torch
from test_safety import IDS, TARGET, Z, explain, gradient, unchanged, warm
from torch import Tensor

import lens_attr as la

every_model = pytest.mark.parametrize("name", small.EVERY)


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()


@contextmanager
def meanwhile(model: Any, side: str, function: Callable[[], Any]) -> Iterator[list[Any]]:
    """Halfway through this thread's forward (or backward) another thread runs ``function``."""
    mine, results = threading.get_ident(), []

    def pause(tensor: Tensor, hook: Any) -> None:
        if threading.get_ident() == mine and not results:
            results.append(in_another_thread(function))

    with model.hooks(**{side: [(Z, pause)]}):
        yield results


def refusal(function: Callable[[], Any]) -> str:
    """What ``function`` is refused with."""
    try:
        function()
    except la.RuleConflictError as error:
        return str(error)
    return "not refused"


@every_model
@pytest.mark.parametrize("side", ["fwd_hooks", "bwd_hooks"])
@pytest.mark.parametrize("method", ["lrp", "gradient_x_input"])
def test_a_second_explanation_is_refused_and_the_first_unharmed(
    name: str, side: str, method: str
) -> None:
    model = warm(name)
    expected = explain(name)
    second = lambda: refusal(lambda: explain(name, method))  # noqa: E731
    with unchanged(model), meanwhile(model, side, second) as results:
        found = explain(name)
    assert "another thread" in results[0] and "threading.Lock" in results[0]
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.head_tokens, expected.head_tokens)
    assert torch.equal(explain(name).tokens, expected.tokens)


@every_model
@pytest.mark.parametrize("side", ["fwd_hooks", "bwd_hooks"])
def test_a_context_in_another_thread_is_refused_too(name: str, side: str) -> None:
    model = warm(name)
    expected = explain(name)

    def context() -> None:
        with la.rules.lrp().on(model):
            gradient(model)

    with unchanged(model), meanwhile(model, side, lambda: refusal(context)) as results:
        found = explain(name)
    assert "another thread" in results[0]
    assert torch.equal(found.tokens, expected.tokens)


@every_model
def test_inside_a_context_another_thread_is_refused(name: str) -> None:
    model = warm(name)
    with unchanged(model), la.rules.lrp().on(model):
        inside = gradient(model)
        assert "another thread" in in_another_thread(lambda: refusal(lambda: explain(name)))
        assert torch.equal(gradient(model), inside)


@every_model
@pytest.mark.parametrize("side", ["fwd_hooks", "bwd_hooks"])
def test_a_forward_and_backward_of_another_thread_is_neither_changed_nor_recorded(
    name: str, side: str
) -> None:
    """Up to rounding: a hooked RMSNorm of the Bridge takes another path in float32."""
    model = warm(name)
    weight = next(iter(model.parameters()))

    def plain() -> Tensor:
        logits = model(IDS)[0, -1]
        return torch.autograd.grad(logits[6] - logits[8], weight)[0]

    expected, own = explain(name), plain()
    with meanwhile(model, side, plain) as results:
        found = explain(name)
    torch.testing.assert_close(results[0], own, rtol=1e-4, atol=2e-5)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.head_tokens, expected.head_tokens)


@pytest.mark.parametrize("name", small.GPT2)
def test_in_a_crowd_every_answer_is_right_or_refused(name: str) -> None:
    model = warm(name)
    methods = ["lrp", "attnlrp", "gim", "relp"]
    expected = {method: explain(name, method).tokens for method in methods}
    refused: list[str] = []

    def ask(i: int) -> bool:
        method = methods[i % 4]
        try:
            found = la.attribute(model, small.text(name), TARGET, method)
        except la.RuleConflictError as error:
            refused.append(str(error))
            return False
        assert torch.equal(found.tokens, expected[method])
        return True

    with small.untyped(), unchanged(model), ThreadPoolExecutor(max_workers=4) as pool:
        answers = list(pool.map(ask, range(60)))
    assert all("another thread" in reason for reason in refused)
    assert answers.count(True) + len(refused) == 60


def test_a_lock_is_all_it_takes() -> None:
    name = small.GPT2[0]
    expected, lock = explain(name).tokens, threading.Lock()

    def ask(_: int) -> Tensor:
        with lock:
            return explain(name).tokens

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(ask, range(8)))
