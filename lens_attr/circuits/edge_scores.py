"""`EdgeScores`: what every edge is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.circuits.circuit import Circuit, edge_frame
from lens_attr.circuits.files import read_json, write_json
from lens_attr.circuits.wiring import Wiring
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, SavedResultError, did_you_mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

Ordering = Literal["absolute", "signed"]
"""``"absolute"``: largest effect first, whatever its sign. ``"signed"``: the edges first whose
corruption lowers the target most, those whose corruption raises it last."""

ORDERINGS: tuple[Ordering, ...] = get_args(Ordering)


@dataclass(frozen=True, repr=False)
class EdgeScores(Shown):
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

    def save(self, directory: str | Path) -> Path:
        """Write ``edges.json`` into ``directory``."""
        content = {
            "wiring": asdict(self.wiring),
            "scores": self.scores.tolist(),
            "by_position": None if self.by_position is None else self.by_position.tolist(),
            "method": self.method,
            "unit": self.unit,
            "n": self.n,
            "metadata": dict(self.metadata),
        }
        return write_json(Path(directory), "edges.json", content)

    @staticmethod
    def load(directory: str | Path) -> EdgeScores:
        """Read what `save` wrote.

        Raises:
            SavedResultError: missing, truncated, or of an unknown format.
        """
        content = read_json(Path(directory), "edges.json")
        try:
            wiring = Wiring(**content.pop("wiring"))
            scores = np.array(content.pop("scores"), dtype=np.float64)
            positions = content.pop("by_position")
            by_position = None if positions is None else np.array(positions, dtype=np.float64)
            if scores.shape != wiring.exists.shape:
                raise SavedResultError(
                    f"{directory}/edges.json: scores and wiring differ in shape."
                )
            return EdgeScores(wiring, scores, by_position=by_position, **content)
        except (KeyError, TypeError, ValueError) as error:
            raise SavedResultError(f"{directory}/edges.json is no saved EdgeScores.") from error

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
