"""Generation matrix: what every generated token or word took from all that was read before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from lens_attr.plots.template import figure, relevance_axis
from lens_attr.plots.token_text import columns, plotly_text, readable

if TYPE_CHECKING:
    from lens_attr.attribution.generation import Matrix

_MOST_TICKS = 80
_LONGEST = 24
"""Characters of a label."""
_ROW_PX, _LETTER_PX = 24, 7


def generation(result: Matrix, limit: float | None = None) -> go.Figure:
    """Heatmap: one row per generated token or word, one column per token or word that was read.

    A line divides the prompt from the generated text; what a row had not read yet is blank.

    Args:
        result: ``g.matrix(words=True)`` of a `lens_attr.Generation`.
        limit: relevance at which the colour saturates; default: the largest absolute one.

    Raises:
        InputError: a value is infinite, or limit not above zero.
    """
    cells = result.values.detach().double().cpu().numpy()
    unit = f"relevance ({result.unit})"
    rows, read = _labels(result.rows), _labels(result.columns)
    deepest = max(map(columns, read)) * _LETTER_PX
    fig = figure(
        f"What every generated {result.kind} used, {result.method}",
        height=min(1200, 170 + _ROW_PX * max(len(rows), 4) + deepest),
    )
    fig.add_heatmap(
        z=cells,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        customdata=[[[row, column] for column in read] for row in rows],
        hovertemplate="%{customdata[0]}<br>from %{customdata[1]}<br>"
        + unit
        + " %{z:+.4g}<extra></extra>",
    )
    fig.update_xaxes(title_text="read", tickangle=-60, **_ticks(read))
    fig.update_yaxes(title_text="generated", autorange="reversed", **_ticks(rows))
    fig.add_vline(x=result.n_prompt - 0.5, line={"width": 1.5, "dash": "dot", "color": "#8a8f98"})
    drawn = cells[~np.isnan(cells)].tolist()
    fig.update_layout(coloraxis=relevance_axis(drawn, unit, limit))
    return fig


def _labels(strings: Sequence[str]) -> list[str]:
    """Strings as they read, the long ones cut."""
    texts = (readable(string).strip(" ") for string in strings)
    return [plotly_text(t if len(t) <= _LONGEST else f"{t[: _LONGEST - 1]}\u2026") for t in texts]


def _ticks(labels: Sequence[str]) -> dict[str, Any]:
    step = -(-len(labels) // _MOST_TICKS)
    return {
        "tickvals": list(range(0, len(labels), step)),
        "ticktext": labels[::step],
        "showgrid": False,
    }
