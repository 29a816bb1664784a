"""ALTI-Logit beside gradient x input, and its memory beyond the forward against the length.

Its aims: at most four times the time at T = 200, and at GPT-2-xl shape (``--only alti_logit_xl``,
which needs 12 GiB) under 512 MiB beyond a forward at T = 256. The literature's implementation
stacks tensors of [heads, T, T, d_model], which is 24 GiB for a 1B model at T = 200.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import lens_attr as la
from benchmarks.harness import (
    GPT2,
    TARGET,
    Options,
    Row,
    Shape,
    build,
    interleaved,
    peak,
    seconds_of,
    setting,
)
from benchmarks.memory import PLAIN
from benchmarks.presets import gradient_by_hand
from lens_attr.graph import resolve

XL = Shape("GPT-2 xl", 48, 1600, 25, 50_257)
METHODS = ("alti_logit", "gradient_x_input")
MOST_TIME, MOST_MEMORY = 4.0, 512.0


def rows(options: Options) -> Iterator[Row]:
    """Time at T = 200, then memory against T."""
    layers, length, lengths = (2, 64, (64,)) if options.quick else (None, 200, (256, 1024, 2048))
    model = build(options, GPT2, "bridge", layers, n_ctx=max(length, *lengths))
    ids = options.ids(1, length)
    calls = {
        name: partial(seconds_of, options, partial(_explain, model, ids, name)) for name in METHODS
    }
    times = interleaved(calls, options.runs or 5)
    where = setting(GPT2, "bridge", 1, length, layers)
    yield Row("alti_logit", where, times["alti_logit"], "s", *_beside(times), aim=MOST_TIME)
    for length in lengths:
        yield from _memory(options, model, setting(GPT2, "bridge", 1, length, layers), length)


def _beside(times: dict[str, list[float]]) -> tuple[str, list[float]]:
    return "gradient x input", times["gradient_x_input"]


def xl_rows(options: Options) -> Iterator[Row]:
    """The memory aim."""
    layers, length = (2, 64) if options.quick else (XL.layers, 256)
    model = build(options, XL, "bridge", layers, n_ctx=length)
    yield from _memory(options, model, setting(XL, "bridge", 1, length, layers), length)


def _memory(options: Options, model: Any, where: str, length: int) -> Iterator[Row]:
    ids = options.ids(1, length)
    forward = peak(options, partial(_forward, model, ids))
    plain = peak(options, partial(gradient_by_hand, model, ids))
    used = peak(options, partial(_explain, model, ids, "alti_logit"))
    yield Row("alti_logit: peak", where, [used], "MiB", PLAIN, [plain])
    yield Row(
        "alti_logit, beyond the forward",
        where,
        [used - forward],
        "MiB",
        f"the budget of {MOST_MEMORY:.0f} MiB",
        [MOST_MEMORY],
        aim=1.0,
        note=f"the forward alone: {forward:.0f} MiB",
    )


@torch.no_grad()
def _forward(model: Any, ids: torch.Tensor) -> None:
    """What every method runs first: logits at the last position."""
    resolve(model).logits_at(ids, None, torch.tensor([-1], device=ids.device))


def _explain(model: Any, ids: torch.Tensor, method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        la.attribute(model, ids, TARGET, method)
