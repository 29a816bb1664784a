"""Attention map: how much each (query, key) pair of one head contributed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lens_attr.errors import InputError
from lens_attr.plots.template import figure, relevance_axis
from lens_attr.plots.token_text import plotly_text, readable

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance

_MOST_TICKS = 60


def attention(
    result: Relevance, layer: int, head: int, example: int = 0, limit: float | None = None
) -> go.Figure:
    """Attention of one head times the gradient that arrives at it, query by key.

    Args:
        result: a relevance made with ``record=["pattern"]``.
        layer: which layer.
        head: which head.
        example: which example.
        limit: relevance at which the colour saturates; default: the largest absolute one.

    Raises:
        InputError: attention was not recorded, or an index is out of range.
    """
    recorded = result.attention
    names = ("example", "layer", "head")
    for name, index, size in zip(names, (example, layer, head), recorded.shape[:3], strict=True):
        if not -size <= index < size:
            raise InputError(f"{name} {index} is out of range: there are {size}.")
    real = result.attention_mask[example].cpu()
    cells = recorded[example, layer, head].detach().double().cpu()[real][:, real].numpy()
    tokens = [plotly_text(readable(token)) for token in result.real_str_tokens(example)]
    unit = f"relevance ({result.unit})"
    title = f"Attention relevance, {result.method}, layer {layer}, head {head}"
    fig = figure(title, height=min(1100, 200 + 26 * len(tokens)))
    hover = "from %{customdata[0]}<br>to %{customdata[1]}<br>" + unit + " %{z:+.4g}<extra></extra>"
    fig.add_heatmap(
        z=cells,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        customdata=[[[query, key] for key in tokens] for query in tokens],
        hovertemplate=hover,
    )
    step = -(-len(tokens) // _MOST_TICKS)
    ticks = {
        "tickvals": list(range(0, len(tokens), step)),
        "ticktext": tokens[::step],
        "showgrid": False,
    }
    fig.update_xaxes(title_text="attended token (key)", tickangle=-60, **ticks)
    fig.update_yaxes(title_text="attending token (query)", autorange="reversed", **ticks)
    fig.update_layout(coloraxis=relevance_axis(cells.ravel().tolist(), unit, limit))
    return fig
