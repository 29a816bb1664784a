"""The built documentation, opened as files: `make test` builds it before the tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from browser import CHROMIUM, browser

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "out" / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

SEARCH = "document.querySelector('.md-search')"
TYPE = """((field) => { field.focus(); field.value = 'alti';
  field.dispatchEvent(new Event('input', {bubbles: true}));
  field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true, key: 'i'})); })
  (document.querySelector('.md-search__input'))"""


def test_search_needs_no_server() -> None:
    assert "offline" in CONFIG["plugins"]
    for script in CONFIG["extra"]["polyfills"]:
        assert (ROOT / "docs" / script).is_file()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.skipif(not (SITE / "index.html").exists(), reason="`make docs` has not run")
def test_pages_are_found_and_nothing_is_asked_of_anyone(tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.open(SITE / "index.html", 1300)
        assert tab.until(f"{SEARCH}.checkVisibility()")
        tab.js(TYPE)
        assert tab.until("document.querySelectorAll('.md-search-result__item').length > 0")
        assert tab.errors == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in tab.requests)
