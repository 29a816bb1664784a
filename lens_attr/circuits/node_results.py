"""`NodeScores`: attribution patching of heads, neurons, positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.circuits.results import Ranking
from lens_attr.circuits.saved import Saved, numbers
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class NodeScores(Shown, Saved):
    """Predicted change of the target when a node takes its corrupted value.

    Attributes:
        scores: mean over samples, in units of the target; [layer], [layer, index] and, if asked
            for, a last axis of positions.
        unit: what the nodes are, as in ``patch``, or ``"neuron"``.
        axes: names of the axes of ``scores``.
        method: what gave them.
        target_unit: unit of the target.
        n: number of samples.
        metadata: facts about the call.
        target: what is explained, in words, one per example.
        str_tokens: the tokens of the clean prompts, without padding.
        position: the explained position in them, one per example.
    """

    FILE: ClassVar = "nodes.json"

    scores: Float[NDArray[np.float64], ...]
    unit: str
    axes: tuple[str, ...]
    method: str
    target_unit: str = "logit"
    n: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    target: Sequence[str] = ()
    str_tokens: Sequence[Sequence[str]] = ()
    position: Sequence[int] = ()

    @property
    def headline(self) -> str:
        """What scored how many nodes."""
        nodes = display.count(self.scores.size, self.unit)
        return f"{nodes} by {self.method} patching, in {self.target_unit}"

    def glance(self) -> Glance:
        """The nodes of largest effect."""
        return Glance(self.headline, table=self.to_pandas().head(display.MOST_ROWS))

    def to_pandas(self) -> pd.DataFrame:
        """One row per node, largest effect first: a column per axis, score, method."""
        index = np.indices(self.scores.shape).reshape(len(self.axes), -1)
        columns = dict(zip(self.axes, index, strict=True))
        frame = pd.DataFrame({**columns, "score": self.scores.ravel(), "method": self.method})
        order = np.argsort(-frame["score"].abs().to_numpy(), kind="stable")
        return frame.iloc[order].reset_index(drop=True)

    @property
    def ranking(self) -> Ranking:
        """Heads by the size of their effect, as ``prune`` takes them.

        Raises:
            InputError: the nodes are no heads, or split by position.
        """
        if self.axes != ("layer", "head") or self.unit in ("k", "v"):
            raise InputError(f"a ranking of heads needs scores of heads, not {self.unit!r}.")
        return Ranking(np.abs(self.scores), f"{self.method} patching", self.unit, self.n)

    def plot(self, **options: Any) -> go.Figure:
        """Layer by head, or layer by position; see `lens_attr.plots.nodes`.

        Raises:
            InputError: neurons, which are too many; heads by position without their ``layer``.
        """
        return display.figure_of("nodes", self, **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> NodeScores:
        """The result whose fields json knows as ``content``."""
        axes = tuple(content["axes"])
        return cls(**{**content, **numbers(content, "scores"), "axes": axes})
