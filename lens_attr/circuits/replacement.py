"""What stands in for an activation that is removed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lens_attr.circuits.units import points_of
from lens_attr.errors import InputError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.partial import Unpadded, logits_of, rows_that_fit, without_padding
from lens_attr.graph.tokens import TokenBatch

Ablation = Literal["zero", "mean", "resample"]
"""What a removed unit gives instead: zero; its mean over all samples and real positions; or what
it gives for another sample at the same position (see `donors`)."""

Fill = Tensor | float
"""A number, [...] for every position, or [sample, pos, ...]."""


@dataclass(frozen=True)
class Replacement:
    """Replacements for the activations of one role.

    Attributes:
        graph: the model.
        batch: the samples.
        role: whose activations, e.g. ``"z"``.
        ablation: where the replacement comes from.
        batch_size: rows per forward; None for as many as fit in memory.
        seed: of resample ablation.
    """

    graph: ModelGraph
    batch: TokenBatch
    role: Role
    ablation: Ablation
    batch_size: int | None = None
    seed: int = 0

    def of(self, index: list[int]) -> Sequence[Fill]:
        """The replacement in each layer, for samples of one length.

        Raises:
            InputError: resampling from a single sample.
        """
        if self.ablation == "zero":
            return [0.0] * self.graph.n_layers
        return self._mean if self.ablation == "mean" else self._resampled(index)

    @cached_property
    def _mean(self) -> list[Tensor]:
        sums: list[Fill] = [0.0] * self.graph.n_layers
        for group in without_padding(self.batch):
            length = group.token_ids.shape[1]
            for part in group.split(self.batch_size or rows_that_fit(self.graph, length)):
                for layer, activation in enumerate(activations(self.graph, self.role, part)):
                    sums[layer] = sums[layer] + activation.double().sum(dim=(0, 1))
        n = int(self.batch.attention_mask.sum())
        return [torch.as_tensor(total) / n for total in sums]

    @cached_property
    def _donors(self) -> list[int]:
        return donors(self.batch, self.seed)

    def _resampled(self, index: list[int]) -> list[Tensor]:
        """Activations of each sample's donor, at the sample's positions."""
        length = self.batch.lengths[index[0]]
        given = self.batch.rows([self._donors[sample] for sample in index])
        rows: dict[int, list[Tensor]] = {}
        for group in without_padding(given):
            columns = aligned(length, group.token_ids.shape[1], group.columns.device)
            layers = activations(self.graph, self.role, group)
            found = [activation[:, columns] for activation in layers]
            rows |= {row: [layer[i] for layer in found] for i, row in enumerate(group.index)}
        in_order = [rows[row] for row in range(len(index))]
        return [torch.stack(layer) for layer in zip(*in_order, strict=True)]


@torch.no_grad()
def activations(graph: ModelGraph, role: Role, samples: Unpadded) -> list[Tensor]:
    """The activations of a role per layer, [row, pos, ...], nothing removed."""
    found: dict[int, Tensor] = {}
    ids = samples.token_ids
    with ExitStack() as stack:
        for layer, point in enumerate(points_of(graph, role)):
            point.on_forward(partial(keep, found, layer), stack)
        logits_of(graph, ids, torch.full((len(ids),), ids.shape[1] - 1, device=ids.device))
    return [found[layer] for layer in range(graph.n_layers)]


def keep(found: dict[int, Tensor], layer: int, activation: Tensor) -> None:
    """Forward hook: a copy, since later code may write into the activation."""
    found[layer] = activation.detach().clone()


def donors(batch: TokenBatch, seed: int) -> list[int]:
    """For every sample another one, drawn from those of the same length.

    A sample that is alone with its length gets one of the nearest length; the two are then aligned
    as in `aligned`.

    Raises:
        InputError: there is only one sample.
    """
    if len(batch) < 2:
        raise InputError("resample ablation takes activations of other samples: give at least two.")
    rng, lengths = random.Random(seed), batch.lengths
    found = []
    for sample, length in enumerate(lengths):
        others = [other for other in range(len(batch)) if other != sample]
        nearest = min(abs(lengths[other] - length) for other in others)
        found.append(rng.choice([o for o in others if abs(lengths[o] - length) == nearest]))
    return found


def aligned(length: int, given: int, device: torch.device) -> Int[Tensor, " pos"]:
    """Which of ``given`` positions stands in for each of ``length``: counted from the end.

    Positions before the start of the other sample take its first one. Equal lengths: the same
    position.
    """
    return (torch.arange(length, device=device) + given - length).clamp(min=0)
