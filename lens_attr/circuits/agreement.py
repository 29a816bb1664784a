"""Which attribution should I trust: how well does it agree with exact patching?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr import display
from lens_attr.attribution import Pool, Relevance
from lens_attr.circuits.aligned import real_positions
from lens_attr.circuits.checks import check_choice, check_kind, check_same
from lens_attr.circuits.node_results import NodeScores
from lens_attr.circuits.patch_result import PatchResult
from lens_attr.circuits.results import Ranking
from lens_attr.circuits.saved import Saved, numbers
from lens_attr.display import Glance, Shown
from lens_attr.errors import InputError, checked_count

if TYPE_CHECKING:
    import plotly.graph_objects as go

Compared = Literal["signed", "absolute"]
Scores = Relevance | Ranking | NodeScores
Cells = Float[NDArray[np.float64], " cell"]

RECORDS = {
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "resid": "residual",
    "q": "q",
    "k": "k",
    "v": "v",
    "pattern": "pattern",
}
"""What ``la.attribute`` must record for a patched unit (heads always are)."""
DIMS = {
    "head": ("layer", "pos", "head"),
    "attn_out": ("layer", "pos", ""),
    "mlp_out": ("layer", "pos", ""),
    "resid": ("layer", "pos"),
    "q": ("layer", "pos", "head", ""),
    "k": ("layer", "pos", "head", ""),
    "v": ("layer", "pos", "head", ""),
    "pattern": ("layer", "head", "query", ""),
}
"""Axes, after the example, of the relevance of a unit; "" is always summed."""


@dataclass(frozen=True, repr=False)
class Agreement(Shown, Saved):
    """Attributions against the exact effect of the same cells.

    Attributes:
        scores: the attribution of every cell, by method; as compared (absolute or signed).
        importance: the exact effect of every cell, with the sign of an attribution
            (`PatchResult.importance`); as compared.
        names: of the cells, e.g. ``"layer 1, head 2"``.
        compared: ``"signed"`` or ``"absolute"`` values.
        k: how many top cells are compared.
        what: the patching in words, for titles.
        effect_unit: unit of the effect.
    """

    FILE: ClassVar = "agreement.json"

    scores: Mapping[str, Cells]
    importance: Cells
    names: list[str]
    compared: Compared
    k: int
    what: str = ""
    effect_unit: str = "logit"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """What is compared with what."""
        return f"{self.compared} attribution against exact {self.what} patching"

    def glance(self) -> Glance:
        """One row per method."""
        return Glance(self.headline, table=self.to_pandas())

    def to_pandas(self) -> pd.DataFrame:
        """One row per method, best Spearman first.

        Columns: method, pearson, spearman, top_k (the share of the ``k`` cells of largest absolute
        effect that are also among the ``k`` of largest absolute attribution), k, compared, n_cells.
        A correlation is missing where one side is constant.
        """
        rows = [
            {
                "method": method,
                "pearson": pearson(scores, self.importance),
                "spearman": pearson(ranks(scores), ranks(self.importance)),
                "top_k": len(top(scores, self.k) & top(self.importance, self.k)) / self.k,
                "k": self.k,
                "compared": self.compared,
                "n_cells": len(self.importance),
            }
            for method, scores in self.scores.items()
        ]
        return pd.DataFrame(rows).sort_values("spearman", ascending=False, ignore_index=True)

    def plot(self, **options: Any) -> go.Figure:
        """Attribution against exact effect, one panel per method."""
        return display.figure_of("agreement", self, **options)

    @classmethod
    def of_plain(cls, content: Mapping[str, Any]) -> Agreement:
        """The result whose fields json knows as ``content``."""
        scores = numbers(content["scores"], *content["scores"])
        return cls(**{**content, **numbers(content, "importance"), "scores": scores})


def agreement(
    relevance: Scores | Mapping[str, Scores],
    patched: PatchResult,
    *,
    compare: Compared = "signed",
    pool: Pool = "sum",
    k: int = 10,
) -> Agreement:
    """Compare attributions with the exact effect of patching the same heads, layers or positions.

    The signed comparison is of the mean relevance with the mean `PatchResult.importance`, so that
    a head which raises the target is above zero in both; the absolute one of their absolute
    values. Explain the clean prompts with the target that was patched. Relevance speaks of the
    whole activation, patching between two prompts of its difference: the closest match to
    relevance is ``patch(..., mode="noise", source="zero")``. Attribution patching, `node_scores`,
    predicts patching between two prompts itself; its negative is what is compared.

    Args:
        relevance: a result, or several by name; or rankings of heads (already pooled), which do
            not say what they explain; or `node_scores` of the same unit. Units of a relevance
            other than heads must have been recorded, e.g. ``record=["mlp_out"]``.
        patched: from `patch`.
        compare: ``"signed"`` or ``"absolute"``.
        pool: of heads without positions, see `Pool`.
        k: how many top cells are compared; at most as many as there are.

    Raises:
        InputError: nothing to compare, nothing recorded, other prompts, another target, other
            shapes, or unknown choices.
    """
    check_choice("compare", compare, get_args(Compared))
    check_kind("patched", patched, PatchResult, "la.circuits.patch(...) makes one")
    k = checked_count("k", k)
    named = _named(relevance)
    exact = patched.importance.double().cpu().numpy()
    for name, one in named.items():
        _check_explained(name, one, patched)
    scores = {name: _cells(one, patched, pool) for name, one in named.items()}
    for name, found in scores.items():
        if found.shape != exact.shape:
            raise InputError(
                f"{name} has {list(found.shape)} cells, the patching {list(exact.shape)} "
                f"({', '.join(patched.axes)}): explain the same prompts of the same model."
            )
    as_compared = np.abs if compare == "absolute" else np.asarray
    return Agreement(
        scores={name: as_compared(found).ravel() for name, found in scores.items()},
        importance=as_compared(exact).ravel(),
        names=_names(patched),
        compared=compare,
        k=min(k, exact.size),
        what=f"{patched.unit}, {patched.mode}, {patched.source}",
        effect_unit=patched.target_unit,
        metadata={"patching": dict(patched.metadata), "pool": pool},
    )


def _named(relevance: Any) -> Mapping[str, Scores]:
    named = relevance if isinstance(relevance, Mapping) else {"": relevance}
    if not named:
        raise InputError("give at least one relevance.")
    for one in named.values():
        if not isinstance(one, Relevance | Ranking | NodeScores):
            raise InputError(
                f"{type(one).__name__} cannot be compared with patching: give what la.attribute, "
                "la.circuits.rank_heads or la.circuits.node_scores returns."
            )
    return named if isinstance(relevance, Mapping) else {relevance.method: relevance}


def _check_explained(name: str, one: Scores, patched: PatchResult) -> None:
    """Refuse other prompts, another target or another position; a ranking does not say."""
    if isinstance(one, Ranking):
        return
    if isinstance(one, Relevance):
        tokens: Sequence[Any] = [one.real_str_tokens(example) for example in range(len(one))]
        position: Sequence[int] = real_positions(one.attention_mask, one.position)
    else:
        tokens, position = one.str_tokens, one.position
    if isinstance(one, Relevance) or one.target:
        check_same(name, "the prompt", tokens, patched.clean_tokens)
        check_same(name, "the target", one.target, patched.target)
        check_same(name, "position", position, patched.position)


def _names(patched: PatchResult) -> list[str]:
    cells = np.ndindex(*patched.effects.shape)
    return [
        ", ".join(f"{axis} {i}" for axis, i in zip(patched.axes, cell, strict=True))
        for cell in cells
    ]


def _cells(one: Scores, patched: PatchResult, pool: Pool) -> NDArray[np.float64]:
    """The attribution of every patched cell, mean over examples."""
    if isinstance(one, Ranking):
        if (one.unit, patched.axes) != ("head", ("layer", "head")) or patched.unit != "head":
            raise InputError("a ranking of heads agrees or not with patched heads only.")
        return one.scores
    if isinstance(one, NodeScores):
        return _node_cells(one, patched)
    if patched.axes == ("layer", "head") and patched.unit == "head":
        return one.heads(pool).double().mean(dim=0).numpy()
    return _summed(_product(one, patched.unit), patched, one)


def _node_cells(one: NodeScores, patched: PatchResult) -> NDArray[np.float64]:
    """What attribution patching predicts, with the sign of an attribution."""
    axes = [axis for axis in one.axes if axis in patched.axes]
    if one.unit != patched.unit or sorted(axes) != sorted(patched.axes):
        raise InputError(
            f"{one.method} scored {one.unit!r} by {', '.join(one.axes)}, patched were "
            f"{patched.unit!r} by {', '.join(patched.axes)}: pass the same unit to node_scores"
            + (", and per_position=True." if "pos" in patched.axes else ".")
        )
    gone = tuple(i for i, axis in enumerate(one.axes) if axis not in axes)
    return -one.scores.sum(axis=gone).transpose([axes.index(axis) for axis in patched.axes])


def _product(one: Relevance, unit: str) -> Any:
    if unit == "head":
        if one.head_tokens is None:
            raise InputError(f"method {one.method!r} gives no head relevance.")
        return one.head_tokens
    key = RECORDS[unit]
    if key not in one.records:
        raise InputError(f"{unit} was not recorded: pass record=[{key!r}] to la.attribute.")
    return one.records[key]


def _summed(product: Any, patched: PatchResult, one: Relevance) -> NDArray[np.float64]:
    """Everything summed but the patched axes, padding left out, mean over examples."""
    dims = DIMS[patched.unit]
    for axis in ("pos", "query"):
        if axis in patched.axes:
            if not bool((one.attention_mask == one.attention_mask[0]).all()):
                raise InputError("effects by position need examples of one length.")
            product = product.index_select(
                1 + dims.index(axis), one.attention_mask[0].nonzero().flatten()
            )
    n_layers = patched.effects.shape[0]
    mean = product[:, :n_layers].double().mean(dim=0)
    gone = [i for i, axis in enumerate(dims) if axis not in patched.axes]
    mean = mean.sum(dim=gone) if gone else mean
    left = [axis for axis in dims if axis in patched.axes]
    return mean.permute(*(left.index(axis) for axis in patched.axes)).numpy()


def ranks(values: Cells) -> Cells:
    """Ranks from 1, ties at their mean."""
    return pd.Series(values).rank().to_numpy()


def pearson(a: Cells, b: Cells) -> float:
    """Linear correlation; NaN where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else float("nan")


def top(values: Cells, k: int) -> set[int]:
    """The ``k`` cells of largest absolute value; ties keep their order."""
    return set(np.argsort(-np.abs(values), kind="stable")[:k].tolist())
