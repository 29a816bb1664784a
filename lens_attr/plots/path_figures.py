"""Figures of AIEG: the output and its emphasis along the path, and what they make of each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from lens_attr.errors import InputError
from lens_attr.plots.palette import LINES
from lens_attr.plots.panels import panels
from lens_attr.plots.template import figure
from lens_attr.plots.token_text import plotly_text, readable, shares

if TYPE_CHECKING:
    from lens_attr.attribution.relevance import Relevance

MOST_LINES = len(LINES)
"""Examples drawn when none is chosen: as many as there are colours."""
_MOST_TICKS = 60

PARTS = {"integrated gradients": "integrated_gradients", "with emphasis": "emphasised"}
GRADIENTS = {
    "integrated gradients": "gradient_norm",
    "with emphasis": "emphasised_gradient_norm",
}


def path_output(result: Relevance, example: int | None = None) -> go.Figure:
    """The output F against alpha, from the baseline (0) to the text (1), one line per example.

    Args:
        result: a relevance made with ``method="aieg"``.
        example: which example; ``None`` draws all, up to the first 8.

    Raises:
        InputError: another method's result, or example out of range.
    """
    fig = _along_path(result, "output", example, "Output along the path")
    fig.update_yaxes(title_text=_F.get(_setting(result), "output F"))
    return fig


def path_emphasis(result: Relevance, example: int | None = None) -> go.Figure:
    """The emphasis factor EF against alpha, one line per example.

    Args:
        result: a relevance made with ``method="aieg"``.
        example: which example; ``None`` draws all, up to the first 8.

    Raises:
        InputError: another method's result, or example out of range.
    """
    fig = _along_path(result, "emphasis", example, "Emphasis along the path")
    fig.update_yaxes(title_text="emphasis factor EF (share, 0 to 1)", rangemode="tozero")
    return fig


def path_parts(result: Relevance, example: int | None = None) -> go.Figure:
    """Integrated gradients, the same with emphasis, and AIEG, side by side for every token.

    Each is drawn relative to its own largest absolute value; the values show on hover.

    Args:
        result: a relevance made with ``method="aieg"``.
        example: which example; ``None`` is the first.

    Raises:
        InputError: another method's result, or example out of range.
    """
    chosen = _examples(result, example)[0]
    real = _real(result, chosen)
    values = {name: _extra(result, part)[chosen][real] for name, part in PARTS.items()}
    values["AIEG"] = result.tokens[chosen].detach().double().cpu().numpy()[real]
    title, explained = "From integrated gradients to AIEG", _plain(result.target[chosen])
    fig = figure(title, explained, height=460, barmode="group", showlegend=True)
    tokens = [plotly_text(readable(token)) for token in result.real_str_tokens(chosen)]
    for i, (name, each) in enumerate(values.items()):
        fig.add_bar(
            name=name,
            x=list(range(len(tokens))),
            y=shares(each.tolist()),
            marker={"color": LINES[i]},
            customdata=list(zip(tokens, each.tolist(), strict=True)),
            hovertemplate="%{customdata[0]}, " + name + " %{customdata[1]:+.4g}<extra></extra>",
        )
    step = -(-len(tokens) // _MOST_TICKS)
    ticks = {"tickvals": list(range(0, len(tokens), step)), "ticktext": tokens[::step]}
    fig.update_xaxes(tickangle=-60, **ticks)
    fig.update_layout(legend={"yref": "container", "y": 0, "yanchor": "bottom"})
    fig.update_yaxes(title_text="share of the series' largest", zeroline=True, tickformat="~g")
    return fig


def output_emphasis(result: Relevance, example: int | None = None) -> go.Figure:
    """Output times emphasis, averaged over the path: one bar per explained token.

    Explain several positions of one text (``la.TopLogit(position=[3, 4, 5])``) to see which of
    its tokens the model settles on abruptly.

    Args:
        result: a relevance made with ``method="aieg"``.
        example: which example; ``None`` draws all.

    Raises:
        InputError: another method's result, or example out of range.
    """
    chosen = range(len(result)) if example is None else _examples(result, example)
    output, emphasis = _extra(result, "output"), _extra(result, "emphasis")
    fig = figure("Output x emphasis, mean over the path", height=180 + 30 * len(chosen))
    fig.add_bar(
        orientation="h",
        x=[float((output[i] * emphasis[i])[1:].mean()) for i in chosen],
        y=[_plain(f"{i}: {result.target[i]}") for i in chosen],
        marker={"color": LINES[0]},
        hovertemplate="%{y}<br>F x EF %{x:.4g}<extra></extra>",
    )
    fig.update_xaxes(title_text="mean of F x EF<br>(unit of the target)", zeroline=True)
    fig.update_yaxes(autorange="reversed")
    return fig


def gradient_distance(
    result: Relevance, example: int | None = None, log: bool = False
) -> go.Figure:
    """Gradient against the distance from the explained position, without and with emphasis.

    Both panels share one scale, which is what shows where gradients explode in long texts.

    Args:
        result: a relevance made with ``method="aieg"``.
        example: which example; ``None`` draws all, up to the first 8.
        log: a logarithmic scale, on which the smaller gradients with emphasis can be read.

    Raises:
        InputError: another method's result, or example out of range.
    """
    chosen = _examples(result, example)
    fig = panels(list(GRADIENTS), "distance (tokens)")
    title = {"text": "Gradient against distance"}
    fig.update_layout(title=title, height=440, showlegend=len(chosen) > 1)
    for column, name in enumerate(GRADIENTS.values(), start=1):
        for i, one in enumerate(chosen):
            real = _real(result, one)
            distance = int(result.position[one]) - np.flatnonzero(real)
            size = _extra(result, name)[one][real]
            tokens = [plotly_text(readable(t)) for t in result.real_str_tokens(one)]
            seen = (distance >= 0) | (size != 0)  # a causal model does not see what comes later
            fig.add_scatter(
                x=distance[seen],
                y=size[seen],
                customdata=np.array(tokens)[seen],
                hovertemplate="%{customdata}, distance %{x}<br>gradient %{y:.4g}<extra></extra>",
                showlegend=column == 1,
                **_line(result, one, i),
                row=1,
                col=column,
            )
    fig.update_xaxes(autorange="reversed")
    fig.update_yaxes(type="log" if log else "linear", rangemode="tozero", exponentformat="power")
    fig.update_yaxes(title_text="mean gradient of F (l2 norm)", col=1)
    return fig


PathKind = Literal[
    "path_output", "path_emphasis", "path_parts", "output_emphasis", "gradient_distance"
]

PATH_FIGURES: dict[str, Callable[..., go.Figure]] = {
    "path_output": path_output,
    "path_emphasis": path_emphasis,
    "path_parts": path_parts,
    "output_emphasis": output_emphasis,
    "gradient_distance": gradient_distance,
}


def _along_path(result: Relevance, name: str, example: int | None, title: str) -> go.Figure:
    chosen = _examples(result, example)
    alpha, values = _extra(result, "alpha"), _extra(result, name)
    if len(chosen) == 1:
        title += f": {result.target[chosen[0]]}"
    elif len(chosen) < len(result):
        title += f", first {len(chosen)} of {len(result)} examples"
    fig = figure(_plain(title), height=420, showlegend=len(chosen) > 1)
    for i, one in enumerate(chosen):
        fig.add_scatter(
            x=alpha[one],
            y=values[one],
            hovertemplate="alpha %{x:.3g}<br>%{y:.4g}<extra></extra>",
            **_line(result, one, i),
        )
    fig.update_xaxes(title_text="alpha: 0 is the baseline, 1 the text", range=[-0.01, 1.01])
    return fig


def _line(result: Relevance, example: int, i: int) -> dict[str, Any]:
    colour = LINES[i % len(LINES)]
    name = _plain(f"{example}: {result.target[example]}")
    return {
        "mode": "lines+markers",
        "line": {"color": colour, "width": 2},
        "marker": {"size": 5, "color": colour},
        "name": name,
        "legendgroup": name,
    }


def _setting(result: Relevance) -> str:
    """What F is, as the result was made."""
    return str(result.metadata.get("output", "logit"))


_F = {
    "logit": "output F (unit of the target)",
    "probability": "output F (probability)",
    "embedding_l1": "output F (l1 norm of the output embedding)",
}


def _plain(text: str) -> str:
    """Text of which plotly interprets nothing."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _examples(result: Relevance, example: int | None) -> list[int]:
    if example is None:
        return list(range(min(len(result), MOST_LINES)))
    if not -len(result) <= example < len(result):
        raise InputError(f"example {example} is out of range: there are {len(result)}.")
    return [example % len(result)]


def _extra(result: Relevance, name: str) -> Float[NDArray[np.float64], "batch _"]:
    if name not in result.extra:
        raise InputError(
            f"method {result.method!r} has no {name!r}: this figure needs a result of "
            'la.attribute(..., method="aieg").'
        )
    return result.extra[name].detach().double().cpu().numpy()


def _real(result: Relevance, example: int) -> Bool[NDArray[np.bool_], " pos"]:
    return result.attention_mask[example].cpu().numpy()
