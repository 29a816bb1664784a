"""Which nodes a circuit can have, and which of them can feed which.

Sources write to the residual stream: ``input``, heads ``a0.h1``, MLPs ``m0``. Receivers read it:
queries, keys and values of heads, ``a1.h0<q>``, MLPs, and ``logits``. On grouped-query models the
keys and values belong to a group of heads and are called ``a1.kv0<k>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from lens_attr.errors import InputError, did_you_mean

NodeKind = Literal["input", "head", "mlp", "logits"]
ReceiverKind = Literal["q", "k", "v", "mlp", "logits"]


@dataclass(frozen=True)
class Node:
    """A node of a circuit.

    Attributes:
        kind: what it is.
        layer: index of the block, None for input and logits.
        head: index of the head, None for the others.
    """

    kind: NodeKind
    layer: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        """``input``, ``a0.h1``, ``m0``, ``logits``."""
        if self.kind == "head":
            return f"a{self.layer}.h{self.head}"
        return f"m{self.layer}" if self.kind == "mlp" else self.kind


@dataclass(frozen=True)
class Receiver:
    """An input of a node, or of the heads that share it.

    Attributes:
        kind: query, key, value, or the whole input of an MLP or of the logits.
        layer: index of the block, None for logits.
        unit: index of the head or key-value head, 0 otherwise.
        name: as in tables.
        nodes: the nodes it belongs to.
    """

    kind: ReceiverKind
    layer: int | None
    unit: int
    name: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Wiring:
    """The complete graph of a model: every edge that exists.

    Attributes:
        n_layers: blocks.
        n_heads: query heads per block.
        n_kv_heads: key-value heads per block.
        mlps: False for attention-only models.
        parallel: attention and MLP of a block read the same stream (GPT-J, GPT-NeoX).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlps: bool = True
    parallel: bool = False

    @cached_property
    def sources(self) -> tuple[Node, ...]:
        """Everything that writes to the residual stream, in order of the forward pass."""
        found = [Node("input")]
        for layer in range(self.n_layers):
            found += [Node("head", layer, head) for head in range(self.n_heads)]
            found += [Node("mlp", layer)] if self.mlps else []
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        """Everything that reads it, block by block: queries, keys, values, MLP; then logits."""
        found = []
        for layer in range(self.n_layers):
            found += [self._query(layer, head) for head in range(self.n_heads)]
            for kind in ("k", "v"):
                found += [self._key_value(kind, layer, unit) for unit in range(self.n_kv_heads)]
            if self.mlps:
                node = Node("mlp", layer)
                found.append(Receiver("mlp", layer, 0, node.name, (node,)))
        return (*found, Receiver("logits", None, 0, "logits", (Node("logits"),)))

    def _query(self, layer: int, head: int) -> Receiver:
        node = Node("head", layer, head)
        return Receiver("q", layer, head, f"{node.name}<q>", (node,))

    def _key_value(self, kind: Literal["k", "v"], layer: int, unit: int) -> Receiver:
        group = self.n_heads // self.n_kv_heads
        heads = range(unit * group, (unit + 1) * group)
        name = f"a{layer}.h{unit}" if group == 1 else f"a{layer}.kv{unit}"
        nodes = tuple(Node("head", layer, head) for head in heads)
        return Receiver(kind, layer, unit, f"{name}<{kind}>", nodes)

    def n_visible(self, receiver: Receiver) -> int:
        """How many of the sources, counted from the first, the receiver can read."""
        if receiver.layer is None:
            return len(self.sources)
        before_block = 1 + receiver.layer * (self.n_heads + int(self.mlps))
        after_attention = receiver.kind == "mlp" and not self.parallel
        return before_block + (self.n_heads if after_attention else 0)

    @cached_property
    def exists(self) -> Bool[NDArray[np.bool_], "source receiver"]:
        """True where there is an edge."""
        visible = np.array([self.n_visible(receiver) for receiver in self.receivers])
        return np.arange(len(self.sources))[:, None] < visible[None]

    @cached_property
    def n_edges(self) -> int:
        """Number of edges of the whole model."""
        return int(self.exists.sum())

    @cached_property
    def source_index(self) -> dict[str, int]:
        """Row of each source by name."""
        return {node.name: i for i, node in enumerate(self.sources)}

    @cached_property
    def receiver_index(self) -> dict[str, int]:
        """Column of each receiver by name."""
        return {receiver.name: i for i, receiver in enumerate(self.receivers)}

    def edge(self, source: str, target: str) -> tuple[int, int]:
        """Row and column of an edge.

        Raises:
            InputError: no such node, or the target comes before the source.
        """
        for name, known in ((source, self.source_index), (target, self.receiver_index)):
            if name not in known:
                raise InputError(f"there is no {name!r} in this model; {did_you_mean(name, known)}")
        row, column = self.source_index[source], self.receiver_index[target]
        if not self.exists[row, column]:
            raise InputError(f"{target} cannot read {source}: it does not come before it.")
        return row, column

    def columns(self, kind: ReceiverKind, layer: int | None) -> slice:
        """The receivers of one kind in one block, which stand together."""
        found = [i for i, r in enumerate(self.receivers) if (r.kind, r.layer) == (kind, layer)]
        return slice(found[0], found[-1] + 1)
