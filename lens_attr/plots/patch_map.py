"""Patch map: what every patched head, or layer and position, did (or would do) to the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from numpy.typing import NDArray

from lens_attr.errors import InputError, did_you_mean
from lens_attr.plots.palette import INK
from lens_attr.plots.template import figure, relevance_axis
from lens_attr.plots.token_text import largest, plotly_text, readable

if TYPE_CHECKING:
    from lens_attr.circuits.node_results import NodeScores
    from lens_attr.circuits.patch_result import PatchResult

Shown = Literal["effects", "normalised", "metric"]

_MOST_LABELLED = 256
_UNITS = {
    "head": "attention head",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
    "resid": "residual stream before each block",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "pattern": "attention pattern",
}
_SOURCES = {"zero": "zero", "mean": "mean", "resample": "resampled"}
_AXES = {"head": "head", "pos": "position", "query": "query position"}


def patching(
    result: PatchResult,
    show: Shown = "effects",
    layer: int | None = None,
    limit: float | None = None,
) -> go.Figure:
    """Layer by head, or layer by position, the first layer at the bottom; orange raises the target.

    Args:
        result: what to draw.
        show: ``"effects"`` (patched minus unpatched), ``"normalised"`` (as a share of the way to
            the other run) or ``"metric"`` (the patched target itself).
        layer: of results with three axes (heads by position): which layer.
        limit: where the colour saturates; default: the largest absolute value.

    Raises:
        InputError: unknown ``show``, a layer that is out of range, missing or not needed, no other
            run to normalise by, or a limit not above zero.
    """
    if show not in get_args(Shown):
        raise InputError(f"unknown show {show!r}; {did_you_mean(str(show), get_args(Shown))}")
    cells, axes = _flat(getattr(result, show).detach().double().numpy(), result.axes, layer)
    title = f"Patching, {_UNITS[result.unit]}", _subtitle(result, layer)
    return _draw(cells, axes, title, _unit(result, show), result.str_tokens, limit)


def nodes(result: NodeScores, layer: int | None = None, limit: float | None = None) -> go.Figure:
    """Attribution patching as a patch map: layer by head, or layer by position.

    Args:
        result: what to draw.
        layer: of scores with three axes (heads by position): which layer.
        limit: where the colour saturates; default: the largest absolute value.

    Raises:
        InputError: neurons, which are too many; a layer that is out of range, missing or not
            needed, or a limit not above zero.
    """
    if result.unit not in _UNITS:
        raise InputError(f"a map of all {result.unit}s would be too large: see to_pandas().")
    cells, axes = _flat(result.scores, result.axes, layer)
    how = f"predicted by {result.method} patching" + ("" if layer is None else f", layer {layer}")
    how += f", mean of {result.n}" if result.n > 1 else ""
    title = f"Attribution patching, {_UNITS[result.unit]}", how
    return _draw(cells, axes, title, f"effect ({result.target_unit})", result.str_tokens, limit)


def _draw(
    cells: Float[NDArray[np.float64], "row column"],
    axes: tuple[str, str],
    title: tuple[str, str],
    unit: str,
    str_tokens: Sequence[Sequence[str]],
    limit: float | None,
) -> go.Figure:
    fig = figure(*title, height=_height(len(cells)))
    labels = [_label(str_tokens, axis, n) for axis, n in zip(axes, cells.shape, strict=True)]
    hover = "%{customdata}<br>" + unit + " %{z:+.4g}<extra></extra>"
    fig.add_heatmap(
        z=cells,
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        text=_texts(cells) if cells.size <= _MOST_LABELLED else None,
        texttemplate="%{text}" if cells.size <= _MOST_LABELLED else None,
        textfont={"color": INK},
        customdata=[[f"{row}<br>{column}" for column in labels[1]] for row in labels[0]],
        hovertemplate=hover,
    )
    _axis(fig.update_yaxes, str_tokens, axes[0], cells.shape[0])
    _axis(fig.update_xaxes, str_tokens, axes[1], cells.shape[1])
    fig.update_layout(coloraxis=relevance_axis(cells.ravel().tolist(), unit, limit))
    return fig


def _flat(
    values: NDArray[np.float64], axes: tuple[str, ...], layer: int | None
) -> tuple[Float[NDArray[np.float64], "row column"], tuple[str, str]]:
    """Two axes of one, two or three."""
    if len(axes) < 3:
        if layer is not None:
            raise InputError(f"this result is drawn whole ({', '.join(axes)}): leave out layer.")
        rows, columns = (*axes, "")[:2]
        return (values if columns else values[:, None]), (rows, columns)
    if layer is None or not -len(values) <= layer < len(values):
        raise InputError(
            f"this result has axes {', '.join(axes)}: choose a layer from 0 to {len(values) - 1}."
        )
    chosen = values[layer]
    return (chosen.T, (axes[2], axes[1])) if axes[1] == "pos" else (chosen, (axes[1], axes[2]))


def _texts(cells: Float[NDArray[np.float64], "row column"]) -> list[list[str]]:
    """Two digits; what is a thousandth of the largest or less reads 0."""
    least = largest(cells.ravel()) / 1000
    return [["0" if abs(cell) < least else f"{cell:.2g}" for cell in row] for row in cells]


def _unit(result: PatchResult, show: Shown) -> str:
    return {
        "effects": f"effect ({result.target_unit})",
        "normalised": "share of the way to the other run",
        "metric": f"patched target ({result.target_unit})",
    }[show]


def _subtitle(result: PatchResult, layer: int | None) -> str:
    into = "corrupted" if result.mode == "denoise" else "clean"
    other = "clean" if result.mode == "denoise" else "corrupted"
    what = f"{_SOURCES.get(result.source, other)} activations into the {into} run"
    what += "" if layer is None else f", layer {layer}"
    return what + (f", mean of {len(result)}" if len(result) > 1 else "")


def _height(rows: int) -> int:
    return min(900, max(340, 170 + 38 * rows))


def _label(str_tokens: Sequence[Sequence[str]], axis: str, n: int) -> list[str]:
    if not axis:
        return [""]
    names = [f"{_AXES.get(axis, axis)} {i}" for i in range(n)]
    tokens = _tokens(str_tokens, axis)
    return names if tokens is None else [f"{a} {b}" for a, b in zip(names, tokens, strict=True)]


def _tokens(str_tokens: Sequence[Sequence[str]], axis: str) -> list[str] | None:
    """The tokens of a single example, to stand at its positions."""
    if axis not in ("pos", "query") or len(str_tokens) != 1:
        return None
    return [plotly_text(readable(token)) for token in str_tokens[0]]


def _axis(update: Any, str_tokens: Sequence[Sequence[str]], axis: str, n: int) -> None:
    if not axis:
        update(visible=False)
        return
    tokens = _tokens(str_tokens, axis)
    options: dict[str, Any] = {"dtick": 1 if n <= 32 else None}
    if tokens is not None:
        options = {"tickvals": list(range(n)), "ticktext": tokens, "tickangle": -60}
    update(title_text=_AXES.get(axis, axis), showgrid=False, **options)
