"""The page of a run: everything in the files is on it, and nothing that is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_dir
import torch
from test_report import _Reader, result
from test_security import ATTACKS, Elements, evil

from lens_attr.attribution.comparison import Comparison
from lens_attr.errors import InputError, SavedResultError
from lens_attr.report import read_run, run_page, write_about, write_page

SCRIPTS = re.compile(r"<script>.*?</script>", re.DOTALL)
DRAWING = re.compile(r'<script type="application/json">(.*?)</script>')


class _Words(_Reader):
    """Words of neighbouring elements stay apart, as they do on the page."""

    def handle_data(self, data: str) -> None:
        super().handle_data(f"{data} ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_dir.write(tmp_path / "run")


def page_of(folder: Path) -> str:
    """The words of the page, spaces made single."""
    path = write_page(run_page(folder), folder / "index.html")
    markup = SCRIPTS.sub("", path.read_text("utf-8"))
    return " ".join(_Words(markup).text.split())


def drawings_of(folder: Path) -> list[str]:
    """What the figures of the page draw."""
    path = write_page(run_page(folder), folder / "index.html")
    return DRAWING.findall(path.read_text("utf-8"))


# --- saving and loading


@pytest.mark.parametrize(
    "saved",
    [
        run_dir.ranking(),
        run_dir.pruning(),
        run_dir.agreement(),
        run_dir.evaluation(),
        run_dir.faithfulness(),
    ],
    ids=lambda saved: type(saved).__name__,
)
def test_a_result_survives_saving(saved: Any, tmp_path: Path) -> None:
    back = type(saved).load(saved.save(tmp_path))
    assert repr(back) == repr(saved)
    assert back.to_pandas().equals(saved.to_pandas())


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 7}', '{"format": 1}', '{"format": 1, "curves": [{}]}']
)
def test_a_file_that_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pruning.json").write_text(text)
    (tmp_path / "ranking.json").write_text(text)
    with pytest.raises(SavedResultError):
        type(run_dir.ranking()).load(tmp_path)
    if "curves" in text:
        with pytest.raises(SavedResultError):
            type(run_dir.pruning()).load(tmp_path)


def test_a_comparison_survives_saving(tmp_path: Path) -> None:
    saved = Comparison({"lrp": result("lrp"), "gim": result("gim")})
    back = Comparison.load(saved.save(tmp_path))
    assert list(back.results) == ["gim", "lrp"]
    assert torch.equal(back["lrp"].tokens, saved["lrp"].tokens)
    with pytest.raises(InputError, match="cannot name a folder"):
        Comparison({"../lrp": result()}).save(tmp_path)
    with pytest.raises(SavedResultError, match="holds a saved Relevance"):
        Comparison.load(tmp_path / "lrp")


# --- what is on the page


def test_the_page_tells_everything_that_the_files_hold(folder: Path) -> None:
    text = page_of(folder)
    for shown in (
        "All of it",
        "One of each.",
        "model name demo-gpt2",
        "samples made-up sentences",
        "Why “are” rather than “is”? decided by: keys; logit of ' are' - logit of ' is' = 1.250",
        "logit of ' was' = 7.500",
        "relp is not available here: the <softmax> is hidden",
        "prompt the keys goes on were lost",
        "What every generated word used, lrp",
        "Head scores, gim, relu_token, mean of 50 samples",
        "measured on 40 samples; the ranking was made on 50 others",
        "one head is replaced by zero in the clean run, mean over 2 prompts",
        "So blue cells support the target, which falls without them.",
        "Attribution against exact patching",
        f"3 of {run_dir.WIRING.n_edges} edges",
        "0.750",
        "gim is accepted",
        "norm_scale FreezeNorm 2 6",
        "81.5 [70.0, 90.0]",
        "alti is not available here: no <row>",
        "row 0: logit of ' are' = 3.125",
        "rows 2 of 5 explained",
        "rows with an error 1",
        run_dir.COMMAND,
        "lens-attr bench --n 20",
        "torch 9.8.7",
        "Read from m/pruning.json",
    ):
        assert shown in text, shown


def test_methods_of_one_prediction_stand_together_in_the_given_order(folder: Path) -> None:
    text = page_of(folder)
    first, second = text.index("Why “are” rather"), text.index("Values")
    assert first < text.index("gim relevance adds") < text.index("lrp relevance adds") < second


def rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


CHANGES = {
    "pruning.json": (lambda c: c["curves"][0].update(accuracy=[0.125] * 5), "gim 0.125 40"),
    "agreement.json": (lambda c: c["scores"].update(gim=[4.0, 3.0, 2.0, 1.0]), "gim -1.000 -1.000"),
    "evaluation.json": (lambda c: c.update(circuit=[0.4375] * 3), "0.438 0.438 1.000"),
    "circuit.json": (lambda c: c["edges"][0].__setitem__(2, -4.625), "-4.625"),
    "ranking.json": (lambda c: c.update(n=31), "mean of 31 samples"),
    "about.json": (lambda c: c.update(title="Another name"), "Another name"),
    "coverage/coverage.json": (lambda c: c["coverage"][0].update(fired=86), "FreezeNorm 2 89"),
    "../bench/summary.json": (lambda c: c["table"][0].update(value=77.7), "77.7 [70.0, 90.0]"),
    "../run/shards/000000.json": (lambda c: c.update(errors=2), "rows with an error 2"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_number_in_a_file_is_a_changed_number_on_the_page(
    name: str, folder: Path
) -> None:
    change, shown = CHANGES[name]
    assert shown not in page_of(folder)
    rewrite(folder / "m" / name, change)
    assert shown in page_of(folder)


def test_a_changed_generation_changes_the_page(folder: Path) -> None:
    assert "were 8.750 0.000 8.750" not in page_of(folder)
    run_dir.generation(first=9.75).save(folder / "m")
    assert "were 8.750 0.000 8.750" in page_of(folder)


def test_a_changed_relevance_changes_the_page(folder: Path) -> None:
    before = page_of(folder)
    changed = replace(result("gim"), tokens=torch.tensor([[0.0, 8.5, 0.0]]))
    changed.save(folder / "m" / "texts" / "gim")
    assert "+8.500 logit" not in before and "+8.500 logit" in page_of(folder)


@pytest.mark.parametrize(
    ("result", "drawn"),
    [
        (run_dir.generation(first=9.75), 1),
        (replace(run_dir.patched(), per_example=torch.full((2, 2, 2), 9.75)), 1),
        (replace(run_dir.ranking(), scores=np.full((2, 2), 9.75)), 1),
        (run_dir.faithfulness().curves[0].evaluations[0], 0),
    ],
)
def test_a_changed_file_changes_its_own_figure_only(result: Any, drawn: int, folder: Path) -> None:
    before = drawings_of(folder)
    result.save(folder / "m")
    after = drawings_of(folder)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == drawn


# --- folders that are not as expected


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_shown(folder: Path) -> None:
    (folder / "m" / "pruning.json").write_text("{")
    data = (folder / "m" / "texts" / "gim" / "relevance.safetensors").read_bytes()
    (folder / "m" / "texts" / "gim" / "relevance.safetensors").write_bytes(data[:-1])
    run = read_run(folder)
    assert set(run.problems) == {"m/pruning.json", "m/texts/gim/relevance.json"}
    text = page_of(folder)
    assert "what they hold is missing above. m/pruning.json" in text
    assert "Attribution against exact patching" in text


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no result that can be shown"):
        read_run(tmp_path)
    (tmp_path / "edges.json").write_text("{")
    with pytest.raises(InputError, match=r"edges\.json is truncated"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        read_run(tmp_path / "edges.json")


def test_results_saved_from_python_need_nothing_else(tmp_path: Path) -> None:
    result("gim").save(tmp_path)
    text = page_of(tmp_path)
    assert "gim relevance adds up to +1.500 logit" in text
    assert "No command is on record" in text


def test_many_texts_are_cut_and_counted(tmp_path: Path) -> None:
    for i in range(30):
        replace(result(), target=[f"text {i}"]).save(tmp_path / f"{i:02}")
    text = page_of(tmp_path)
    assert "6 texts more in the files." in text


def test_hidden_folders_are_left_out(folder: Path) -> None:
    run_dir.ranking().save(folder / ".cache")
    assert not [f for c in read_run(folder).chapters for f in c.found if ".cache" in f.file]


def test_what_files_say_is_shown_as_text(tmp_path: Path) -> None:
    """Saved strings can come from anyone: none of them becomes markup or a script."""
    attack = ATTACKS[0]
    one = replace(evil(), metadata={"model": {"backend": attack}, "versions": {attack: attack}})
    one.save(tmp_path / "a")
    replace(run_dir.ranking(), method=attack, pool=attack).save(tmp_path)
    replace(run_dir.patched(), target=[attack] * 2, target_unit=attack).save(tmp_path)
    replace(run_dir.agreement(), what=attack, names=[attack] * 4).save(tmp_path)
    replace(run_dir.edges(), method=attack).save(tmp_path / "b")
    write_about(tmp_path, attack, attack, title=attack, prose=attack, refused={attack: attack})
    path = write_page(run_page(tmp_path), tmp_path / "index.html")
    Elements(path.read_text("utf-8")).harmless()
    assert page_of(tmp_path).count(attack) > 5
