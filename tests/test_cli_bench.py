"""``lens-attr bench`` end to end on the demo models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_cli import ESCAPE, fast_load, good, models, run  # noqa: F401  (fixtures)

from lens_attr.demo import generate
from lens_attr.errors import InputError
from lens_attr.evaluation import BenchTable, Interval, compare_runs
from lens_attr.evaluation.comparing import verdict
from lens_attr.evaluation.results import COLUMNS

pytestmark = pytest.mark.usefixtures("fast_load")


def write(path: Path, *rows: object) -> Path:
    text = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def test_it_prints_and_writes_the_table(tmp_path: Path) -> None:
    out = tmp_path / "r"
    shown = good("bench", "--task", "sva,ra", "--methods", "lrp, gim", "--n", "12", "--out", out)
    assert ESCAPE not in shown
    for text in ("PG %", "random", "last_token", "lrp", "12 samples read", f"results: {out}"):
        assert text in shown
    csv = pd.read_csv(out / "table.csv")
    assert tuple(csv.columns) == COLUMNS and set(csv["task"]) == {"sva", "ra"}
    assert "plotly" in (out / "report.html").read_text(encoding="utf-8").lower()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["command"].startswith("lens-attr") and summary["settings"]["seed"] == 0
    assert "| lrp |" in (out / "table.md").read_text()


def test_settings_reach_the_run(tmp_path: Path) -> None:
    flags = ["--not-contrastive", "--special-tokens", "--whole-text", "--embeddings", "token"]
    flags += ["--ties", "min", "--keep-incorrect", "--seed", "3", "--batch-size", "5"]
    sizes = ["--task", "qa", "--methods", "lrp", "--n", "6"]
    document = json.loads(good("bench", *sizes, *flags, "--out", tmp_path, "--json"))
    assert document["metadata"]["settings"] == {
        "contrastive": False, "special_tokens": True, "whole_text": True, "embeddings": "token",
        "ties": "min", "keep_incorrect": True, "seed": 3,
    }  # fmt: skip
    assert "seed 3" in document["tasks"]["qa"]["source"]


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    sizes = ["--task", "sva", "--n", "6", "--out", tmp_path]
    first = good("bench", *sizes, "--methods", "lrp")
    assert good("bench", *sizes, "--methods", "lrp") == first
    ran = run("bench", "--task", "sva", "--n", "7", "--out", tmp_path, "--methods", "lrp")
    assert ran.exit_code == 1 and "holds another run" in ran.stderr


def test_files_are_tasks(tmp_path: Path) -> None:
    rows = [
        {"text": s.text, "answer": s.answer, "foil": s.foil, "truth": s.truth, "task": s.task}
        for s in generate("all", 9)
    ]
    data = write(tmp_path / "mine.jsonl", *rows)
    base = ["bench", "--data", data, "--methods", "lrp", "--out"]
    document = json.loads(good(*base, tmp_path / "a", "--task", "sva", "--json"))
    assert list(document["tasks"]) == ["sva"] and document["tasks"]["sva"]["read"] == 3
    document = json.loads(good(*base, tmp_path / "b", "--json"))
    assert list(document["tasks"]) == ["sva", "ra", "qa"]
    ran = run(*base, tmp_path / "c", "--task", "agreement")
    assert ran.exit_code == 2 and "no task agreement" in ran.output


def test_malformed_files_stop_the_run_before_anything_is_computed(tmp_path: Path) -> None:
    good_row = {"text": "the keys", "answer": " are", "foil": " is", "truth": [[4, 8]]}
    data = write(tmp_path / "d.jsonl", good_row, "{oops")
    base = ["bench", "--data", data, "--methods", "lrp", "--out", tmp_path / "out"]
    ran = run(*base)
    assert ran.exit_code == 1 and not (tmp_path / "out").exists()
    assert f"{data} line 2: not JSON" in ran.stderr
    assert "malformed: line 2" in good(*base, "--skip-bad")


def test_a_run_in_which_no_sample_survives_exits_with_0(tmp_path: Path) -> None:
    sample = generate("sva", 1)[0]
    row = {"text": sample.text, "answer": sample.foil, "foil": sample.answer}
    data = write(tmp_path / "d.jsonl", row | {"truth": sample.truth, "task": "sva"})
    base = ["bench", "--data", data, "--methods", "lrp", "--out", tmp_path / "o"]
    assert "the model predicts 0 of 1 samples correctly" in good(*base)
    document = json.loads(good(*base, "--json"))
    row = next(r for r in document["table"] if (r["method"], r["metric"]) == ("lrp", "pg"))
    assert row["n"] == 0 and row["value"] is None


def test_refused_methods_are_listed_with_the_reason(tmp_path: Path) -> None:
    model = ["--model", "demo-bert", "--backend", "bridge"]
    sizes = ["--task", "sva", "--n", "4", "--methods", "gim,lrp"]
    shown = good("bench", *model, *sizes, "--out", tmp_path)
    assert "gim is refused: " in shown


def test_deletion_reads_texts_and_cuts_them(tmp_path: Path) -> None:
    lines = [f"{s.text}{s.answer}{s.suffix}\t1" for s in generate("sva", 30)]
    data = write(tmp_path / "sst2.tsv", "sentence\tlabel", *lines)
    base = ["bench", "--deletion", "--data", data, "--methods", "lrp", "--n", "5", "--k", "30"]
    shown = good(*base, "--task", "sst2", "--out", tmp_path / "a")
    assert "comprehensiveness" in shown and "AOPC" in shown and "sst2" in shown
    options = ["--lengths", "5,8", "--delete", "remove", "--unit", "token", "--interest", "random"]
    document = json.loads(good(*base, *options, "--out", tmp_path / "b", "--json"))
    assert list(document["tasks"]) == ["sst2/5", "sst2/8"]
    assert {facts["used"] for facts in document["tasks"].values()} == {5}
    assert document["metadata"]["settings"]["k"] == 30.0
    again = good(*base, *options, "--out", tmp_path / "b")
    rows = again.partition("sst2 by length")[2].splitlines()
    found = [row.split()[:2] for row in rows if row.startswith(("lrp ", "uniform "))]
    assert found == [["uniform", "5"], ["uniform", "8"], ["lrp", "5"], ["lrp", "8"]]
    assert "words deleted" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")


def test_deletion_works_on_built_in_tasks(tmp_path: Path) -> None:
    shown = good("bench", "--deletion", "--task", "sva", "--methods", "lrp", "--n", "5",
                 "--out", tmp_path)  # fmt: skip
    assert "sufficiency" in shown


def test_axes_judge_every_claim(tmp_path: Path) -> None:
    base = ["bench", "--axes", "--task", "qa", "--methods", "lrp,attnlrp", "--n", "10", "--out"]
    shown = good(*base, tmp_path)
    for claim in ("contrastive is at least as good?", "a lower precision makes no difference?"):
        assert claim in shown
    claims = pd.read_csv(tmp_path / "claims.csv")
    assert set(claims["axis"]) == {"target", "special tokens", "question", "precision",
                                   "embeddings"}  # fmt: skip
    assert set(claims["verdict"]) <= {"holds", "does not hold", "undecided"}
    assert (claims["n"] > 0).all()
    pairs = pd.read_csv(tmp_path / "axes.csv")
    assert {"lrp", "attnlrp", "random"} <= set(pairs["method"])
    assert "### target: contrastive is at least as good?" in (tmp_path / "axes.md").read_text()
    document = json.loads(good(*base, tmp_path, "--json"))
    assert len(document["claims"]) == 15 and document["left_out"] == {}
    assert not any(document["unmoved"].values())


def test_axes_leave_the_files_of_a_run(tmp_path: Path) -> None:
    base = ["bench", "--axes", "--task", "sva", "--methods", "lrp", "--n", "6", "--seed", "4"]
    good(*base, "--dtype", "float64", "--out", tmp_path)
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files == {"run.json", "summary.json", "table.csv", "table.md", "axes.csv", "axes.md",
                     "claims.csv", "report.html"}  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["command"].startswith("lens-attr") and summary["settings"]["seed"] == 4
    assert "lens_attr" in summary["versions"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("contrastive is at least as good?", "PG %: paired differences", "Not compared"):
        assert text in page
    rows = json.loads(good("bench", "--compare", tmp_path, tmp_path, "--json"))
    assert {row["method"] for row in rows} >= {"lrp", "random"}
    assert all(row["difference"] == 0 for row in rows)


def test_axes_judge_only_methods_that_can_react(tmp_path: Path) -> None:
    base = ["bench", "--axes", "--task", "sva", "--n", "6", "--dtype", "float64", "--json", "--out"]
    silent = ["--methods", "attention_rollout,attention_only"]
    document = json.loads(good(*base, tmp_path / "a", *silent))
    judged = {claim["axis"] for claim in document["claims"]}
    assert judged == {"special tokens"}
    assert "explains no target" in document["left_out"]["target"]
    assert "no choice of embeddings" in document["left_out"]["embeddings"]
    mixed = json.loads(
        good(*base, tmp_path / "b", "--methods", "attention_rollout,attention_only,lrp")
    )
    alone = json.loads(good(*base, tmp_path / "c", "--methods", "lrp"))
    for axis in ("target", "embeddings"):
        assert mixed["unmoved"][axis] == ["attention_rollout", "attention_only"]
        mine, theirs = (
            [claim for claim in one["claims"] if claim["axis"] == axis] for one in (mixed, alone)
        )
        assert mine == theirs and len(mine) == 3


def test_axes_without_a_question_say_so(tmp_path: Path) -> None:
    shown = good("bench", "--axes", "--task", "sva", "--methods", "lrp", "--n", "6", "--dtype",
                 "float64", "--out", tmp_path)  # fmt: skip
    assert "question is not compared: no task has a context apart" in shown
    assert "precision is not compared" in shown


def test_compare_pairs_the_samples_of_two_runs(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    base = ["bench", "--task", "sva", "--n", "20", "--out"]
    good(*base, a, "--methods", "lrp,gim")
    good(*base, b, "--methods", "lrp", "--not-contrastive")
    good(*base, c, "--methods", "lrp", "--seed", "5")
    shown = good("bench", "--compare", a, b)
    assert "difference" in shown and "lrp" in shown and "gim" not in shown
    rows = json.loads(good("bench", "--compare", a, b, "--json"))
    first, second = BenchTable.load(a), BenchTable.load(b)
    for row in rows:
        values = [t.value(row["method"], "sva", row["metric"]).value for t in (first, second)]
        assert [row["first"], row["second"]] == pytest.approx(values)
        assert row["difference"] == pytest.approx(values[0] - values[1])
    same = compare_runs(first, first)
    assert (same["difference"] == 0).all() and (same["p"] == 1).all()
    ran = run("bench", "--compare", a, c)
    assert ran.exit_code == 1 and "differ between the two runs" in ran.stderr
    assert run("bench", "--compare", a, tmp_path / "nowhere").exit_code == 1


def test_results_under_version_control_cannot_be_paired_and_say_how_to_make_them(
    tmp_path: Path,
) -> None:
    shipped = Path(__file__).parents[1] / "benchmarks" / "results" / "demo-gpt2"
    good("bench", "--task", "sva", "--n", "3", "--methods", "lrp", "--out", tmp_path)
    ran = run("bench", "--compare", shipped, tmp_path)
    assert ran.exit_code == 1
    assert "no per-sample tables (samples/*.parquet) with the first run" in ran.stderr
    assert "make them again, 'lens-attr bench --model demo-gpt2 --task sva,ra,qa" in ran.stderr


def test_runs_without_common_results_cannot_be_compared() -> None:
    empty = BenchTable(pd.DataFrame(columns=list(COLUMNS)))
    with pytest.raises(InputError, match="no task and method in common"):
        compare_runs(empty, empty)


@pytest.mark.parametrize(
    ("low", "high", "claim", "expected"),
    [
        (-0.5, 3.0, "at least", "holds"),
        (-3.0, 2.0, "at least", "undecided"),
        (-3.0, -1.5, "at least", "does not hold"),
        (-0.5, 0.5, "equal", "holds"),
        (-0.5, 2.0, "equal", "undecided"),
        (1.5, 2.0, "equal", "does not hold"),
        (-2.0, -1.5, "equal", "does not hold"),
    ],
)
def test_verdicts(low: float, high: float, claim: Any, expected: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 9), claim, 1.0) == expected
    assert verdict(Interval(np.nan, np.nan, np.nan, 0), claim, 1.0) == "undecided"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--methods", " , "],
        ["--axes", "--deletion"],
        ["--data", "there/is/no/such.jsonl"],
        ["--deletion", "--lengths", "long"],
        ["--n", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    ran = run("bench", "--task", "sva", *arguments)
    assert ran.exit_code == 2 and "Traceback" not in ran.output


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--methods", "gimm"], "did you mean 'gim'"),
        (["--task", "svaa"], "did you mean 'sva'"),
        (["--deletion", "--k", "100"], "between 0 and 100"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], hint: str) -> None:
    ran = run("bench", *arguments)
    assert ran.exit_code == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ") and hint in line
