"""`SelfRepair`: exact single and joint ablations of attention scores, and what methods predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.circuits.saved import Saved, tables
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

THRESHOLDS = (0.01, 0.1, 1.0)
INTERCHANGEABLE = 0.5
"""Two keys count as interchangeable when more than this share of their joint effect is missing
from the sum of their single effects."""

ROW = ["example", "layer", "head", "query"]


@dataclass(frozen=True, repr=False)
class SelfRepair(Shown, Saved):
    """What happens when scores of a (head, query) row are ablated one by one and together.

    Effects are the target after an ablation minus before.

    Attributes:
        singles: one row per key: example, layer, head, query, key, strength (p * dL/dp), effect,
            and per method ``<method>``, the effect it predicts.
        pairs: one row per pair of candidate keys: example, layer, head, query, key_1, key_2,
            strength (the smaller of the two), effect_1, effect_2, effect_both, and per method the
            predicted joint effect.
        methods: names of the methods.
        replace: ``"mean"`` or ``"-inf"``.
        n_skipped: pairs left out because their joint effect is below 1e-6.
        n_dropped: candidate keys left out because a row had more than its limit.
        shape: layers and heads of the model.
        unit: unit of the target.
        metadata: facts about the call.
        target: what was measured, in words, one per example.
        str_tokens: the tokens of each example, padding included.
        position: the explained position of each example.
    """

    FILE: ClassVar = "self_repair.json"

    singles: pd.DataFrame
    pairs: pd.DataFrame
    methods: Sequence[str]
    replace: str
    n_skipped: int
    n_dropped: int
    shape: tuple[int, int]
    unit: str = "logit"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    target: Sequence[str] = ()
    str_tokens: Sequence[Sequence[str]] = ()
    position: Sequence[int] = ()

    @property
    def headline(self) -> str:
        """How many pairs were ablated."""
        pairs = f"{display.count(len(self.pairs), 'pair')} of keys"
        return f"{pairs}, {self.replace} ablation, in {self.unit}; {self.n_skipped} without effect"

    def glance(self) -> Glance:
        """Each method against exact ablation."""
        return Glance(self.headline, table=self.agreement())

    def to_pandas(self) -> pd.DataFrame:
        """The pairs, with their interaction (D_both - D_1 - D_2) / D_both.

        1: either key alone changes nothing (full self-repair, an OR-gate); 0: effects add up;
        negative: one is as good as both (an AND-gate gives -1).
        """
        pairs = self.pairs
        missing = pairs.effect_both - pairs.effect_1 - pairs.effect_2
        return pairs.assign(interaction=missing / pairs.effect_both)

    def per_head(
        self, threshold: float = THRESHOLDS[0]
    ) -> Float[NDArray[np.float64], "layer head"]:
        """Mean interaction of every head's candidate pairs; NaN where there is none."""
        found = np.full(self.shape, np.nan)
        chosen = self.to_pandas().query("strength > @threshold")
        means = chosen.groupby(["layer", "head"], as_index=False).interaction.mean()
        found[means["layer"], means["head"]] = means["interaction"]
        return found

    def groups(self, threshold: float = THRESHOLDS[0]) -> pd.DataFrame:
        """Groups of interchangeable keys: one row each, with its row, its keys and its size.

        Two candidate keys are linked when their interaction is above `INTERCHANGEABLE`; a group
        is everything linked together.
        """
        rows = []
        chosen = self.to_pandas().query("strength > @threshold and interaction > @INTERCHANGEABLE")
        for _, pairs in chosen.groupby(ROW):
            links = list(zip(pairs.key_1, pairs.key_2, strict=True))
            row = [int(pairs[name].iloc[0]) for name in ROW]
            rows += [(*row, keys, len(keys)) for keys in _components(links)]
        return pd.DataFrame(rows, columns=[*ROW, "keys", "size"])

    def group_counts(self, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
        """One row per threshold: rows with pairs, groups, groups per row, mean and largest size."""
        found = []
        for threshold in thresholds:
            groups = self.groups(threshold)
            rows = len(self.pairs.query("strength > @threshold").drop_duplicates(ROW))
            found.append(
                {
                    "threshold": threshold,
                    "rows": rows,
                    "groups": len(groups),
                    "groups_per_row": len(groups) / rows if rows else float("nan"),
                    "mean_size": groups["size"].mean(),
                    "largest": groups["size"].max() if len(groups) else 0,
                }
            )
        return pd.DataFrame(found)

    def distribution(self, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
        """How many groups have so many keys, and how many rows with pairs so many groups.

        Columns: threshold, what (``"keys in a group"``, ``"groups in a row"``), value, count.
        """
        found = []
        for threshold in thresholds:
            groups = self.groups(threshold)
            rows = self.pairs.query("strength > @threshold").drop_duplicates(ROW)
            every = pd.MultiIndex.from_arrays([rows[name] for name in ROW], names=ROW)
            of_rows = groups.groupby(ROW).size().reindex(every).fillna(0)
            for what, values in (("keys in a group", groups["size"]), ("groups in a row", of_rows)):
                for value, count in values.astype(int).value_counts().sort_index().items():
                    found.append((threshold, what, value, int(count)))
        return pd.DataFrame(found, columns=["threshold", "what", "value", "count"])

    def aggregation(self, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
        """Predicted against exact joint effects: one row per threshold and method.

        Columns: n pairs, ratio (predicted / exact, median), under and over (share of pairs where
        less than half, or more than twice, of the exact effect is predicted), error (mean
        absolute).
        """
        found = []
        for threshold in thresholds:
            pairs = self.pairs.query("strength > @threshold")
            for method in self.methods:
                ratio = pairs[method] / pairs.effect_both
                found.append(
                    {
                        "threshold": threshold,
                        "method": method,
                        "n": len(pairs),
                        "ratio": ratio.median(),
                        "under": (ratio < 0.5).mean() if len(pairs) else float("nan"),
                        "over": (ratio > 2.0).mean() if len(pairs) else float("nan"),
                        "error": (pairs[method] - pairs.effect_both).abs().mean(),
                    }
                )
        return pd.DataFrame(found)

    def agreement(self) -> pd.DataFrame:
        """Each method against exact ablation: Pearson and Spearman, single keys and pairs."""
        found = []
        for method in self.methods:
            single, joint = self.singles, self.pairs
            found.append(
                {
                    "method": method,
                    "pearson_single": single[method].corr(single.effect),
                    "spearman_single": single[method].rank().corr(single.effect.rank()),
                    "pearson_joint": joint[method].corr(joint.effect_both),
                    "spearman_joint": joint[method].rank().corr(joint.effect_both.rank()),
                    "n_single": len(single),
                    "n_joint": len(joint),
                }
            )
        return pd.DataFrame(found)

    def plot(self, **options: Any) -> go.Figure:
        """Joint against summed effects of every pair; see ``lens_attr.plots.self_repair``."""
        return display.figure_of("self_repair", self, **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> SelfRepair:
        """The result whose fields json knows as ``content``."""
        layers, heads = content["shape"]
        read = tables(content, "singles", "pairs")
        return cls(**{**content, **read, "shape": (layers, heads)})


def _components(links: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    groups: list[set[int]] = []
    for a, b in links:
        touched = [group for group in groups if a in group or b in group]
        groups = [group for group in groups if group not in touched]
        groups.append({int(a), int(b)}.union(*touched))
    return [tuple(sorted(group)) for group in groups]


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Raise unless there is one and all are numbers of at least 0.

    Raises:
        InputError: ...
    """
    if not thresholds or not all(t >= 0 for t in thresholds):
        raise InputError(f"thresholds must be numbers of at least 0, got {list(thresholds)}.")
