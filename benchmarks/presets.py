"""Every preset beside plain gradient x input: backward alone, and end to end.

    python benchmarks/presets.py                 # GPT-2-small shape and four Llama-1B layers
    python benchmarks/presets.py --quick

Random weights, since time does not depend on their values. Aims (medians): AttnLRP at most 1.00,
GIM 1.05 at T = 128 and 1.15 at T = 512, LRP 0.90 and 0.80; end to end with logits at the explained
position alone at most 0.80 of gradient x input with all logits, at GPT-2-small shape.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from harness import (
    GPT2_SMALL,
    LLAMA_1B,
    bridge,
    describe,
    interleaved,
    machine,
    newest_backend,
    ratios,
    write,
)

import lens_attr as la
from lens_attr.attribution.embeddings import InputEmbeddings
from lens_attr.graph import resolve
from lens_attr.rules import PRESETS, preset
from lens_attr.rules.session import Session

METHODS = {"gradient": "gradient_x_input"} | {name: name for name in PRESETS if name != "gradient"}
TARGET = la.LogitDiff(5, 6)


def end_to_end(model: Any, ids: torch.Tensor, method: str) -> None:
    la.attribute(model, ids, TARGET, method)


def all_logits(model: Any, ids: torch.Tensor) -> None:
    """Gradient x input as one writes it by hand: every position is unembedded."""
    inputs = InputEmbeddings()
    with ExitStack() as stack:
        inputs.attach(resolve(model), stack)
        logits = model(ids)[:, -1]
        (grad,) = torch.autograd.grad((logits[:, 5] - logits[:, 6]).sum(), inputs.leaf)
    (inputs.leaf.detach() * grad).sum(dim=-1)


def backward_seconds(model: Any, ids: torch.Tensor, name: str) -> float:
    """CPU seconds of the backward pass alone."""
    graph, inputs = resolve(model), InputEmbeddings()
    position = torch.full((len(ids),), ids.shape[1] - 1)
    with ExitStack() as stack:
        inputs.attach(graph, stack)
        stack.enter_context(Session(graph, preset(name), strict=True, lowered=True))
        logits = graph.logits_at(ids, None, position)
        value = (logits[:, 5] - logits[:, 6]).sum()
        start = time.process_time()
        torch.autograd.grad(value, inputs.leaf)
        return time.process_time() - start


def backward_alone(model: Any, ids: torch.Tensor, runs: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for run in range(runs + 1):
        for name in METHODS:
            taken = backward_seconds(model, ids, name)
            if run:
                seconds[name].append(taken)
    return seconds


def cell(title: str, make: Callable[[], Any], batch: int, length: int, runs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = make()
    ids = torch.randint(0, 50_000, (batch, length))
    calls: dict[str, Callable[[], Any]] = {
        name: partial(end_to_end, model, ids, method) for name, method in METHODS.items()
    }
    calls["gradient, all logits"] = partial(all_logits, model, ids)
    return {
        "model": title,
        "batch": batch,
        "tokens": length,
        "backward": ratios(backward_alone(model, ids, runs), "gradient"),
        "end to end": ratios(interleaved(calls, runs), "gradient"),
    }


def page(found: dict[str, Any]) -> str:
    lines = ["# Presets beside gradient x input", "", describe(found), ""]
    lines += [
        f"CPU time as a ratio to gradient x input on the same backend, median of {found['runs']} "
        "interleaved runs (lowest to highest). The last column is gradient x input with logits at "
        "every position.",
        "",
    ]
    names = [*METHODS, "gradient, all logits"]
    for what in ("backward", "end to end"):
        lines += [f"## {what.capitalize()}", "", f"| model | B | T | {' | '.join(names)} |"]
        lines += ["|---|---:|---:|" + "---:|" * len(names)]
        for row in found["cells"]:
            cells = [_shown(row[what].get(name)) for name in names]
            head = f"| {row['model']} | {row['batch']} | {row['tokens']} |"
            lines.append(f"{head} {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _shown(entry: dict[str, float] | None) -> str:
    if entry is None:
        return ""
    return f"{entry['ratio']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="GPT-2-small shape, batch 1, T = 128")
    parser.add_argument("--full-depth", action="store_true", help="also the whole Llama-1B shape")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    newest = newest_backend()
    gpt2 = ("GPT-2 small", partial(newest, GPT2_SMALL))
    on_bridge = ("GPT-2 small, Bridge", partial(bridge, GPT2_SMALL))
    llama = ("Llama-1B, 4 layers", partial(newest, LLAMA_1B, 4))
    plan = [(*gpt2, 1, 128)]
    if not options.quick:
        plan += [(*gpt2, 1, 512), (*gpt2, 8, 128), (*on_bridge, 1, 128), (*on_bridge, 1, 512)]
        plan += [(*llama, 1, 128), (*llama, 1, 512)]
    if options.full_depth:
        plan += [("Llama-1B", partial(newest, LLAMA_1B), 1, 128)]
    cells = []
    for title, make, batch, length in plan:
        cells.append(cell(title, make, batch, length, options.runs))
        print(f"{title}, batch {batch}, T = {length}: done", flush=True)
    found = {"machine": machine(), "runs": options.runs, "cells": cells}
    write("presets", found, page(found))


if __name__ == "__main__":
    main()
