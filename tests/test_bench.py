"""`bench`: what it measures, what it leaves out and says so, and stopping and resuming."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from torch import Tensor

import lens_attr as la
from lens_attr.errors import InputError, SavedResultError, UnsupportedModelError
from lens_attr.evaluation import BenchTable, Settings, bench, benchmark, mean_interval, tasks
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.notes import merged, shown
from lens_attr.evaluation.plausibility import plausibility
from lens_attr.evaluation.results import COLUMNS
from lens_attr.evaluation.running import Run
from lens_attr.evaluation.store import file_name
from lens_attr.graph import resolve
from lens_attr.types import Sample

METRICS = {"pg", "mrr", "rma", "pta", "degenerate", "no_positive_mass"}
DEMO = ("demo-gpt2", "demo-llama", "demo-bert")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: la.load(name, device="cpu") for name in DEMO}


@pytest.fixture(scope="module")
def gpt2(models: dict[str, Any]) -> Any:
    return models["demo-gpt2"]


@pytest.fixture(scope="module")
def table(gpt2: Any) -> BenchTable:
    return bench(gpt2, ["sva", "qa"], ["attnlrp", "lrp"], n=120)


# --- the table


def test_every_table_holds_the_baselines_and_the_accuracy(table: BenchTable) -> None:
    rows = table.to_pandas()
    assert tuple(rows.columns) == COLUMNS
    for task in ("sva", "qa"):
        mine = rows[rows["task"] == task]
        assert set(mine["method"]) == {"model", "attnlrp", "lrp", *BASELINES}
        assert METRICS | {"gap"} == set(mine[mine["method"] == "lrp"]["metric"])
        assert set(mine[mine["method"] == "random"]["metric"]) == METRICS
        assert list(mine[mine["method"] == "model"]["metric"]) == ["accuracy"]
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()


@pytest.mark.parametrize("name", DEMO)
def test_lrp_finds_the_subject_and_shuffled_relevance_does_not(
    models: dict[str, Any], name: str
) -> None:
    found = bench(models[name], "sva", ["attnlrp", "lrp"], n=200)
    beating = found.beats_random().set_index("method")["beats_random"]
    assert beating.any(), found
    samples = {one.index: one for one in tasks.view(resolve(models[name]), _sva(200)).samples}
    rng = np.random.default_rng(0)
    shuffled = []
    for row in found.samples["sva", "attnlrp"].itertuples():
        one = samples[int(row.sample)]  # type: ignore[arg-type]
        keep = benchmark.judged(one, Settings())
        scores = np.array(row.scores)  # type: ignore[arg-type]
        scores[keep] = rng.permutation(scores[keep])
        shuffled.append(benchmark.score(one, scores, Settings())["pg"])
    control = mean_interval(100 * np.array(shuffled))
    assert not control.apart(found.value("random", "sva", "pg"))
    assert control.apart(found.value("attnlrp", "sva", "pg"))


def _sva(n: int) -> tasks.Task:
    return tasks.built_in("sva", n)


def test_values_are_what_attribute_and_the_measures_give(gpt2: Any) -> None:
    """The whole way once more by hand, sample by sample, without batches or padding."""
    found = bench(gpt2, "sva", ["attnlrp"], n=25, batch_size=8)
    expected = []
    for sample in _sva(25).samples:
        texts, target = la.sample_inputs(gpt2, [sample])
        result = la.attribute(gpt2, texts, target, "attnlrp")
        words = gpt2.tokenizer(texts[0], return_offsets_mapping=True, add_special_tokens=False)
        ((start, end),) = sample.truth
        inside = [a < end and b > start for a, b in words["offset_mapping"]]
        scores = result.real_tokens(0)[1:].double().numpy()
        expected.append((float(result.target_value[0]), plausibility(scores, np.array(inside))))
    frame = found.samples["sva", "attnlrp"]
    assert list(frame["sample"]) == list(range(25))
    np.testing.assert_allclose(frame["target_value"], [value for value, _ in expected], rtol=1e-5)
    for name in ("pg", "mrr", "pta"):
        assert list(frame[name]) == [getattr(one, name) for _, one in expected]
    np.testing.assert_allclose(frame["rma"], [one.rma for _, one in expected], rtol=1e-4)
    pg = found.value("attnlrp", "sva", "pg")
    assert pg.value == pytest.approx(100 * frame["pg"].mean()) and pg.n == 25


@pytest.mark.parametrize("name", DEMO)
def test_batching_changes_no_metric(models: dict[str, Any], name: str) -> None:
    one, many = (
        bench(models[name], ["sva", "qa"], ["attnlrp"], n=30, batch_size=size) for size in (1, 16)
    )
    for metric in ("pg", "mrr", "pta"):
        for task in ("sva", "qa"):
            first, second = (b.samples[task, "attnlrp"] for b in (one, many))
            assert list(first[metric]) == list(second[metric])
    np.testing.assert_allclose(one.rows["value"], many.rows["value"], rtol=1e-4)
    assert one.samples["sva", "random"].equals(many.samples["sva", "random"])


def test_uniform_is_the_share_of_the_truth(table: BenchTable) -> None:
    frame = table.samples["sva", "uniform"]
    shares = np.array([
        np.mean(np.array(row.inside)[1:])  # type: ignore[arg-type]
        for row in table.samples["sva", "samples"].itertuples()
    ])[frame["sample"]]  # fmt: skip
    for metric in ("pg", "rma", "pta"):
        np.testing.assert_allclose(frame[metric], shares)


def test_the_gap_is_that_of_the_conservation_check(gpt2: Any, table: BenchTable) -> None:
    frame = table.samples["sva", "lrp"]
    texts, target = la.sample_inputs(gpt2, _sva(120).samples)
    result = la.attribute(gpt2, texts, target, "lrp")
    gaps = result.check().gap.numpy()[frame["sample"]]
    np.testing.assert_allclose(frame["gap"], gaps, atol=1e-4)
    assert table.value("lrp", "sva", "gap").high < table.value("attnlrp", "sva", "gap").low


# --- settings


def test_not_contrastive_explains_the_highest_candidate(gpt2: Any) -> None:
    settings = Settings(contrastive=False, keep_incorrect=True)
    wrong = [replace(s, answer=s.foil, foil=s.answer) for s in _sva(6).samples]
    found = bench(gpt2, tasks.Task("sva", wrong), ["lrp"], settings=settings)
    described = found.samples["sva", "samples"]
    highest = described[["answer_logit", "foil_logit"]].max(axis=1)
    np.testing.assert_allclose(found.samples["sva", "lrp"]["target_value"], highest, rtol=1e-4)


def test_special_tokens_and_questions_are_judged_on_request(gpt2: Any) -> None:
    plain, special, whole = (
        bench(gpt2, "qa", ["lrp"], n=12, settings=settings).samples["qa", "lrp"]
        for settings in (Settings(), Settings(special_tokens=True), Settings(whole_text=True))
    )
    assert (special["judged_tokens"] == plain["judged_tokens"] + 1).all()
    assert (whole["judged_tokens"] > plain["judged_tokens"]).all()
    assert all(len(row) > n for row, n in zip(whole["scores"], whole["judged_tokens"], strict=True))


def test_embeddings_are_passed_on(gpt2: Any) -> None:
    full, token = (
        bench(gpt2, "sva", ["gradient_x_input"], n=10, settings=Settings(embeddings=which))
        for which in ("full", "token")
    )
    scores = [list(b.samples["sva", "gradient_x_input"]["scores"][0]) for b in (full, token)]
    assert scores[0] != scores[1]
    own = bench(gpt2, "sva", ["gradient_x_input"], n=10,
                options={"gradient_x_input": {"embeddings": "token"}})  # fmt: skip
    assert list(own.samples["sva", "gradient_x_input"]["scores"][0]) == scores[1]


def test_questions_compete_with_the_whole_vocabulary(gpt2: Any) -> None:
    found = bench(gpt2, "qa", ["lrp"], n=20).samples["qa", "samples"]
    assert (found[found["correct"]]["top_token"] == found[found["correct"]]["answer_token"]).all()
    assert (found["foil_token"] != found["answer_token"]).all()


def test_incorrect_samples_are_left_out_unless_asked_for(gpt2: Any) -> None:
    right = _sva(12).samples
    mixed = [replace(s, answer=s.foil, foil=s.answer) if i % 3 else s for i, s in enumerate(right)]
    task = tasks.Task("sva", mixed)
    found = bench(gpt2, task, ["lrp"])
    accuracy = found.value("model", "sva", "accuracy")
    assert found.tasks["sva"]["used"] == found.tasks["sva"]["correct"] < 12
    assert accuracy.value == pytest.approx(100 * found.tasks["sva"]["correct"] / 12)
    assert accuracy.n == 12
    kept = bench(gpt2, task, ["lrp"], settings=Settings(keep_incorrect=True))
    assert kept.tasks["sva"]["used"] == 12
    assert len(kept.samples["sva", "lrp"]) == len(kept.samples["sva", "random"]) == 12


def test_a_run_without_samples_says_why(gpt2: Any, tmp_path: Path) -> None:
    wrong = [replace(s, answer=s.foil, foil=s.answer) for s in _sva(3).samples]
    found = bench(gpt2, tasks.Task("sva", wrong), ["lrp"], out=tmp_path)
    assert found.value("lrp", "sva", "pg").n == 0
    assert "Nothing is left: the model predicts 0 of 3 samples correctly." in str(found)
    none = bench(gpt2, tasks.Task("sva", []), ["lrp"])
    assert "the source holds no sample" in str(none)
    dropped = bench(gpt2, tasks.Task("sva", [Sample("a b", " are", " is")]), ["lrp"])
    assert "1 x no ground truth" in str(dropped) and "every sample was dropped" in str(dropped)
    assert np.isnan(BenchTable.load(tmp_path).value("lrp", "sva", "pg").value)


# --- methods


def test_methods_that_are_not_defined_for_a_model_are_listed(models: dict[str, Any]) -> None:
    bert = la.load("demo-bert", backend="bridge", device="cpu")
    found = bench(bert, "sva", ["gim", "lrp"], n=10)
    with pytest.raises(UnsupportedModelError) as refusal:
        texts, target = la.sample_inputs(bert, _sva(1).samples)
        la.attribute(bert, texts, target, "gim")
    assert found.refused == {"gim": str(refusal.value)}
    assert f"- gim: {refusal.value}" in str(found)
    assert "gim" not in set(found.rows["method"]) and "lrp" in set(found.rows["method"])


def test_every_registered_method_is_run_or_refused_with_a_reason(gpt2: Any) -> None:
    found = bench(gpt2, "sva", n=4)
    names = {method.name for method in la.methods()}
    assert names == (set(found.rows["method"]) - {"model", *BASELINES}) | set(found.refused)
    assert all(found.refused.values())


def test_rule_sets_of_ones_own_are_methods(gpt2: Any) -> None:
    rules = replace(la.rules.attnlrp(), name="mine")
    found = bench(gpt2, "sva", [rules, "attnlrp"], n=8)
    mine, theirs = (found.samples["sva", name]["rma"] for name in ("mine", "attnlrp"))
    assert list(mine) == list(theirs)


def test_all_zero_relevance_is_counted(gpt2: Any) -> None:
    @la.rules.custom(at="residual")
    def blind(grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)

    rules = replace(la.rules.gradient() + blind, name="blind")
    found = bench(gpt2, "sva", [rules, "lrp"], n=12)
    assert found.value("blind", "sva", "degenerate").value == 100.0
    assert found.value("blind", "sva", "no_positive_mass").value == 100.0
    assert found.value("lrp", "sva", "degenerate").value == 0.0
    uniform, blinded = (found.value(name, "sva", "pg") for name in ("uniform", "blind"))
    assert uniform == blinded


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["gimm"]}, "did you mean 'gim'"),
        ({"methods": ["lrp", "lrp"]}, "of different names"),
        ({"methods": ["random"]}, "always there"),
        ({"methods": []}, "one or more"),
        ({"tasks": ["sva", "sva"]}, "tasks must be one or more of different names"),
        ({"tasks": "svv"}, "no built-in task"),
        ({"n": 0}, "at least 1"),
        ({"settings": Settings(ties="mean")}, "unknown ties"),  # type: ignore[arg-type]
        ({"options": {"lrp": {"steps": 3}}}, "steps"),
        ({"tasks": tasks.Task("x", [Sample("a b", "", "", ((0, 1),))])}, "has no answer"),
    ],
)
def test_what_cannot_be_run_is_refused(gpt2: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, TypeError), match=message):
        bench(gpt2, **{"n": 3, "methods": ["lrp"]} | arguments)


# --- files


def test_results_come_back_as_they_were_saved(gpt2: Any, tmp_path: Path) -> None:
    made = bench(gpt2, "sva", ["lrp"], n=10, out=tmp_path / "r", command="lens-attr bench ...")
    back = BenchTable.load(tmp_path / "r")
    pd.testing.assert_frame_equal(back.rows, made.rows)
    assert str(back) == str(made)
    assert back.metadata["command"] == "lens-attr bench ..."
    assert back.metadata["versions"]["lens_attr"] == la.__version__
    names = {path.name for path in (tmp_path / "r").rglob("*") if path.is_file()}
    tables = {f"sva.{name}.parquet" for name in ("samples", "lrp", *BASELINES)}
    assert names == {"run.json", "summary.json", "table.csv", "table.md"} | tables
    csv = pd.read_csv(tmp_path / "r" / "table.csv")
    assert tuple(csv.columns) == COLUMNS and len(csv) == len(made.rows)
    json.loads((tmp_path / "r" / "summary.json").read_text())


def test_file_names_are_different_for_different_names() -> None:
    names = ("a b", "a_b", "a/b", "a.b", "a-b", "a%20b", "ä", "a:b?")
    assert len({file_name(name) for name in names}) == len(names)
    assert all(re.fullmatch(r"[\w%-]+", file_name(name), re.ASCII) for name in names)


def test_tasks_that_differ_in_punctuation_keep_their_own_results(gpt2: Any, tmp_path: Path) -> None:
    both = [
        tasks.Task("a b", _sva(4).samples),
        tasks.Task("a_b", _sva(9).samples[4:]),
    ]
    expected = {one.name: bench(gpt2, one, ["lrp"]).rows for one in both}
    for _ in range(2):
        found = bench(gpt2, both, ["lrp"], out=tmp_path)
        for name, rows in expected.items():
            mine = found.rows[found.rows["task"] == name].reset_index(drop=True)
            pd.testing.assert_frame_equal(mine, rows, rtol=1e-4)
    pd.testing.assert_frame_equal(BenchTable.load(tmp_path).rows, found.rows)


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_where_it_was(
    gpt2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench(gpt2, "sva", ["lrp", "attnlrp"], n=20, batch_size=4)
    explain, explained = Run.explain, []

    def counted(run: Run, name: str, method: Any, batch: Any, target: Any) -> Any:
        if len(explained) == 7:
            raise Stopped
        explained.append([one.index for one in batch])
        return explain(run, name, method, batch, target)

    monkeypatch.setattr(Run, "explain", counted)
    with pytest.raises(Stopped):
        bench(gpt2, "sva", ["lrp", "attnlrp"], n=20, batch_size=4, out=tmp_path)
    before, explained[:] = list(explained), []
    resumed = bench(gpt2, "sva", ["lrp", "attnlrp"], n=20, batch_size=3, out=tmp_path)
    assert len(before) == 7 and sum(map(len, explained)) == 2 * 20 - 7 * 4
    pd.testing.assert_frame_equal(resumed.rows, whole.rows, rtol=1e-4)
    assert not list(tmp_path.rglob("*.writing"))
    monkeypatch.setattr(Run, "explain", explain)
    more = bench(gpt2, "sva", ["lrp", "gim"], n=20, out=tmp_path)
    assert set(more.rows["method"]) >= {"lrp", "gim"}


def test_who_resumes_reads_the_same_notes(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["gradient_x_input", "attention_only", "lrp"]
    settings = {"n": 12, "batch_size": 4, "settings": Settings(embeddings="full")}
    whole = bench(models["demo-bert"], "sva", chosen, **settings)
    gradient, attention = whole.metadata["notes"]
    assert gradient.startswith("gradient_x_input: the embeddings pass a LayerNorm first")
    assert gradient.endswith("(in 3 batches)")
    assert attention.startswith("attention_only: has no choice of embeddings (in 3 batches)")
    explain, calls = Run.explain, []

    def stopping(run: Run, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise Stopped
        return explain(run, *arguments)

    monkeypatch.setattr(Run, "explain", stopping)
    with pytest.raises(Stopped):
        bench(models["demo-bert"], "sva", chosen, **settings, out=tmp_path)
    for _ in range(2):
        resumed = bench(models["demo-bert"], "sva", chosen, **settings, out=tmp_path)
        assert resumed.metadata["notes"] == whole.metadata["notes"]
        assert BenchTable.load(tmp_path).metadata["notes"] == whole.metadata["notes"]


def test_notes_that_differ_in_numbers_are_one() -> None:
    many = [{"off by 1.2e-03 in 1 of 8.": 1}, {"off by 7 in 3 of 64.": 2, "no target.": 1}]
    found = merged(many)
    assert found == {"off by 1.2e-03 in 1 of 8.": 3, "no target.": 1}
    assert merged([found, {}]) == found
    assert shown("ig", found) == [
        "ig: off by 1.2e-03 in 1 of 8. (in 3 batches; the numbers are of the first)",
        "ig: no target.",
    ]


def test_a_folder_of_another_run_is_refused(gpt2: Any, tmp_path: Path) -> None:
    bench(gpt2, "sva", ["lrp"], n=4, out=tmp_path)
    with pytest.raises(InputError, match=r"holds another run \(different: tasks\)"):
        bench(gpt2, "sva", ["lrp"], n=5, out=tmp_path)
    with pytest.raises(InputError, match="different: settings"):
        bench(gpt2, "sva", ["lrp"], n=4, out=tmp_path, settings=Settings(ties="min"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        bench(gpt2, "sva", ["lrp"], n=4, out=tmp_path / "file")


def test_damaged_results_are_refused(gpt2: Any, tmp_path: Path) -> None:
    bench(gpt2, "sva", ["lrp"], n=4, out=tmp_path)
    with pytest.raises(SavedResultError, match="holds no benchmark results"):
        BenchTable.load(tmp_path / "nowhere")
    path = tmp_path / "samples" / "sva.lrp.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SavedResultError, match="truncated or no parquet"):
        bench(gpt2, "sva", ["lrp"], n=4, out=tmp_path)


def test_nothing_is_left_on_the_model() -> None:
    model = small.fresh(small.CAUSAL[0])
    made = [Sample("w5 w9 w12", " w6", " w8", ((3, 5),), "sva")]
    settings = Settings(keep_incorrect=True)
    bench(model, tasks.Task("sva", made), ["lrp"], settings=settings)
    before = small.world(model)
    bench(model, tasks.Task("sva", made), ["lrp", "gim"], settings=settings)
    assert small.world(model) == before


def test_the_figure_shows_every_method_and_its_interval(table: BenchTable) -> None:
    fig = table.plot(metric="mrr")
    assert [list(bar.y) for bar in fig.data] == [[*BASELINES, "attnlrp", "lrp"]] * 2
    value = table.value("lrp", "sva", "mrr")
    assert fig.data[0].x[-1] + fig.data[0].error_x.array[-1] == pytest.approx(value.high)
    with pytest.raises(InputError, match="no metric 'pgg'"):
        table.plot(metric="pgg")


def test_values_are_looked_up_by_name(table: BenchTable) -> None:
    assert table.value("lrp", "sva", "pg").n == table.tasks["sva"]["used"]
    with pytest.raises(InputError, match="did you mean 'lrp'"):
        table.value("lpr", "sva", "pg")


# --- real data


@pytest.mark.shared
def test_blimp_and_squad_run_end_to_end_on_a_real_model(shared: Path) -> None:
    model = la.load(shared / "models" / "stories260K", device="cpu")
    folder = shared / "data"
    read = tasks.read(folder / "blimp" / "anaphor_number_agreement.jsonl")
    read |= tasks.read(folder / "squad" / "dev-v2.0-sample.json")
    settings = Settings(keep_incorrect=True)
    found = bench(model, list(read.values()), ["lrp"], n=12, settings=settings, batch_size=4)
    assert found.tasks["ra"]["used"] == 12
    assert found.tasks["qa"]["template"] == tasks.QA_TEMPLATE
    assert found.tasks["qa"]["used"] + sum(found.tasks["qa"]["dropped"].values()) == 12
