"""Figures as files: a page that works offline, or a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go

from lens_attr.errors import InputError, did_you_mean

PICTURES = ("png", "svg", "pdf")
FORMATS = ("html", *PICTURES)
WIDTH = 900


def export(
    figure: go.Figure,
    path: str | Path,
    *,
    width: int = WIDTH,
    height: int | None = None,
    scale: float = 2.0,
) -> Path:
    """Write a figure as HTML, PNG, SVG or PDF, by the ending of the path.

    HTML holds everything it needs and asks nothing of the network. Pictures are drawn by kaleido,
    which is not installed with lens_attr and needs Chrome or Chromium.

    Args:
        figure: what ``result.plot()`` returns.
        path: the file; missing folders are made.
        width: of a picture, in pixels at scale 1.
        height: of a picture; default: the figure's own.
        scale: how many pixels of a PNG stand for one.

    Returns:
        The path that was written.

    Raises:
        InputError: an ending that is none of these, or kaleido or a browser is missing.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"cannot write {path.name!r} as a figure; {did_you_mean(kind, FORMATS)}")
    if kind in PICTURES and find_spec("kaleido") is None:
        raise InputError(
            f"{kind} files are drawn by kaleido, which is not installed: pip install "
            "'lens-attr[figures]', or write an .html file."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "html":
        figure.write_html(path, include_plotlyjs=True, full_html=True)
        return path
    try:
        figure.write_image(path, format=kind, width=width, height=height, scale=scale)
    except (RuntimeError, ValueError) as error:
        why = " ".join(map(str, error.args)) or type(error).__name__
        raise InputError(f"kaleido could not draw {path.name}: {why}") from error
    return path
