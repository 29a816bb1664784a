"""Whatever comes in: a result that passes its own checks, or one of our errors. Nothing else."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType
from typing import Any

import pytest
import small
import tiny
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lens_attr as la

HANGS_AFTER = 60
"""Seconds for one call; the slowest takes well under one."""

BACKENDS = tiny.BACKENDS
DEMO = [("demo-gpt2", b) for b in BACKENDS] + [("demo-llama", b) for b in BACKENDS]
DEMO += [("demo-bert", b) for b in BACKENDS]

fuzz = settings(max_examples=40, suppress_health_check=list(HealthCheck))


@cache
def demo(name: str, backend: str) -> Any:
    return la.load(name, backend=backend, device="cpu")  # type: ignore[arg-type]


@contextmanager
def no_hang() -> Iterator[None]:
    """Raise where a call does not come back."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the call hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(result: la.Relevance) -> None:
    """A result's parts fit each other, nothing is NaN, and padding holds nothing."""
    shape = result.tokens.shape
    assert result.token_ids.shape == result.attention_mask.shape == shape
    assert [len(row) for row in result.str_tokens] == [shape[1]] * shape[0]
    assert result.tokens.isfinite().all() and result.target_value.isfinite().all()
    assert not result.tokens[~result.attention_mask].any()
    assert result.head_tokens is not None and result.head_tokens.isfinite().all()
    rows = torch.arange(len(result))
    assert result.attention_mask[rows, result.position].all()
    gap = result.check()
    assert gap.gap.isfinite().all()
    torch.testing.assert_close(
        sum(gap.parts.values(), torch.zeros(len(result))), gap.gap, rtol=1e-2, atol=1e-2
    )
    assert len(result.to_pandas()) == int(result.attention_mask.sum())


def refused_or_right(call: Callable[[], la.Relevance]) -> la.Relevance | None:
    """The checked result, or None where one of our errors says something."""
    with small.untyped(), no_hang(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call()
        except la.LensAttrError:
            return None
    check(result)
    return result


# ------------------------------------------------------------------------------------------ texts

LETTERS = st.one_of(
    st.characters(),  # half surrogate pairs included
    st.sampled_from("🙂👩‍👩‍👧🏳️‍🌈\u200d\ufe0f"),
    st.characters(categories=["Cc", "Cf", "Zl", "Zp"]),
    st.characters(categories=["Mn", "Me"]),
    st.characters(min_codepoint=0x590, max_codepoint=0x6FF),
    st.sampled_from("the keys  \n\t<|endoftext|>[MASK]▁Ġ##</s>"),
)
TEXTS = st.text(LETTERS, max_size=60)
NASTY = [
    "",
    " \n\t\u2003",
    "\x00",
    "\ud800",
    "the \udfff keys",
    "\u0301" * 50,
    "e" + "\u0301" * 200,
    "\u202eright to left\u202c",
    "שלום עולם، مرحبا",
    "🙂" * 100,
    "\ufeffthe",
    "<|endoftext|>",
    "[MASK]",
    "</s><s>",
    "the [MASK] keys \x07\x1b[31m",
    "a" * 100_000,
    "é" * 50_000,
    " " * 100_000,
    "\u0301" * 100_000,
    "the " * 25_000,
]


@pytest.mark.parametrize("model", DEMO, ids=tiny.case_id)
@pytest.mark.parametrize("text", NASTY, ids=lambda text: ascii(text[:12]))
def test_nasty_texts(model: tuple[str, str], text: str) -> None:
    loaded = demo(*model)
    refused_or_right(lambda: la.attribute(loaded, text, la.TopLogit(position=0)))
    refused_or_right(lambda: la.attribute(loaded, [text, "the [MASK] keys"]))
    refused_or_right(lambda: la.attribute(loaded, "the [MASK] keys", la.Logit(text)))
    refused_or_right(
        lambda: la.attribute(loaded, "the [MASK] keys", la.LogitDiff(" are", text, position=1))
    )


@pytest.mark.parametrize("model", DEMO, ids=tiny.case_id)
@fuzz
@given(texts=st.lists(TEXTS, max_size=3), target=st.one_of(st.none(), TEXTS), at=st.integers(-4, 4))
@example(texts=["the keys", ""], target=None, at=-1)
@example(texts=["the [MASK] keys"], target=" ", at=0)
def test_any_text(model: tuple[str, str], texts: list[str], target: str | None, at: int) -> None:
    loaded = demo(*model)
    explained = la.TopLogit(position=at) if target is None else la.Logit(target, position=at)
    result = refused_or_right(lambda: la.attribute(loaded, texts, explained))
    assert result is None or len(result) == len(texts)


def test_ordinary_texts_are_not_refused() -> None:
    for name, backend in DEMO:
        text = "the keys near the [MASK]" if name == "demo-bert" else "the keys near the"
        ordinary = partial(la.attribute, demo(name, backend), text)
        assert refused_or_right(ordinary) is not None


# -------------------------------------------------------------------------------------------- ids

DTYPES = [
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.float32,
    torch.complex64,
]
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@st.composite
def tensors(draw: st.DrawFn, low: int, high: int) -> Tensor:
    """Of any shape and dtype, mostly of a usable one."""
    usable = draw(st.booleans())
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 6))] if usable else draw(SHAPES)
    dtype = torch.int64 if usable and draw(st.booleans()) else draw(st.sampled_from(DTYPES))
    size = int(torch.tensor(shape).prod()) if shape else 1
    values = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
    found = torch.tensor(values).reshape(shape)
    sparse = not usable and shape and draw(st.booleans())
    return (found.to_sparse() if sparse else found).to(dtype)


POSITIONS = st.one_of(
    st.integers(-8, 8),
    st.lists(st.integers(-8, 8), max_size=4),
    st.sampled_from(
        [10**30, -(10**30), True, None, 1.5, "last", [None], [[0]], (0,), torch.tensor(1)]
    ),
)
TOKENS = st.one_of(
    st.integers(-3, 70),
    st.lists(st.integers(-3, 70), max_size=4),
    st.sampled_from(
        [
            None,
            1.5,
            True,
            "w7",
            " w7",
            ["w7", 3],
            [[1]],
            {},
            10**30,
            torch.tensor(3),
            torch.tensor([3, 4]),
            torch.tensor([0.5]),
            b"w7",
        ]
    ),
)


@pytest.mark.parametrize("name", small.EVERY)
@fuzz
@given(
    ids=tensors(-2, tiny.VOCAB + 2),
    mask=st.one_of(st.none(), tensors(0, 1)),
    position=POSITIONS,
    token=TOKENS,
    batch_size=st.sampled_from([None, None, 1, 2, 0, -1, 1.5, "2"]),
)
def test_any_ids_positions_dtypes_and_shapes(
    name: str, ids: Tensor, mask: Tensor | None, position: Any, token: Any, batch_size: Any
) -> None:
    model = small.model(name)

    def call() -> la.Relevance:
        target = la.Logit(token, position=position)
        return la.attribute(
            model, ids, target, attention_mask=mask, batch_size=batch_size, progress=False
        )

    refused_or_right(call)


@pytest.mark.parametrize("name", small.EVERY)
@pytest.mark.parametrize(
    "text",
    [
        None,
        3,
        3.5,
        b"bytes",
        {},
        {"a": 1},
        [None],
        ["w5", 3],
        [["w5"]],
        [],
        (),
        "",
        ["w5", ""],
        Ellipsis,
    ],
    ids=repr,
)
def test_what_is_no_text_is_refused(name: str, text: Any) -> None:
    assert refused_or_right(lambda: la.attribute(small.model(name), text)) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp", "gim", "relp"])
def test_every_dtype_and_method(dtype: str, method: str) -> None:
    for backend in BACKENDS:
        model = tiny.model("gpt2", backend, dtype)
        refused_or_right(partial(la.attribute, model, "w5 w6 w7", la.TopLogit(), method))


@fuzz
@given(
    option=st.sampled_from(["temperature", "norm", "pattern", "z", "activation", "gate", "layers"]),
    value=st.one_of(
        st.floats(),
        st.integers(-3, 3),
        st.sampled_from([None, "half", "x", [], [0], [5], [None], True, {}]),
    ),
)
def test_any_option(option: str, value: Any) -> None:
    model = small.model(small.GPT2[0])
    options = {option: value}
    refused_or_right(lambda: la.attribute(model, "w5 w6", method="gim", **options))
