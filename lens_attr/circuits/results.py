"""What the circuit tools return: rankings and pruning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.circuits.saved import Saved, numbers
from lens_attr.circuits.units import Unit
from lens_attr.display import Glance, Shown

if TYPE_CHECKING:
    import plotly.graph_objects as go


def _evenly(n: int) -> list[int]:
    """About ten indices from the first to the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, display.MOST_ROWS + 1)})


Head = tuple[int, int]
"""(layer, head); of MLPs (layer, 0), of neurons (layer, neuron)"""


@dataclass(frozen=True, repr=False)
class Ranking(Shown, Saved):
    """Heads (or MLPs, or neurons) ordered by a score, least relevant first.

    Attributes:
        scores: score of each head; of MLPs one column, of neurons one per neuron.
        method: what gave the score, e.g. ``"attnlrp"`` or ``"random seed 3"``.
        pool: the pooling behind the score (`Pool`), empty for random rankings.
        n: number of samples the score is a mean over.
        unit: ``"head"``, ``"mlp"`` or ``"neuron"``.
    """

    FILE: ClassVar = "ranking.json"

    scores: Float[NDArray[np.float64], "layer unit"]
    method: str
    pool: str = ""
    n: int = 0
    unit: Unit = "head"

    @property
    def order(self) -> list[Head]:
        """(layer, head) pairs, least relevant first; ties keep layer-head order."""
        flat = np.argsort(self.scores, axis=None, kind="stable")
        layers, heads = np.unravel_index(flat, self.scores.shape)
        return [(int(layer), int(head)) for layer, head in zip(layers, heads, strict=True)]

    @property
    def headline(self) -> str:
        """What is ranked by what."""
        unit = display.count(self.scores.size, self.unit)
        return f"{unit} by {self.method}" + (f", mean of {self.n} samples" if self.n else "")

    def glance(self) -> Glance:
        """The units of highest score."""
        return Glance(self.headline, table=self.to_pandas()[::-1].head(display.MOST_ROWS))

    def to_pandas(self) -> pd.DataFrame:
        """One row per unit, least relevant first: layer, head, score, rank (0 = least).

        The second column is called after the unit; MLPs, one per layer, have none.
        """
        rows = [(layer, unit, self.scores[layer, unit]) for layer, unit in self.order]
        frame = pd.DataFrame(rows, columns=["layer", self.unit, "score"])
        frame = frame.drop(columns="mlp", errors="ignore")
        return frame.assign(rank=range(len(frame)), method=self.method, pool=self.pool)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> Ranking:
        """The result whose fields json knows as ``content``."""
        return cls(**{**content, **numbers(content, "scores")})


@dataclass(frozen=True, repr=False)
class PruningCurve(Shown):
    """Accuracy while heads (or other units) are removed; step 0 is the whole model.

    Attributes:
        accuracy: share of samples whose answer is above the foil, after each step.
        logit_diff: mean logit(answer) - logit(foil), after each step.
        pruned: the heads in the order in which they are removed.
        method: the ranking's method.
        order: ``"least"`` or ``"most"`` relevant first.
        ablation: ``"zero"``, ``"mean"`` or ``"resample"``: what replaces them at all positions.
        n: number of samples.
        unit: ``"head"``, ``"mlp"`` or ``"neuron"``.
        counts: how many are removed at each step; None for one at a time.
    """

    accuracy: Float[NDArray[np.float64], " step"]
    logit_diff: Float[NDArray[np.float64], " step"]
    pruned: Sequence[Head]
    method: str
    order: Literal["least", "most"] = "least"
    ablation: Literal["zero", "mean", "resample"] = "zero"
    n: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unit: Unit = "head"
    counts: Sequence[int] | None = None

    @property
    def fraction(self) -> Float[NDArray[np.float64], " step"]:
        """Share of heads removed after each step, from 0 to 1."""
        return np.array(self._counts) / self._counts[-1]

    @property
    def _counts(self) -> Sequence[int]:
        return range(len(self.accuracy)) if self.counts is None else self.counts

    @property
    def last_pruned(self) -> list[Head | None]:
        """The head removed last before each step is measured, None for the whole model."""
        return [self.pruned[count - 1] if count else None for count in self._counts]

    @property
    def area(self) -> float:
        """Area under accuracy against fraction pruned (trapezoid); between 0 and 1."""
        return float(np.trapezoid(self.accuracy, self.fraction))

    @property
    def headline(self) -> str:
        """Area, and how it was pruned."""
        what = f"{self.order} relevant {self.unit}s first, {self.ablation} ablation"
        return f"{self.method}: area {self.area:.3f}, {what}, {display.count(self.n, 'sample')}"

    def glance(self) -> Glance:
        """About ten steps of the curve."""
        return Glance(self.headline, table=self.to_pandas().iloc[_evenly(len(self.accuracy)), 3:])

    def to_pandas(self) -> pd.DataFrame:
        """One row per step: step, fraction, layer, head (the head just removed), accuracy, ...

        Step counts the removed units; the head's column is called after the unit.
        """
        layers = [last and last[0] for last in self.last_pruned]
        units = [last and last[1] for last in self.last_pruned]
        frame = pd.DataFrame(
            {
                "method": self.method,
                "order": self.order,
                "ablation": self.ablation,
                "step": self._counts,
                "fraction": self.fraction,
                "layer": pd.array(layers, dtype="Int64"),
                self.unit: pd.array(units, dtype="Int64"),
                "accuracy": self.accuracy,
                "logit_diff": self.logit_diff,
            }
        )
        return frame.drop(columns="mlp", errors="ignore")

    def plot(self, **options: Any) -> go.Figure:
        """The curve alone; see `PruningComparison.plot` for methods against random."""
        return display.figure_of("pruning", PruningComparison(curves=[self]), **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> PruningCurve:
        """The curve whose fields json knows as ``content``."""
        pruned = [(int(layer), int(unit)) for layer, unit in content["pruned"]]
        measured = numbers(content, "accuracy", "logit_diff")
        return cls(**{**content, **measured, "pruned": pruned})


@dataclass(frozen=True, repr=False)
class PruningComparison(Shown, Saved):
    """Several rankings pruned on the same samples, with random orders as the yardstick.

    Attributes:
        curves: one curve per ranking.
        random: one curve per random seed, empty when none was asked for.
    """

    FILE: ClassVar = "pruning.json"

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

    @property
    def headline(self) -> str:
        """How many rankings, how many random orders."""
        n = display.count(len(self.curves), "ranking")
        return f"{n} pruned, beside {display.count(len(self.random), 'random order')}"

    def glance(self) -> Glance:
        """The summary."""
        return Glance(self.headline, table=self.summary())

    def to_pandas(self) -> pd.DataFrame:
        """Every step of every curve, the random ones included."""
        return pd.concat([c.to_pandas() for c in (*self.curves, *self.random)], ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Accuracy against fraction pruned, every method, random as a band."""
        return display.figure_of("pruning", self, **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> PruningComparison:
        """The result whose fields json knows as ``content``."""
        curves = {
            name: [PruningCurve.of_plain(curve) for curve in content[name]] for name in content
        }
        return cls(**curves)
