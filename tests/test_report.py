"""The HTML page: self-contained, escaped, and complete."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch

from lens_attr.attribution.relevance import Relevance
from lens_attr.report import Html, Page, Section, explained_text, write_page

EVIL = "<script>alert('x')</script> & </style>"


class _Reader(HTMLParser):
    """Collects tags, links and text outside of scripts, and checks that tags are balanced."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.data: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.data.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data


def written(page: Page, folder: Path) -> _Reader:
    return _Reader(write_page(page, folder / "new" / "page.html").read_text(encoding="utf-8"))


def result(method: str = "gim") -> Relevance:
    heads = torch.randn(1, 2, 3, 2)
    return Relevance(
        tokens=torch.tensor([[0.5, -1.0, 2.0]]),
        token_ids=torch.zeros(1, 3, dtype=torch.long),
        attention_mask=torch.ones(1, 3, dtype=torch.bool),
        str_tokens=[["<s>", " keys", " near"]],
        target_value=torch.tensor([1.25]),
        target=["logit of ' are' - logit of ' is'"],
        position=torch.tensor([2]),
        method=method,
        head_tokens=heads,
        heads_relu_dim=heads.relu().sum(2),
    )


def test_every_text_is_escaped(tmp_path: Path) -> None:
    table = pd.DataFrame({EVIL: [EVIL, "b"]})
    figure = go.Figure(go.Bar(x=[EVIL], y=[1]), layout={"title": {"text": "A &lt;b&gt; title"}})
    section = Section(EVIL, EVIL, [table, figure])
    read = written(Page(EVIL, EVIL, [section], footer=EVIL), tmp_path)
    assert read.text.count("alert('x')") == 8  # title, h1, prose, h2, prose, table twice, footer
    assert "A <b> title" in read.text
    assert not any(data.startswith("alert") for data in read.data)
    assert read.tags.count("script") == 3  # the figure's data, plotly, the drawing code


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    sections = [Section("A", "", [go.Figure()]), Section("B", "", [go.Figure()])]
    read = written(Page("t", "", sections), tmp_path)
    assert all(link.startswith(("#", "data:")) for link in read.links)
    policy = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in policy


def test_plotly_is_embedded_once_and_only_if_needed(tmp_path: Path) -> None:
    sections = [Section("A", "", [go.Figure(), go.Figure()])]
    read = written(Page("t", "", sections), tmp_path)
    assert sum(len(data) > 1_000_000 for data in read.data) == 1
    assert written(Page("t", "", [Section("A", "text")]), tmp_path).data == []


def test_figures_become_data_with_a_caption_and_without_a_fixed_width(tmp_path: Path) -> None:
    figure = go.Figure(go.Bar(y=[1, 2]), layout={"title": {"text": "Two bars"}, "width": 900})
    figure.update_layout(height=333)
    read = written(Page("t", "", [Section("A", "", [figure])]), tmp_path)
    drawing = json.loads(next(data for data in read.data if data.startswith('{"data"')))
    assert "Two bars" in read.text
    assert drawing["layout"]["height"] == 333
    assert {"title", "width", "template"}.isdisjoint(drawing["layout"])


def test_both_themes_are_on_the_page(tmp_path: Path) -> None:
    read = written(Page("t", "", [Section("A", "", [go.Figure()])]), tmp_path)
    assert '"light":' in read.data[-1] and '"dark":' in read.data[-1]
    assert "prefers-color-scheme" in read.data[-1]


def test_contents_link_to_sections_that_exist(tmp_path: Path) -> None:
    sections = [Section("A"), Section("part", level=3), Section("B")]
    path = write_page(Page("t", "", sections), tmp_path / "page.html")
    markup = path.read_text(encoding="utf-8")
    targets = re.findall(r'href="#(\w+)"', markup)
    assert targets == ["main", "s0", "s1", "s2"]
    assert all(f'id="{target}"' in markup for target in targets)


def test_tables_are_readable(tmp_path: Path) -> None:
    table = pd.DataFrame({"random_mean": [0.123456, None], "above_random": [True, False]})
    text = written(Page("t", "", [Section("A", "", [table])]), tmp_path).text
    for shown in ("random mean", "0.123", "yes", "no", "-"):
        assert shown in text
    assert "0.123456" not in text


def test_paragraphs_are_separated_by_blank_lines(tmp_path: Path) -> None:
    read = written(Page("t", "one\nstill one\n\ntwo", [], footer="end"), tmp_path)
    assert read.tags.count("p") == 3


def test_explained_text_names_every_method_and_its_sum() -> None:
    markup = explained_text({"gim": result(), "lrp": result("lrp")}).markup
    read = _Reader(markup)
    assert read.text.count("relevance adds up to +1.500 logit") == 2
    assert "<s>" in read.text and "keys near" in read.text


def test_a_figure_keeps_the_words_of_its_subtitle_and_room_for_panel_titles(tmp_path: Path) -> None:
    title = {"text": "Two bars", "subtitle": {"text": "of one kind"}}
    panel = {"text": "one<br>two", "x": 0.5, "y": 1.0, "yref": "paper", "showarrow": False}
    figure = go.Figure(go.Bar(y=[1, 2]), layout={"title": title, "annotations": [panel]})
    read = written(Page("t", "", [Section("A", "", [figure])]), tmp_path)
    drawing = json.loads(next(data for data in read.data if data.startswith('{"data"')))
    assert "Two bars: of one kind" in read.text
    assert drawing["layout"]["margin"]["t"] > 40


def test_a_section_names_the_files_behind_its_numbers(tmp_path: Path) -> None:
    read = written(Page("t", "", [Section("A", files=["a/<b>.json", "c.json"])]), tmp_path)
    assert "Read from a/<b>.json, c.json" in read.text


def test_parts_stand_under_their_section_in_the_contents(tmp_path: Path) -> None:
    sections = [Section("A"), Section("part", level=3), Section("B")]
    markup = write_page(Page("t", "", sections), tmp_path / "page.html").read_text("utf-8")
    assert '<a href="#s0">A</a><ul><li><a href="#s1">part</a></li></ul>' in markup


def test_html_goes_in_as_it_is(tmp_path: Path) -> None:
    assert "em" in written(Page("t", "", [Section("A", "", [Html("<em>x</em>")])]), tmp_path).tags
