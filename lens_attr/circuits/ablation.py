"""Scores of a model with sets of its units removed: many sets at once, shared layers once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from lens_attr.circuits.replacement import Ablation, Fill, Replacement
from lens_attr.circuits.scoring import Scorer
from lens_attr.circuits.units import ROLE_OF, Unit, points_of
from lens_attr.graph import ModelGraph
from lens_attr.graph.partial import (
    Unpadded,
    logits_of,
    read_streams,
    resume,
    rows_that_fit,
    without_padding,
)
from lens_attr.graph.tokens import TokenBatch
from lens_attr.targets import Resolved

STREAM_BYTES = 512 * 2**20
"""Residual streams kept at a time to restart from."""


@dataclass(frozen=True)
class Start:
    """One set of removed units, and the run it can start from.

    Attributes:
        set: index of the set.
        source: index of a set that removes the same units below, None for a run from the tokens.
    """

    set: int
    source: int | None


def plan(removed: Bool[Tensor, "set layer unit"]) -> list[list[Start]]:
    """Which sets start at which layer, so that no block ever sees the same input twice.

    Sets that agree on all layers below ``l`` share the stream that enters block ``l``: the first of
    them computes it, the others start there. The sets must be different.
    """
    n_layers = removed.shape[1]
    first: dict[bytes, int] = {}
    starts: list[list[Start]] = [[] for _ in range(n_layers)]
    for index, layers in enumerate(removed.flatten(2).numpy()):
        keys = _prefixes(layers)
        depth = max((d for d in range(1, n_layers) if keys[d] in first), default=0)
        source = first[keys[depth]] if depth else None
        starts[depth].append(Start(index, source))
        for key in keys[1:]:
            first.setdefault(key, index)
    return starts


def _prefixes(layers: Bool[NDArray[np.bool_], "layer unit"]) -> list[bytes]:
    """A digest of the layers below each layer: of many neurons the layers themselves are large."""
    seen = hashlib.blake2b(digest_size=16)
    found = []
    for layer in layers:
        found.append(seen.digest())
        seen.update(layer.tobytes())
    return found


@dataclass(frozen=True)
class Ablator:
    """Removes units of one kind.

    Attributes:
        graph: the model.
        batch: the samples.
        target: what is scored.
        unit: what is removed.
        ablation: what stands there instead.
        batch_size: rows per forward; None for as many as fit in memory.
        seed: of resample ablation.
    """

    graph: ModelGraph
    batch: TokenBatch
    target: Resolved
    unit: Unit = "head"
    ablation: Ablation = "zero"
    batch_size: int | None = None
    seed: int = 0

    @torch.no_grad()
    def scores(
        self,
        removed: Bool[Tensor, "set layer unit"],
        advance: Callable[[int], None] = lambda rows: None,
    ) -> Float[Tensor, "set sample"]:
        """The target of every sample with each set of units removed.

        Args:
            removed: the sets.
            advance: told the number of rows after each forward, ``len(set) * len(sample)`` in all.
        """
        different, place = removed.unique(dim=0, return_inverse=True)
        starts = plan(different)
        replacement = Replacement(
            self.graph, self.batch, ROLE_OF[self.unit], self.ablation, self.batch_size, self.seed
        )
        scores = torch.zeros(len(different), len(self.batch), dtype=torch.float64)
        for group in without_padding(self.batch):
            for part in group.split(self._samples_at_once(starts, group)):
                sweep = _Sweep(self, different, part, replacement.of(part.index))
                scores[:, part.index] = sweep.run(starts, advance)
        return scores[place]

    def rows_at_once(self, length: int) -> int:
        """Rows of one forward."""
        return self.batch_size or rows_that_fit(self.graph, length)

    def _samples_at_once(self, starts: list[list[Start]], group: Unpadded) -> int:
        kept = 1 + len(_wanted(starts))
        width = group.token_ids.shape[1] * self.graph.cfg.d_model * self.graph.dtype.itemsize
        fits = max(1, STREAM_BYTES // (kept * width))
        return min(fits, self.rows_at_once(group.token_ids.shape[1]))


def _wanted(starts: list[list[Start]]) -> set[tuple[int, int]]:
    """(set, layer) of the streams that others start from."""
    return {
        (start.source, layer)
        for layer, runs in enumerate(starts)
        for start in runs
        if start.source is not None
    }


@dataclass
class _Sweep:
    """All sets on some samples of one length."""

    ablator: Ablator
    removed: Bool[Tensor, "set layer unit"]
    samples: Unpadded
    fill: Sequence[Fill]
    streams: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def run(
        self, starts: list[list[Start]], advance: Callable[[int], None]
    ) -> Float[Tensor, "set sample"]:
        """Layer by layer: whatever starts at a layer starts from a stream kept below it."""
        n, wanted = len(self.samples.index), _wanted(starts)
        scores = torch.zeros(len(self.removed), n, dtype=torch.float64)
        runs_at_once = max(1, self.ablator.rows_at_once(self.samples.token_ids.shape[1]) // n)
        for layer, runs in enumerate(starts):
            for first in range(0, len(runs), runs_at_once):
                chunk = runs[first : first + runs_at_once]
                scores[[run.set for run in chunk]] = self._forward(layer, chunk, wanted)
                advance(n * len(chunk))
            self.streams = {key: value for key, value in self.streams.items() if key[1] > layer}
        return scores

    def _forward(
        self, layer: int, runs: Sequence[Start], wanted: set[tuple[int, int]]
    ) -> Float[Tensor, "run sample"]:
        graph, ids = self.ablator.graph, self.samples.token_ids
        scorer = Scorer(self.ablator.target, self.samples, self.ablator.batch.token_ids.shape[1])
        position = scorer.position(len(runs))
        keep = partial(self._keep_streams, [run.set for run in runs], wanted)
        with ExitStack() as stack:
            self._remove(layer, runs, stack)
            above = sorted({at for index, at in wanted if at > layer})
            read_streams(graph, above, keep, stack)
            if layer == 0:
                logits = logits_of(graph, ids.repeat(len(runs), 1), position)
            else:
                stream = torch.cat([self.streams[_key(run, layer)] for run in runs])
                logits = resume(graph, stream, layer, ids, position)
        return scorer(logits, len(runs))

    def _keep_streams(
        self, sets: Sequence[int], wanted: set[tuple[int, int]], layer: int, stream: Tensor
    ) -> None:
        for index, rows in zip(sets, stream.split(len(self.samples.index)), strict=True):
            if (index, layer) in wanted:
                self.streams[index, layer] = rows.clone()

    def _remove(self, layer: int, runs: Sequence[Start], stack: ExitStack) -> None:
        """Hooks for the layers that are computed and from which any run removes something."""
        graph, n = self.ablator.graph, len(self.samples.index)
        removed = self.removed[[run.set for run in runs]].to(graph.device)
        points = points_of(graph, ROLE_OF[self.ablator.unit])
        for at in range(layer, graph.n_layers):
            if bool(removed[:, at].any()):
                rows = removed[:, at].repeat_interleave(n, dim=0)
                points[at].on_forward(partial(_replace, rows, self.fill[at]), stack)


def _key(run: Start, layer: int) -> tuple[int, int]:
    assert run.source is not None
    return run.source, layer


def _replace(removed: Bool[Tensor, "row unit"], fill: Fill, activation: Tensor) -> Tensor:
    """The activation [row, pos, ...] with some units of each row replaced.

    ``fill`` is a number, [...] for every position, or [sample, pos, ...] for each run in turn.
    """
    where = removed.view(len(removed), 1, -1, *[1] * (activation.ndim - 3))
    if isinstance(fill, Tensor):
        fill = fill.to(activation)
        if fill.ndim == activation.ndim:
            fill = fill.repeat(len(activation) // len(fill), *[1] * (fill.ndim - 1))
    return torch.where(where, fill, activation)
