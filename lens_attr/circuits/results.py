"""What the circuit tools return: rankings and pruning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display

if TYPE_CHECKING:
    import plotly.graph_objects as go

Head = tuple[int, int]
"""(layer, head)"""


@dataclass(frozen=True)
class Ranking:
    """Heads ordered by a score, least relevant first.

    Attributes:
        scores: score of each head.
        method: what gave the score, e.g. ``"attnlrp"`` or ``"random seed 3"``.
        pool: the pooling behind the score (`Pool`), empty for random rankings.
        n: number of samples the score is a mean over.
    """

    scores: Float[NDArray[np.float64], "layer head"]
    method: str
    pool: str = ""
    n: int = 0

    @property
    def order(self) -> list[Head]:
        """(layer, head) pairs, least relevant first; ties keep layer-head order."""
        flat = np.argsort(self.scores, axis=None, kind="stable")
        layers, heads = np.unravel_index(flat, self.scores.shape)
        return [(int(layer), int(head)) for layer, head in zip(layers, heads, strict=True)]

    def to_pandas(self) -> pd.DataFrame:
        """One row per head, least relevant first: layer, head, score, rank (0 = least)."""
        rows = [(layer, head, self.scores[layer, head]) for layer, head in self.order]
        frame = pd.DataFrame(rows, columns=["layer", "head", "score"])
        return frame.assign(rank=range(len(frame)), method=self.method, pool=self.pool)


@dataclass(frozen=True)
class PruningCurve:
    """Accuracy while heads are removed one at a time; step 0 is the whole model.

    Attributes:
        accuracy: share of samples whose answer is above the foil, after each step.
        logit_diff: mean logit(answer) - logit(foil), after each step.
        pruned: the head removed at each step (one shorter than the curve).
        method: the ranking's method.
        order: ``"least"`` or ``"most"`` relevant first.
        ablation: ``"zero"`` or ``"mean"``: what replaces z at all positions.
        n: number of samples.
    """

    accuracy: Float[NDArray[np.float64], " step"]
    logit_diff: Float[NDArray[np.float64], " step"]
    pruned: Sequence[Head]
    method: str
    order: Literal["least", "most"] = "least"
    ablation: Literal["zero", "mean"] = "zero"
    n: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fraction(self) -> Float[NDArray[np.float64], " step"]:
        """Share of heads removed after each step, from 0 to 1."""
        return np.linspace(0.0, 1.0, len(self.accuracy))

    @property
    def area(self) -> float:
        """Area under accuracy against fraction pruned (trapezoid); between 0 and 1."""
        return float(np.trapezoid(self.accuracy, self.fraction))

    def to_pandas(self) -> pd.DataFrame:
        """One row per step: step, fraction, layer, head (the head just removed), accuracy, ..."""
        layers = [None, *(layer for layer, _ in self.pruned)]
        heads = [None, *(head for _, head in self.pruned)]
        return pd.DataFrame(
            {
                "method": self.method,
                "order": self.order,
                "ablation": self.ablation,
                "step": range(len(self.accuracy)),
                "fraction": self.fraction,
                "layer": pd.array(layers, dtype="Int64"),
                "head": pd.array(heads, dtype="Int64"),
                "accuracy": self.accuracy,
                "logit_diff": self.logit_diff,
            }
        )

    def plot(self, **options: Any) -> go.Figure:
        """The curve alone; see `PruningComparison.plot` for methods against random."""
        return display.figure_of("pruning", PruningComparison(curves=[self]), **options)


@dataclass(frozen=True)
class PruningComparison:
    """Several rankings pruned on the same samples, with random orders as the yardstick.

    Attributes:
        curves: one curve per ranking.
        random: one curve per random seed, empty when none was asked for.
    """

    curves: Sequence[PruningCurve]
    random: Sequence[PruningCurve] = ()

    @property
    def random_areas(self) -> Float[NDArray[np.float64], " seed"]:
        """Area of each random curve."""
        return np.array([curve.area for curve in self.random])

    def summary(self) -> pd.DataFrame:
        """One row per method, best area first: method, area, and random mean, std and best.

        ``above_random`` is True where the area is above the best random order and above the
        random mean + 2 standard deviations.
        """
        areas = self.random_areas
        spread = float(areas.std(ddof=1)) if len(areas) > 1 else 0.0
        rows = []
        for curve in self.curves:
            row: dict[str, Any] = {"method": curve.method, "area": curve.area, "n": curve.n}
            if len(areas):
                bar = max(areas.max(), areas.mean() + 2 * spread)
                row |= {
                    "random_mean": areas.mean(),
                    "random_std": spread,
                    "random_best": areas.max(),
                    "above_random": bool(curve.area > bar),
                }
            rows.append(row)
        return pd.DataFrame(rows).sort_values("area", ascending=False, ignore_index=True)

    def to_pandas(self) -> pd.DataFrame:
        """Every step of every curve, the random ones included."""
        return pd.concat([c.to_pandas() for c in (*self.curves, *self.random)], ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Accuracy against fraction pruned, every method, random as a band."""
        return display.figure_of("pruning", self, **options)
