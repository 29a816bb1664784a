"""Self-repair over a task: the ablations of every sample, joined, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import lens_attr as la
from lens_attr.errors import InputError, UnsupportedModelError
from lens_attr.evaluation import BenchTable, compare_runs, tasks
from lens_attr.graph import resolve
from lens_attr.runs import SelfRepairRun, SelfRepairSettings, bench_self_repair, self_repair

SETTINGS = SelfRepairSettings(methods=("gradient", "tsg"), thresholds=(0.005, 0.01), max_keys=4)
N = 3


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return la.load("demo-gpt2", device="cpu")


@pytest.fixture(scope="module")
def found(gpt2: Any) -> SelfRepairRun:
    return bench_self_repair(gpt2, tasks.built_in("sva", 9), n=N, settings=SETTINGS)


def test_every_sample_is_measured_as_circuits_do(gpt2: Any, found: SelfRepairRun) -> None:
    for one in tasks.view(resolve(gpt2), tasks.built_in("sva", N)).samples:
        target = la.LogitDiff(one.answer or 0, one.foil or 0)
        alone = la.circuits.self_repair(
            gpt2, torch.tensor([one.token_ids]), target,
            methods=SETTINGS.methods, thresholds=SETTINGS.thresholds, max_keys=SETTINGS.max_keys,
        )  # fmt: skip
        for name in ("singles", "pairs"):
            mine = getattr(found.results["sva"], name).query("example == @one.index")
            expected = getattr(alone, name).assign(example=one.index)
            pd.testing.assert_frame_equal(
                mine.reset_index(drop=True), expected, check_dtype=False, rtol=1e-4, atol=1e-5
            )


def test_slope_and_error_of_each_sample(found: SelfRepairRun) -> None:
    pairs = found.results["sva"].pairs
    assert len(pairs) and set(found.table.rows["method"]) == {"summed", "gradient", "tsg"}
    for method in ("summed", "tsg"):
        for row in found.table.samples["sva", method].to_dict("records"):
            mine = pairs[pairs["example"] == row["sample"]]
            guess = mine["effect_1"] + mine["effect_2"] if method == "summed" else mine[method]
            exact = mine["effect_both"].to_numpy()
            slope = np.linalg.lstsq(exact[:, None], guess.to_numpy(), rcond=None)[0][0]
            assert row["joint_slope"] == pytest.approx(slope)
            assert row["joint_error"] == pytest.approx(np.abs(guess - exact).mean())
            assert row["pairs"] == len(mine)
    mean = found.table.samples["sva", "tsg"]["joint_slope"].mean()
    assert found.table.value("tsg", "sva", "joint_slope").value == pytest.approx(mean)


def test_the_scatter_holds_every_pair(found: SelfRepairRun) -> None:
    figure = found.results["sva"].plot()
    assert len(figure.data[1].x) == len(found.results["sva"].pairs)
    assert "pairs of keys in" in str(found) and "Interchangeable keys" in str(found)


def test_a_stopped_run_goes_on_at_the_next_sample(
    gpt2: Any, found: SelfRepairRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> SelfRepairRun:
        return bench_self_repair(gpt2, tasks.built_in("sva", N), settings=SETTINGS, out=tmp_path)

    calls, real = [], self_repair.self_repair

    def stop_at_the_third(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(self_repair, "self_repair", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run()
    resumed = run()
    assert len(calls) == 4
    pd.testing.assert_frame_equal(resumed.table.rows, found.table.rows)
    again = run()
    pd.testing.assert_frame_equal(again.results["sva"].pairs, resumed.results["sva"].pairs)
    loaded = BenchTable.load(tmp_path)
    same = compare_runs(resumed.table, loaded)
    assert (same["difference"] == 0).all() and set(same["metric"]) == {"joint_slope", "joint_error"}


def test_no_pair_is_no_slope(gpt2: Any) -> None:
    settings = SelfRepairSettings(methods=("gradient",), thresholds=(1e9,))
    none = bench_self_repair(gpt2, tasks.built_in("sva", 1), settings=settings)
    assert none.table.value("gradient", "sva", "joint_slope").n == 0
    assert not len(none.results["sva"].pairs) and len(none.results["sva"].singles)
    empty = bench_self_repair(gpt2, tasks.Task("sva", []), settings=settings)
    assert empty.table.tasks["sva"]["empty"] == "the source holds no sample"


def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    gpt2: Any, tmp_path: Path
) -> None:
    task, out = tasks.built_in("sva", 1), tmp_path / "out"
    for wrong in ({"methods": ("gimm",)}, {"thresholds": ()}, {"max_keys": 1}):
        with pytest.raises(InputError):
            bench_self_repair(gpt2, task, settings=SelfRepairSettings(**wrong), out=out)
    with pytest.raises(UnsupportedModelError, match="softmax outside"):
        bench_self_repair(tiny.model("bert", "bridge"), task, out=out)
    assert not out.exists()
