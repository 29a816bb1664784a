"""Peak memory of every preset beside a plain forward and backward, and long contexts.

Counted, not sampled: bytes of the tensors that are alive at once, weights not among them (on a
GPU, what its allocator hands out). The plain pass unembeds every position.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lens_attr as la
from benchmarks.harness import (
    GPT2,
    LLAMA,
    TARGET,
    Options,
    Row,
    build,
    newest_backend,
    peak,
    setting,
)
from benchmarks.presets import METHODS, gradient_by_hand

PLAIN = "forward and backward, all logits"
LONG, BUDGET = 4096, 14336.0
"""Tokens of a long context, and the MiB that it may take at GPT-2-small shape."""


def rows(options: Options) -> Iterator[Row]:
    """Every preset with and without checkpointing."""
    newest = newest_backend()
    plan = [(GPT2, newest, 4, 512), (GPT2, "bridge", 4, 512), (LLAMA, newest, 2, 512)]
    for shape, backend, layers, length in plan[:1] if options.quick else dict.fromkeys(plan):
        model = build(options, shape, backend, layers)
        ids = options.ids(1, length)
        plain = peak(options, partial(gradient_by_hand, model, ids))
        where = setting(shape, backend, 1, length, layers)
        yield Row(PLAIN, where, [plain], "MiB")
        for name, method in METHODS.items():
            for checkpoint in (False, True):
                used = peak(options, partial(_explain, model, ids, method, checkpoint))
                what = f"{name}, checkpoint=True" if checkpoint else name
                yield Row(what, where, [used], "MiB", PLAIN, [plain])
        del model


def long_context_rows(options: Options) -> Iterator[Row]:
    """AttnLRP and GIM of thousands of tokens, blocks checkpointed, within `BUDGET`."""
    length, layers = (512, 2) if options.quick else (LONG, GPT2.layers)
    backend = newest_backend()
    model = build(options, GPT2, backend, layers, n_ctx=length)
    ids = options.ids(1, length)
    for method in ("attnlrp", "gim"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _resident("VmRSS")
        call = partial(_explain, model, ids, method, True)
        start = options.now()
        used = [peak(options, call)]
        seconds = options.now() - start
        grown = _resident("VmHWM") - before
        yield Row(
            f"{method}, checkpoint=True",
            setting(GPT2, backend, 1, length, layers),
            used,
            "MiB",
            f"the budget of {BUDGET:.0f} MiB",
            [BUDGET],
            aim=1.0,
            note=f"{seconds:.0f} s; the resident set grew by {grown:.0f} MiB",
        )


def _resident(name: str) -> float:
    """MiB of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _explain(model: Any, ids: Any, method: str, checkpoint: bool) -> Any:
    return la.attribute(model, ids, TARGET, method, checkpoint=checkpoint)
