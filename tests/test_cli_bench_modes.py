"""The modes of ``lens-attr bench``: each writes and prints what every run does, and its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_cli import ESCAPE, fast_load, good, models, run  # noqa: F401  (fixtures)
from test_cli_bench import write

from lens_attr.demo import generate
from lens_attr.evaluation import BenchTable
from lens_attr.evaluation.results import COLUMNS

pytestmark = pytest.mark.usefixtures("fast_load")

MODES = {
    "faithfulness": ["--faithfulness", "--layers", "1", "--methods", "lrp"],
    "ablation": ["--ablate", "relp"],
    "speed": ["--speed"],
    "self-repair": ["--self-repair", "--methods", "gradient_x_input,gim"],
}
OTHERS = {
    "axes": ["--axes", "--methods", "attnlrp"],
    "stability": ["--stability", "--methods", "attnlrp"],
    "length": ["--length", "--methods", "attnlrp"],
}
"""Modes whose tasks or files have names of their own."""
METRIC = {
    "faithfulness": "comprehensiveness",
    "ablation": "rma",
    "speed": "backward_ratio",
    "self-repair": "joint_slope",
}


def base(*flags: str | Path) -> list[str | Path]:
    return ["bench", "--task", "sva", "--n", "3", *flags]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_writes_prints_resumes_and_compares(mode: str, tmp_path: Path) -> None:
    command = base(*MODES[mode], "--out", tmp_path)
    shown = good(*command)
    assert ESCAPE not in shown and f"results: {tmp_path}" in shown and "sva" in shown
    csv = pd.read_csv(tmp_path / "table.csv")
    assert tuple(csv.columns) == COLUMNS and METRIC[mode] in set(csv["metric"])
    assert json.loads((tmp_path / "summary.json").read_text())["command"].startswith("lens-attr")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<script type="application/json">') >= 2
    assert good(*command, "--quiet") == "".join(shown.rpartition("results: ")[:1])
    document = json.loads(good(*command, "--json"))
    assert {row["metric"] for row in document["table"]} >= {METRIC[mode]}
    pairs = json.loads(good("bench", "--compare", tmp_path, tmp_path, "--json"))
    assert METRIC[mode] in {row["metric"] for row in pairs}
    assert all(row["difference"] == 0 for row in pairs)
    assert BenchTable.load(tmp_path).tasks["sva"]["used"] == 3
    another = run(*base(*MODES[mode], "--out", tmp_path), "--seed", "4")
    assert another.exit_code == 1 and "holds another run" in another.stderr


def test_faithfulness_reads_texts_and_its_settings(tmp_path: Path) -> None:
    lines = [f"{s.text}{s.answer}{s.suffix}\t1" for s in generate("sva", 12)]
    data = write(tmp_path / "sst2.tsv", "sentence\tlabel", *lines)
    flags = ["--layers", "none", "--token", " the", "--contrastive", "--methods", "lrp"]
    command = ["bench", "--faithfulness", "--data", data, "--task", "sst2", "--n", "4", *flags]
    document = json.loads(good(*command, "--out", tmp_path / "o", "--json"))
    settings = document["metadata"]["settings"]
    assert (settings["layers"], settings["token"], settings["contrastive"]) == ([], " the", True)
    assert document["tasks"]["sst2"]["used"] == 4
    assert "replaced by ' the'" in " ".join(document["tasks"]["sst2"]["remarks"])


def test_faithfulness_of_several_lengths_ends_with_a_row_for_each(tmp_path: Path) -> None:
    """Of the tokens; every block before which the stream is replaced has a table of its own."""
    lines = [f"{s.text}{s.answer}{s.suffix}\t1" for s in generate("sva", 30)]
    data = write(tmp_path / "sst2.tsv", "sentence\tlabel", *lines)
    flags = ["--lengths", "5,8", "--layers", "0,2", "--methods", "lrp", "--n", "4"]
    shown = good("bench", "--faithfulness", "--data", data, "--task", "sst2", *flags,
                 "--out", tmp_path / "o")  # fmt: skip
    rows = shown.partition("sst2 by length")[2].splitlines()
    found = [row.split()[:2] for row in rows if row.startswith("lrp ")]
    assert found == [["lrp", "5"], ["lrp", "8"]] and "sst2/8/layer 2" in shown


def test_deletion_reads_its_token_and_its_sweep(tmp_path: Path) -> None:
    flags = ["--delete", "token", "--token", " the", "--sweep", "10,30", "--methods", "lrp"]
    document = json.loads(good(*base("--deletion", *flags, "--out", tmp_path / "o", "--json")))
    settings = document["metadata"]["settings"]
    assert (settings["token"], settings["sweep"], settings["k"]) == (" the", [10.0, 30.0], 20.0)
    spaced = good(*base("--deletion", *flags[:2], *flags[-2:], "--out", tmp_path / "p", "--json"))
    assert json.loads(spaced)["metadata"]["settings"]["token"] is None
    values = [row["value"] for row in json.loads(spaced)["table"] if row["method"] == "lrp"]
    assert values != [row["value"] for row in document["table"] if row["method"] == "lrp"]


def test_faithfulness_goes_through_every_block_by_default(tmp_path: Path) -> None:
    document = json.loads(
        good(*base("--faithfulness", "--methods", "gim", "--out", tmp_path, "--json"))
    )
    assert list(document["tasks"]) == ["sva", *(f"sva/layer {i}" for i in range(4))]
    assert document["metadata"]["settings"]["contrastive"] is False


def test_ablations_by_other_measures(tmp_path: Path) -> None:
    tokens = ["--layers", "none"]
    for measure, metric, more in (
        ("--deletion", "log_odds", []), ("--faithfulness", "sufficiency", tokens)
    ):  # fmt: skip
        flags = ["--ablate", "gim", measure, *more, "--json"]
        document = json.loads(good(*base(*flags, "--out", tmp_path / measure)))
        rows = [row for row in document["ablation"] if row["metric"] == metric]
        assert {row["series"] for row in rows} == {"cumulative", "leave one out", "temperature"}
        assert (tmp_path / measure / "ablation.md").exists()


def test_ablation_steps_are_shown_with_their_differences(tmp_path: Path) -> None:
    shown = good(*base("--ablate", "gim", "--out", tmp_path))
    for text in ("without norm freeze", "+ gradient normalisation", "+ TSG", "T = 10", "(p = "):
        assert text in shown


def test_speed_tells_operations_and_takes_presets(tmp_path: Path) -> None:
    command = base("--speed", "--methods", "gim,lrp", "--out", tmp_path, "--json")
    document = json.loads(good(*command))
    assert document["metadata"]["settings"]["presets"] == ["gim", "lrp"]
    assert {row["operation"] for row in document["operations"]["sva"]} >= {"linear", "softmax"}
    assert document["metadata"]["difference"] < 1e-9
    assert good("bench", "--speed", "--n", "2", "--out", tmp_path / "d").count("\nsva  ") == 1


@pytest.mark.parametrize("mode", [*MODES, *OTHERS])
def test_a_file_without_samples_exits_with_0_and_the_reason(mode: str, tmp_path: Path) -> None:
    sample = generate("sva", 1)[0]
    row: dict[str, Any] = {"text": sample.text, "answer": sample.answer, "foil": sample.answer}
    data = write(tmp_path / "d.jsonl", row | {"truth": sample.truth, "task": "sva"})
    command = ["bench", "--data", data, *(MODES | OTHERS)[mode], "--out", tmp_path / "o"]
    shown = good(*command)
    assert "Nothing is left: every sample was dropped" in shown
    document = json.loads(good(*command, "--json"))
    assert not any(task["used"] for task in document["tasks"].values())
    assert all(row["n"] == 0 and row["value"] is None for row in document["table"])
    pairs = json.loads(good("bench", "--compare", tmp_path / "o", tmp_path / "o", "--json"))
    assert pairs and all(row["n"] == 0 and row["p"] is None for row in pairs)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--speed", "--axes"], "different runs"),
        (["--faithfulness", "--deletion"], "different runs"),
        (["--ablate", "gim", "--speed"], "does not go with"),
        (["--ablate", "gradient"], "gradient"),
        *(
            (option.split(), f"{option.split()[0]} goes with {modes}, not with the plain benchmark")
            for option, modes in {
                "--k 77": "--deletion",
                "--unit token": "--deletion",
                "--delete remove": "--deletion",
                "--lengths 50,200": "--deletion and --faithfulness",
                "--interest random": "--deletion and --faithfulness",
                "--layers 1": "--faithfulness",
                "--token x": "--deletion and --faithfulness",
                "--sweep 5": "--deletion",
                "--k 20": "--deletion",
            }.items()
        ),
        *(
            (["--deletion", *option.split()], f"{option.split()[0]} goes with the plain benchmark")
            for option in ("--ties dense", "--keep-incorrect", "--special-tokens", "--whole-text")
        ),
        (["--deletion", "--not-contrastive"], "goes with the plain benchmark and --faithfulness"),
        (["--deletion", "--token", " the"], "--token goes with --delete token"),
        (["--deletion", "--sweep", "5;10"], "percents and commas"),
        (["--axes", "--embeddings", "token"], "--stability and --length, not with --axes"),
        (["--speed", "--batch-size", "3"], "--batch-size goes with"),
        (["--ablate", "gim", "--methods", "attnlrp"], "does not go with --ablate"),
        (["--skip-bad"], "--skip-bad says how a file is read: give one with --data or --pairs"),
        (["--template", "x"], "give one with --data"),
        (["--compare", ".", "."], "--task does not go with --compare"),
        (["--faithfulness", "--layers", "first"], "whole numbers"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], hint: str) -> None:
    ran = run("bench", "--task", "sva", *arguments)
    assert ran.exit_code == 2 and hint in ran.output and "Traceback" not in ran.output


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--faithfulness", "--layers", "9"], "layers must be different and of 0 to 3"),
        (["--faithfulness", "--token", " extraordinarily"], "name one token"),
        (["--deletion", "--delete", "token", "--token", " extraordinarily"], "name one token"),
        (["--deletion", "--sweep", "5,100"], "k must lie between 0 and 100 %"),
        (["--speed", "--methods", "occlusion"], "speed is measured for presets"),
        (["--self-repair", "--methods", "occlusion"], "unknown method 'occlusion'"),
        (["--self-repair", "--model", "demo-bert", "--backend", "bridge"], "softmax outside"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], hint: str, tmp_path: Path) -> None:
    ran = run(*base(*arguments, "--out", tmp_path / "o"))
    assert ran.exit_code == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ") and hint in line
