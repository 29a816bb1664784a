"""``lens-attr patch``, and what ``lens-attr prune`` removes besides heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import lens_attr as la
from lens_attr.circuits import PatchResult
from lens_attr.cli import app

CLEAN, CORRUPTED = "the keys near the cabinet", "the key near the cabinet"
PAIR = ["--clean", CLEAN, "--corrupted", CORRUPTED, "--target", " are", "--foil", " is"]


@pytest.fixture(scope="module")
def model() -> Any:
    return la.load("demo-gpt2")


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """Load the demo model once for the whole file."""
    monkeypatch.setattr(la, "load", lambda name, **options: model)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def wrong(*arguments: object) -> str:
    ran = run(*arguments)
    assert ran.exit_code != 0
    return " ".join(ran.output.split())


def test_one_pair_as_json_is_what_the_library_says(model: Any) -> None:
    document = json.loads(good("patch", *PAIR, "--json"))
    found = la.circuits.patch(model, CLEAN, CORRUPTED, la.LogitDiff(" are", " is"))
    assert document["effects"] == found.effects.tolist()
    assert document["unpatched"] == float(found.unpatched) < 0 < document["other"]
    assert (document["axes"], document["n"]) == (["layer", "head"], 1)


def test_the_table_has_the_largest_effects(model: Any) -> None:
    out = good("patch", *PAIR, "--top", 2, "-q").splitlines()
    rows = [line.split() for line in out if line.strip()[:1].isdigit()]
    table = la.circuits.patch(model, CLEAN, CORRUPTED, la.LogitDiff(" are", " is")).to_pandas()
    best = table.loc[table["effect"].abs().nlargest(2).index]
    assert [(int(row[0]), int(row[1])) for row in rows] == list(
        zip(best["layer"], best["head"], strict=True)
    )


@pytest.mark.parametrize("extra", [[], ["--unit", "resid"], ["--by-position"]])
def test_files(tmp_path: Path, extra: list[str]) -> None:
    page, table, folder = tmp_path / "page.html", tmp_path / "new" / "t.csv", tmp_path / "saved"
    good(
        "patch", *PAIR, *extra, "--html", page, "--csv", table, "--save", folder, "--mode", "noise"
    )
    saved = PatchResult.load(folder)
    assert saved.mode == "noise"
    pd.testing.assert_frame_equal(pd.read_csv(table), saved.to_pandas(), check_dtype=False)
    assert "Activation patching" in page.read_text(encoding="utf-8")


def test_the_generators_pairs_and_how_many_fit() -> None:
    ran = run("patch", "--task", "sva", "--n", "20", "--json")
    document = json.loads(ran.stdout)
    assert 0 < document["n"] < 20
    assert f"{document['n']} of 20 pairs can be used; the others are left out" in ran.stderr
    by_position = json.loads(
        good("patch", "--task", "sva", "--n", "20", "--unit", "mlp_out", "--json")
    )
    assert by_position["axes"] == ["layer", "pos"] and by_position["n"] <= document["n"]


def test_ones_own_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    lines = ["clean,corrupted,answer,foil", f"{CLEAN},{CORRUPTED}, are, is"]
    path.write_text("\n".join([*lines, lines[1]]), encoding="utf-8")
    both, first = (
        json.loads(good("patch", "--pairs", path, "--n", n, "--json")) for n in ("9", "1")
    )
    alone = json.loads(good("patch", *PAIR, "--json"))
    assert (both["n"], first["n"]) == (2, 1)
    assert first["effects"] == alone["effects"]
    path.write_text("\n".join([*lines, "the keys,the key near, are, is"]), encoding="utf-8")
    assert "row 1: clean has" in wrong("patch", "--pairs", path)
    same = f"{CLEAN},{CORRUPTED}, are, are"
    path.write_text("\n".join([*lines, "the keys,the key near, are, is", same]), encoding="utf-8")
    assert "--skip-misaligned" in wrong("patch", "--pairs", path)
    ran = run("patch", "--pairs", path, "--skip-misaligned", "--json")
    assert "1 of 3 pairs can be used" in ran.stderr
    assert json.loads(ran.stdout)["effects"] == alone["effects"]
    path.write_text("clean,corrupt\n", encoding="utf-8")
    assert "unknown column 'corrupt'" in wrong("patch", "--pairs", path)


def test_ablation_needs_no_corrupted_prompt() -> None:
    arguments = ["--clean", CLEAN, "-t", " are", "--source", "zero", "--mode", "noise", "--json"]
    document = json.loads(good("patch", *arguments))
    assert document["other"] is None and document["source"] == "zero"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --clean with --corrupted, or --pairs, or --task"),
        (["--clean", "a", "--task", "sva"], "give --clean with --corrupted, or --pairs, or --task"),
        (["--clean", CLEAN, "--corrupted", CORRUPTED], "--clean needs --target"),
        (["--task", "sva", "--target", " are"], "go with --clean"),
        (["--clean", CLEAN, "-t", " are"], "--clean needs --corrupted; or, to ablate the clean"),
        (["--task", "sva", "--skip-misaligned"], "--skip-misaligned goes with --pairs"),
        ([*PAIR, "--unit", "heads"], "heads"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    assert message in wrong("patch", *arguments).replace("│ ", "")


@pytest.mark.parametrize(("unit", "points"), [("mlp", 5), ("neuron", 8)], ids=["mlp", "neuron"])
def test_pruning_other_units(tmp_path: Path, unit: str, points: int) -> None:
    arguments = ["--task", "sva", "--n", 8, "--n-rank", 8, "--seeds", 1, "--methods", "lrp"]
    extra = ["--unit", unit, "--steps", 7, "--ablation", "resample", "--out", tmp_path, "--json"]
    document = json.loads(good("prune", *arguments, *extra))
    assert len(document["curves"]["lrp"]["accuracy"]) == points
    table = pd.read_csv(tmp_path / "curve.csv")
    assert set(table["ablation"]) == {"resample"} and ("neuron" in table) == (unit == "neuron")
    names = {"mlp": "Removing MLPs", "neuron": "Removing neurons"}
    assert names[unit] in (tmp_path / "pruning.html").read_text(encoding="utf-8")


def test_pruning_writes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--task", "sva", "--n", 4, "--n-rank", 4, "--seeds", 0, "--methods", "lrp"]
    extra = ["--unit", "mlp", "--csv", "mine/table.csv", "--html", "page.html", "--json"]
    document = json.loads(good("prune", *arguments, *extra))
    assert document["files"] == ["mine/table.csv", "page.html"]
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"mine/table.csv", "page.html"}
    good("prune", *arguments, "--unit", "mlp")
    assert (tmp_path / "out/prune/curve.csv").exists()
    assert (tmp_path / "out/prune/pruning.html").exists()


def test_every_method_that_gives_head_relevance_on_one_figure(tmp_path: Path) -> None:
    sizes = ["--n", 4, "--n-rank", 2, "--steps", 4, "--out", tmp_path]
    document = json.loads(good("prune", "--task", "sva", "--methods", "all", *sizes, "--json"))
    gradients = {"gradient_x_input", "gradient_l1", "gradient_l2"}
    rules = {"lrp", "attnlrp", "gim", "relp", "deeplift", "alti_logit"}
    random = {f"random seed {seed}" for seed in range(10)}
    assert set(document["curves"]) == gradients | rules | random
