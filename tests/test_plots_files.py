"""Figures as files, the map of heads by tokens, and axes that say what they measure."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest
import run_dir
import torch
from test_plots import relevance

from lens_attr import plots
from lens_attr.errors import InputError
from lens_attr.evaluation.results import TITLES
from lens_attr.plots import benchmark_bars, figure_files


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
    from dataclasses import replace

    with pytest.raises(InputError, match="gives no head relevance"):
        plots.head_tokens(replace(relevance(), head_tokens=None))


# --- axes


def test_every_metric_is_written_out_with_its_unit() -> None:
    assert benchmark_bars.AXES.keys() >= TITLES.keys()
    for metric, words in benchmark_bars.AXES.items():
        assert "(" in words and len(words) > 12, metric
    figure = run_dir.bench().plot(metric="pg")
    assert figure.layout.xaxis.title.text == benchmark_bars.AXES["pg"]


FIGURES = {
    "heads": run_dir.ranking(),
    "pruning": run_dir.pruning(),
    "patching": run_dir.patched(),
    "agreement": run_dir.agreement(),
    "faithfulness": run_dir.faithfulness(),
    "benchmark": run_dir.bench(),
    "head_tokens": relevance(),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_has_a_title(name: str) -> None:
    figure = getattr(plots, name)(FIGURES[name])
    assert figure.layout.title.text
    layout = figure.to_plotly_json()["layout"]
    titles = [
        axis.get("title", {}).get("text")
        for key, axis in layout.items()
        if key.startswith(("xaxis", "yaxis")) and axis.get("visible", True)
    ]
    assert sum(bool(title) for title in titles) >= 1
    if len(titles) == 2 and name != "benchmark":
        assert all(titles), titles
