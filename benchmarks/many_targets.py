"""What further targets of the same text cost, and how their backwards run fastest.

    python benchmarks/many_targets.py

GPT-2-small-like, 4 blocks. For K targets of one text: K calls; one call of expanded rows (the text
K times, one forward and one backward); one forward and K backwards in turn; and those backwards as
one, vectorised over the targets, which `lens_attr.attribution.jacobian` does up to its budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import harness
import torch

import lens_attr as la
from lens_attr.attribution import jacobian

LENGTHS, TARGETS, METHODS = (16, 64, 256), (2, 8, 32), ("gradient_x_input", "attnlrp", "gim")
WAYS = ("calls", "rows", "loop", "batched")


def explain(way: str, model: Any, ids: torch.Tensor, k: int, method: str) -> None:
    """Explain K tokens as the next one, in one of the `WAYS`."""
    tokens = list(range(100, 100 + k))
    if way == "calls":
        for token in tokens:
            la.attribute(model, ids, la.Logit(token), method)
    elif way == "rows":
        la.attribute(model, ids.expand(k, -1), la.Logit(tokens), method)
    else:
        before = jacobian.TOKENS_AT_ONCE
        jacobian.TOKENS_AT_ONCE = 1 if way == "loop" else 10**9
        try:
            la.attribute(model, ids, [la.Logit(token) for token in tokens], method)
        finally:
            jacobian.TOKENS_AT_ONCE = before


def measured(runs: int, methods: Sequence[str], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Every method, length and number of targets: CPU seconds of each way, and ratios to calls."""
    model = harness.newest_backend()(harness.GPT2_SMALL, n_layers=4)
    found = []
    for method in methods:
        for length in lengths:
            ids = torch.arange(1, length + 1)[None]
            for k in TARGETS:
                ways: dict[str, Callable[[], Any]] = {
                    way: partial(explain, way, model, ids, k, method) for way in WAYS
                }
                times = harness.ratios(harness.interleaved(ways, runs), "calls")
                found.append({"method": method, "length": length, "targets": k, "ways": times})
                print(
                    method,
                    length,
                    k,
                    {w: round(t["ratio"], 2) for w, t in times.items()},
                    flush=True,
                )
    return found


def page(found: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Several targets of one text",
        "",
        harness.describe(found),
        "",
        "CPU time relative to as many calls (medians; lowest and highest in brackets). `rows`: the "
        "text once per target; `loop`: one forward, backwards in turn; `batched`: one forward, all "
        "backwards as one.",
        "",
        "| method | tokens | targets | calls, s | rows | loop | batched |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        ways = row["ways"]
        cells = [f"{w['ratio']:.2f} ({w['low']:.2f}-{w['high']:.2f})" for w in ways.values()][1:]
        first = (f"`{row['method']}`", row["length"], row["targets"])
        lines.append(
            "| " + " | ".join(map(str, (*first, f"{ways['calls']['seconds']:.2f}", *cells))) + " |"
        )
    budget = f"`la.attribute` batches up to {jacobian.TOKENS_AT_ONCE} tokens times targets."
    return "\n".join([*lines, "", budget, ""])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measured(options.runs, options.methods, options.lengths)
    found = {"machine": harness.machine(), "rows": rows}
    harness.write("many_targets", found, page(found))


if __name__ == "__main__":
    main()
