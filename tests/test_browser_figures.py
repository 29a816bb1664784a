"""Figures in a real browser, on a phone and on a screen: nothing is written over anything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import run_dir
from browser import CHROMIUM, Tab, browser
from test_plots import LONG, SHORT, relevance
from test_plots_aieg import result as aieg
from test_plots_files import FIGURES

from lens_attr import plots
from lens_attr.attribution.comparison import Comparison
from lens_attr.plots.benchmark_bars import AXES
from lens_attr.report import Page, Section, write_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

METHODS = ["gradient_x_input", "integrated_gradients", "attention_rollout", "gim"]
CLASHES = """Array.from(document.querySelectorAll('.plot')).flatMap(plot => {
  const frame = plot.getBoundingClientRect();
  const straight = text => !/rotate\\((?!0|-90)/.test(text.getAttribute('transform'));
  const words = Array.from(plot.querySelectorAll('svg text'))
    .filter(text => text.textContent.trim() && straight(text))
    .map(text => ({says: text.textContent, at: text.getBoundingClientRect()}))
    .filter(({at}) => at.width > 0);
  const meets = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  const out = words.filter(({at}) => at.left < frame.left - 2 || at.right > frame.right + 2
    || at.bottom > frame.bottom + 2 || at.top < frame.top - 2);
  const over = words.flatMap((one, i) => words.slice(i + 1)
    .filter(other => meets(one.at, other.at)).map(other => `${one.says} on ${other.says}`));
  return [...out.map(({says}) => `${says} sticks out`), ...over]
    .map(what => `${plot.getAttribute('aria-label')}: ${what}`);
})"""


def benchmark(metric: str, tasks: int) -> go.Figure:
    columns = ["method", "task", "metric", "value", "low", "high", "n"]
    rows = [
        [method, f"task {i}", metric, 10.0 * i + 4 * j, 8.0 * i, 99.0, 12]
        for i in range(1, tasks + 1)
        for j, method in enumerate(METHODS)
    ]
    return replace(run_dir.bench(), rows=pd.DataFrame(rows, columns=columns)).plot(metric=metric)


def agreement() -> go.Figure:
    cells = np.random.default_rng(0)
    scores = {method: cells.normal(size=4) for method in METHODS}
    return plots.agreement(replace(run_dir.agreement(), scores=scores))


def a_number_at_the_very_top() -> go.Figure:
    """Plotly leaves a twentieth above the highest point: 1.0 is where the axis ends."""
    result = aieg()
    for norms in ("gradient_norm", "emphasised_gradient_norm"):
        result.extra[norms] *= 0.952 / result.extra[norms].max()
    return plots.gradient_distance(result)


def figures() -> Iterator[go.Figure]:
    yield from (draw() for draw in FIGURES.values())
    yield from (benchmark(metric, 3) for metric in AXES)
    yield from (benchmark("rma", tasks) for tasks in (1, 2))
    yield agreement()
    yield a_number_at_the_very_top()
    yield plots.relevance(relevance([SHORT, LONG]))
    yield plots.comparison(Comparison({method: relevance([LONG]) for method in METHODS}))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = [Section("Figures", "", list(figures()))]
    return write_page(Page("All of them", "", sections), tmp_path_factory.mktemp("f") / "page.html")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize("width", [380, 1300])
def test_no_words_of_a_figure_meet(tab: Tab, page: Path, width: int) -> None:
    tab.open(page, width)
    assert tab.js("document.querySelectorAll('.js-plotly-plot').length") > 40
    assert tab.js(CLASHES) == []


def test_that_words_which_meet_would_be_seen(tab: Tab, tmp_path: Path) -> None:
    """The negative control: a long title under each of three panels."""
    crowded = benchmark("rma", 3)
    crowded.update_xaxes(title_text=AXES["rma"])
    sections = [Section("Figures", "", [crowded])]
    tab.open(write_page(Page("Crowded", "", sections), tmp_path / "page.html"), 380)
    assert len(tab.js(CLASHES)) >= 2


def test_tokens_can_be_read_on_a_phone(tab: Tab, page: Path) -> None:
    tab.open(page, 380)
    boxes = "Array.from(document.querySelectorAll('.barlayer .bartext'))"
    seen = f"{boxes}.filter(t => t.closest('.plot').ariaLabel.startsWith('Token relevance'))"
    heights = tab.js(f"{seen}.map(t => t.getBoundingClientRect().height)")
    assert heights and min(heights) >= 8
