"""Speed: explicit AttnLRP is ours in another form, and the tables are medians of what was timed."""

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
from lens_attr.evaluation import BenchTable, Speed, bench_speed, compare_runs, speed, tasks
from lens_attr.evaluation.explicit_attnlrp import Clock, ExplicitAttnLRP, ratio
from lens_attr.evaluation.intervals import median_interval
from lens_attr.graph import resolve
from lens_attr.graph.precision import Float64Throughout
from lens_attr.graph.weights import Rotation

WRITTEN_OUT = tiny.on_backends(["gpt2", "llama", "qwen2"])
OTHERS = ["gemma2", "neox", "bert"]


def explicitly(model: Any, ids: torch.Tensor, clock: Clock | None = None) -> torch.Tensor:
    explicit = ExplicitAttnLRP.of(resolve(model))
    return explicit.relevance(explicit.forward(ids), 12, 13, clock)


# --- explicit AttnLRP


@pytest.mark.parametrize("length", [1, 2, 12])
@pytest.mark.parametrize("case", WRITTEN_OUT, ids=tiny.case_id)
def test_layer_by_layer_equals_gradient_under_rules(case: tuple[str, str], length: int) -> None:
    model, ids = tiny.model(*case, tiny.EXACT), tiny.token_ids(case[0], length=length)
    with tiny.precision(tiny.EXACT):
        found = explicitly(model, ids)[None]
    assert tiny.error(found, tiny.explain(model, "attnlrp", ids).tokens) < 1e-9


@pytest.mark.parametrize("case", WRITTEN_OUT[:1] + WRITTEN_OUT[-1:], ids=tiny.case_id)
@pytest.mark.parametrize(
    "method",
    ["lrp", "gim", la.rules.attnlrp(z=1.0), la.rules.attnlrp(pattern=1.0),
     la.rules.attnlrp(norm=1.0), la.rules.attnlrp(activation="true")],
)  # fmt: skip
def test_it_is_attnlrp_and_nothing_else(case: tuple[str, str], method: Any) -> None:
    model, ids = tiny.model(*case, tiny.EXACT), tiny.token_ids(case[0])
    with tiny.precision(tiny.EXACT):
        found = explicitly(model, ids)[None]
    assert tiny.error(found, tiny.explain(model, method, ids).tokens) > 1e-3


@pytest.mark.parametrize("family", OTHERS)
def test_other_blocks_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="explicit AttnLRP is written out for"):
        ExplicitAttnLRP.of(resolve(tiny.model(family, tiny.BACKENDS[0])))


def test_every_operation_is_timed() -> None:
    clock = Clock()
    explicitly(tiny.model("llama", "bridge"), tiny.token_ids("llama"), clock)
    assert set(clock.seconds) == {
        "unembedding", "residual", "linear", "activation", "norm", "attention product", "softmax",
        "rotation", "embedding",
    }  # fmt: skip
    assert all(seconds >= 0 for seconds in clock.seconds.values())


def test_what_is_zero_passes_nothing_on() -> None:
    found = ratio(torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, 4.0, 0.0]))
    assert found.tolist() == [0.0, 0.5, 0.0]


def test_a_rotation_turns_halves_as_complex_numbers() -> None:
    angle = torch.rand(5, 3, dtype=torch.float64)
    x = torch.rand(5, 2, 8, dtype=torch.float64)
    turn = Rotation(torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1))
    found = turn.turned(x)
    number = (
        torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    expected = torch.cat([number.real, number.imag, x[..., 6:]], dim=-1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(turn.turned(found, back=True), x)


# --- the table


def test_the_interval_of_a_median() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    one = median_interval(values)
    assert (one.value, one.n) == (3.0, 5) and 1 <= one.low <= 3 <= one.high <= 100
    assert median_interval(values) == one and median_interval(np.array([])).n == 0
    with pytest.raises(InputError, match="NaN or infinite"):
        median_interval(np.array([1.0, np.nan]))


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return la.load("demo-gpt2", device="cpu")


@pytest.fixture(scope="module")
def exact() -> Any:
    with Float64Throughout():
        return la.load("demo-gpt2", device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def table(gpt2: Any, exact: Any, tmp_path_factory: pytest.TempPathFactory) -> BenchTable:
    out = tmp_path_factory.mktemp("speed")
    return bench_speed(gpt2, tasks.built_in("sva", 20), exact=exact, n=6, out=out)


def test_rows_are_medians_over_samples(table: BenchTable) -> None:
    assert set(table.rows["method"]) == {"gradient_x_input", "attnlrp", "explicit_attnlrp"}
    base = table.samples["sva", "gradient_x_input"]
    for method in ("attnlrp", "explicit_attnlrp"):
        frame = table.samples["sva", method]
        assert list(frame["sample"]) == list(range(6)) and (frame["backward"] > 0).all()
        assert (frame["end_to_end"] > frame["backward"]).all()
        ms = table.value(method, "sva", "backward_ms")
        assert ms.value == pytest.approx(1e3 * frame["backward"].median()) and ms.n == 6
        for part in ("backward", "end_to_end"):
            ratios = [a / b for a, b in zip(frame[part], base[part], strict=True)]
            found = table.value(method, "sva", f"{part}_ratio").value
            assert found == pytest.approx(float(np.median(ratios)))
    assert table.value("gradient_x_input", "sva", "end_to_end_ratio").value == 1
    assert table.value("attnlrp", "sva", "attribute_ms").value > 0


def test_the_result_says_where_it_was_measured_and_what_was_proved(table: BenchTable) -> None:
    assert table.metadata["difference"] < 1e-9
    assert table.metadata["machine"]["threads"] == torch.get_num_threads()
    for fact in ("Measured on cpu", "batch 1", "torch", "differs from ours by"):
        assert fact in str(table)


def test_operations_add_up(table: BenchTable) -> None:
    found = speed.operations(table, "sva")
    assert found["share"].sum() == pytest.approx(100) and "linear" in set(found["operation"])
    with pytest.raises(InputError, match="no times of explicit_attnlrp"):
        speed.operations(table, "ra")


def test_a_stopped_run_times_the_rest_only(
    gpt2: Any, exact: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "AT_A_TIME", 2)
    calls, real = [], speed._Timer._times

    def stop(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    def run() -> BenchTable:
        return bench_speed(gpt2, tasks.built_in("sva", 6), exact=exact, out=tmp_path)

    monkeypatch.setattr(speed._Timer, "_times", stop)
    with pytest.raises(KeyboardInterrupt):
        run()  # one to warm up, two that were written, one that was lost
    found = run()
    assert len(calls) == 5 + 1 + 4
    assert list(found.samples["sva", "attnlrp"]["sample"]) == list(range(6))
    again = run()
    pd.testing.assert_frame_equal(again.rows, found.rows)
    assert (compare_runs(found, BenchTable.load(tmp_path))["difference"] == 0).all()


def test_explicit_times_that_were_not_proved_are_left_out(
    gpt2: Any, exact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks.built_in("sva", 2)
    assert "nothing is proved" in bench_speed(gpt2, task).refused["explicit_attnlrp"]
    monkeypatch.setattr(speed, "EQUAL", -1.0)
    refused = bench_speed(gpt2, task, exact=exact)
    assert "differs from ours by" in refused.refused["explicit_attnlrp"]
    assert set(refused.rows["method"]) == {"gradient_x_input", "attnlrp"}


def test_bert_is_timed_without_the_explicit_one() -> None:
    bert = la.load("demo-bert", device="cpu")
    found = bench_speed(bert, tasks.built_in("sva", 3), settings=Speed(("lrp",)))
    assert "not for BertForMaskedLM" in found.refused["explicit_attnlrp"]
    assert found.value("lrp", "sva", "backward_ms").n == 3


def test_no_samples_no_times(gpt2: Any, exact: Any) -> None:
    empty = bench_speed(gpt2, tasks.Task("sva", []), exact=exact)
    assert empty.tasks["sva"]["empty"] == "the source holds no sample"
    assert empty.value("attnlrp", "sva", "backward_ms").n == 0


@pytest.mark.parametrize("presets", [(), ("occlusion",), ("gradient",), ("gim", "gim")])
def test_only_presets_are_timed(presets: Any) -> None:
    with pytest.raises(InputError, match="speed is measured for presets"):
        Speed(presets)
