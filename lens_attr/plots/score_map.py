"""Score map: exact effect and relevance of the attention scores of one query, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_attr.errors import InputError
from lens_attr.plots.template import LIGHT, relevance_axis
from lens_attr.plots.token_text import largest, plotly_text, readable

if TYPE_CHECKING:
    import pandas as pd

    from lens_attr.circuits.score_agreement import ScoreAgreement

_MOST_TICKS = 40


def score_map(result: ScoreAgreement, example: int = 0, query: int | None = None) -> go.Figure:
    """One panel for exact ablation and one per method: layer and head upwards, keys across.

    Every panel is divided by its largest absolute value; hover for layer, head, query, key and
    the value itself.

    Args:
        result: what to draw.
        example: which example.
        query: which of the ablated queries, as in the table; default: the last.

    Raises:
        InputError: no such example or query, or NaN or infinite values.
    """
    chosen = result.singles.query("example == @example")
    if chosen.empty:
        raise InputError(f"example {example} is out of range: there are {len(result.str_tokens)}.")
    ablated = sorted({int(each) for each in chosen["query"]})
    query = ablated[-1] if query is None else query
    if query not in ablated:
        raise InputError(f"query {query} was not ablated in example {example}: {ablated} were.")
    chosen = chosen.query("query == @query")
    panels = ["exact", *result.methods]
    titles = [f"exact,<br>{result.replace} ablation", *map(plotly_text, result.methods)]
    fig = make_subplots(cols=len(panels), shared_yaxes=True, subplot_titles=titles)
    cells = chosen.to_dict("records")
    names = list(dict.fromkeys(f"{cell['layer']}.{cell['head']}" for cell in cells))
    tokens = [plotly_text(readable(token)) for token in result.str_tokens[example]]
    for column, panel in enumerate(panels, start=1):
        unit = result.unit if panel == "exact" else "relevance"
        fig.add_heatmap(**_panel(chosen, panel, names, tokens, unit), row=1, col=column)
    keys = sorted({int(cell["key"]) for cell in cells})
    ticks = keys[:: -(-len(keys) // _MOST_TICKS)]
    fig.update_xaxes(
        tickvals=ticks, ticktext=[tokens[key] for key in ticks], tickangle=-60, showgrid=False
    )
    fig.update_xaxes(title_text="key")
    fig.update_yaxes(showgrid=False, type="category")
    fig.update_yaxes(title_text="layer.head", col=1)
    fig.update_layout(
        template=LIGHT,
        title={
            "text": "Attention scores: exact effect and relevance",
            "subtitle": {"text": f"query {query} {tokens[query]}, each relative to its largest"},
        },
        height=min(1200, max(360, 220 + 18 * len(names))),
        margin={"t": 110},
        coloraxis=relevance_axis([1.0], "share of the panel's largest"),
    )
    return fig


def _panel(
    chosen: pd.DataFrame, panel: str, names: list[str], tokens: list[str], unit: str
) -> dict[str, Any]:
    """A heatmap of one column of the table; scores that the query cannot read stay empty."""
    keys = sorted({int(key) for key in chosen["key"]})
    top = largest(chosen[panel].tolist())
    cells = np.full((len(names), len(keys)), np.nan)
    texts = np.full(cells.shape, "", dtype=object)
    places = {name: i for i, name in enumerate(names)}
    for row in chosen.to_dict("records"):
        at = places[f"{row['layer']}.{row['head']}"], keys.index(row["key"])
        cells[at] = row[panel] / top
        query, key = (f"{row[name]} {tokens[row[name]]}" for name in ("query", "key"))
        texts[at] = (
            f"layer {row['layer']}, head {row['head']}<br>query {query}<br>key {key}<br>"
            f"{row[panel]:+.4g} {unit}"
        )
    return {
        "z": cells,
        "x": keys,
        "y": names,
        "coloraxis": "coloraxis",
        "customdata": texts,
        "hovertemplate": "%{customdata}<extra></extra>",
    }
