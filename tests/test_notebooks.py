"""The notebooks run from top to bottom, and what is stored in them is small and without errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))
SLOW = {"03_which_method_to_trust", "04_head_pruning", "05_circuits_and_patching"}
MOST_BYTES = 300 * 1024


def runner() -> ModuleType:
    """``notebooks/run.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("notebook_runner", ROOT / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def marked(path: Path) -> Any:
    marks = [pytest.mark.slow] if path.stem in SLOW else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [marked(path) for path in NOTEBOOKS])
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for _, _, value in runner().run(read(path), path.stem):
        if value is not None and not hasattr(value, "to_plotly_json"):
            runner().shown(value)


def test_a_cell_that_raises_fails() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# one"]},
        {"cell_type": "code", "source": ["x = 1\n", "x + 1"]},
        {"cell_type": "code", "source": ["print(x)\n", "x / 0"]},
    ]
    steps = runner().run({"cells": cells}, "made up")
    assert next(steps)[1:] == ("", 2)
    with pytest.raises(ZeroDivisionError):
        next(steps)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_what_the_reader_will_learn(path: Path) -> None:
    first, *_ = read(path)["cells"]
    assert first["cell_type"] == "markdown"
    text = "".join(first["source"])
    assert text.startswith("# ") and "**You will learn**" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_complete_and_of_one_run(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    cells = runner().code_cells(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell["outputs"] for cell in cells)
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "execute_result")
            assert "application/vnd.plotly.v1+json" not in output.get("data", {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_place_on_anyones_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not any(place in text for place in ("/home/", "/work/", "/tmp/", "/root/", "/Users/"))
