"""The page of a run in a real browser: no errors, no requests, every control by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import run_dir
from browser import CHROMIUM, Tab, browser

from lens_attr.report import run_page, write_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

STRIPS = "Array.from(document.querySelectorAll('.strip')).map(s => s.checkVisibility())"
EXAMPLES = "Array.from(document.querySelectorAll('.example')).map(s => s.checkVisibility())"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_dir.write(tmp_path_factory.mktemp("page") / "run")
    return write_page(run_page(folder), folder / "index.html")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(opened: Tab, page: Path) -> Tab:
    opened.errors.clear()
    opened.requests.clear()
    opened.open(page)
    return opened


def test_nothing_is_wrong_and_nothing_is_asked_of_anyone(tab: Tab, page: Path) -> None:
    assert tab.js("document.querySelectorAll('.js-plotly-plot').length") >= 6
    assert tab.errors == []
    away = [url for url in tab.requests if not url.startswith(("data:", "blob:"))]
    assert away == [page.resolve().as_uri()]


def test_that_errors_and_requests_would_be_seen(tab: Tab, tmp_path: Path) -> None:
    """The negative control."""
    bad = tmp_path / "bad.html"
    bad.write_text("<script>nonsense()</script><img src='http://127.0.0.1:9/x.png'>")
    tab.open(bad)
    assert any("nonsense" in error for error in tab.errors)
    assert "http://127.0.0.1:9/x.png" in tab.requests


def test_a_method_is_picked_with_the_keyboard(tab: Tab) -> None:
    assert tab.js(STRIPS) == [True, True, True, True]
    tab.js("Array.from(document.querySelectorAll('nav a')).at(-1).focus()")
    tab.press("Tab")
    assert tab.js("document.activeElement.type") == "checkbox"
    tab.press(" ")
    assert tab.js(STRIPS) == [False, True, False, True]
    tab.press(" ")
    assert tab.js(STRIPS) == [True, True, True, True]


def test_a_text_is_picked_with_the_keyboard(tab: Tab) -> None:
    tab.js("document.querySelector('select').focus()")
    assert tab.js(EXAMPLES) == [True, True]
    tab.press("ArrowDown")
    assert tab.js(EXAMPLES) == [True, False]
    tab.press("ArrowDown")
    assert tab.js(EXAMPLES) == [False, True]


def test_the_first_tab_skips_the_contents(tab: Tab) -> None:
    tab.press("Tab")
    assert tab.js("document.activeElement.className") == "skip"
    tab.press("Enter")
    assert tab.js("document.activeElement.id") == "main"


def test_everything_that_can_be_reached_has_a_name(tab: Tab) -> None:
    nameless = """Array.from(document.querySelectorAll("input, select, [role=img], [role=region]"))
        .filter(e => !(e.getAttribute("aria-label") || e.closest("label"))).length"""
    assert tab.js(nameless) == 0


@pytest.mark.parametrize("width", [380, 1600])
def test_nothing_sticks_out_of_the_window(tab: Tab, page: Path, width: int) -> None:
    tab.open(page, width)
    assert tab.js("innerWidth") == width
    assert tab.js("document.documentElement.scrollWidth") <= width
    drawn = "Array.from(document.querySelectorAll('.main-svg')).map(s => s.clientWidth)"
    assert max(tab.js(drawn)) <= width


PLOTS = "Array.from(document.querySelectorAll('.js-plotly-plot'))"
HOVERS = "Array.from(document.querySelectorAll('.hoverlayer')).some(h => h.childElementCount)"


def test_nothing_zooms_a_figure(tab: Tab) -> None:
    """There is no button to undo it."""
    assert set(tab.js(f"{PLOTS}.map(p => p._fullLayout.dragmode)")) == {False}
    axes = f"{PLOTS}.flatMap(p => Object.entries(p._fullLayout))"
    fixed = f"{axes}.filter(([k]) => /^[xy]axis/.test(k)).map(([, a]) => a.fixedrange)"
    assert set(tab.js(fixed)) == {True}


def test_a_finger_scrolls_the_page_and_a_tap_tells_the_value(tab: Tab) -> None:
    figure = f"{PLOTS}.find(p => p.data[0].type === 'heatmap')"
    tab.js(f"{figure}.scrollIntoView()")
    place = tab.js(f"{figure}.getBoundingClientRect().toJSON()")
    x, y = place["x"] + place["width"] / 3, place["y"] + place["height"] / 3
    tab.swipe(x, y)
    assert tab.until(HOVERS)
    scrolled = tab.js("scrollY")
    tab.swipe(x, y + 200, -200)
    assert tab.until(f"scrollY > {scrolled + 100}")


def test_figures_follow_the_readers_colours_and_paper_is_white(tab: Tab, page: Path) -> None:
    paper = "getComputedStyle(document.querySelector('.main-svg')).background"
    light = tab.js(paper)
    tab.open(page, dark=True)
    dark = tab.js(paper)
    assert light != dark
    tab.media(dark=True, paper=True)
    assert tab.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.until(f"{paper} === {json.dumps(light)}")
    assert not tab.js("document.querySelector('.picker').checkVisibility()")
