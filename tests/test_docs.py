"""The docs are right: their code runs, their facts are the registry's, their links lead somewhere.

A block that opens with ```` ```python ```` is run, all blocks of a page together. Code that needs
another library, a network or a cluster opens with ```` ```py ````; it must be syntax at least.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import warnings
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import yaml

import lens_attr as la

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METHOD_PAGES = DOCS / "methods"
METHODS = list(la.methods())
MODULES_WITH_EXAMPLES = sorted(
    path for path in (ROOT / "lens_attr").rglob("*.py") if ">>>" in path.read_text("utf-8")
)

LINK = re.compile(r"(?<!\!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*).*?\n(.*?)^\1```", flags=re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    found = FENCE.findall(page.read_text("utf-8"))
    return [code for _, written_in, code in found if written_in == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


original_load = la.load


@cache
def quiet_load(name: str, **options: Any) -> Any:
    """Every page loads a model; no page changes one, so they share it."""
    with contextlib.redirect_stdout(io.StringIO()):
        return original_load(name, **options)


@pytest.fixture
def _shared_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(la, "load", quiet_load, raising=False)


@pytest.mark.usefixtures("_shared_models")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, name_of(page), "exec", dont_inherit=True), {})


@pytest.mark.shared
def test_the_table_of_the_local_directory_is_what_its_code_prints(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared)
    page, printed = DOCS / "how-to" / "load.md", io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("\n".join(blocks(page, "py")), {})
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", printed.getvalue())]
    table = [
        line for line in page.read_text("utf-8").splitlines() if re.search(r"\d\.\d\d \|", line)
    ]
    for row, line in enumerate(table):
        shown = re.findall(r"[+-]\d\.\d\d", line)
        target, relevances = numbers[6 * row], numbers[6 * row + 1 : 6 * row + 6 : 2]
        assert shown == [f"{number:+.2f}" for number in (target, *relevances)]
    assert len(table) == 3


def test_code_that_is_not_run_is_syntax() -> None:
    for page in PAGES:
        for block in blocks(page, "py"):
            compile(block, name_of(page), "exec", dont_inherit=True)


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    pages = {path.stem for path in METHOD_PAGES.glob("*.md")} - {"index"}
    assert pages == {method.name for method in la.methods()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_facts_on_a_methods_page_are_those_of_the_registry(method: Any) -> None:
    page = (METHOD_PAGES / f"{method.name}.md").read_text("utf-8")
    assert f"<!-- facts -->\n\n{method.to_markdown()}\n\n<!-- end of facts -->" in page, (
        f"docs/methods/{method.name}.md should hold:\n\n{method.to_markdown()}"
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_methods_page_says_what_a_reader_needs(method: Any) -> None:
    page = prose(METHOD_PAGES / f"{method.name}.md")
    for heading in ("What it computes", "What it is for", "When it misleads", "Cost", "Source"):
        assert f"\n## {heading}\n" in page, heading


def test_the_table_of_methods_is_generated_from_the_registry() -> None:
    assert la.methods().to_markdown() in (METHOD_PAGES / "index.md").read_text("utf-8")


def slug(heading: str) -> str:
    """The anchor that mkdocs gives a heading."""
    words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def anchors(page: Path) -> set[str]:
    return {slug(text) for text in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for link in (a or b for a, b in LINK.findall(prose(page))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.parent == DOCS / "tutorials":  # made from the notebooks by docs/tutorials.py
            assert target.stem in {notebook.stem for notebook in NOTEBOOKS}, f"{link}: no notebook"
            continue
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_the_link_check_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One *two*, `three`\n\n[a](nowhere.md) [b](page.md#one-two-three)\n", "utf-8")
    assert [a or b for a, b in LINK.findall(prose(page))] == [
        "nowhere.md",
        "page.md#one-two-three",
    ]
    assert anchors(page) == {"one-two-three"}


def listed(entry: Any) -> list[str]:
    """The pages of the navigation."""
    if isinstance(entry, str):
        return [entry]
    entries = entry.values() if isinstance(entry, dict) else entry
    return [page for each in entries for page in listed(each)]


def test_the_navigation_holds_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    tutorials = [f"tutorials/{path.stem}.md" for path in NOTEBOOKS]
    pages = [str(page.relative_to(DOCS)) for page in PAGES]
    assert sorted(listed(nav)) == sorted([*pages, *tutorials])


def documented(page: Path) -> list[str]:
    return re.findall(r"^::: (\S+)$", page.read_text("utf-8"), flags=re.MULTILINE)


def test_the_reference_holds_every_public_name() -> None:
    """Every name of ``lens_attr``, and of the packages that users import, is documented."""
    reference = [name for page in PAGES for name in documented(page)]
    leaves = {name.rpartition(".")[2] for name in reference}
    for package in (
        la,
        *(getattr(la, name) for name in ("circuits", "evaluation", "plots", "rules", "runs")),
        importlib.import_module("lens_attr.report"),
    ):
        missing = {name for name in package.__all__ if is_code(package, name)} - leaves
        assert not missing, f"docs/reference lacks {sorted(missing)} of {package.__name__}"
    for name in reference:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), f"{name} does not exist"


def is_code(package: Any, name: str) -> bool:
    """A function or class; not a module, an alias of a type, or plain data."""
    return isinstance(getattr(package, name), (type, FunctionType))


@pytest.mark.usefixtures("_shared_models")
@pytest.mark.parametrize("path", MODULES_WITH_EXAMPLES, ids=name_of)
def test_examples_in_docstrings_run(path: Path) -> None:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(dotted))
    assert result.attempted > 0
    assert result.failed == 0
