"""Head map: one cell per (layer, head)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr.errors import InputError
from lens_attr.plots.palette import INK
from lens_attr.plots.template import figure, relevance_axis

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Pool, Relevance
    from lens_attr.circuits.results import Ranking

_MOST_LABELLED = 256
"""Up to this many heads, every cell shows its value."""


def heads(
    result: Relevance | Ranking,
    pool: Pool | None = None,
    example: int | None = None,
    limit: float | None = None,
) -> go.Figure:
    """The relevance of every head, layer by layer, the first layer at the bottom.

    Args:
        result: a relevance (pooled here) or a ranking (pooled already).
        pool: pooling of a relevance, default ``"relu_token"``; not for a ranking.
        example: which example of a relevance; ``None`` draws the mean over all.
        limit: relevance at which the colour saturates; default: the largest absolute one.

    Raises:
        InputError: no head relevance, unknown pool, example out of range, limit not above zero,
            or a pool or example asked of a ranking.
    """
    if hasattr(result, "scores"):
        scores, title = _of_ranking(cast("Ranking", result), pool, example)
        pool_of = cast("Ranking", result).pool
        unit = f"relevance ({pool_of})" if pool_of else "score (more is more relevant)"
    else:
        relevance = cast("Relevance", result)
        scores, title = _of_relevance(relevance, pool or "relu_token", example)
        unit = f"relevance ({relevance.unit})"
    return _draw(scores, title, unit, limit)


def _of_ranking(
    ranking: Ranking, pool: str | None, example: int | None
) -> tuple[Float[NDArray[np.float64], "layer head"], str]:
    if pool is not None or example is not None:
        raise InputError("a ranking is pooled and averaged already: leave out pool and example.")
    details = [ranking.method, ranking.pool, f"mean of {ranking.n} samples" if ranking.n else ""]
    title = "Head scores, " + ", ".join(filter(None, details))
    return np.asarray(ranking.scores, dtype=np.float64), title


def _of_relevance(
    result: Relevance, pool: Pool, example: int | None
) -> tuple[Float[NDArray[np.float64], "layer head"], str]:
    pooled = (result if example is None else result[example]).heads(pool)
    title = f"Head relevance, {result.method}, {pool}"
    if len(pooled) > 1:
        title += f", mean of {len(pooled)} examples"
    return pooled.detach().double().mean(dim=0).cpu().numpy(), title


def _draw(
    scores: Float[NDArray[np.float64], "layer head"], title: str, unit: str, limit: float | None
) -> go.Figure:
    layers, per_layer = scores.shape
    fig = figure(title, height=min(900, max(340, 170 + 38 * layers)))
    fig.add_heatmap(
        z=scores,
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        texttemplate="%{z:.2~g}" if scores.size <= _MOST_LABELLED else None,
        textfont={"color": INK},
        hovertemplate="layer %{y}, head %{x}<br>" + unit + " %{z:+.4g}<extra></extra>",
    )
    fig.update_xaxes(title_text="head", dtick=1 if per_layer <= 32 else None, showgrid=False)
    fig.update_yaxes(title_text="layer", dtick=1 if layers <= 32 else None, showgrid=False)
    fig.update_layout(coloraxis=relevance_axis(scores.ravel().tolist(), unit, limit))
    return fig
