"""`EdgeScores`: what every edge is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.circuits.circuit import Circuit, edge_frame
from lens_attr.circuits.saved import Saved, numbers
from lens_attr.circuits.wiring import Wiring
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

Ordering = Literal["absolute", "signed"]
"""``"absolute"``: largest effect first, whatever its sign. ``"signed"``: the edges first whose
corruption lowers the target most, those whose corruption raises it last."""

ORDERINGS: tuple[Ordering, ...] = get_args(Ordering)


@dataclass(frozen=True, repr=False)
class EdgeScores(Shown, Saved):
    """Predicted or measured change of the target when an edge carries its corrupted value.

    Attributes:
        wiring: what the rows and columns are.
        scores: mean over samples, in units of the target; 0 where there is no edge.
        method: what gave them.
        unit: unit of the target.
        n: number of samples.
        by_position: the same per position of the stream, if asked for; to look at, for circuits
            are of whole edges.
        metadata: facts about the call.
    """

    FILE: ClassVar = "edges.json"

    wiring: Wiring
    scores: Float[NDArray[np.float64], "source receiver"]
    method: str
    unit: str = "logit"
    n: int = 0
    by_position: Float[NDArray[np.float64], "source receiver pos"] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, edge: tuple[str, str]) -> float:
        return float(self.scores[self.wiring.edge(*edge)])

    def importance(
        self, ordering: Ordering = "absolute"
    ) -> Float[NDArray[np.float64], "source receiver"]:
        """The scores so that more is more important, -inf where there is no edge.

        Raises:
            InputError: unknown ordering.
        """
        check_ordering(ordering)
        chosen = np.abs(self.scores) if ordering == "absolute" else -self.scores
        return np.where(self.wiring.exists, chosen, -np.inf)

    @property
    def headline(self) -> str:
        """What scored how many edges."""
        edges = display.count(self.wiring.n_edges, "edge")
        return f"{edges} by {self.method}, in {self.unit}, {display.count(self.n, 'sample')}"

    def glance(self) -> Glance:
        """The edges of largest effect."""
        return Glance(self.headline, table=self.to_pandas().head(display.MOST_ROWS))

    def to_pandas(self) -> pd.DataFrame:
        """One row per edge, largest effect first: source, target, score, method."""
        frame = edge_frame(self.wiring, self.wiring.exists, self.scores)
        return frame.assign(method=self.method)

    def positions_to_pandas(self) -> pd.DataFrame:
        """One row per edge and position: source, target, score, pos, method.

        Raises:
            InputError: the scores were not kept per position.
        """
        if self.by_position is None:
            raise InputError("scores per position were not kept: pass per_position=True.")
        frames = [
            edge_frame(self.wiring, self.wiring.exists, self.by_position[..., pos]).assign(pos=pos)
            for pos in range(self.by_position.shape[-1])
        ]
        return pd.concat(frames, ignore_index=True).assign(method=self.method)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> EdgeScores:
        """The result whose fields json knows as ``content``."""
        wiring = Wiring(**content["wiring"])
        positions = content["by_position"]
        read = numbers(content, "scores", *([] if positions is None else ["by_position"]))
        if read["scores"].shape != wiring.exists.shape:
            raise ValueError("scores and wiring differ in shape.")
        return cls(**{**content, **read, "wiring": wiring})

    def plot(self, n: int = 40, **options: Any) -> go.Figure:
        """The ``n`` edges of largest effect."""
        importance = self.importance()
        kept = importance >= np.sort(importance, axis=None)[-min(n, self.wiring.n_edges)]
        largest = Circuit(self.wiring, kept, self.scores, {"method": self.method})
        return display.figure_of("circuit", largest, **options)


def check_ordering(ordering: str) -> None:
    """Raise on an unknown ordering.

    Raises:
        InputError: ...
    """
    if ordering not in ORDERINGS:
        raise InputError(f"unknown ordering {ordering!r}; {did_you_mean(str(ordering), ORDERINGS)}")
