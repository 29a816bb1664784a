"""Exact edge patching: one forward per edge, the oracle of every edge score."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.attribution.scoring import target_value
from lens_attr.circuits.aligned import Aligned, aligned, refuse_lengths
from lens_attr.circuits.edge_scores import EdgeScores
from lens_attr.circuits.stream import Anatomy, Change, Outputs, anatomy, change, outputs_of
from lens_attr.errors import InputError, checked_count, did_you_mean
from lens_attr.graph import Point, resolve
from lens_attr.graph.tokens import Text
from lens_attr.graph.weights import Reader
from lens_attr.targets import Target

Mode = Literal["noise", "denoise"]

ROWS = 64
"""Patched runs in one forward, unless told otherwise."""


@torch.no_grad()
def exact_edge_effects(
    model: Any,
    clean: Text,
    corrupted: Text,
    target: Target,
    *,
    mode: Mode = "noise",
    per_position: bool = False,
    batch_size: int = ROWS,
    progress: bool | None = None,
) -> EdgeScores:
    """Patch each edge alone and measure: metric with the edge patched, minus metric without.

    The receiver reads the stream with this one source's contribution replaced, everything behind
    it is computed anew. One forward per edge and example: for small models and few examples.

    Args:
        model: a TransformerLens model that reads left to right.
        clean: texts or token ids [batch, pos].
        corrupted: as many, with the same number of tokens each.
        target: what is measured.
        mode: ``"noise"`` puts the corrupted contribution into the clean run (what `edge_scores`
            approximates), ``"denoise"`` the clean one into the corrupted run.
        per_position: also patch each edge at one position after the other, into
            `EdgeScores.by_position`; these effects need not add up to that of the whole edge. As
            many forwards more as there are positions; all inputs must be of one length.
        batch_size: patched runs per forward.
        progress: show a bar over the examples.

    Raises:
        InputError: inputs that do not align, an unknown mode, or no batch size.
        UnsupportedModelError: the stream of this model is no sum of its nodes.
    """
    if mode not in get_args(Mode):
        raise InputError(f"unknown mode {mode!r}; {did_you_mean(str(mode), get_args(Mode))}")
    batch_size = checked_count("batch_size", batch_size)
    graph = resolve(model)
    parts = anatomy(graph)
    pairs = aligned(graph, clean, corrupted, target)
    pairs = pairs if mode == "noise" else pairs.swapped
    if per_position:
        refuse_lengths(pairs)
    each = pairs.batches(1, "patching edges", progress)
    effects = np.mean([_example(parts, pair, batch_size, per_position) for pair in each], axis=0)
    return EdgeScores(
        wiring=parts.wiring,
        scores=effects[..., 0],
        method=f"exact ({mode})",
        unit=pairs.target.unit,
        n=len(pairs),
        by_position=effects[..., 1:] if per_position else None,
        metadata={"model": graph.describe(), "mode": mode},
    )


def _example(
    parts: Anatomy, pair: Aligned, size: int, per_position: bool
) -> Float[np.ndarray, "source receiver which"]:
    """All edges of one example: whole, then at each position alone if asked for."""
    base = outputs_of(parts, pair.clean, pair.target)
    other = outputs_of(parts, pair.corrupted, pair.target)
    difference = change(parts, other, base, pair.clean.attention_mask)
    changes = [difference]
    if per_position:
        changes += [difference.only(row) for row in range(len(difference.embedding))]
    return np.stack([_effects(parts, pair, base, one, size) for one in changes], axis=-1)


def _effects(
    parts: Anatomy, pair: Aligned, base: Outputs, difference: Change, size: int
) -> Float[np.ndarray, "source receiver"]:
    """All edges of one example, where each carries a change of its source."""
    unpatched = target_value(parts.graph, pair.clean, pair.target)[0]
    effects = np.zeros(parts.wiring.exists.shape)
    for reader in (reader for block in parts.readers for reader in block):
        for unit in range(reader.n_units):
            column = parts.columns(reader).start + unit
            for sources in _slices(parts.n_visible(reader), size):
                values = _patched(parts, pair, base, difference, reader, unit, sources)
                effects[sources, column] = (values - unpatched).double().cpu().numpy()
    for sources in _slices(len(parts.wiring.sources), size):
        values = _patched_logits(parts, pair, difference, sources)
        effects[sources, -1] = (values - unpatched).double().cpu().numpy()
    return effects


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _patched(
    parts: Anatomy,
    pair: Aligned,
    base: Outputs,
    difference: Change,
    reader: Reader,
    unit: int,
    sources: slice,
) -> Float[Tensor, " source"]:
    """The metric when one unit reads each of some sources' other value, one row each."""
    mask = pair.clean.attention_mask
    stream = base.read_by(reader)[mask]
    gains: list[list[Tensor]] = [[] for _ in reader.projections]
    for moved in _moved(difference, sources):
        one = moved[:, None].expand(-1, reader.n_units, -1)
        for gain, pushed in zip(gains, reader.push(stream, one), strict=True):
            gain.append(pushed[:, unit])
    with ExitStack() as stack:
        for projection, gain in zip(reader.projections, gains, strict=True):
            add = partial(_add_to_unit, mask, torch.stack(gain), unit)
            projection.point.on_forward(add, stack)
        return _run(parts, pair, len(gains[0]))


def _patched_logits(
    parts: Anatomy, pair: Aligned, difference: Change, sources: slice
) -> Float[Tensor, " source"]:
    mask = pair.clean.attention_mask
    moved = torch.stack(list(_moved(difference, sources)))
    last: Point = parts.graph.points("residual")[-1]
    with ExitStack() as stack:
        last.on_forward(partial(_add_to_stream, mask, moved), stack)
        return _run(parts, pair, len(moved))


def _moved(difference: Change, sources: slice) -> Float[Tensor, "source row d_model"]:
    """One source after the other, at all positions of one example."""
    return difference.in_stream(slice(None), sources.stop)[sources]


def _add_to_unit(
    mask: Tensor, gain: Float[Tensor, "source row d_out"], unit: int, activation: Tensor
) -> Tensor:
    new = activation.clone()
    view = new[:, :, unit] if new.ndim == 4 else new
    view[:, mask[0]] += gain.to(new.dtype)
    return new


def _add_to_stream(
    mask: Tensor, moved: Float[Tensor, "source row d_model"], stream: Tensor
) -> Tensor:
    new = stream.clone()
    new[:, mask[0]] += moved.to(new.dtype)
    return new


def _run(parts: Anatomy, pair: Aligned, copies: int) -> Float[Tensor, " source"]:
    repeated = pair.rows([0] * copies)
    return target_value(parts.graph, repeated.clean, repeated.target)[0]
