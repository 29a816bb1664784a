"""`Circuit`: some of the edges of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.circuits.results import Head
from lens_attr.circuits.saved import Saved, plain
from lens_attr.circuits.wiring import Node, Wiring
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError

if TYPE_CHECKING:
    import networkx
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class Circuit(Shown, Saved):
    """Some edges of a model; everything else counts as corrupted.

    Attributes:
        wiring: what the rows and columns are.
        kept: True where the edge belongs to the circuit.
        scores: score of each edge, 0 where none is known.
        metadata: where the circuit comes from.
    """

    FILE: ClassVar = "circuit.json"

    wiring: Wiring
    kept: Bool[NDArray[np.bool_], "source receiver"]
    scores: Float[NDArray[np.float64], "source receiver"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of_edges(wiring: Wiring, edges: Iterable[tuple[str, str]]) -> Circuit:
        """A circuit by the names of its edges, e.g. ``("a0.h0", "a1.h0<k>")``.

        Raises:
            InputError: an edge that the model does not have.
        """
        kept = np.zeros_like(wiring.exists)
        for source, target in edges:
            kept[wiring.edge(source, target)] = True
        return Circuit(wiring, kept, np.zeros(kept.shape))

    @staticmethod
    def whole(wiring: Wiring) -> Circuit:
        """Every edge of the model."""
        return Circuit(wiring, wiring.exists.copy(), np.zeros(wiring.exists.shape))

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def edges(self) -> list[tuple[str, str]]:
        """(source, target) names, in order of the forward pass."""
        sources, receivers = self.wiring.sources, self.wiring.receivers
        return [(sources[i].name, receivers[j].name) for i, j in np.argwhere(self.kept)]

    @property
    def nodes(self) -> list[Node]:
        """Every node at either end of an edge, in order of the forward pass, logits last.

        A key or value shared by several heads stands for those of them that write to the circuit.
        """
        writing = {self.wiring.sources[i] for i in np.flatnonzero(self.kept.any(axis=1))}
        read = [self.wiring.receivers[j] for j in np.flatnonzero(self.kept.any(axis=0))]
        single = {node for receiver in read if len(receiver.nodes) == 1 for node in receiver.nodes}
        known = writing | single
        order = [*self.wiring.sources, Node("logits")]
        return [node for node in order if node in known]

    @property
    def heads(self) -> list[Head]:
        """(layer, head) of every head of the circuit, as in ``prune`` and ``patch``."""
        found = [(node.layer, node.head) for node in self.nodes if node.kind == "head"]
        return [(int(layer or 0), int(head or 0)) for layer, head in found]

    @property
    def pruned(self) -> Circuit:
        """Without what cannot matter: edges on no path from the input to the logits.

        A node that reads nothing but corrupted values gives its corrupted output, so the circuit
        behaves the same without the edges that leave it.
        """
        kept = self.kept
        while True:
            smaller = _without_dangling(self.wiring, kept)
            if (smaller == kept).all():
                return Circuit(self.wiring, kept, self.scores, self.metadata)
            kept = smaller

    @property
    def headline(self) -> str:
        """Its size."""
        edges = f"{len(self)} of {display.count(self.wiring.n_edges, 'edge')}"
        return f"{edges}, {display.count(len(self.heads), 'head')}"

    def glance(self) -> Glance:
        """The edges of largest score."""
        return Glance(self.headline, table=self.to_pandas().head(display.MOST_ROWS))

    def to_pandas(self) -> pd.DataFrame:
        """One row per edge: source, target, score."""
        return edge_frame(self.wiring, self.kept, self.scores)

    def nodes_to_pandas(self) -> pd.DataFrame:
        """One row per node: name, kind, layer, head."""
        rows = [(node.name, node.kind, node.layer, node.head) for node in self.nodes]
        frame = pd.DataFrame(rows, columns=["name", "kind", "layer", "head"])
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def to_networkx(self) -> networkx.MultiDiGraph:
        """A ``networkx.MultiDiGraph`` of nodes; edges carry ``port`` (q, k, v, ...) and ``score``.

        Raises:
            InputError: networkx is not installed.
        """
        try:
            import networkx
        except ImportError as error:
            raise InputError(
                "networkx is not installed: pip install 'lens-attr[networkx]'."
            ) from error
        graph = networkx.MultiDiGraph()
        for node in self.nodes:
            graph.add_node(node.name, kind=node.kind, layer=node.layer, head=node.head)
        here = set(self.nodes)
        for i, j in np.argwhere(self.kept):
            receiver = self.wiring.receivers[j]
            for node in receiver.nodes:
                if node in here or len(receiver.nodes) == 1:
                    score = float(self.scores[i, j])
                    graph.add_edge(
                        self.wiring.sources[i].name, node.name, port=receiver.kind, score=score
                    )
        return graph

    def _as_plain(self) -> dict[str, Any]:
        edges = [[*edge, float(self.scores[self.wiring.edge(*edge)])] for edge in self.edges]
        nodes = [node.name for node in self.nodes]
        rest = {"wiring": plain(self.wiring), "metadata": plain(self.metadata)}
        return rest | {"edges": edges, "nodes": nodes}

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> Circuit:
        """The circuit that json knows as ``content``; edges outside of it score 0."""
        wiring = Wiring(**content["wiring"])
        circuit = cls.of_edges(wiring, [(source, target) for source, target, _ in content["edges"]])
        for source, target, score in content["edges"]:
            circuit.scores[wiring.edge(source, target)] = score
        return cls(wiring, circuit.kept, circuit.scores, content["metadata"])

    def plot(self, **options: Any) -> go.Figure:
        """Nodes layer by layer from the bottom up; the width of an edge is its score."""
        return display.figure_of("circuit", self, **options)


def edge_frame(
    wiring: Wiring, kept: NDArray[np.bool_], scores: NDArray[np.float64]
) -> pd.DataFrame:
    """One row per edge, largest score first: source, target, score."""
    rows, columns = np.nonzero(kept)
    values = scores[rows, columns]
    order = np.argsort(-np.abs(values), kind="stable")
    return pd.DataFrame(
        {
            "source": [wiring.sources[i].name for i in rows[order]],
            "target": [wiring.receivers[j].name for j in columns[order]],
            "score": values[order],
        }
    )


def _without_dangling(wiring: Wiring, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One round: drop edges from nodes that read nothing, and into nodes that nobody reads."""
    fed = {Node("input")}
    for j in np.flatnonzero(kept.any(axis=0)):
        fed.update(wiring.receivers[j].nodes)
    heard = {wiring.sources[i] for i in np.flatnonzero(kept.any(axis=1))} | {Node("logits")}
    rows = np.array([node in fed for node in wiring.sources])
    columns = np.array([any(node in heard for node in r.nodes) for r in wiring.receivers])
    return kept & rows[:, None] & columns[None]


def known_edges(known: Circuit | Sequence[tuple[str, str]], wiring: Wiring) -> NDArray[np.bool_]:
    """A known circuit as a mask over the edges of a model.

    Raises:
        InputError: a circuit of another model, or an edge that the model does not have.
    """
    if not isinstance(known, Circuit):
        known = Circuit.of_edges(wiring, known)
    if known.wiring != wiring:
        raise InputError("the known circuit belongs to a model of another shape.")
    return known.kept
