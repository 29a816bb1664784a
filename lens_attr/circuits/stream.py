"""The residual stream taken apart: what every source writes, in head space.

A head's output is z W_O. Only z is ever stored for all heads; [source, position, d_model] exists
for a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lens_attr.circuits.aligned import masked
from lens_attr.circuits.wiring import Wiring
from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import ModelGraph, Role
from lens_attr.graph.tokens import TokenBatch
from lens_attr.graph.weights import (
    AttentionOutput,
    Reader,
    attention_output,
    has_mlps,
    is_parallel,
    readers,
)
from lens_attr.targets import Resolved

CHUNK_FLOATS = 2**22
"""Numbers in one piece of [source, position, d_model]."""

TOLERANCE = {torch.float16: 0.05, torch.bfloat16: 0.1}
"""How far the sum of all outputs may be from the stream, relative; 1e-3 in other dtypes."""


@dataclass(frozen=True)
class Anatomy:
    """A model as a circuit: its wiring, and the weights on both sides of every edge.

    Attributes:
        graph: the model.
        wiring: which edges exist.
        readers: everything that reads the stream, block by block.
        writers: the output of every block's attention.
        head_weights: [head, d_head, d_model] of every block, norms behind it included.
    """

    graph: ModelGraph
    wiring: Wiring
    readers: list[list[Reader]]
    writers: list[AttentionOutput]
    head_weights: list[Float[Tensor, "head d_head d_model"]]

    @property
    def dtype(self) -> torch.dtype:
        """Of everything computed here: at least float32."""
        return torch.promote_types(self.graph.dtype, torch.float32)

    def n_visible(self, reader: Reader) -> int:
        """How many sources a reader can see, see `Wiring.n_visible`."""
        return self.wiring.n_visible(self.wiring.receivers[self.columns(reader).start])

    def columns(self, reader: Reader) -> slice:
        """The receivers that the units of a reader are."""
        return self.wiring.columns(reader.kind, reader.layer)


def anatomy(graph: ModelGraph) -> Anatomy:
    """Wiring and weights of a model.

    Raises:
        UnsupportedModelError: what its blocks read is no sum of earlier outputs.
    """
    layers = range(graph.n_layers)
    every = [readers(graph, layer) for layer in layers]
    writers = [attention_output(graph, layer) for layer in layers]
    for writer in writers:
        if writer.norm is not None and bool((writer.bias != 0).any()):
            raise UnsupportedModelError(
                "this model has an output bias before a norm behind attention, so the outputs of "
                "its heads do not sum to that of the block."
            )
    wiring = Wiring(
        n_layers=graph.n_layers,
        n_heads=graph.n_heads,
        n_kv_heads=every[0][1].n_units,
        mlps=has_mlps(graph),
        parallel=is_parallel(graph),
    )
    dtype = torch.promote_types(graph.dtype, torch.float32)
    return Anatomy(graph, wiring, every, writers, [w.linear_weight(dtype) for w in writers])


def scaled_z(
    writer: AttentionOutput, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos head d_head"]:
    """z, divided by the scale of the norm behind attention where there is one (Gemma).

    With the scale of its own run a head's output is linear in z, and the outputs of all heads
    still sum to that of the block.
    """
    if writer.norm is None:
        return z
    out = torch.einsum("bthk,hkd->btd", z, writer.weight.to(z.dtype))
    return z / writer.norm.sigma(out)[..., None]


@dataclass
class Outputs:
    """What every source wrote in one run, and the streams that were read.

    Attributes:
        z: of every block, see `scaled_z`.
        mlp: output of every block's MLP, empty for attention-only models.
        before: the stream before every block, and after the last.
        attention: output of every block's attention.
    """

    z: list[Float[Tensor, "batch pos head d_head"]] = field(default_factory=list)
    mlp: list[Float[Tensor, "batch pos d_model"]] = field(default_factory=list)
    before: list[Float[Tensor, "batch pos d_model"]] = field(default_factory=list)
    attention: list[Float[Tensor, "batch pos d_model"]] = field(default_factory=list)

    @property
    def embedding(self) -> Float[Tensor, "batch pos d_model"]:
        """The stream before the first block."""
        return self.before[0]

    def read_by(self, reader: Reader) -> Float[Tensor, "batch pos d_model"]:
        """The stream that a reader reads."""
        stream = self.before[reader.layer]
        return stream + self.attention[reader.layer] if reader.after_attention else stream


def listen(parts: Anatomy, batch: TokenBatch, stack: ExitStack) -> Outputs:
    """Outputs that fill when the model next runs on ``batch``; zero on padding."""
    found, mask = Outputs(), batch.attention_mask

    def keep(into: list[Tensor], activation: Tensor) -> None:
        into.append(masked(activation.detach().to(parts.dtype), mask))

    def keep_z(layer: int, z: Tensor) -> None:
        kept = scaled_z(parts.writers[layer], z.detach().to(parts.dtype))
        found.z.append(masked(kept, mask))

    graph = parts.graph
    for layer, point in enumerate(graph.points("z")):
        point.on_forward(lambda z, layer=layer: keep_z(layer, z), stack)
    wanted: list[tuple[Role, list[Tensor]]] = [
        ("residual", found.before),
        ("attn_out", found.attention),
        ("mlp_out", found.mlp),
    ]
    for role, into in wanted:
        for point in graph.points(role):
            point.on_forward(lambda out, into=into: keep(into, out), stack)
    return found


@torch.no_grad()
def outputs_of(parts: Anatomy, batch: TokenBatch, target: Resolved) -> Outputs:
    """Run the model on a batch and keep what every source wrote."""
    with ExitStack() as stack:
        found = listen(parts, batch, stack)
        parts.graph.logits_at(batch.token_ids, batch.padding_mask, target.position)
    refuse_unexplained(parts, found)
    return found


def refuse_unexplained(parts: Anatomy, found: Outputs) -> None:
    """Raise unless the outputs of all sources and the output biases sum to the stream.

    Raises:
        UnsupportedModelError: something else writes to the stream, so edges would miss it.
    """
    total = found.embedding + sum(found.mlp)
    for z, weight, writer in zip(found.z, parts.head_weights, parts.writers, strict=True):
        total = total + torch.einsum("bthk,hkd->btd", z, weight)
        total = total + writer.bias.to(total.dtype)
    real = found.before[-1].abs().sum(dim=-1) > 0
    gap = (total - found.before[-1])[real].abs().max() / found.before[-1].abs().max()
    if not float(gap) <= TOLERANCE.get(parts.graph.dtype, 1e-3):
        raise UnsupportedModelError(
            f"the outputs of heads and MLPs of this {parts.graph.architecture} on "
            f"{parts.graph.backend} do not sum to its residual stream (relative gap "
            f"{float(gap):.2g}), so its edges cannot be scored. A forward hook that edits an "
            "activation has this effect too: remove it (model.reset_hooks())."
        )


@dataclass(frozen=True)
class Change:
    """What every source writes in one run minus what it writes in another, at some rows.

    Attributes:
        embedding: of the input.
        z: of every block, scaled as in `scaled_z`.
        mlp: of every block's MLP.
        weights: see `Anatomy.head_weights`.
    """

    embedding: Float[Tensor, "row d_model"]
    z: list[Float[Tensor, "row head d_head"]]
    mlp: list[Float[Tensor, "row d_model"]]
    weights: list[Float[Tensor, "head d_head d_model"]]

    def chunks(self, extra: int) -> Iterator[slice]:
        """Rows to work on at a time, with ``extra`` vectors per row beside the sources."""
        rows, width = self.embedding.shape
        vectors = 1 + sum(z.shape[1] for z in self.z) + len(self.mlp) + extra
        size = max(1, CHUNK_FLOATS // (vectors * width))
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def only(self, row: int) -> Change:
        """The same at one row, and nothing at the others."""

        def alone(value: Tensor) -> Tensor:
            kept = torch.zeros_like(value)
            kept[row] = value[row]
            return kept

        return replace(
            self,
            embedding=alone(self.embedding),
            z=[alone(z) for z in self.z],
            mlp=[alone(mlp) for mlp in self.mlp],
        )

    def in_stream(self, rows: slice, n: int) -> Float[Tensor, "source row d_model"]:
        """The first ``n`` sources' change of the stream, at some rows."""
        parts = [self.embedding[None, rows]]
        for layer, z in enumerate(self.z):
            if sum(map(len, parts)) >= n:
                break
            parts.append(torch.einsum("nhk,hkd->hnd", z[rows], self.weights[layer]))
            parts += [self.mlp[layer][None, rows]] if layer < len(self.mlp) else []
        return torch.cat(parts)[:n]


def change(parts: Anatomy, new: Outputs, old: Outputs, mask: Tensor) -> Change:
    """New minus old at the real positions, as [row, ...] with rows in order of (batch, pos)."""
    minus = [(a - b)[mask] for a, b in zip(new.z, old.z, strict=True)]
    mlps = [(a - b)[mask] for a, b in zip(new.mlp, old.mlp, strict=True)]
    return Change((new.embedding - old.embedding)[mask], minus, mlps, parts.head_weights)
