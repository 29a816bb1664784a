"""Agreement: the attribution of every cell against the exact effect of patching it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lens_attr.errors import InputError
from lens_attr.plots.palette import LINES
from lens_attr.plots.panels import panels
from lens_attr.plots.token_text import largest, plotly_text

if TYPE_CHECKING:
    from lens_attr.circuits.agreement import Agreement

_COLUMNS = 2
"""Three lines of words over each do not fit more often beside each other on a phone."""


def agreement(result: Agreement) -> go.Figure:
    """One panel per method, best Spearman first: attribution across, exact importance up.

    Importance is the exact effect with the sign of an attribution: what the cell adds to the
    target. Each method measures in its own unit, so each is divided by its largest absolute
    attribution.

    Args:
        result: what to draw.

    Raises:
        InputError: nothing to draw, or NaN or infinite values.
    """
    table = result.to_pandas()
    if table.empty:
        raise InputError("there is no method to draw.")
    columns = min(_COLUMNS, len(table))
    rows = math.ceil(len(table) / columns)
    titles = [
        f"{row['method']}<br>Spearman {row['spearman']:.2f}<br>top {row['k']}: {row['top_k']:.0%}"
        for row in table.to_dict("records")
    ]
    absolute = "absolute " if result.compared == "absolute" else ""
    x_title = f"{absolute}attribution (share of the method's largest)"
    fig = panels(titles, x_title, rows, vertical_spacing=0.32 / rows)
    largest(result.importance)  # refuses what cannot be drawn
    for i, method in enumerate(table["method"]):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        scores = result.scores[method]
        fig.add_scatter(
            x=scores / largest(scores),
            y=result.importance,
            mode="markers",
            marker={"color": LINES[0], "size": 8, "opacity": 0.75},
            customdata=[
                f"{plotly_text(name)}<br>attribution {score:+.4g}"
                for name, score in zip(result.names, scores, strict=True)
            ],
            hovertemplate="%{customdata}<br>importance %{y:+.4g}<extra></extra>",
            showlegend=False,
            **place,
        )
    fig.update_layout(
        title={
            "text": "Attribution against exact patching",
            "y": 1,
            "yanchor": "top",
            "pad": {"l": 16, "t": 24},
            "subtitle": {
                "text": result.what,
                "font": {"size": 13},
            },
        },
        height=160 + 300 * rows,
        margin_t=140,
    )
    fig.update_xaxes(zeroline=True)
    fig.update_yaxes(zeroline=True)
    fig.update_yaxes(title_text=f"{absolute}importance: what it adds ({result.effect_unit})", col=1)
    return fig
