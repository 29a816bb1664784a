"""Circuit figure: nodes layer by layer from the bottom up, edges as wide as their score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from lens_attr.errors import InputError
from lens_attr.plots.palette import INK, RANDOM, SCALE
from lens_attr.plots.template import figure

if TYPE_CHECKING:
    from lens_attr.circuits.circuit import Circuit
    from lens_attr.circuits.wiring import Node

_KINDS = {
    -1: ("supports the target", SCALE[-1][1]),
    1: ("works against it", SCALE[0][1]),
    0: ("no score", RANDOM),
}
"""What an edge does, by the sign of its score: the change of the target when it is corrupted."""
_LEGEND_PX = 4
_WIDTHS = (0.75, 1.5, 2.5, 4.0, 6.0, 8.0)
"""Edges are drawn in this many groups: one line per group and sign is fast to draw."""
_MOST = 2000

Place = tuple[float, float]


def circuit(result: Circuit, title: str = "") -> go.Figure:
    """Input at the bottom, logits at the top, every block's heads and MLP in between.

    Orange edges support the target (their score is below zero: corrupting them lowers it), blue
    ones work against it; grey ones carry no score. Hover over the middle of an edge for its names
    and score.

    Args:
        result: the circuit.
        title: default: what the circuit was made from.

    Raises:
        InputError: no edges, or too many to draw.
    """
    if len(result) > _MOST:
        raise InputError(
            f"the circuit has {len(result)} edges; up to {_MOST} can be drawn: extract fewer."
        )
    if not len(result):
        raise InputError(_nothing(result))
    places = {node: _place(node, result) for node in result.nodes}
    fig = figure(title or _title(result), height=min(1200, 260 + 90 * result.wiring.n_layers))
    edges = _edges(result, places)
    top = max(abs(score) for *_, score in edges) or 1.0
    for sign, (kind, colour) in _KINDS.items():
        alike = [e for e in edges if np.sign(e[-1]) == sign]
        for group, width in enumerate(_WIDTHS):
            _draw(fig, [e for e in alike if _group(e[-1], top) == group], width, colour)
        if alike:
            _legend(fig, kind, colour)
    _hover(fig, edges, result)
    _nodes(fig, places, result)
    fig.update_xaxes(visible=False)
    fig.update_layout(legend={"y": 0, "itemclick": False, "itemdoubleclick": False})
    labels = ["input", *map(str, range(result.wiring.n_layers)), "logits"]
    heights = [0.0, *(1.0 + layer for layer in range(result.wiring.n_layers))]
    heights.append(result.wiring.n_layers + 1.0)
    fig.update_yaxes(tickvals=heights, ticktext=labels, title_text="layer", showgrid=False)
    return fig


def _nothing(result: Circuit) -> str:
    chosen = result.metadata.get("n_chosen")
    if not chosen:
        return "the circuit has 0 edges: there is nothing to draw."
    return (
        f"the circuit has 0 edges: all {chosen} chosen are dead ends, on no path from the input "
        "to the logits. Extract more."
    )


def _title(result: Circuit) -> str:
    details = [str(result.metadata[key]) for key in ("method", "by") if key in result.metadata]
    return ", ".join([f"Circuit of {len(result)} edges", *details])


def _place(node: Node, result: Circuit) -> Place:
    """Heads from left to right, the MLP to their right and a little higher."""
    n = result.wiring.n_heads
    if node.kind in ("input", "logits"):
        return (n - 1) / 2, 0.0 if node.kind == "input" else result.wiring.n_layers + 1.0
    assert node.layer is not None
    if node.kind == "mlp":
        return n + 0.5, node.layer + 1.35
    assert node.head is not None
    return float(node.head), node.layer + 1.0


def _edges(result: Circuit, places: dict[Node, Place]) -> list[tuple[Place, Place, str, float]]:
    """One line per edge and node: a shared key or value goes to each of its heads here."""
    found = []
    for i, j in np.argwhere(result.kept):
        source, receiver = result.wiring.sources[i], result.wiring.receivers[j]
        score = float(result.scores[i, j])
        name = f"{source.name} to {receiver.name}"
        ends = [node for node in receiver.nodes if node in places]
        found += [(places[source], places[end], name, score) for end in ends]
    return found


def _group(score: float, top: float) -> int:
    return min(len(_WIDTHS) - 1, int(abs(score) / top * len(_WIDTHS)))


def _draw(
    fig: go.Figure, edges: list[tuple[Place, Place, str, float]], width: float, colour: str
) -> None:
    if not edges:
        return
    xs: list[float | None] = []
    ys: list[float | None] = []
    for (x0, y0), (x1, y1), *_ in edges:
        xs += [x0, x1, None]
        ys += [y0, y1, None]
    line = {"width": width, "color": colour}
    fig.add_scatter(
        x=xs, y=ys, mode="lines", line=line, opacity=0.7, hoverinfo="skip", showlegend=False
    )


def _legend(fig: go.Figure, kind: str, colour: str) -> None:
    line = {"width": _LEGEND_PX, "color": colour}
    fig.add_scatter(x=[None], y=[None], mode="lines", line=line, name=kind, showlegend=True)


def _hover(fig: go.Figure, edges: list[tuple[Place, Place, str, float]], result: Circuit) -> None:
    unit = result.metadata.get("unit", "logit")
    fig.add_scatter(
        x=[(a[0] + b[0]) / 2 for a, b, *_ in edges],
        y=[(a[1] + b[1]) / 2 for a, b, *_ in edges],
        mode="markers",
        marker={"size": 12, "opacity": 0},
        customdata=[[name, score] for *_, name, score in edges],
        hovertemplate="%{customdata[0]}<br>corrupted: %{customdata[1]:+.4g} "
        + f"{unit}<extra></extra>",
        showlegend=False,
    )


def _nodes(fig: go.Figure, places: dict[Node, Place], result: Circuit) -> None:
    reads = result.kept.sum(axis=0)
    writes = result.kept.sum(axis=1)
    into = dict.fromkeys(places, 0)
    for receiver, n in zip(result.wiring.receivers, reads, strict=True):
        for node in receiver.nodes:
            into[node] = into.get(node, 0) + int(n)
    out = dict(zip(result.wiring.sources, map(int, writes), strict=True))
    fig.add_scatter(
        x=[place[0] for place in places.values()],
        y=[place[1] for place in places.values()],
        mode="markers+text",
        marker={"size": 22, "symbol": [_symbol(n) for n in places], "color": RANDOM},
        text=[_label(node) for node in places],
        textfont={"color": INK, "size": 12},
        customdata=[[node.name, into[node], out.get(node, 0)] for node in places],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]} edges in, %{customdata[2]} out"
        "<extra></extra>",
        showlegend=False,
    )


def _label(node: Node) -> str:
    """Short enough to stand inside the mark; the axis names the layer, and the logits."""
    return {"head": str(node.head), "mlp": "M"}.get(node.kind, "")


def _symbol(node: Node) -> str:
    return {"head": "circle", "mlp": "square"}.get(node.kind, "diamond")
