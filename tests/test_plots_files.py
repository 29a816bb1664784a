"""Figures as files, the map of heads by tokens, and axes that say what they measure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import run_dir
import torch
from test_plots import relevance
from test_plots_aieg import result as aieg

from lens_attr import plots
from lens_attr.attribution.comparison import Comparison
from lens_attr.errors import InputError
from lens_attr.evaluation.results import TITLES
from lens_attr.plots import benchmark_bars, figure_files
from lens_attr.plots.palette import SCALE
from lens_attr.plots.path_figures import PATH_FIGURES


def test_a_figure_as_html_works_offline(tmp_path: Path) -> None:
    path = plots.export(go.Figure(go.Bar(y=[1, 2])), tmp_path / "new" / "figure.html")
    page = path.read_text("utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    assert max(map(len, re.findall(r"<script.*?</script>", page, re.DOTALL))) > 1_000_000


@pytest.mark.parametrize("kind", figure_files.PICTURES)
def test_a_picture_without_kaleido_says_what_to_install(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"kaleido.*pip install 'lens-attr\[figures\]'"):
        plots.export(go.Figure(), tmp_path / f"figure.{kind}")


def test_a_picture_is_drawn_by_kaleido_in_the_size_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    monkeypatch.setattr(figure_files, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(
        go.Figure, "write_image", lambda self, path, **how: asked.update(how, path=path)
    )
    path = plots.export(go.Figure(), tmp_path / "a.PNG", width=400, height=300, scale=1.0)
    assert asked == {"path": path, "format": "png", "width": 400, "height": 300, "scale": 1}


def test_a_browser_that_kaleido_cannot_find_is_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: go.Figure, path: Path, **how: object) -> None:
        raise RuntimeError("no Chrome here")

    monkeypatch.setattr(figure_files, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(go.Figure, "write_image", fails)
    with pytest.raises(InputError, match=r"kaleido could not draw a\.svg: no Chrome here"):
        plots.export(go.Figure(), tmp_path / "a.svg")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'png'"):
        plots.export(go.Figure(), tmp_path / "figure.pgn")


# --- heads by tokens


def test_heads_by_tokens_shows_the_relevance_strongest_head_on_top() -> None:
    result = relevance([["<s>", " the", " keys"], ["<s>", " no"]])
    assert result.head_tokens is not None
    figure = plots.head_tokens(result, example=1)
    (heat,) = figure.data
    layers, heads = result.head_tokens.shape[1], result.head_tokens.shape[3]
    assert len(heat.z) == layers * heads
    for name, row in zip(figure.layout.yaxis.ticktext, heat.z, strict=True):
        layer, head = map(int, name.split("."))
        expected = result[1].head_tokens[0, layer, :, head]
        torch.testing.assert_close(torch.tensor(row), expected.double())
    sizes = [float(abs(torch.tensor(row)).sum()) for row in heat.z]
    assert sizes == sorted(sizes, reverse=True)
    assert list(figure.layout.xaxis.ticktext) == ["<s>".replace("<", "&lt;").replace(">", "&gt;"),
                                                  "\u00a0no"]  # fmt: skip


def test_heads_by_tokens_draws_the_strongest_only() -> None:
    result = relevance()
    figure = result.plot(kind="head_tokens", n=2)
    assert len(figure.data[0].z) == 2
    assert "2 of " in figure.layout.title.subtitle.text.replace("\u00a0", " ")


def test_heads_by_tokens_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(InputError, match="at least one head"):
        plots.head_tokens(relevance(), n=0)
    with pytest.raises(InputError, match="gives no head relevance"):
        plots.head_tokens(replace(relevance(), head_tokens=None))


# --- axes


def test_every_metric_is_written_out_with_its_unit() -> None:
    assert benchmark_bars.AXES.keys() >= TITLES.keys()
    for metric, words in benchmark_bars.AXES.items():
        assert "(" in words and len(words) > 12, metric
    figure = run_dir.bench().plot(metric="pg")
    assert benchmark_bars.AXES["pg"] in [_words(note) for note in figure.layout.annotations]


def _words(note: Any) -> str:
    return note.text.replace("<br>", " ")


FIGURES: dict[str, Callable[[], go.Figure]] = {
    "heads of a relevance": lambda: plots.heads(relevance()),
    "heads": lambda: plots.heads(run_dir.ranking()),
    "random heads": lambda: plots.heads(replace(run_dir.ranking(), pool="")),
    "pruning": lambda: plots.pruning(run_dir.pruning()),
    "patching": lambda: plots.patching(run_dir.patched()),
    "agreement": lambda: plots.agreement(run_dir.agreement()),
    "faithfulness": lambda: plots.faithfulness(run_dir.faithfulness()),
    "benchmark": lambda: plots.benchmark(run_dir.bench()),
    "head_tokens": lambda: plots.head_tokens(relevance()),
    "attention": lambda: plots.attention(relevance(), layer=0, head=0),
    "tokens": lambda: plots.relevance(relevance()),
    "comparison": lambda: plots.comparison(Comparison({"gim": relevance()})),
    "generation": lambda: run_dir.generation().plot(),
    "circuit": lambda: plots.circuit(run_dir.circuit()),
    **{kind: partial(draw, aieg()) for kind, draw in PATH_FIGURES.items()},
}
PLACES = {
    "head", "layer", "layer.head", "token", "generated", "read", "heads removed",
    "attended token (key)", "attending token (query)",
}  # fmt: skip
"""What has no unit: which head, token, ... it is."""
UNIT = re.compile(r"\(.+\)|\bshare of\b|: 0 is .*, 1 ")


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_and_colour_bar_says_what_it_shows_with_its_unit(name: str) -> None:
    figure = FIGURES[name]()
    assert figure.layout.title.text
    layout = figure.to_plotly_json()["layout"]
    shared = [_words(n) for n in figure.layout.annotations if n.yref == "paper" and n.y == 0]
    titles = [*shared]
    for key, axis in layout.items():
        named = axis.get("title", {}).get("text") if isinstance(axis, dict) else None
        if key.startswith("xaxis") and axis.get("visible", True) and not shared:
            titles.append(named)
        if key.startswith("yaxis") and axis.get("visible", True) and not axis.get("matches"):
            titles.append(named)
    if "coloraxis" in layout:
        titles.append(layout["coloraxis"]["colorbar"]["title"]["text"])
    categories = {None} if figure.data[0].type == "bar" else set()
    assert titles
    for title in set(titles) - PLACES - categories:  # bars: one per method, or per target
        assert title and UNIT.search(title), title


# --- signs


def test_orange_supports_the_target_in_circuits_too_and_the_legend_says_so() -> None:
    """An edge with a score below zero lowers the target when it is corrupted."""
    scores = run_dir.edges().scores.copy()
    against = tuple(np.argwhere(scores)[0])
    scores[against] = 0.5
    figure = replace(run_dir.edges(), scores=scores).plot()
    legend = {t.name: t.line.color for t in figure.data if t.showlegend}
    raises, lowers = SCALE[-1][1], SCALE[0][1]
    assert legend == {"supports the target": raises, "works against it": lowers}
    drawn = [line for line in figure.data if line.mode == "lines" and not line.showlegend]
    edges = {line.line.color: len(line.x) // 3 for line in drawn}
    assert edges[lowers] == 1 and edges[raises] > 1


def test_agreement_names_the_sign_of_what_patching_took_away() -> None:
    """The patching map shows -1 where it shows +1: one is the effect, the other what was lost."""
    assert plots.patching(run_dir.patched()).layout.coloraxis.colorbar.title.text.startswith("eff")
    title = plots.agreement(run_dir.agreement()).layout.yaxis.title.text
    assert title == "importance: what it adds (logit)"
