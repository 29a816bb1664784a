"""Several targets of one text beside as many calls, in three ways.

``rows``: the text once per target; ``loop``: one forward, then the backwards in turn; ``batched``:
one forward, then all backwards as one. `la.attribute` batches short texts, up to a budget of
memory (`lens_attr.attribution.jacobian`), and loops over the targets of long ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import lens_attr as la
from benchmarks.harness import (
    GPT2,
    Options,
    Row,
    build,
    interleaved,
    newest_backend,
    replaced,
    seconds_of,
    setting,
)
from lens_attr.attribution import jacobian

METHOD, LAYERS = "attnlrp", 4
WAYS = ("rows", "loop", "batched")
CELLS = [(16, 2), (16, 8), (16, 32), (64, 8), (256, 8)]
"""Tokens, targets."""


def rows(options: Options) -> Iterator[Row]:
    """Every way beside one call per target."""
    backend = newest_backend()
    layers = 2 if options.quick else LAYERS
    model = build(options, GPT2, backend, layers)
    for length, k in CELLS[:2] if options.quick else CELLS:
        ids = options.ids(1, length)
        calls = {
            way: partial(seconds_of, options, partial(_explain, way, model, ids, k))
            for way in ("calls", *WAYS)
        }
        times = interleaved(calls, options.runs or 3)
        where = f"{setting(GPT2, backend, 1, length, layers)}, {k} targets"
        for way in WAYS:
            yield Row(way, where, times[way], "s", f"{k} calls", times["calls"])


def _explain(way: str, model: Any, ids: torch.Tensor, k: int) -> None:
    """K tokens as the next one."""
    tokens = list(range(100, 100 + k))
    if way == "calls":
        for token in tokens:
            la.attribute(model, ids, la.Logit(token), METHOD)
    elif way == "rows":
        la.attribute(model, ids.expand(k, -1), la.Logit(tokens), METHOD)
    else:
        memory = dict.fromkeys(("cpu", "cuda"), 1 if way == "loop" else 2**60)
        with (
            replaced(jacobian, "MEMORY_AT_ONCE", memory),
            replaced(jacobian, "TOKENS_ALONE", {}),
        ):
            la.attribute(model, ids, [la.Logit(token) for token in tokens], METHOD)
