"""``lens-attr edges`` and ``lens-attr circuit evaluate``, end to end on a demo model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from test_cli import good, run

import lens_attr as la
from lens_attr.circuits import Circuit, EdgeScores

PROMPTS = [
    "--clean",
    "the keys near the old cabinet",
    "--corrupted",
    "the key near the old cabinet",
    "--target",
    " are",
    "--foil",
    " is",
]


def test_edges_prints_scores_and_saves_the_circuit(tmp_path: Path) -> None:
    files = tmp_path / "c", tmp_path / "edges.csv", tmp_path / "page.html"
    options = ["--edges", "20", "--method", "eap", "--top", "3"]
    shown = good("edges", *PROMPTS, *options, "--save", files[0], "--csv", files[1],
                 "--html", files[2])  # fmt: skip
    scores, circuit = EdgeScores.load(files[0]), Circuit.load(files[0])
    model = la.load("demo-gpt2")
    want = la.circuits.edge_scores(model, PROMPTS[1], PROMPTS[3], la.LogitDiff(" are", " is"))
    assert scores.to_pandas().score.to_list() == pytest.approx(want.to_pandas().score.to_list())
    assert f"circuit: {len(circuit)} edges" in shown
    assert scores.to_pandas().source[0] in shown
    assert len(pd.read_csv(files[1])) == scores.wiring.n_edges
    page = files[2].read_text(encoding="utf-8")
    assert "a0.h" in page and "plotly" in page


def test_edges_as_json() -> None:
    found = json.loads(good("edges", *PROMPTS, "--json", "--by", "top", "--ordering", "signed"))
    assert found["method"] == "eap_ig" and found["circuit"]["ordering"] == "signed"
    assert set(found["edges"][0]) == {"source", "target", "score"}
    assert found["metadata"]["steps"] == 5


def test_a_saved_circuit_is_evaluated_on_other_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    good("edges", "--task", "sva", "--n", "12", "--edges", "60", "--save", folder, "--quiet")
    files = tmp_path / "page.html", tmp_path / "curve.csv"
    options = ["--task", "sva", "--n", "8", "--curve", "--seeds", "1", "--json", "--quiet"]
    shown = good("circuit", "evaluate", folder, *options, "--html", files[0], "--csv", files[1])
    found = json.loads(shown)
    assert 0 < found["fraction"] < 1 and found["n"] <= 8
    assert found["summary"][0]["method"] == "eap_ig"
    assert found["curves"][9]["faithfulness"] == 1.0  # the whole model
    assert len(pd.read_csv(files[1])) == 2 * 10
    assert "Circuits of all sizes" in files[0].read_text(encoding="utf-8")


def test_pairs_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    row = {"clean": PROMPTS[1], "corrupted": PROMPTS[3], "answer": " are", "foil": " is"}
    pd.DataFrame([row]).to_csv(path, index=False)
    one = json.loads(good("edges", "--pairs", path, "--json"))
    other = json.loads(good("edges", *PROMPTS, "--json"))
    assert one["edges"][0] == other["edges"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["edges"], 2, "--clean with --corrupted, or --pairs, or --task"),
        (["edges", "--task", "sva", "--method", "exact", "--steps", "3"], 2, "--steps goes with"),
        (["edges", "--task", "sva", "--method", "eap", "--steps", "3"], 2, "--method eap_ig"),
        (["edges", *PROMPTS[:2], "-t", " are"], 2, "--clean needs --corrupted"),
        (["circuit", "evaluate", ".", *PROMPTS[:2], "-t", " are"], 2, "--clean needs --corrupted"),
        (["edges", *PROMPTS, "--model", "demo-bert"], 1, "error:"),
        (["circuit", "evaluate", "nowhere", "--task", "sva"], 2, "nowhere"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, hint: str) -> None:
    ran = run(*arguments)
    assert ran.exit_code == code
    assert hint in " ".join(ran.output.replace("│", " ").split())


def test_a_circuit_of_dead_ends_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ran = run("edges", *PROMPTS, "--edges", "1", "--by", "top", "--html", page)
    assert ran.exit_code == 0
    hint = "all 1 chosen edges are dead ends, on no path from the input to the logits: raise --edg"
    assert hint in " ".join(ran.output.split()) and hint in page.read_text(encoding="utf-8")


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    """Equal prompts: nothing to be faithful to."""
    good("edges", *PROMPTS, "--edges", "20", "--save", tmp_path)
    same = ["--clean", PROMPTS[1], "--corrupted", PROMPTS[1], "-t", " are", "-f", " is"]
    ran = run("circuit", "evaluate", tmp_path, *same, "--json")
    assert json.loads(ran.stdout, parse_constant=pytest.fail)["faithfulness"] is None
    assert "clean and corrupted prompt are the same in 1 of 1" in ran.stderr


def test_a_folder_without_a_circuit_is_refused(tmp_path: Path) -> None:
    ran = run("circuit", "evaluate", tmp_path, "--task", "sva")
    assert ran.exit_code == 1 and "no circuit.json" in ran.output
