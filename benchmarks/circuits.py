"""Pruning, patching and edge scores beside the obvious loops, at GPT-2-small shape.

Pruning stands beside one full forward per step, and must give the same accuracy at every step; the
head sweep beside `transformer_lens.patching`, and must give the same numbers; all edges at once
beside one forward and backward. Memory is counted as in the section on peak memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens import patching

import lens_attr as la
from benchmarks.harness import (
    GPT2,
    TARGET,
    Options,
    Row,
    build,
    interleaved,
    newest_backend,
    peak,
    seconds_of,
    setting,
)
from benchmarks.memory import PLAIN
from benchmarks.presets import gradient_by_hand
from lens_attr.circuits import Ranking, edge_scores, patch, prune, random_ranking

BATCH, LENGTH = 4, 24
PRUNE_AIM, PATCH_AIM = 1 / 2.5, 1 / 3
"""Ratios of time: 2.5 and 3 times as fast."""


def rows(options: Options) -> Iterator[Row]:
    """Pruning, patching, edges, one after another."""
    layers = 2 if options.quick else None
    backend = newest_backend()
    model = build(options, GPT2, backend, layers, n_ctx=64)
    ids = options.ids(2 * BATCH, LENGTH)
    clean, corrupted = ids[:BATCH], ids[BATCH:]
    pair = options.ids(BATCH, 2)
    where, runs = setting(GPT2, backend, BATCH, LENGTH, layers), options.runs or 2
    yield prune_row(options, model, clean, pair, where, runs)
    yield patch_row(options, model, clean, corrupted, pair, where, runs)
    yield from edge_rows(options, model, clean, corrupted, where, runs)
    yield from memory_rows(options, model, clean, corrupted, pair, where)


def _compared(
    options: Options, ours: Callable[[], Any], theirs: Callable[[], Any], runs: int
) -> tuple[list[float], list[float], Any, Any]:
    """Seconds of both in turn, and their last results."""
    last: dict[str, Any] = {}

    def timed(name: str, call: Callable[[], Any]) -> float:
        return seconds_of(options, lambda: last.update({name: call()}))

    calls = {"ours": partial(timed, "ours", ours), "theirs": partial(timed, "theirs", theirs)}
    times = interleaved(calls, runs, warm_up=False)
    return times["ours"], times["theirs"], last["ours"], last["theirs"]


# -------------------------------------------------------------------------------------- pruning


def prune_row(
    options: Options, model: Any, ids: Tensor, pair: Tensor, where: str, runs: int
) -> Row:
    """Every head, one at a time."""
    ranking = random_ranking(model.cfg.n_layers, model.cfg.n_heads, 0)
    target = la.LogitDiff(pair[:, 0].tolist(), pair[:, 1].tolist())
    ours, theirs, curve, wanted = _compared(
        options,
        lambda: prune(model, (ids, target), ranking),
        lambda: obvious_pruning(model, ids, pair, ranking),
        runs,
    )
    same = int((curve.accuracy == wanted).sum())
    note = f"{same} of {len(wanted)} accuracies identical"
    return Row("prune every head", where, ours, "s", "a forward per step", theirs, PRUNE_AIM, note)


@torch.no_grad()
def obvious_pruning(model: Any, ids: Tensor, pair: Tensor, ranking: Ranking) -> np.ndarray:
    """Accuracy after every step, one full forward each."""

    def remove(heads: list[int], z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, heads] = 0
        return z

    accuracy = []
    for step in range(ranking.scores.size + 1):
        gone: dict[int, list[int]] = {}
        for layer, head in ranking.order[:step]:
            gone.setdefault(layer, []).append(head)
        hooks = [(f"blocks.{at}.attn.hook_z", partial(remove, heads)) for at, heads in gone.items()]
        logits = model.run_with_hooks(ids, fwd_hooks=hooks)[:, -1]
        accuracy.append(float((logits.gather(1, pair).diff(dim=1) < 0).float().mean()))
    return np.array(accuracy)


# ------------------------------------------------------------------------------------- patching


def patch_row(
    options: Options,
    model: Any,
    clean: Tensor,
    corrupted: Tensor,
    pair: Tensor,
    where: str,
    runs: int,
) -> Row:
    """Every head."""
    target = la.LogitDiff(pair[:, 0].tolist(), pair[:, 1].tolist())

    def metric(logits: Tensor) -> Tensor:
        return -logits[:, -1].gather(1, pair).diff(dim=1).mean()

    @torch.no_grad()
    def sweep() -> Tensor:
        _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
        patched = patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)
        return torch.as_tensor(patched)

    ours, theirs, result, wanted = _compared(
        options, lambda: patch(model, clean, corrupted, target), sweep, runs
    )
    error = float((torch.as_tensor(result.metric) - wanted.cpu()).abs().max())
    note = f"largest difference {error:.0e}"
    against = "transformer_lens.patching"
    return Row("patch every head", where, ours, "s", against, theirs, PATCH_AIM, note)


# ---------------------------------------------------------------------------------------- edges


def edge_rows(
    options: Options, model: Any, clean: Tensor, corrupted: Tensor, where: str, runs: int
) -> Iterator[Row]:
    """All edges by attribution, which takes two forwards and a backward."""
    calls: dict[str, Callable[[], Any]] = {
        method: partial(edge_scores, model, clean, corrupted, TARGET, method)
        for method in ("eap", "attnlrp", "gim")
    }
    against = "a forward and backward"
    calls[against] = partial(gradient_by_hand, model, clean)
    times = interleaved(
        {name: partial(seconds_of, options, call) for name, call in calls.items()}, runs
    )
    for method in ("eap", "attnlrp", "gim"):
        what = f"score every edge, {method}"
        yield Row(what, where, times[method], "s", against, times[against])


# --------------------------------------------------------------------------------------- memory


def memory_rows(
    options: Options, model: Any, clean: Tensor, corrupted: Tensor, pair: Tensor, where: str
) -> Iterator[Row]:
    """Peak of each; of pruning, a few steps, which are as large as all."""
    target = la.LogitDiff(pair[:, 0].tolist(), pair[:, 1].tolist())
    ranking = random_ranking(model.cfg.n_layers, model.cfg.n_heads, 0)
    calls: dict[str, Callable[[], Any]] = {
        "prune heads": partial(prune, model, (clean, target), ranking, steps=8),
        "patch every head": partial(patch, model, clean, corrupted, target),
        "score every edge, eap": partial(edge_scores, model, clean, corrupted, TARGET, "eap"),
    }
    plain = peak(options, partial(gradient_by_hand, model, clean))
    for name, call in calls.items():
        yield Row(f"{name}: peak", where, [peak(options, call)], "MiB", PLAIN, [plain])
