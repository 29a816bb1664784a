"""Attention relevance against exact ablation of the same attention scores, singly and in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.attribution import Relevance
from lens_attr.circuits.agreement import pearson, ranks
from lens_attr.circuits.checks import check_kind, check_same
from lens_attr.circuits.saved import Saved, tables
from lens_attr.circuits.self_repair_results import ROW, SelfRepair
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, repr=False)
class ScoreAgreement(Shown, Saved):
    """Relevance of attention scores beside what ablating them does.

    Attributes:
        singles: one row per score: example, layer, head, query, key, ``exact`` (the target before
            minus after its ablation, so that it has the sign of an attribution), and per method
            its relevance.
        pairs: one row per pair of scores of one attention row: example, layer, head, query,
            key_1, key_2, ``exact`` (of ablating both), and per method the sum of both relevances.
        methods: names of the methods.
        replace: what an ablated score became, see `self_repair`.
        str_tokens: the tokens of each example, padding included.
        unit: unit of the effect.
        metadata: of the ablation.
    """

    FILE: ClassVar = "score_agreement.json"

    singles: pd.DataFrame
    pairs: pd.DataFrame
    methods: Sequence[str]
    replace: str
    str_tokens: list[list[str]]
    unit: str = "logit"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """What is compared with what."""
        scores = display.count(len(self.singles), "attention score")
        return f"relevance of {scores} against exact {self.replace} ablation"

    def glance(self) -> Glance:
        """One row per method."""
        return Glance(self.headline, table=self.to_pandas())

    def to_pandas(self) -> pd.DataFrame:
        """One row per method, best Spearman of single scores first.

        Columns: method, pearson_single, spearman_single, pearson_joint, spearman_joint, n_single,
        n_joint. A correlation is missing where one side is constant.
        """
        rows = []
        for method in self.methods:
            row: dict[str, Any] = {"method": method}
            for what, table in (("single", self.singles), ("joint", self.pairs)):
                exact, found = table["exact"].to_numpy(float), table[method].to_numpy(float)
                some = len(table) > 0
                row[f"pearson_{what}"] = pearson(found, exact) if some else float("nan")
                row[f"spearman_{what}"] = (
                    pearson(ranks(found), ranks(exact)) if some else float("nan")
                )
            rows.append(row | {"n_single": len(self.singles), "n_joint": len(self.pairs)})
        return pd.DataFrame(rows).sort_values("spearman_single", ascending=False, ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Exact effect and every method, layer and head by key; `lens_attr.plots.score_map`."""
        return display.figure_of("score_map", self, **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> ScoreAgreement:
        """The result whose fields json knows as ``content``."""
        return cls(**{**content, **tables(content, "singles", "pairs")})


def score_agreement(
    relevance: Relevance | Mapping[str, Relevance], ablated: SelfRepair
) -> ScoreAgreement:
    """Compare attention relevance, score x gradient, with exact ablation of the same scores.

    Explain the texts and the target that were ablated, with ``record=["scores"]``. Relevance
    speaks of a score against zero, ablation of the score against its replacement, so ranks compare
    better than values; the predictions inside `self_repair` speak of the replacement too.

    Args:
        relevance: a result, or several by name.
        ablated: from `self_repair`.

    Raises:
        InputError: no relevance, scores that were not recorded, other texts, another target or
            another explained position.
    """
    check_kind("ablated", ablated, SelfRepair, "la.circuits.self_repair(...) makes one")
    named = relevance if isinstance(relevance, Mapping) else {relevance.method: relevance}
    if not named:
        raise InputError("give at least one relevance.")
    singles = ablated.singles[[*ROW, "key"]].assign(exact=-ablated.singles.effect)
    keys = [*ROW, "key_1", "key_2"]
    pairs = ablated.pairs[keys].assign(exact=-ablated.pairs.effect_both)
    for name, one in named.items():
        if name in (*singles, *pairs):
            raise InputError(f"{name!r} names a column, or two methods: call it otherwise.")
        scores = _scores(name, one, ablated)
        singles[name] = _at(scores, singles, "key")
        pairs[name] = _at(scores, pairs, "key_1") + _at(scores, pairs, "key_2")
    return ScoreAgreement(
        singles=singles,
        pairs=pairs,
        methods=list(named),
        replace=ablated.replace,
        str_tokens=next(iter(named.values())).str_tokens,
        unit=ablated.unit,
        metadata=ablated.metadata,
    )


Scores = Float[NDArray[np.float64], "example layer head query key"]


def _scores(name: str, one: Relevance, ablated: SelfRepair) -> Scores:
    if "scores" not in one.records:
        raise InputError(f'{name}: scores were not recorded: pass record=["scores"].')
    scores = one.records["scores"].detach().double().cpu().numpy()
    check_same(name, "the text", one.str_tokens, ablated.str_tokens)
    check_same(name, "the target", one.target, ablated.target)
    check_same(name, "position", one.position.tolist(), ablated.position)
    reach = [int(ablated.singles[column].max()) for column in ("example", "query", "key")]
    inside = (reach[0] < len(one), *(at < scores.shape[-1] for at in reach[1:]))
    if scores.shape[1:3] != tuple(ablated.shape) or not all(inside):
        raise InputError(f"{name} explains other texts or another model than were ablated.")
    return scores


def _at(scores: Scores, table: pd.DataFrame, key: str) -> Float[NDArray[np.float64], " row"]:
    return scores[tuple(table[name].to_numpy(int) for name in (*ROW, key))]
