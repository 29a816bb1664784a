"""Edits that keep the meaning, what they do to relevance, and distractors before the text."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from test_cli import fast_load, good, models, run  # noqa: F401  (fixtures)

import lens_attr as la
from lens_attr.demo import generate
from lens_attr.errors import InputError
from lens_attr.evaluation import (
    BenchTable,
    Settings,
    Stability,
    bench,
    bench_length,
    bench_stability,
    by_length_of_text,
    compare_runs,
    tasks,
)
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.context_length import lengthened
from lens_attr.evaluation.stability import rank_correlation
from lens_attr.evaluation.tasks.edits import EDITS, word_spans, words_of
from lens_attr.evaluation.tasks.synonyms import SYNONYMS, swaps
from lens_attr.evaluation.versions import resegmented, shared_words, words
from lens_attr.graph import resolve
from lens_attr.types import Sample

DEMO = ("demo-gpt2", "demo-llama", "demo-bert")
KEYS = Sample("the keys near the old cup", " are", " is", truth=((4, 8),), task="sva")


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    return {name: la.load(name, device="cpu") for name in DEMO}


@pytest.fixture(scope="module")
def table(demo: dict[str, Any]) -> BenchTable:
    return bench_stability(demo["demo-gpt2"], ["sva", "qa"], ["lrp", "gradient_x_input"], n=24)


def samples_of(n: int = 40) -> list[Sample]:
    return [one for task in ("sva", "ra", "qa") for one in tasks.built_in(task, n).samples]


# --- the edits


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_the_text_and_keeps_what_decides(name: str) -> None:
    edited = [(one, EDITS[name](one, random.Random(i))) for i, one in enumerate(samples_of())]
    done = [(before, after) for before, after in edited if after is not None]
    assert len(done) > 10
    for before, after in done:
        assert after.text != before.text
        assert (after.answer, after.foil, after.suffix) == (
            before.answer, before.foil, before.suffix
        )  # fmt: skip
        decisive = [[one.text[a:b].lower() for a, b in one.truth] for one in (before, after)]
        assert decisive[0] == decisive[1]
        if before.context and after.context:
            assert after.text[after.context[1] :].startswith(" Q")


def test_edits_are_the_same_on_every_machine() -> None:
    task = tasks.Task("sva", [KEYS])
    assert tasks.edited(task, tasks.ALL_EDITS) == tasks.edited(task, tasks.ALL_EDITS)
    texts = {name: one[0].text for name, one in tasks.edited(task, list(EDITS)).versions.items()}
    assert texts["synonym"] in {f"the keys {other} the old cup" for other in SYNONYMS["near"]}
    assert texts["casing"] == "The keys near the old cup"
    assert texts["neutral_sentence"].endswith(" . the keys near the old cup")
    assert texts["punctuation"] == "the keys, near the old cup"


def test_what_decides_is_never_swapped_and_what_cannot_be_edited_is_counted() -> None:
    near = Sample("the keys near", " old", " new", truth=((9, 13),))
    left = tasks.edited(tasks.Task("t", [near]), ["synonym"])
    assert not left.versions["synonym"]
    assert left.unedited == {"synonym": [0]}


def test_a_comma_goes_where_there_is_one() -> None:
    sample = Sample("at noon , the keys", " are", " is", truth=((14, 18),))
    edited = EDITS["punctuation"](sample, random.Random(0))
    assert edited is not None and edited.text == "at noon the keys"
    assert [edited.text[a:b] for a, b in edited.truth] == ["keys"]


def test_synonyms_are_no_nouns_of_the_demo_language() -> None:
    from lens_attr.demo.words import NOUNS

    nouns = {form for pair in NOUNS for form in pair}
    assert not nouns & {word for phrase in SYNONYMS for word in phrase.split()}
    assert all(word in SYNONYMS[other] for word, others in SYNONYMS.items() for other in others)


def test_synonyms_fit_the_place() -> None:
    assert swaps("A strange boat") == [], "no vowel may come behind this article"
    assert swaps("the strange boat") == [(4, 11, ["odd"])]
    assert swaps("However , it sank") == [(0, 7, ["Nevertheless", "Nonetheless"])]
    assert swaps("it hasn't sunk because of us") == [
        (3, 9, ["has not"]), (15, 25, ["due to", "owing to"])
    ]  # fmt: skip
    assert not swaps("a well-known-ish hardness")
    sample = Sample("it is not here , it", " has", " have", truth=((0, 2),))
    assert EDITS["synonym"](sample, random.Random(0)) == replace(sample, text="it isn't here , it")
    assert EDITS["synonym"](replace(sample, answer=" is"), random.Random(0)) is None


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("squad/dev-v2.0-sample.json", 0.8),
        ("blimp/anaphor_gender_agreement.jsonl", 0.5),
        ("blimp/distractor_agreement_relative_clause.jsonl", 0.5),
    ],
)
def test_real_texts_hold_words_of_the_list(shared: Path, name: str, share: float) -> None:
    (task,) = tasks.read(shared / "data" / name).values()
    made = tasks.edited(task, ["synonym"]).versions["synonym"]
    assert len(made) >= share * len(task.samples)


def test_words_are_without_punctuation() -> None:
    text = "Don't say: the well-known \u201ckeys\u201d, x_1!"
    assert [text[a:b] for a, b in word_spans(text)] == [
        "Don't", "say", "the", "well-known", "keys", "x", "1"
    ]  # fmt: skip
    assert words_of("The KEYS") == ["the", "keys"]


# --- another segmentation


def _marked(sample: tasks.TokenSample, flags: str) -> str:
    """The characters under the tokens that are marked."""
    pairs = zip(sample.spans, getattr(sample, flags), strict=True)
    letters = [i for span, marked in pairs if span and marked for i in range(*span)]
    return "".join(sample.sample.text[i : i + 1] for i in letters)


@pytest.mark.parametrize("name", DEMO)
def test_another_segmentation_is_the_same_text_in_one_token_more(
    demo: dict[str, Any], name: str
) -> None:
    graph = resolve(demo[name])
    found = 0
    for one in tasks.view(graph, tasks.built_in("qa", 12)).samples:
        split = resegmented(graph, one, graph.tokenizer.get_vocab(), random.Random(one.index))
        if split is None:
            continue
        found += 1
        assert len(split) == len(one) + 1
        assert len(split) == len(split.spans) == len(split.inside) == len(split.special)
        decoded = [graph.tokenizer.decode(list(ids)) for ids in (one.token_ids, split.token_ids)]
        assert decoded[0] == decoded[1]
        for flags in ("inside", "special", "context"):
            assert _marked(one, flags) == _marked(split, flags)
        target = one.token_ids[one.position]
        assert split.token_ids[split.position] == target or not one.special[one.position]
        assert [w for w, _ in words(graph, one)] == [w for w, _ in words(graph, split)]
    assert found > 6


# --- the correlation


def test_the_rank_correlation_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.integers(0, 4, size=(2, int(rng.integers(3, 9)))).astype(float)
        ours = rank_correlation(a, b)
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert np.isnan(ours)
        else:
            assert ours == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_words_are_aligned_in_order_whatever_stands_around_them() -> None:
    first = [("the", [1]), ("keys", [2, 3]), ("near", [4]), ("the", [5]), ("cup", [6])]
    second = [("your", [1]), ("the", [3]), ("keys", [4]), ("beside", [5]), ("the", [6]),
              ("cup", [7])]  # fmt: skip
    assert shared_words(first, second) == [
        ("the", [1], [3]), ("keys", [2, 3], [4]), ("the", [5], [6]), ("cup", [6], [7])
    ]  # fmt: skip
    assert shared_words(first, []) == []


# --- the benchmark


def test_every_edit_is_a_task_with_the_baselines(table: BenchTable) -> None:
    assert list(table.tasks) == [f"{t}/{e}" for t in ("sva", "qa") for e in tasks.ALL_EDITS]
    for task in table.tasks:
        rows = table.rows[table.rows["task"] == task]
        assert set(rows["method"]) == {"lrp", "gradient_x_input", *BASELINES}
        assert set(rows["metric"]) == {"rank_correlation", "undefined"}
    for task, facts in table.tasks.items():
        assert facts["read"] == facts["used"] + sum(facts["dropped"].values()) == 24, task


def test_lrp_is_more_stable_than_chance_and_positions_are_perfectly_stable(
    table: BenchTable,
) -> None:
    for edit in ("qa/casing", "qa/neutral_sentence", "sva/segmentation"):
        beats = table.beats_random("rank_correlation").set_index(["task", "method"])
        assert beats.loc[edit, "lrp"].item()
    chance = table.value("random", "qa/casing", "rank_correlation")
    assert chance.low < 0 < chance.high
    assert table.value("first_token", "qa/casing", "rank_correlation").value == 1.0
    constant = table.value("uniform", "qa/casing", "rank_correlation")
    assert constant.value == 0 and table.value("uniform", "qa/casing", "undefined").value == 100


def test_values_are_what_attribute_gives_for_both_texts(
    demo: dict[str, Any], table: BenchTable
) -> None:
    model = demo["demo-gpt2"]
    texts = table.samples["sva/casing", "samples"].set_index("sample")
    rows = table.samples["sva/casing", "lrp"].set_index("sample")
    originals = tasks.built_in("sva", 24).samples
    index = texts.index[0]
    target = la.LogitDiff(originals[index].answer, originals[index].foil)
    sums = []
    for text in (texts.loc[index, "text"], texts.loc[index, "edited"]):
        relevance = la.attribute(model, text, target, "lrp").real_tokens(0).double().numpy()
        (one,) = tasks.view(
            resolve(model), tasks.Task("sva", [Sample(text, " a", " b")]), truth=False
        ).samples
        sums.append([relevance[mine].sum() for _, mine in words(resolve(model), one)])
    assert rows.loc[index, "scores"] == pytest.approx(sums[0], abs=1e-5)
    assert rows.loc[index, "edited_scores"] == pytest.approx(sums[1], abs=1e-5)
    expected = spearmanr(*sums).statistic
    assert rows.loc[index, "rank_correlation"] == pytest.approx(expected, abs=1e-9)


def test_an_edit_that_changes_the_answer_is_dropped_and_counted(
    demo: dict[str, Any], tmp_path: Path
) -> None:
    text = "the keys near the old cup"
    rows = [
        {"text": text, "edited": "the key near the old cup", "answer": " are", "foil": " is"},
        {"text": text, "edited": "the keys near my old cup", "answer": " are", "foil": " is"},
        {"text": "the key near it", "edited": "the key", "answer": " are", "foil": " is"},
        {"text": text, "edited": "my keys", "answer": " are", "foil": " is", "edit": "short"},
        {"text": text, "edited": text, "answer": " are", "foil": " is", "edit": "short"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = bench_stability(demo["demo-gpt2"], tasks.read_pairs(path), ["lrp"])
    assert list(found.tasks) == ["pairs/pair", "pairs/short"]
    assert found.tasks["pairs/pair"]["dropped"] == {
        "the edit changes the model's prediction": 1, "the model gets the unedited text wrong": 1
    }  # fmt: skip
    assert found.tasks["pairs/pair"]["used"] == 1
    assert found.tasks["pairs/short"]["dropped"] == {
        "fewer than 3 words are shared": 1, "the edit changes no token": 1
    }  # fmt: skip
    assert found.tasks["pairs/short"]["empty"] == "every sample was dropped"
    assert found.value("lrp", "pairs/short", "rank_correlation").n == 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ({"text": "a b", "answer": " c"}, "has no 'edited'"),
        ({"text": "a b", "edited": " ", "answer": " c"}, "'edited' is empty"),
        ({"text": "a b", "edited": "a c"}, "has no 'answer'"),
        ({"text": "a b", "edited": 3, "answer": " c"}, "'edited' is not a string"),
    ],
)
def test_malformed_pairs_are_named_with_file_and_line(
    tmp_path: Path, row: Any, reason: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    fine = json.dumps({"text": "a b", "edited": "a c", "answer": " d"})
    path.write_text(f"{fine}\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(InputError, match=rf"pairs.jsonl line 2: {reason}"):
        tasks.read_pairs(path)
    kept = tasks.read_pairs(path, skip_bad=True)
    assert len(kept.task.samples) == 1 and list(kept.versions["pair"]) == [0]


def test_what_cannot_be_run_is_refused(demo: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'casing'"):
        Stability(edits=["cassing"])
    with pytest.raises(InputError, match="no answer"):
        bench_stability(demo["demo-gpt2"], tasks.Task("t", [Sample("the keys", "", "")]))
    with pytest.raises(InputError, match="there is no file"):
        tasks.read_pairs(tmp_path / "none.jsonl")


def test_a_stopped_run_goes_on_and_two_runs_are_compared(
    demo: dict[str, Any], tmp_path: Path
) -> None:
    once = bench_stability(demo["demo-bert"], "sva", ["lrp"], n=12, out=tmp_path)
    again = bench_stability(demo["demo-bert"], "sva", ["lrp", "alti"], n=12, out=tmp_path)
    assert again.value("lrp", "sva/synonym", "rank_correlation") == once.value(
        "lrp", "sva/synonym", "rank_correlation"
    )
    paired = compare_runs(BenchTable.load(tmp_path), once)
    assert set(paired["metric"]) == {"rank_correlation", "undefined"}
    assert (paired["difference"].dropna() == 0).all()
    with pytest.raises(InputError, match="holds another run"):
        bench_stability(demo["demo-bert"], "sva", ["lrp"], n=11, out=tmp_path)


def test_every_sample_is_counted_once_also_where_the_model_is_often_wrong(
    demo: dict[str, Any],
) -> None:
    samples = tasks.built_in("sva", 30).samples
    twisted = [replace(s, answer=s.foil, foil=s.answer) if i % 2 else s
               for i, s in enumerate(samples)]  # fmt: skip
    settings = Stability(edits=["synonym", "segmentation"])
    task = tasks.Task("sva", twisted)
    found = bench_stability(demo["demo-gpt2"], task, ["lrp"], settings=settings)
    for facts in found.tasks.values():
        assert facts["dropped"]["the model gets the unedited text wrong"] >= 14
        assert facts["read"] == facts["used"] + sum(facts["dropped"].values()) == 30


# --- length


def test_distractors_share_no_content_word_with_the_text_and_only_add_to_its_front() -> None:
    task = tasks.built_in("qa", 20)
    bare, two, four = lengthened(task, (0, 2, 4))
    for before, short, long in zip(bare.samples, two.samples, four.samples, strict=True):
        assert long.text.endswith(short.text) and short.text.endswith(before.text)
        added = set(words_of(long.text.removesuffix(before.text)))
        assert not added & (set(words_of(before.text)) - tasks.FUNCTION_WORDS)
        for one in (short, long):
            (a, b), (c, d) = before.truth[0], one.truth[0]
            assert one.text[c:d] == before.text[a:b]
            assert one.context is not None and one.context[0] == 0
            assert one.text[one.context[1] :] == before.text[before.context[1] :]  # type: ignore[index]


def test_without_distractors_the_scores_are_those_of_bench(demo: dict[str, Any]) -> None:
    longer = bench_length(demo["demo-gpt2"], ["sva", "qa"], ["lrp"], sentences=(0, 1), n=12)
    plain = bench(demo["demo-gpt2"], ["sva", "qa"], ["lrp"], n=12)
    for task in ("sva", "qa"):
        for metric in ("pg", "mrr", "rma", "pta"):
            assert longer.value("lrp", f"{task}/+0", metric) == plain.value("lrp", task, metric)
        assert longer.value("model", f"{task}/+0", "accuracy") == plain.value(
            "model", task, "accuracy"
        )


def test_texts_that_do_not_fit_are_dropped_and_counted(demo: dict[str, Any]) -> None:
    found = bench_length(demo["demo-gpt2"], "qa", ["lrp"], sentences=(0, 16), n=6)
    dropped = found.tasks["qa/+16"]["dropped"]
    assert dropped == {"longer than the 128 tokens that the model reads": 6}
    curves = by_length_of_text(found)
    assert set(curves["sentences"]) == {0}
    figure = la.plots.length_curves(curves, "pg")
    assert {line.name for line in figure.data} == {"lrp", *BASELINES}
    with pytest.raises(InputError, match="no metric 'pgg'"):
        la.plots.length_curves(curves, "pgg")


def test_lengths_are_checked_and_other_tables_have_none(demo: dict[str, Any]) -> None:
    for bad in ((), (-1, 2), (2, 1)):
        with pytest.raises(InputError, match="increasing order"):
            bench_length(demo["demo-gpt2"], sentences=bad)
    plain = bench(demo["demo-gpt2"], "sva", ["lrp"], n=3, settings=Settings())
    with pytest.raises(InputError, match="no scores by length"):
        by_length_of_text(plain)


# --- the command


@pytest.mark.usefixtures("fast_load")
def test_the_command_writes_tables_and_figures(tmp_path: Path) -> None:
    sizes = ["--task", "sva", "--methods", "lrp", "--n", "6"]
    shown = good("bench", "--stability", *sizes, "--out", tmp_path / "s")
    assert "rank correlation" in shown and "sva/segmentation" in shown
    assert set(pd.read_csv(tmp_path / "s" / "table.csv")["metric"]) == {
        "rank_correlation", "undefined"
    }  # fmt: skip
    document = json.loads(good("bench", "--length", *sizes, "--out", tmp_path / "l", "--json"))
    assert list(document["tasks"]) == [f"sva/+{count}" for count in (0, 1, 2, 4, 8)]
    assert "tokens in the text" in (tmp_path / "l" / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("fast_load")
def test_the_command_reads_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    text = "the keys near the old cup"
    row = {"text": text, "edited": f"at noon , {text}", "answer": " are", "foil": " is"}
    path.write_text(json.dumps(row))
    shown = good("bench", "--stability", "--pairs", path, "--methods", "lrp", "--out", tmp_path)
    assert "pairs/pair" in shown and "1 used" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stability", "--length"],
        ["--length", "--axes"],
        ["--pairs", __file__],
        ["--interest-file", __file__],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    ran = run("bench", "--task", "sva", *arguments)
    assert ran.exit_code == 2 and "Traceback" not in ran.output


def test_the_generator_has_enough_neutral_sentences() -> None:
    texts = [*generate("ra", 50, seed=3), *generate("qa", 50, seed=3)]
    assert all(len(front) == 16 for front in tasks.distractors(texts, 16))
