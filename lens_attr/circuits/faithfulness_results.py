"""What running circuits gives: one evaluation, a curve over sizes, and several curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.circuits.edge_scores import Ordering
from lens_attr.circuits.extraction import By
from lens_attr.circuits.saved import Saved, numbers
from lens_attr.display import Glance, Shown

if TYPE_CHECKING:
    import plotly.graph_objects as go

Axis = Literal["fraction", "percentage"]


@dataclass(frozen=True, repr=False)
class CircuitEvaluation(Shown, Saved):
    """A circuit against the whole model and against none of it.

    Attributes:
        circuit: the target when only the circuit's edges carry clean values, per sample.
        clean: the target of the clean run.
        corrupted: the target (same tokens) of the corrupted run.
        n_edges: edges of the circuit.
        n_edges_model: edges of the whole model.
        unit: unit of the target.
    """

    FILE: ClassVar = "evaluation.json"

    circuit: Float[NDArray[np.float64], " sample"]
    clean: Float[NDArray[np.float64], " sample"]
    corrupted: Float[NDArray[np.float64], " sample"]
    n_edges: int
    n_edges_model: int
    unit: str = "logit"

    @property
    def faithfulness(self) -> float:
        """(m(circuit) - m(empty)) / (m(model) - m(empty)) with m the mean over samples.

        1: as good as the model, 0: as bad as the corrupted run; NaN where those are equal.
        """
        whole = float(self.clean.mean() - self.corrupted.mean())
        found = float(self.circuit.mean() - self.corrupted.mean())
        return found / whole if whole else float("nan")

    @property
    def fraction(self) -> float:
        """Share of the model's edges that the circuit has."""
        return self.n_edges / self.n_edges_model

    @property
    def headline(self) -> str:
        """Faithfulness and size."""
        edges = f"{self.n_edges} of {display.count(self.n_edges_model, 'edge')}"
        return f"faithfulness {self.faithfulness:.3f} with {edges}"

    def glance(self) -> Glance:
        """The means behind it."""
        return Glance(self.headline, table=self.to_pandas())

    def to_pandas(self) -> pd.DataFrame:
        """One row: faithfulness, circuit, model, corrupted (means), n_edges, fraction, n."""
        row = {
            "faithfulness": self.faithfulness,
            "circuit": self.circuit.mean(),
            "model": self.clean.mean(),
            "corrupted": self.corrupted.mean(),
            "n_edges": self.n_edges,
            "fraction": self.fraction,
            "n": len(self.circuit),
        }
        return pd.DataFrame([row])

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> CircuitEvaluation:
        """The result whose fields json knows as ``content``."""
        return cls(**{**content, **numbers(content, "circuit", "clean", "corrupted")})


@dataclass(frozen=True, repr=False)
class FaithfulnessCurve(Shown):
    """Faithfulness of circuits of growing size, all from one ranking of edges.

    Attributes:
        percentages: of the model's edges that were chosen, ascending.
        evaluations: one per percentage.
        method: what ranked the edges.
        by: ``"top"`` or ``"greedy"``.
        ordering: ``"absolute"`` or ``"signed"``.
        axis: what CPR and CMD integrate over: ``"fraction"``, the share of edges that the circuit
            really has, or ``"percentage"``, the fixed one.
        metadata: facts about the call.
    """

    percentages: Sequence[float]
    evaluations: Sequence[CircuitEvaluation]
    method: str
    by: By = "top"
    ordering: Ordering = "absolute"
    axis: Axis = "fraction"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def faithfulness(self) -> Float[NDArray[np.float64], " size"]:
        """f of every circuit, see `CircuitEvaluation.faithfulness`."""
        return np.array([evaluation.faithfulness for evaluation in self.evaluations])

    @property
    def x(self) -> Float[NDArray[np.float64], " size"]:
        """Where each circuit stands on the chosen axis, from 0 to 1."""
        if self.axis == "percentage":
            return np.array(self.percentages) / 100
        return np.array([evaluation.fraction for evaluation in self.evaluations])

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: integral of f over the axis, trapezoid (MIB).

        NaN where all circuits are of one size on the axis, so that there is nothing to integrate.
        """
        return self._integral(self.faithfulness)

    @property
    def cmd(self) -> float:
        """Circuit-model distance: integral of |1 - f| over the axis, trapezoid (MIB).

        NaN where CPR is.
        """
        return self._integral(np.abs(1 - self.faithfulness))

    def _integral(self, heights: Float[NDArray[np.float64], " size"]) -> float:
        x = self.x
        return float(np.trapezoid(heights, x)) if x.min() < x.max() else float("nan")

    @property
    def headline(self) -> str:
        """Its integrals, and over which axis they are."""
        how = f"{self.method}, {self.by}, {self.ordering}"
        if np.isnan(self.cpr):
            return f"{how}: circuits of one size, so neither CPR nor CMD"
        return f"{how}: CPR {self.cpr:.3f}, CMD {self.cmd:.3f} over the {self.axis} of edges"

    def glance(self) -> Glance:
        """Every size."""
        return Glance(self.headline, table=self.to_pandas())

    def to_pandas(self) -> pd.DataFrame:
        """One row per size: method, axis, percentage, n_edges, fraction, faithfulness, ..."""
        rows = pd.concat([e.to_pandas() for e in self.evaluations], ignore_index=True)
        rows.insert(0, "percentage", list(self.percentages))
        rows.insert(0, "axis", self.axis)
        rows.insert(0, "ordering", self.ordering)
        rows.insert(0, "by", self.by)
        rows.insert(0, "method", self.method)
        return rows

    def plot(self, **options: Any) -> go.Figure:
        """The curve alone; see `FaithfulnessComparison.plot` for methods against random."""
        return display.figure_of("faithfulness", FaithfulnessComparison([self]), **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> FaithfulnessCurve:
        """The curve whose fields json knows as ``content``."""
        evaluations = [*map(CircuitEvaluation.of_plain, content["evaluations"])]
        return cls(**{**content, "evaluations": evaluations})


@dataclass(frozen=True, repr=False)
class FaithfulnessComparison(Shown, Saved):
    """Several rankings of edges on the same samples, with random orders as the yardstick.

    Attributes:
        curves: one per ranking.
        random: one per random seed, empty when none was asked for.
    """

    FILE: ClassVar = "faithfulness.json"

    curves: Sequence[FaithfulnessCurve]
    random: Sequence[FaithfulnessCurve] = ()

    def summary(self) -> pd.DataFrame:
        """One row per method, best CPR first: method, by, ordering, axis, cpr, cmd, random means.

        The axis is what CPR and CMD integrate over, see `FaithfulnessCurve`.
        """
        columns = ("method", "by", "ordering", "axis", "cpr", "cmd")
        rows: list[dict[str, Any]] = [
            {name: getattr(curve, name) for name in columns} for curve in self.curves
        ]
        for row in rows if self.random else ():
            row["random_cpr"] = float(np.mean([c.cpr for c in self.random]))
            row["random_cmd"] = float(np.mean([c.cmd for c in self.random]))
        return pd.DataFrame(rows).sort_values("cpr", ascending=False, ignore_index=True)

    @property
    def headline(self) -> str:
        """How many rankings, how many random orders."""
        n = display.count(len(self.curves), "ranking")
        return f"{n} of edges, beside {display.count(len(self.random), 'random order')}"

    def glance(self) -> Glance:
        """The summary."""
        return Glance(self.headline, table=self.summary())

    def to_pandas(self) -> pd.DataFrame:
        """Every size of every curve, the random ones included."""
        return pd.concat([c.to_pandas() for c in (*self.curves, *self.random)], ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Faithfulness against circuit size, every method, random as a band."""
        return display.figure_of("faithfulness", self, **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> FaithfulnessComparison:
        """The result whose fields json knows as ``content``."""
        return cls(**{name: [*map(FaithfulnessCurve.of_plain, content[name])] for name in content})
