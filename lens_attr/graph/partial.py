"""Forwards that restart in the middle: many variants of one input without its unchanged prefix.

`TransformerLens` restarts a HookedTransformer with ``start_at_layer``. The Bridge either refuses
it (3.9) or still executes the blocks below (4.x), and HookedEncoder has none. There, the blocks
below run on a single row, and the stream of all rows is put in where it is wanted: masks and
positions of one row hold for every row of the same length, so this is exact as well (the tests
compare every family and backend), and the prefix costs one row instead of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_attr.graph.model import ModelGraph
from lens_attr.graph.tokens import TokenBatch

CPU_BYTES, CPU_TOKENS = 16 * 2**20, 1024
"""On a CPU a forward holds activations of so many bytes, which its cache can hold, but at least so
many tokens, so that reading the weights does not dominate."""
GPU_SHARE = 0.4
"""Of the free memory of a GPU."""


@dataclass(frozen=True)
class Unpadded:
    """Rows of a batch whose real tokens stand in the same columns, without the other columns.

    Attributes:
        index: which rows of the batch.
        columns: which columns of the batch.
        token_ids: their ids; every token is real.
    """

    index: list[int]
    columns: Int[Tensor, " pos"]
    token_ids: Int[Tensor, "row pos"]

    def local(self, position: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Positions in the padded batch as positions here."""
        return torch.searchsorted(self.columns, position)

    def split(self, size: int) -> Iterator[Unpadded]:
        """The same, ``size`` rows at a time."""
        for start in range(0, len(self.index), size):
            part = slice(start, start + size)
            yield Unpadded(self.index[part], self.columns, self.token_ids[part])


def without_padding(batch: TokenBatch) -> list[Unpadded]:
    """The batch as groups that need no attention mask, shortest first."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for row, mask in enumerate(batch.attention_mask.tolist()):
        groups.setdefault(tuple(mask), []).append(row)
    found = []
    for mask, index in sorted(groups.items(), key=lambda group: sum(group[0])):
        columns = torch.tensor(mask, device=batch.token_ids.device).nonzero().flatten()
        found.append(Unpadded(index, columns, batch.token_ids[index][:, columns]))
    return found


def rows_that_fit(graph: ModelGraph, length: int) -> int:
    """How many rows of ``length`` tokens one forward may hold without gradients, at least 1."""
    cfg = graph.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    floats = length * (12 * cfg.d_model + 4 * d_mlp + 4 * graph.n_heads * length) + graph.d_vocab
    row = floats * graph.dtype.itemsize
    if graph.device.type == "cuda":
        return max(1, int(GPU_SHARE * torch.cuda.mem_get_info(graph.device)[0]) // row)
    return max(1, CPU_BYTES // row, CPU_TOKENS // length)


def logits_of(
    graph: ModelGraph,
    token_ids: Int[Tensor, "row pos"],
    position: Int[Tensor, " row"] | None,
) -> Tensor:
    """Logits of rows without padding: [row, d_vocab] at one position each, or [row, pos, d_vocab].

    Every token counts as real, whatever its id.
    """
    with ExitStack() as stack:
        _narrow(graph, position, stack)
        logits = graph.forward(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    return logits if position is None else logits[:, 0]


def resume(
    graph: ModelGraph,
    stream: Float[Tensor, "row pos d_model"],
    layer: int,
    token_ids: Int[Tensor, "any pos"],
    position: Int[Tensor, " row"] | None,
) -> Tensor:
    """Logits when ``stream`` enters block ``layer``; what lies below is not computed again.

    Args:
        graph: the model.
        stream: the residual stream before the block, read by a forward hook on the ``residual``
            role, of rows without padding.
        layer: index of the block, from 0.
        token_ids: rows of the same length; only their number of tokens matters.
        position: the scored position of each row, None for all.

    Returns:
        [row, d_vocab], or [row, pos, d_vocab] where ``position`` is None.
    """
    entry = graph.points("residual")[layer]
    with ExitStack() as stack:
        # Also on HookedTransformer: a hook of the user's at this point has acted on `stream`
        # already when it was read, and would act again.
        entry.on_forward(lambda _: stream, stack)
        _narrow(graph, position, stack)
        logits = _from(graph, stream, layer, token_ids[:1])
    return logits if position is None else logits[:, 0]


def _from(graph: ModelGraph, stream: Tensor, layer: int, one_row: Tensor) -> Tensor:
    """A forward with as little as possible below ``layer``."""
    if graph.backend == "HookedTransformer":
        real = torch.ones((1, stream.shape[1]), dtype=torch.long, device=stream.device)
        return graph.run(stream, start_at_layer=layer, attention_mask=real)
    with ExitStack() as stack:
        for point in (point for below in range(layer) for point in graph.branches(below)):
            point.on_forward(lambda activation: activation[:, :1], stack)
        return graph.forward(one_row, torch.ones_like(one_row, dtype=torch.bool))


def _narrow(graph: ModelGraph, position: Int[Tensor, " row"] | None, stack: ExitStack) -> None:
    """Unembed one position of each row only, and run what can run on it alone on it alone."""
    if position is None:
        return
    rows = torch.arange(len(position), device=position.device)

    def scored(activation: Tensor) -> Tensor:
        return activation if activation.shape[1] == 1 else activation[rows, position][:, None]

    for point in (*graph.branches(graph.n_layers - 1), *graph.points("unembed_in")):
        point.on_forward(scored, stack)


Reader = Callable[[int, Tensor], None]


def read_streams(graph: ModelGraph, layers: Sequence[int], read: Reader, stack: ExitStack) -> None:
    """Call ``read(layer, stream)`` with the residual stream before each of some blocks."""
    points = graph.points("residual")
    for layer in layers:
        points[layer].on_forward(_reader(layer, read), stack)


def _reader(layer: int, read: Reader) -> Callable[[Tensor], None]:
    return lambda stream: read(layer, stream.detach())
