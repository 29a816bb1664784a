"""Ablations of presets: which variants there are, and that they are measured and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_attr as la
from lens_attr.errors import InputError
from lens_attr.evaluation import (
    AblationTable,
    BenchTable,
    Deletion,
    Faithfulness,
    ablate,
    bench,
    paired_test,
    tasks,
)
from lens_attr.evaluation.ablation import TEMPERATURES, Step, parts_of, plan
from lens_attr.evaluation.store import file_name
from lens_attr.rules import PRESETS, RuleSet

ABLATABLE = [name for name in PRESETS if name != "gradient"]


def described(rules: RuleSet) -> Any:
    return rules.describe()


def steps_of(preset: str, series: str) -> list[Step]:
    return [step for step in plan(preset).steps if step.series == series]


def test_gim_is_made_of_three_parts() -> None:
    assert list(parts_of("gim")) == ["norm freeze", "gradient normalisation", "TSG"]
    assert parts_of("gim")["gradient normalisation"] == {"pattern": 0.5, "z": 0.5, "gate": "half"}


@pytest.mark.parametrize("preset", ABLATABLE)
def test_parts_build_the_preset_up_one_by_one(preset: str) -> None:
    sets, steps = plan(preset).rule_sets, steps_of(preset, "cumulative")
    assert [step.label for step in steps] == ["gradient", *(f"+ {p}" for p in parts_of(preset))]
    assert described(sets[steps[0].method]) == described(la.rules.gradient())
    switches: dict[str, Any] = {}
    for step, part in zip(steps[1:], parts_of(preset).values(), strict=True):
        switches |= part
        assert described(sets[step.method]) == described(la.rules.gradient(**switches))
    assert steps[-1].method == preset
    assert described(sets[preset]) == described(PRESETS[preset]())
    assert [step.against for step in steps[1:]] == [step.method for step in steps[:-1]]


@pytest.mark.parametrize("preset", ABLATABLE)
def test_one_part_is_left_out_at_a_time(preset: str) -> None:
    sets, steps = plan(preset).rule_sets, steps_of(preset, "leave one out")
    neutral = {"norm": 1.0, "pattern": 1.0, "z": 1.0, "gate": "true", "activation": "true",
               "temperature": 1.0}  # fmt: skip
    for step, part in zip(steps[1:], parts_of(preset).values(), strict=True):
        without = PRESETS[preset](**{name: neutral[name] for name in part})
        assert described(sets[step.method]) == described(without)
        assert step.against == preset


def test_temperatures_vary_where_relevance_flows_through_the_softmax() -> None:
    steps = steps_of("gim", "temperature")
    assert [step.label for step in steps] == ["T = 1", "T = 1.5", "T = 2", "T = 3", "T = 5",
                                              "T = 10"]  # fmt: skip
    sets = plan("gim").rule_sets
    for step, t in zip(steps, TEMPERATURES, strict=True):
        assert described(sets[step.method]) == described(la.rules.gim(temperature=t))
        assert step.against == (None if t == 2 else "gim")
    assert not steps_of("lrp", "temperature")


@pytest.mark.parametrize("preset", ABLATABLE)
def test_equal_variants_are_measured_once_and_files_do_not_collide(preset: str) -> None:
    sets = plan(preset).rule_sets
    assert len({repr(described(rules)) for rules in sets.values()}) == len(sets)
    assert len({file_name(name) for name in sets}) == len(sets)
    assert all(rules.name == name for name, rules in sets.items())


def test_what_has_no_parts_is_refused() -> None:
    with pytest.raises(InputError, match="no parts to ablate; did you mean 'gim'"):
        plan("gimm")
    with pytest.raises(InputError, match="no parts to ablate"):
        plan("gradient")
    with pytest.raises(InputError, match="temperatures must be positive"):
        plan("gim", [0.0])
    with pytest.raises(InputError, match="did you mean 'deletion'"):
        ablate(None, "gim", measure="deletions")  # type: ignore[arg-type]


# --- measured


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return la.load("demo-gpt2", device="cpu")


@pytest.fixture(scope="module")
def table(gpt2: Any) -> AblationTable:
    return ablate(gpt2, "gim", n=25)


def test_rows_are_those_of_the_benchmark(gpt2: Any, table: AblationTable) -> None:
    one = bench(gpt2, "sva", ["gim"], n=25)
    row = table.rows.query("step == 'gim' and metric == 'rma'").iloc[0]
    interval = one.value("gim", "sva", "rma")
    assert (row["value"], row["low"], row["high"]) == pytest.approx(
        (interval.value, interval.low, interval.high)
    )
    unfrozen = bench(gpt2, "sva", [la.rules.gim(norm=1.0)], n=25)
    got = table.rows.query("step == 'without norm freeze' and metric == 'mrr'").iloc[0]
    assert got["value"] == pytest.approx(unfrozen.value("gim", "sva", "mrr").value)


def test_differences_are_paired(table: AblationTable) -> None:
    frames = {
        method: table.base.samples["sva", method].set_index("sample")
        for method in ("gim", "gim-T5")
    }
    test = paired_test(*(100 * frames[m]["rma"].to_numpy() for m in ("gim-T5", "gim")))
    row = table.rows.query("step == 'T = 5' and metric == 'rma'").iloc[0]
    found = (row["difference"], row["difference_low"], row["difference_high"], row["p"])
    one = test.difference
    assert found == pytest.approx((one.value, one.low, one.high, test.p))
    assert row["against"] == "gim" and row["n"] == 25


def test_without_frozen_norms_gim_no_longer_finds_the_subject(table: AblationTable) -> None:
    row = table.rows.query("step == 'without norm freeze' and metric == 'pg'").iloc[0]
    assert row["difference_high"] < 0 and row["p"] < 0.01


def test_it_is_saved_told_and_drawn(gpt2: Any, table: AblationTable, tmp_path: Path) -> None:
    text = str(table)
    for heading in ("#### cumulative", "#### leave one out", "#### temperature"):
        assert heading in text
    table.save(tmp_path)
    assert len(pd.read_csv(tmp_path / "ablation.csv")) == len(table.rows)
    figure = table.plot(metric="rma")
    (cumulative, left_out, temperature) = figure.data
    assert list(temperature.y) == [f"T = {t:g}" for t in TEMPERATURES]
    values = table.rows.query("series == 'leave one out' and metric == 'rma'")["value"]
    assert list(left_out.x) == list(values) and len(cumulative.x) == 4
    with pytest.raises(InputError, match="no metric"):
        table.plot(metric="pgg")


@pytest.mark.parametrize(
    ("measure", "settings", "metric"),
    [
        ("deletion", Deletion(), "aopc_log_odds"),
        ("faithfulness", Faithfulness(layers=[0]), "sufficiency"),
    ],
)
def test_any_measure_will_do(
    gpt2: Any, tmp_path: Path, measure: Any, settings: Any, metric: str
) -> None:
    task = tasks.built_in("sva", 4)
    found = ablate(gpt2, "gim", task, measure, temperatures=[3.0], settings=settings, out=tmp_path)
    rows = found.rows.query("metric == @metric")
    assert set(rows["series"]) == {"cumulative", "leave one out", "temperature"}
    assert np.isfinite(rows["value"]).all()
    assert set(rows["task"]) == set(found.base.tasks)
    again = BenchTable.load(tmp_path)
    assert set(again.rows["method"]) >= {"gim", "gim-T3", "random"}
    assert json.loads((tmp_path / "summary.json").read_text())["settings"]["seed"] == 0


def test_variants_that_a_model_refuses_are_left_out_with_the_reason() -> None:
    bert = la.load("demo-bert", "bridge", device="cpu")
    found = ablate(bert, "gim", n=3, temperatures=[1.0, 5.0])
    assert {"gim", "gim-T5"} <= set(found.base.refused)
    assert "without TSG" in set(found.rows["step"]) and "gim" not in set(found.rows["method"])
    assert found.rows.query("step == 'without TSG'")["difference"].isna().all()


def test_nothing_survives_and_nothing_breaks(gpt2: Any) -> None:
    empty = ablate(gpt2, "relp", tasks.Task("sva", []))
    assert (empty.rows["n"] == 0).all() and "| - |" in str(empty)
