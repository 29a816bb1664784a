"""`python -m benchmarks`: every section measures, and the page says against what."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch

from benchmarks import __main__ as command
from benchmarks import alti_logit, circuits, harness, memory, presets
from benchmarks.harness import Options, Row

TINY = {"layers": 2, "d_model": 64, "heads": 1, "vocabulary": 1000}
PROCESSES = {"startup", "runs", "runs_huge"}
"""Sections that start processes of their own, which takes long; `test_startup` looks at one."""


@pytest.fixture(autouse=True)
def tiny_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real shapes shrunk."""
    for module in (harness, presets, memory, alti_logit, circuits):
        for name in ("GPT2", "LLAMA", "XL"):
            if hasattr(module, name):
                shape = getattr(module, name)
                kv = 1 if shape.is_llama else None
                other = replace(shape, **TINY, key_value_heads=kv, d_mlp=96)
                monkeypatch.setattr(module, name, other)


@pytest.mark.parametrize("name", sorted(set(command.SECTIONS) - PROCESSES))
def test_every_section_measures(name: str) -> None:
    options = Options(quick=True, runs=2, clock="cpu")
    with small.untyped():
        rows = list(command.SECTIONS[name][1](options))
    assert rows
    for row in rows:
        assert all(value >= 0 for value in row.values) and row.setting and row.what
        assert (row.aim is None) or row.base
        assert len(row.cells()) == len(harness.HEADER)


def test_presets_are_measured_in_every_way_against_the_gradient() -> None:
    with small.untyped():
        rows = list(presets.rows(Options(quick=True, runs=2)))
    for name in presets.METHODS:
        mine = [row for row in rows if row.what.startswith(f"{name}:")]
        assert {row.what.partition(": ")[2] for row in mine} == {
            "backward, nothing recorded",
            "backward",
            "end to end",
            "products of matrices, end to end",
        }
        assert all(row.against for row in mine) or name == "gradient"
    aims = {row.aim for row in rows if row.what == "gim: end to end"}
    assert aims == {1.05, presets.BY_HAND_AIM}


def test_products_of_matrices_are_counted_and_nothing_else() -> None:
    with presets.Products() as run:
        torch.ones(3, 4) @ torch.ones(4, 5) + torch.ones(3, 5)
    assert run.operations == 2 * 3 * 4 * 5
    model, ids = tiny.model("gpt2", "bridge"), tiny.token_ids("gpt2")
    gradient, attnlrp, lrp = (
        presets.products_of(model, ids, name) for name in ("gradient", "attnlrp", "lrp")
    )
    assert gradient == attnlrp > lrp


def test_the_page_says_under_which_allocator_settings_it_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    section = {"name": "startup", "machine": harness.machine(Options()), "quick": False}
    page = command.page({"one": section | {"rows": [], "error": ""}})
    assert "`MALLOC_TRIM_THRESHOLD_=7 python -m benchmarks --only startup`" in page


def test_the_plan_has_every_setting_that_was_asked_for() -> None:
    cells = presets.gpt2_cells(Options()) + presets.llama_cells(Options())
    newest = harness.newest_backend()
    for shape in (presets.GPT2, presets.LLAMA):
        sizes = {(c.batch, c.length) for c in cells if (c.shape, c.backend) == (shape, newest)}
        assert sizes == {(1, 128), (1, 512), (8, 128), (8, 512)}
    full = [c for c in cells if c.shape == presets.LLAMA and c.layers is None]
    assert [(c.batch, c.length) for c in full] == [(1, 128)]


@pytest.mark.parametrize("backend", [harness.newest_backend(), "bridge"])
@pytest.mark.parametrize("name", ["GPT2", "LLAMA"])
def test_models_have_the_shape_asked_for(name: str, backend: str) -> None:
    model = harness.build(Options(), getattr(harness, name), backend, layers=1, n_ctx=32)
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.d_vocab) == (1, 64, 1000)
    assert bool(model.cfg.gated_mlp) == (name == "LLAMA")


def test_ratios_are_taken_run_by_run() -> None:
    row = Row("gim", "here", [2.0, 3.0, 8.0], "s", "gradient", [1.0, 2.0, 2.0], aim=1.9)
    assert row.ratios == [2.0, 1.5, 4.0]
    assert row.met is False and replace(row, aim=2.0).met is True
    cells = dict(zip(harness.HEADER, row.cells(), strict=True))
    assert cells["measured"] == "3.00 (2.50 to 5.50) s"
    assert cells["ratio"] == "2.00 (1.75 to 3.00)" and cells["aim"] == "at most 1.90"


def test_candidates_take_turns_there_and_back_after_a_round_that_does_not_count() -> None:
    order: list[str] = []

    def call(name: str) -> Any:
        return lambda: order.append(name) or float(len(order))

    found = harness.interleaved({"a": call("a"), "b": call("b")}, runs=2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_on_a_gpu_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    harness.seconds_of(Options(device="cuda"), lambda: None)
    harness.seconds_of(Options(), lambda: None)
    assert len(waited) == 2


def test_the_command_writes_page_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(options: Options) -> Any:
        yield Row("one", "here", [1.0])
        raise ValueError("no more")

    title = ("Broken", broken, test_the_command_writes_page_and_numbers)
    monkeypatch.setitem(command.SECTIONS, "memory", title)
    threads = str(torch.get_num_threads())
    arguments = ["--quick", "--threads", threads, "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments, "--only", "launches", "memory"])
    with small.untyped():
        assert command.main() == 1, "a section that fails is not forgotten"
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## Operations of the backward" in page and "Stopped by ValueError: no more" in page
    assert re.search(r"\d+ of \d+ are met", page)
    assert "launches" in capsys.readouterr().out
    (memory,) = [one for one in numbers(tmp_path) if one["name"] == "memory"]
    assert len(memory["rows"]) == 1
    assert memory["machine"]["versions"]["torch"] == torch.__version__


def numbers(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "benchmarks.json").read_text()).values())


def test_what_is_not_measured_again_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 2.0, 3.0])

    def rows(options: Options) -> Any:
        yield Row("one", "here", [next(seconds)], base=[1.0], aim=1.0)

    for names in (["memory", "presets"], ["memory"]):
        for name in names:
            monkeypatch.setitem(command.SECTIONS, name, (name.title(), rows, rows))
        arguments = ["--out", str(tmp_path), "--threads", str(torch.get_num_threads())]
        monkeypatch.setattr("sys.argv", ["benchmarks", *arguments, "--only", *names])
        assert command.main() == 0
    found = {one["name"]: one["rows"][0]["values"] for one in numbers(tmp_path)}
    assert found == {"memory": [3.0], "presets": [2.0]}
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.index("## Presets") < page.index("## Memory"), "in the order of the sections"


def test_a_quick_run_leaves_the_results_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setitem(command.SECTIONS, "memory", ("Memory", lambda options: iter([]), command))
    arguments = ["--quick", "--threads", str(torch.get_num_threads()), "--only", "memory"]
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    assert command.main() == 0
    assert not list(tmp_path.iterdir())
