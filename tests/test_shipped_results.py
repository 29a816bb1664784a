"""The results under benchmarks/results are small, whole, and what README says."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from lens_attr.evaluation import BenchTable
from lens_attr.evaluation.baselines import BASELINES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OVERVIEW, SEEDS = script("overview"), script("seeds")


def test_readme_quotes_the_results() -> None:
    start, end = OVERVIEW.MARKS
    quoted = README.split(start)[1].split(end)[0].strip()
    assert quoted == OVERVIEW.readme_overview()
    assert quoted.count("| `") > 15 and "- **demo-bert**: " in quoted


def test_notes_of_a_run_are_footnotes_of_its_numbers(tmp_path: Path) -> None:
    for model in OVERVIEW.MODELS:
        table = BenchTable.load(RESULTS / model)
        notes = ["deeplift: misses its sum."] if model == "demo-llama" else []
        replace(table, metadata={**table.metadata, "notes": notes}).save(tmp_path / model)
    page = OVERVIEW.readme_overview(tmp_path)
    assert "- † demo-llama, `deeplift`: misses its sum." in page.splitlines()
    (row,) = (line for line in page.splitlines() if line.startswith("| `deeplift` |"))
    marked = [cell.endswith("†") for cell in row.split(" | ")[1:]]
    assert [bool(mark) for mark in marked] == [False] * 3 + [True] * 3 + [False] * 3
    assert page.count("†") == 3 + 1 + 1


@pytest.mark.parametrize("model", OVERVIEW.MODELS)
def test_the_tables_are_small_and_agree(model: str) -> None:
    folder = RESULTS / model
    assert {path.name for path in folder.iterdir()} == {"summary.json", "table.csv", "table.md"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 400_000
    table = BenchTable.load(folder)
    pd.testing.assert_frame_equal(table.rows, pd.read_csv(folder / "table.csv"))
    assert table.to_markdown() == (folder / "table.md").read_text(encoding="utf-8")
    assert model in table.metadata["command"] and set(table.tasks) == set(OVERVIEW.TASKS)


@pytest.mark.parametrize("model", OVERVIEW.MODELS)
def test_some_method_beats_random_on_agreement_and_the_others_are_listed(model: str) -> None:
    table = BenchTable.load(RESULTS / model)
    beats = table.beats_random().query("task == 'sva'").set_index("method")["beats_random"]
    assert beats.reindex(["attnlrp", "lrp", "alti_logit", "alti"]).fillna(False).any()
    (line,) = (line for line in README.splitlines() if line.startswith(f"- **{model}**: "))
    listed = set(line.partition(": ")[2].replace("`", "").split(", ")) - {"none"}
    assert listed == set(beats.index[~beats]) and not listed & set(BASELINES)


def test_the_seeds_that_were_measured_beat_random_and_their_control_does_not() -> None:
    rows = json.loads((RESULTS / "seeds.json").read_text(encoding="utf-8"))
    assert [(row["model"], row["seed"]) for row in rows] == [
        (model, seed) for model in SEEDS.MODELS for seed in SEEDS.SEEDS
    ]
    assert SEEDS.page(rows) == (RESULTS / "seeds.md").read_text(encoding="utf-8")
    measured = [row for row in rows if "pg" in row]
    assert {row["model"] for row in measured} == set(SEEDS.MODELS)
    for row in measured:
        assert set(row["beats_random"]) & set(SEEDS.METHODS), row["model"]
        assert SEEDS.CONTROL not in row["beats_random"], row["model"]


def test_shuffled_relevance_points_nowhere() -> None:
    n = 400
    described = pd.DataFrame(
        [
            {"sample": i, "special": [True, *[False] * 5], "inside": [False, True, *[False] * 4]}
            for i in range(n)
        ]
    )
    right = pd.DataFrame([{"sample": i, "scores": [9.0, 1, 0, 0, 0, 0]} for i in range(n)])
    table = BenchTable(pd.DataFrame(), {("sva", "samples"): described, ("sva", "attnlrp"): right})
    found = SEEDS.shuffled(table)
    assert found.n == n and found.low < 20 < found.high and not np.isclose(found.value, 100)
