"""Pairs of prompts: files, the generator, and what does not fit."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import small
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

import lens_attr as la
from lens_attr.circuits import (
    Pairs,
    edge_scores,
    head_scores,
    patch,
    prune,
    read_ioi,
    read_pairs,
    sva_pairs,
)
from lens_attr.graph import resolve
from lens_attr.graph.tokens import TokenBatch, tokenize
from lens_attr.targets import GreaterThan, LogitDiff

gpt2_models = pytest.mark.parametrize("name", small.GPT2)


def csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------- reading


def test_answers_as_words(tmp_path: Path) -> None:
    pairs = read_pairs(csv(tmp_path, 'clean,corrupted,answer,foil\n"w5, w6",w7 w8, w9, w10\n'))
    assert pairs.clean == ["w5, w6"] and pairs.corrupted == ["w7 w8"]
    assert pairs.target == LogitDiff([" w9"], [" w10"]) and len(pairs) == 1


def test_answers_as_ids_and_an_index_column(tmp_path: Path) -> None:
    text = ",clean,corrupted,correct_idx,incorrect_idx\n7,w5,w6,12,13\n9,w7,w8,14,15\n"
    assert read_pairs(csv(tmp_path, text)).target == LogitDiff([12, 14], [13, 15])


def test_a_file_of_a_spreadsheet(tmp_path: Path) -> None:
    """Byte order mark, Windows line ends, a blank last line."""
    pairs = read_pairs(csv(tmp_path, "\ufeffclean,corrupted,label\r\nw5,w6,52\r\n\r\n"))
    assert (pairs.clean, pairs.years) == (["w5"], [52])


def test_years(tmp_path: Path) -> None:
    pairs = read_pairs(csv(tmp_path, "clean,corrupted,label\nfrom 1352 to 13,from 1301 to 13,52\n"))
    assert pairs.target == GreaterThan([52])


ASKED = "clean,corrupted,answer,foil\n"
YEARS = "clean,corrupted,label\n"
BAD = {
    "unknown column": ("clean,corupted,label\na,b,1\n", "'corupted'; did you mean 'corrupted'"),
    "missing column": ("clean,label\na,1\n", "no column 'corrupted'"),
    "no answers": ("clean,corrupted\na,b\n", "answers must stand in columns answer and foil or"),
    "two answers": ("clean,corrupted,label,answer,foil\na,b,1,c,d\n", "answers must stand in"),
    "empty cell": (ASKED + "a,b,c,d\na, ,c,d\n", "row 1: 'corrupted' is empty"),
    "no number": (YEARS + "a,b,5\na,b,x5\n", "row 1: 'label' must be a whole number, got 'x5'"),
    "no rows": (YEARS, "there are no pairs"),
    "empty file": ("", "cannot read"),
    "comma": (ASKED + "a,b,c,d\nYes, a,b,c,d\n", r"row 1 has 5 cells, the header 4: put .* quotes"),
    "comma in every row": (ASKED + "Yes, a,b,c,d\n", "row 0 has 5 cells, the header 4"),
    "cell missing": (ASKED + "a,b,c\n", "row 0 has 3 cells, the header 4"),
    "column twice": ("clean,corrupted,clean,label\na,b,c,1\n", "two columns called 'clean'"),
    "open quote": (ASKED + 'a,b,c,"d\n', "cannot read .* as csv"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=list(BAD))
def test_what_reading_refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(la.InputError, match=message):
        read_pairs(csv(tmp_path, text))


def test_unequal_columns_are_refused() -> None:
    with pytest.raises(la.InputError, match="2 clean prompts but 1"):
        Pairs(["a", "b"], ["c"], [" d", " e"], [" f", " g"])
    with pytest.raises(la.InputError, match="2 clean prompts but 0"):
        Pairs(["a", "b"], ["c", "d"])
    with pytest.raises(la.InputError, match="cannot read"):
        read_pairs("nowhere.csv")


def test_ioi_names_come_from_the_text(tmp_path: Path) -> None:
    text = (
        "clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n"
        '"Then, Ann and Bob met. Bob gave it to","Then, Ann and Bob met. Eve gave it to",'
        '"Then, Ann and Bob met. Ann gave it to",1,2\n'
    )
    pairs, hard = read_ioi(csv(tmp_path, text)), read_ioi(csv(tmp_path, text), "corrupted_hard")
    assert read_pairs(csv(tmp_path, text)) == pairs
    assert pairs.target == LogitDiff([" Ann"], [" Bob"])
    assert "Eve" in pairs.corrupted[0] and "Eve" not in hard.corrupted[0]
    once = text.replace("Bob met. Bob gave", "Bob met. Then gave", 1)
    with pytest.raises(la.InputError, match="row 0: expected two names"):
        read_ioi(csv(tmp_path, once))


@pytest.mark.shared
def test_the_ioi_file(shared: Path) -> None:
    """Its ids, made by another tokenizer, tell the same names apart as the text does."""
    path = shared / "data" / "circuits" / "ioi_llama.csv"
    pairs, frame = read_ioi(path), pd.read_csv(path)
    names: dict[int, set[Any]] = defaultdict(set)
    for column, words in (("correct_idx", pairs.answer), ("incorrect_idx", pairs.foil)):
        for number, word in zip(frame[column], words, strict=True):
            names[number].add(word)
    assert len(pairs) == 499 and len(names) == 99
    assert all(len(found) == 1 for found in names.values())
    assert len(set().union(*names.values())) == 99


@pytest.mark.shared
def test_the_greater_than_file(shared: Path) -> None:
    pairs = read_pairs(shared / "data" / "circuits" / "greater_than_data.csv")
    assert len(pairs) == 1000
    for clean, corrupted, year in zip(pairs.clean, pairs.corrupted, pairs.years, strict=True):
        assert f"{year:02d} to the year" in clean and "01 to the year" in corrupted


# ------------------------------------------------------------------------------- greater-than


@pytest.mark.shared
def test_greater_than_is_probability_above_minus_below(shared: Path) -> None:
    """With GPT-2's tokenizer, where two digits are one token."""
    files = shared / "tokenizers" / "gpt2"
    core = ByteLevelBPETokenizer(str(files / "vocab.json"), str(files / "merges.txt"))
    fast = PreTrainedTokenizerFast(tokenizer_object=core._tokenizer)
    graph: Any = SimpleNamespace(tokenizer=fast, is_masked_model=False)
    prompt = "The war lasted from the year 1352 to the year 13"
    batch = TokenBatch(torch.zeros(2, 9, dtype=torch.long), torch.ones(2, 9).bool(), [prompt] * 2)
    with small.untyped():
        resolved = GreaterThan([52, 99]).resolve(graph, batch)
    logits = torch.randn(2, 50257)
    probability = logits.double().softmax(dim=-1)
    ids = [core.token_to_id(f"{year:02d}") for year in range(100)]
    assert core.encode(prompt + "52").ids[-1] == ids[52]
    for row, year in enumerate((52, 99)):
        above = probability[row, ids[year + 1 :]].sum() if year < 99 else 0.0
        by_hand = above - probability[row, ids[: year + 1]].sum()
        assert float(resolved.score(logits, resolved)[row]) == pytest.approx(
            float(by_hand), abs=1e-6
        )
    one = resolved.rows([1])
    assert float(one.score(logits[1:], one)) == pytest.approx(
        -1 * float(probability[1, ids].sum()), abs=1e-6
    )


@gpt2_models
def test_greater_than_refuses(name: str) -> None:
    model = small.model(name)
    with pytest.raises(la.InputError, match="one year from 0 to 99 for each of the 2"):
        patch(model, ["w5 13", "w6 13"], None, GreaterThan([52]), mode="noise", source="zero")
    with pytest.raises(la.InputError, match="one year from 0 to 99"):
        patch(model, "w5 13", None, GreaterThan([152]), mode="noise", source="zero")
    with pytest.raises(la.InputError, match="does not continue the prompt"):
        patch(model, "w5 13", None, GreaterThan([52]), mode="noise", source="zero")


# ----------------------------------------------------------------------------- the generator


def test_generated_pairs_differ_in_the_number_of_the_subject_alone() -> None:
    pairs = sva_pairs(50, seed=3)
    assert pairs == sva_pairs(60, seed=3)[:50]
    for clean, corrupted in zip(pairs.clean, pairs.corrupted, strict=True):
        changed = [p for p in zip(clean.split(), corrupted.split(), strict=True) if p[0] != p[1]]
        assert len(changed) == 1


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-bert"])
def test_the_corrupted_prompt_prefers_the_foil(name: str) -> None:
    """And patching takes what the generator makes, masks included."""
    model = la.load(name)
    made = sva_pairs(30)
    pairs = made.aligned(model)
    assert len(pairs) + pairs.dropped == len(made)
    found = patch(model, *pairs.inputs(model), "resid", positions=False)
    assert found.other is not None
    assert (found.other > 0).float().mean() > 0.7 and (found.unpatched < 0).float().mean() > 0.7
    one = made.of_one_length(model)
    lengths = tokenize(resolve(model), one.inputs(model)[0]).lengths
    assert len(set(lengths)) == 1 and len(one) + one.dropped == len(made)
    assert patch(model, *one.inputs(model), "mlp_out").axes == ("layer", "pos")


@gpt2_models
def test_nothing_aligned_is_an_error(name: str) -> None:
    pairs = Pairs(["w5 w6"], ["w5"], [" w7"], [" w8"])
    with pytest.raises(la.InputError, match=r"none of the 1 pairs can be used. Row 0: clean has"):
        pairs.aligned(small.model(name))


MIXED = Pairs(
    ["w5 w6", "w7 w8", "w9 w10", "w11 w12"],
    ["w6 w6", "w8 w8", "w9", "w12 w12"],
    [" w7", " w9", " w7", " w20"],
    [" w8", " w9", " w8", " w21"],
    source="mine.csv",
)


@gpt2_models
def test_a_pair_that_cannot_be_used_is_named_with_its_row(name: str) -> None:
    model = small.model(name)
    with pytest.raises(la.InputError, match=r"mine.csv, row 1: target and foil both .*aligned\(mo"):
        MIXED.inputs(model)
    with pytest.raises(la.InputError, match=r"row 0: clean has .*--skip-misaligned"):
        MIXED[2:].inputs(model)
    with pytest.raises(la.InputError, match=r"row 1: .*does not continue the prompt"):
        Pairs(["w5", "w6"], ["w6", "w5"], [" w7", "7"], [" w8", "8"]).inputs(model)
    usable = MIXED.aligned(model)
    assert usable.clean == ["w5 w6", "w11 w12"] and usable.dropped == 2
    assert len(patch(model, *usable.inputs(model))) == 2


@gpt2_models
def test_pairs_are_data_for_every_tool(name: str) -> None:
    """One by one, and where samples are read: their clean prompts with their target."""
    model, pairs = small.model(name), MIXED.aligned(small.model(name))
    assert pairs[1] == pairs[-1] == pairs[1:] and [len(one) for one in pairs] == [1, 1]
    with pytest.raises(la.InputError, match="pair 2 is out of range: there are 2"):
        pairs[2]
    ranking = head_scores(model, pairs, "lrp")
    by_hand = head_scores(model, (pairs.clean, pairs.target), "lrp")
    assert ranking.order == by_hand.order and ranking.n == 2
    assert prune(model, pairs, ranking).n == 2


@gpt2_models
def test_equal_prompts_are_announced(name: str) -> None:
    model, same = small.model(name), ["w5 w6", "w7 w8"]
    for run in (patch, edge_scores):
        with pytest.warns(la.Notice, match=r"the same in 1 of 2 pairs \(first: row 1\)"):
            found = run(model, same, ["w6 w6", "w7 w8"], la.LogitDiff(6, 8))
        assert "the same in 1 of 2" in found.metadata["notices"][0]
