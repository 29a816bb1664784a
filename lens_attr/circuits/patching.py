"""Activation patching, exact: every head, layer or position replaced in turn (Vig et al. 2020;
Meng et al. 2022; conventions of ``transformer_lens.patching``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_attr._version import versions
from lens_attr.circuits.aligned import (
    noting_equal_pairs,
    real_positions,
    real_tokens,
    refuse_misaligned,
    settled,
)
from lens_attr.circuits.checks import check_choice
from lens_attr.circuits.patch_result import PatchResult
from lens_attr.circuits.progress import bar
from lens_attr.circuits.replacement import Fill, Replacement, activations, keep
from lens_attr.circuits.scoring import Scorer
from lens_attr.circuits.units import points_of
from lens_attr.errors import InputError, UnsupportedModelError, checked_optional_count, give_notice
from lens_attr.graph import ModelGraph, Role, resolve
from lens_attr.graph.partial import (
    Unpadded,
    logits_of,
    read_streams,
    resume,
    rows_that_fit,
    without_padding,
)
from lens_attr.graph.tokens import Text, TokenBatch, tokenize
from lens_attr.targets import Resolved, Target, refuse_no_target

PatchUnit = Literal["head", "attn_out", "mlp_out", "resid", "q", "k", "v", "pattern"]
Mode = Literal["denoise", "noise"]
Source = Literal["other", "zero", "mean", "resample"]


@dataclass(frozen=True)
class Layout:
    """Where a unit stands, and which axes of its activation, after the examples, can be split.

    Attributes:
        role: whose activation is patched.
        dims: the axes of the activation after the example, by name; "" for what stays whole.
        whole: axes that are split unless positions are asked for.
        by_position: axes that are split when they are, in the order of ``transformer_lens``.
        positions: whether positions are split by default.
    """

    role: Role
    dims: tuple[str, ...]
    whole: tuple[str, ...]
    by_position: tuple[str, ...]
    positions: bool = False

    def axes(self, positions: bool | None) -> tuple[str, ...]:
        """The axes of a result, without the layer."""
        split = self.positions if positions is None else positions
        return self.by_position if split else self.whole


_VECTOR = ("pos", "head", "")
_STREAM = ("pos", "")
LAYOUTS: dict[PatchUnit, Layout] = {
    "head": Layout("z", _VECTOR, ("head",), ("pos", "head")),
    "attn_out": Layout("attn_out", _STREAM, (), ("pos",), positions=True),
    "mlp_out": Layout("mlp_out", _STREAM, (), ("pos",), positions=True),
    "resid": Layout("residual", _STREAM, (), ("pos",), positions=True),
    "q": Layout("q", _VECTOR, ("head",), ("pos", "head")),
    "k": Layout("k", _VECTOR, ("head",), ("pos", "head")),
    "v": Layout("v", _VECTOR, ("head",), ("pos", "head")),
    "pattern": Layout("pattern", ("head", "query", "key"), ("head",), ("head", "query")),
}


@torch.no_grad()
def patch(
    model: Any,
    clean: Text,
    corrupted: Text | None,
    target: Target,
    unit: PatchUnit = "head",
    mode: Mode = "denoise",
    *,
    source: Source = "other",
    positions: bool | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PatchResult:
    """Replace one activation at a time and measure the target: a causal effect, no estimate.

    Every cell is one intervention on all examples. The result equals one full forward per cell, to
    rounding: the cells of a layer go through the model together, what lies below the layer is
    computed once, and only the scored position is unembedded.

    Args:
        model: a TransformerLens model.
        clean: prompts on which the model does the task.
        corrupted: as many prompts that differ in what decides it, token for token as long; None
            to ablate the clean run.
        target: what is measured, of the clean prompts, e.g. ``la.LogitDiff(" are", " is")``.
        unit: ``"head"`` (z), ``"attn_out"``, ``"mlp_out"``, ``"resid"`` (the stream before a
            block), ``"q"``, ``"k"``, ``"v"`` (of key-value heads where they are fewer), or
            ``"pattern"``.
        mode: ``"denoise"`` puts clean activations into the corrupted run, ``"noise"`` corrupted
            ones into the clean run.
        source: put in something else instead: ``"zero"``, the ``"mean"`` over all examples and
            positions of the patched run, or the activation of another of its examples
            (``"resample"``). Without ``corrupted``, the mode must be ``"noise"``.
        positions: one cell per position; default: for ``attn_out``, ``mlp_out`` and ``resid``.
            Needs examples of one length. A pattern's position is that of its queries.
        batch_size: rows per forward; default: as many as fit in memory.
        seed: of resampling.
        progress: show a bar; default: no.

    Returns:
        Effects [layer, head], [layer, pos], [layer, pos, head], [layer, head, query] or [layer],
        as ``result.axes`` says.

    Raises:
        InputError: prompts that do not align, an unknown unit, mode or source, ...
        UnsupportedModelError: the model has no such activation, or computes with another one.
    """
    for name, value, known in (
        ("unit", unit, get_args(PatchUnit)),
        ("mode", mode, get_args(Mode)),
        ("source", source, get_args(Source)),
    ):
        check_choice(name, value, known)
    batch_size = checked_optional_count("batch_size", batch_size)
    graph = resolve(model)
    layout = LAYOUTS[unit]
    _refuse(graph, unit, mode, source, corrupted)
    base, other, resolved = _runs(graph, clean, corrupted, target, mode)
    axes = layout.axes(positions)
    if {"pos", "query"} & set(axes):
        _refuse_lengths(base)
    sweep = _Sweep(graph, base, other, resolved, layout, axes, source, batch_size, seed)
    total = len(base) * graph.n_layers * math.prod(sweep.sizes)
    with bar(f"patching {unit}", total, bool(progress)) as advance:
        per_example, unpatched = sweep.run(advance)
    for notice in resolved.notices:
        give_notice(notice)
    clean_run = other if mode == "denoise" and other is not None else base
    return PatchResult(
        per_example=per_example,
        unpatched=unpatched,
        other=None if other is None else sweep.unpatched(other),
        axes=("layer", *axes),
        unit=unit,
        mode=mode,
        source=source,
        target=list(resolved.labels),
        target_unit=resolved.unit,
        str_tokens=real_tokens(graph, base),
        clean_tokens=real_tokens(graph, clean_run),
        position=real_positions(clean_run.attention_mask, resolved.position),
        metadata=_metadata(graph, resolved, seed),
    )


def _metadata(graph: ModelGraph, target: Resolved, seed: int) -> dict[str, Any]:
    return {
        "model": graph.describe(),
        "seed": seed,
        "notices": list(target.notices),
        "versions": versions(),
    }


def _refuse(graph: ModelGraph, unit: str, mode: str, source: str, corrupted: Any) -> None:
    if unit == "pattern" and not graph.attention_in_graph:
        raise UnsupportedModelError(
            f"{graph.architecture} on {graph.backend} computes attention in Hugging Face code: "
            "its pattern can be read but not replaced. Patch q, k or v, or load it with another "
            "backend."
        )
    if unit == "pattern" and source in ("mean", "resample"):
        raise InputError(
            f"a pattern's positions are queries and keys, so source={source!r} has no meaning "
            'there: use "other" or "zero".'
        )
    if corrupted is None and (source == "other" or mode == "denoise"):
        raise InputError(
            "without corrupted prompts only the clean run can be ablated: pass mode='noise' and "
            "source='zero', 'mean' or 'resample'."
        )


def _runs(
    graph: ModelGraph, clean: Text, corrupted: Text | None, target: Target, mode: Mode
) -> tuple[TokenBatch, TokenBatch | None, Resolved]:
    """The run that is patched, the other one, and the target."""
    refuse_no_target(target)
    first = tokenize(graph, clean)
    copies = target.copies(first)
    first = first.rows([0] * copies) if copies != 1 else first
    resolved = settled(graph, first, target.resolve(graph, first))
    if corrupted is None:
        return first, None, resolved
    second = tokenize(graph, corrupted)
    second = second.rows([0] * copies) if copies != 1 and len(second) == 1 else second
    refuse_misaligned(first, second)
    resolved = noting_equal_pairs(resolved, first, second)
    if graph.is_masked_model:
        _refuse_moved_mask(resolved, target.resolve(graph, second))
    return (second, first, resolved) if mode == "denoise" else (first, second, resolved)


def _refuse_moved_mask(clean: Resolved, corrupted: Resolved) -> None:
    moved = (clean.position != corrupted.position).nonzero().flatten().tolist()
    if moved:
        raise InputError(f"row {moved[0]}: the mask stands elsewhere in the corrupted prompt.")


def _refuse_lengths(batch: TokenBatch) -> None:
    lengths = batch.lengths
    if len(set(lengths)) > 1:
        row = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise InputError(
            f"row {row} has {lengths[row]} tokens, row 0 has {lengths[0]}: effects by position "
            "are a mean over examples, so all need one length. Patch them apart, or pass "
            "positions=False."
        )


@dataclass(frozen=True)
class _Sweep:
    """All cells of one unit, on all examples."""

    graph: ModelGraph
    base: TokenBatch
    other: TokenBatch | None
    target: Resolved
    layout: Layout
    axes: tuple[str, ...]
    source: Source
    batch_size: int | None
    seed: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of each axis but the layer."""
        length = self.base.token_ids.shape[1]
        if "pos" in self.axes or "query" in self.axes:
            length = self.base.lengths[0]
        heads = self.graph.n_heads
        if self.layout.role in ("k", "v"):
            heads = getattr(self.graph.cfg, "n_key_value_heads", None) or heads
        known = {"pos": length, "query": length, "head": heads}
        return tuple(known[axis] for axis in self.axes)

    def run(
        self, advance: Callable[[int], None]
    ) -> tuple[Float[Tensor, "example layer *cell"], Float[Tensor, " example"]]:
        """Patched and unpatched target of every example."""
        cells = math.prod(self.sizes)
        patched = torch.zeros(len(self.base), self.graph.n_layers, cells, dtype=torch.float64)
        unpatched = torch.zeros(len(self.base), dtype=torch.float64)
        replacement = self._replacement()
        for group in without_padding(self.base):
            for part in group.split(self._rows(group)):
                streams, unpatched[part.index] = self._read(part)
                fills = replacement(part)
                for layer, fill in enumerate(fills):
                    scores = self._layer(layer, streams[layer], fill, part, advance)
                    patched[part.index, layer] = scores.T
        return patched.view(len(self.base), self.graph.n_layers, *self.sizes), unpatched

    def unpatched(self, batch: TokenBatch) -> Float[Tensor, " example"]:
        """The target of a run that nobody touches."""
        found = torch.zeros(len(batch), dtype=torch.float64)
        for group in without_padding(batch):
            for part in group.split(self._rows(group)):
                scorer = self._scorer(part)
                logits = logits_of(self.graph, part.token_ids, scorer.position(1))
                found[part.index] = scorer(logits, 1)[0]
        return found

    def _rows(self, group: Unpadded) -> int:
        return self.batch_size or rows_that_fit(self.graph, group.token_ids.shape[1])

    def _scorer(self, part: Unpadded) -> Scorer:
        return Scorer(self.target, part, self.base.token_ids.shape[1])

    def _replacement(self) -> Callable[[Unpadded], Sequence[Fill]]:
        """From some examples to what is put in, per layer."""
        if self.source == "other":
            return self._of_other_run
        made = Replacement(
            self.graph, self.base, self.layout.role, self.source, self.batch_size, self.seed
        )
        return lambda part: made.of(part.index)

    def _of_other_run(self, part: Unpadded) -> list[Tensor]:
        assert self.other is not None
        ids = self.other.token_ids[part.index][:, part.columns]
        return activations(self.graph, self.layout.role, Unpadded(part.index, part.columns, ids))

    def _read(self, part: Unpadded) -> tuple[dict[int, Tensor], Float[Tensor, " example"]]:
        """The stream before every block, and the unpatched target."""
        streams: dict[int, Tensor] = {}
        scorer = self._scorer(part)
        with ExitStack() as stack:
            layers = range(self.graph.n_layers)
            read_streams(self.graph, layers, partial(keep, streams), stack)
            logits = logits_of(self.graph, part.token_ids, scorer.position(1))
        return streams, scorer(logits, 1)[0]

    def _layer(
        self,
        layer: int,
        stream: Float[Tensor, "example pos d_model"],
        fill: Fill,
        part: Unpadded,
        advance: Callable[[int], None],
    ) -> Float[Tensor, "cell example"]:
        """Every cell of one layer, as many together as fit."""
        cells, n = math.prod(self.sizes), len(part.index)
        forwards = math.ceil(cells / max(1, self._rows(part) // n))
        at_once = math.ceil(cells / forwards)
        point = points_of(self.graph, self.layout.role)[layer]
        scorer, found = self._scorer(part), []
        for first in range(0, cells, at_once):
            copies = min(at_once, cells - first)
            where = self._where(first, copies).to(stream.device)
            put = partial(_put, where, n, fill)
            rows = stream.repeat(copies, 1, 1)
            with ExitStack() as stack:
                if self.layout.role == "residual":  # where `resume` puts its stream anyway
                    rows = put(rows)
                else:
                    self._attend_once(layer, n, stack)
                    point.on_forward(put, stack)
                logits = resume(self.graph, rows, layer, part.token_ids, scorer.position(copies))
            found.append(scorer(logits, copies))
            advance(copies * n)
        return torch.cat(found)

    def _attend_once(self, layer: int, n: int, stack: ExitStack) -> None:
        """Up to z all copies are equal: attention sees one of them, and `_put` makes the others."""
        if self.layout.role == "z":
            for point in self.graph.attention_input(layer):
                point.on_forward(lambda stream: stream[:n], stack)

    def _where(self, first: int, copies: int) -> Bool[Tensor, "cell 1 *dims"]:
        """Which part of the activation each of some cells replaces, ready to broadcast."""
        cells = math.prod(self.sizes)
        chosen = torch.arange(first, first + copies)[:, None] == torch.arange(cells)
        split = [axis for axis in self.layout.dims if axis in self.axes]
        where = chosen.view(copies, *self.sizes)
        where = where.permute(0, *(1 + self.axes.index(axis) for axis in split))
        shape = [
            self.sizes[self.axes.index(axis)] if axis in self.axes else 1
            for axis in self.layout.dims
        ]
        return where.reshape(copies, 1, *shape)


def _put(where: Bool[Tensor, "cell 1 *dims"], n: int, fill: Fill, activation: Tensor) -> Tensor:
    """The activation [cell x example, ...] with one cell replaced in each copy.

    ``activation`` holds as many copies of the ``n`` examples, or one for all.
    """
    copies = activation.unflatten(0, (-1, n))
    if copies.ndim != where.ndim:
        raise UnsupportedModelError(
            f"the activation has shape {list(activation.shape)}, which has no such parts."
        )
    fill = fill.to(activation) if isinstance(fill, Tensor) else fill
    return torch.where(where, fill, copies).flatten(0, 1)
