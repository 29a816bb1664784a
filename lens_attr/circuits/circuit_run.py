"""A forward in which some edges carry what another run wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_attr.circuits.stream import Anatomy, Change, Outputs, scaled_z
from lens_attr.graph.weights import Reader


@contextmanager
def patched_edges(
    parts: Anatomy,
    other: Outputs,
    outside: Bool[Tensor, "source receiver"],
    mask: Bool[Tensor, "batch pos"],
) -> Iterator[None]:
    """Forwards inside run with the edges in ``outside`` carrying what ``other`` wrote."""
    with ExitStack() as stack:
        _PatchedRun(parts, other, outside, mask).attach(stack)
        yield


class _PatchedRun:
    """The hooks of one run: sources are compared as they write, receivers patched as they read.

    The model's own stream is the sum of all sources of this run, so a receiver that reads other
    values gains what the change of its stream gains it; receivers with every edge inside are left
    alone.
    """

    def __init__(self, parts: Anatomy, other: Outputs, outside: Tensor, mask: Tensor) -> None:
        self.parts, self.other, self.mask = parts, other, mask
        self.outside = outside.to(parts.dtype)
        self.change: Change | None = None
        self.stream: Tensor | None = None
        self.gains: dict[str, Tensor] = {}

    def attach(self, stack: ExitStack) -> None:
        """Attach them until ``stack`` closes."""
        graph = self.parts.graph
        *entries, last = graph.points("residual")
        for layer, point in enumerate(entries):
            point.on_forward(partial(self._enter, layer), stack)
        for layer, point in enumerate(graph.points("z")):
            point.on_forward(partial(self._heads, layer), stack)
        for layer, point in enumerate(graph.points("attn_out")):
            point.on_forward(partial(self._between, layer), stack)
        for layer, point in enumerate(graph.points("mlp_out")):
            point.on_forward(partial(self._mlp, layer), stack)
        for reader in (reader for block in self.parts.readers for reader in block):
            for projection in reader.projections:
                name = projection.point.name
                projection.point.on_forward(partial(self._gain, name), stack)
        last.on_forward(self._leave, stack)

    def _rows(self, activation: Tensor) -> Tensor:
        return activation[self.mask].to(self.parts.dtype)

    def _enter(self, layer: int, stream: Tensor) -> None:
        self.stream = self._rows(stream)
        if layer == 0:
            moved = self.other.embedding[self.mask] - self.stream
            self.change = Change(moved, [], [], self.parts.head_weights)
        self._prepare(reader for reader in self.parts.readers[layer] if not reader.after_attention)

    def _heads(self, layer: int, z: Tensor) -> None:
        own = scaled_z(self.parts.writers[layer], z.to(self.parts.dtype))[self.mask]
        assert self.change is not None
        self.change.z.append(self.other.z[layer][self.mask] - own)

    def _between(self, layer: int, attention: Tensor) -> None:
        assert self.stream is not None
        self.stream = self.stream + self._rows(attention)
        self._prepare(reader for reader in self.parts.readers[layer] if reader.after_attention)

    def _mlp(self, layer: int, out: Tensor) -> None:
        assert self.change is not None
        self.change.mlp.append(self.other.mlp[layer][self.mask] - self._rows(out))

    def _prepare(self, readers: Iterable[Reader]) -> None:
        """What each projection of some readers of the present stream will gain."""
        assert self.change is not None and self.stream is not None
        for reader in readers:
            n, columns = self.parts.n_visible(reader), self.parts.columns(reader)
            weights = self.outside[:n, columns]
            if not bool(weights.any()):
                continue
            pieces: list[list[Tensor]] = []
            for rows in self.change.chunks(reader.n_units):
                moved = self.change.in_stream(rows, n)
                moved = torch.einsum("su,snd->nud", weights, moved)
                pieces.append(reader.push(self.stream[rows], moved))
            for projection, gained in zip(
                reader.projections, zip(*pieces, strict=True), strict=True
            ):
                self.gains[projection.point.name] = torch.cat(gained)

    def _gain(self, name: str, activation: Tensor) -> Tensor | None:
        gained = self.gains.pop(name, None)
        if gained is None:
            return None
        new = activation.clone()
        new[self.mask] += gained.view(-1, *new.shape[2:]).to(new.dtype)
        return new

    def _leave(self, stream: Tensor) -> Tensor | None:
        assert self.change is not None
        weights = self.outside[:, -1]
        if not bool(weights.any()):
            return None
        new = stream.clone()
        pieces = [
            torch.einsum("s,snd->nd", weights, self.change.in_stream(rows, len(weights)))
            for rows in self.change.chunks(1)
        ]
        new[self.mask] += torch.cat(pieces).to(new.dtype)
        return new
