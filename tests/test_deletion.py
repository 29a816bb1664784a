"""Deletion: signs, which words go, what they become, and paragraphs with a word of interest."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lens_attr as la
from lens_attr.errors import InputError
from lens_attr.evaluation import BenchTable, Deletion, bench_deletion, deletion, tasks
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.deletion import (
    comprehensiveness,
    count,
    kept_tokens,
    log_odds,
    probabilities,
    ranked,
    sufficiency,
    units,
)
from lens_attr.graph import resolve
from lens_attr.types import Sample

DEMO = ("demo-gpt2", "demo-llama", "demo-bert")


@pytest.fixture(scope="module")
def graphs() -> dict[str, Any]:
    return {name: resolve(la.load(name, device="cpu")) for name in DEMO}


def views(graph: Any, n: int = 6, task: str = "sva") -> list[tasks.TokenSample]:
    return list(tasks.view(graph, tasks.built_in(task, n)).samples)


def flat(groups: list[list[int]]) -> list[int]:
    return [i for group in groups for i in group]


# --- closed forms


def test_signs_of_the_three_measures() -> None:
    whole, without, only = np.array([0.8]), np.array([0.2]), np.array([0.6])
    assert comprehensiveness(without, whole) == pytest.approx(0.6)
    assert sufficiency(only, whole) == pytest.approx(0.2)
    assert log_odds(without, whole) == pytest.approx(math.log(0.25))
    assert np.isfinite(log_odds(np.array([0.0]), whole)).all()


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [(20.0, 10, 2), (20.0, 9, 1), (20.0, 1, 1), (1.0, 5, 1), (50.0, 5, 2), (70.0, 10, 7)],
)
def test_k_percent_are_at_least_one_word(k: float, n: int, expected: int) -> None:
    assert count(k, n) == expected


@given(st.floats(0.1, 99.9), st.integers(2, 500))
def test_less_than_everything_goes(k: float, n: int) -> None:
    assert 1 <= count(k, n) < n


def test_the_top_words_go_and_special_tokens_stay() -> None:
    words = [[1, 2], [3], [4]]
    without, only = kept_tokens(words, order=[2, 0, 1], top=1, length=6)
    assert without.tolist() == [True, True, True, True, False, True]
    assert only.tolist() == [True, False, False, False, True, True]


def test_words_are_ranked_by_the_sum_of_their_pieces() -> None:
    scores = np.array([9.0, 1.0, 1.5, 2.0, -3.0])
    rng = np.random.default_rng(0)
    assert ranked([[1, 2], [3], [4]], scores, rng) == [0, 1, 2]


def test_equal_words_are_ranked_at_random_but_seeded() -> None:
    words = [[i] for i in range(6)]
    orders = {tuple(ranked(words, np.zeros(6), np.random.default_rng(s))) for s in range(9)}
    again = tuple(ranked(words, np.zeros(6), np.random.default_rng(0)))
    assert len(orders) > 5 and again in orders


@pytest.mark.parametrize("name", DEMO)
def test_units_are_words_or_tokens_without_the_special_ones(
    graphs: dict[str, Any], name: str
) -> None:
    graph = graphs[name]
    made = Sample("the ombudsmen near keys", " are", " is", suffix=" here .")
    (one,) = tasks.view(graph, tasks.Task("x", [made]), truth=False).samples
    masked = graph.is_masked_model
    words = units(graph, one, "word")
    assert len(words) == (6 if masked else 4)
    assert flat(words) == flat(units(graph, one, "token"))
    assert len(words[1]) > 1
    text = [made.text[slice(*one.spans[i])] for i in words[1]]  # type: ignore[misc]
    assert "".join(text) == "ombudsmen"
    deletable = set(flat(words))
    assert deletable == {i for i, special in enumerate(one.special) if not special}


# --- what a deleted token becomes, against single forwards written out here


def by_hand(graph: Any, one: tasks.TokenSample, keep: np.ndarray, mode: str) -> torch.Tensor:
    """Logits at the explained position of one text with some of its tokens deleted."""
    ids, kept = torch.tensor([one.token_ids]), torch.tensor(keep)
    position = one.position
    tokenizer = graph.tokenizer
    with ExitStack() as stack, torch.no_grad():
        if mode == "zero":
            (embed,) = graph.points("embed")
            embed.on_forward(lambda e: torch.where(kept[None, :, None], e, 0.0), stack)
        elif mode == "remove":
            position = int(kept[: position + 1].sum()) - 1
            ids = ids[:, kept]
        else:
            filler = tokenizer.pad_token_id if mode == "pad" else tokenizer("x .").input_ids[-1]
            filler = filler if mode == "pad" else _id(graph, " here")
            ids = torch.where(kept, ids, filler)
        return graph.model(ids)[0, position]


def _id(graph: Any, word: str) -> int:
    from lens_attr.graph.tokens import continuation

    return continuation(graph, word)[0]


@pytest.mark.parametrize("name", DEMO)
@pytest.mark.parametrize("mode", ["zero", "pad", "token", "remove"])
def test_probabilities_are_those_of_single_edited_texts(
    graphs: dict[str, Any], name: str, mode: Any
) -> None:
    graph = graphs[name]
    batch = views(graph)
    rng = np.random.default_rng(0)
    kept = [np.array(one.special) | (rng.random(len(one)) < 0.5) for one in batch]
    for one, keep in zip(batch, kept, strict=True):
        keep[one.position] = True
    ids = [one.answer or 0 for one in batch]
    settings = Deletion(delete=mode, token=" here")
    found = probabilities(graph, batch, kept, ids, settings)
    for one, keep, token, p in zip(batch, kept, ids, found, strict=True):
        expected = by_hand(graph, one, keep, mode).double().softmax(-1)[token]
        assert p == pytest.approx(float(expected), rel=2e-4)


@pytest.mark.parametrize("name", DEMO)
def test_a_causal_model_predicts_at_the_last_token_that_is_left(
    graphs: dict[str, Any], name: str
) -> None:
    graph = graphs[name]
    (one,) = views(graph, 1)
    keep = np.ones(len(one), dtype=bool)
    gone = one.position - 1 if graph.is_masked_model else one.position
    keep[gone] = False
    (p,) = probabilities(graph, [one], [keep], [one.answer or 0], Deletion(delete="remove"))
    ids = [token for i, token in enumerate(one.token_ids) if i != gone]
    with torch.no_grad():
        logits = graph.model(torch.tensor([ids]))[0, one.position - 1].double()
    assert p == pytest.approx(float(logits.softmax(-1)[one.answer]), rel=1e-4)


@pytest.mark.parametrize("name", DEMO)
def test_deleting_nothing_changes_nothing(graphs: dict[str, Any], name: str) -> None:
    graph = graphs[name]
    batch = views(graph)
    kept = [np.ones(len(one), dtype=bool) for one in batch]
    ids = [one.answer or 0 for one in batch]
    found = [
        probabilities(graph, batch, kept, ids, Deletion(delete=mode))
        for mode in ("zero", "pad", "remove")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-4)


# --- the benchmark


@pytest.fixture(scope="module")
def table(graphs: dict[str, Any]) -> BenchTable:
    return bench_deletion(graphs["demo-gpt2"].model, tasks.built_in("sva", 60), ["attnlrp"])


def test_the_table_is_the_mean_over_samples(table: BenchTable) -> None:
    frame = table.samples["sva", "attnlrp"]
    assert set(table.rows["method"]) == {"attnlrp", *BASELINES}
    for metric, expected in {
        "comprehensiveness": frame["p"] - frame["without_20"],
        "sufficiency": frame["p"] - frame["only_20"],
        "log_odds": np.log(frame["without_20"] / frame["p"]),
        "aopc_comprehensiveness": frame["p"]
        - frame[["without_5", "without_10", "without_20", "without_50"]].mean(axis=1),
    }.items():
        assert table.value("attnlrp", "sva", metric).value == pytest.approx(expected.mean())


def test_attnlrp_deletes_better_than_chance(table: BenchTable) -> None:
    better = table.beats_random("aopc_log_odds").set_index("method")["beats_random"]
    assert better["attnlrp"]


def test_rows_agree_with_the_pieces_put_together_by_hand(
    graphs: dict[str, Any], table: BenchTable
) -> None:
    graph = graphs["demo-gpt2"]
    frame = table.samples["sva", "attnlrp"].set_index("sample")
    for one in views(graph, 5):
        row = frame.loc[one.index]
        with torch.no_grad():
            p = graph.model(torch.tensor([one.token_ids]))[0, -1].double().softmax(-1)
        assert row["p"] == pytest.approx(float(p.max()), rel=1e-4)
        words = units(graph, one, "word")
        rng = np.random.default_rng([0, one.index])
        order = ranked(words, np.array(row["scores"]), rng)
        without, _ = kept_tokens(words, order, count(20.0, len(words)), len(one))
        logits = by_hand(graph, one, without, "zero").double().softmax(-1)
        assert row["without_20"] == pytest.approx(float(logits[p.argmax()]), rel=1e-3)
        target = la.Logit(int(p.argmax()))
        expected = la.attribute(graph.model, torch.tensor([one.token_ids]), target)
        scale = float(expected.tokens.abs().max())
        np.testing.assert_allclose(row["scores"], expected.tokens[0], atol=1e-4 * scale)


def test_the_sweep_holds_every_percent(table: BenchTable, tmp_path: Path) -> None:
    found = deletion.sweep(table)
    assert sorted(set(found["k"])) == [5.0, 10.0, 20.0, 50.0]
    at = found[(found["k"] == 20) & (found["method"] == "attnlrp")].set_index("metric")
    value = table.value("attnlrp", "sva", "sufficiency").value
    assert at.loc["sufficiency", "value"] == pytest.approx(value)
    again = BenchTable.load(table.save(tmp_path))
    pd.testing.assert_frame_equal(deletion.sweep(again), found)


def test_batches_change_nothing(graphs: dict[str, Any]) -> None:
    model, task = graphs["demo-bert"].model, tasks.built_in("ra", 10)
    one, many = (bench_deletion(model, task, ["lrp"], batch_size=size) for size in (1, 8))
    np.testing.assert_allclose(one.rows["value"], many.rows["value"], rtol=1e-3, atol=1e-6)


def test_a_stopped_run_goes_on(graphs: dict[str, Any], tmp_path: Path) -> None:
    model, task = graphs["demo-gpt2"].model, tasks.built_in("sva", 6)
    first = bench_deletion(model, task, ["lrp"], out=tmp_path)
    second = bench_deletion(model, task, ["lrp", "gim"], out=tmp_path)
    both = second.rows[second.rows["method"] == "lrp"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        both, first.rows[first.rows["method"] == "lrp"].reset_index(drop=True)
    )


def test_texts_too_short_are_dropped_and_counted(graphs: dict[str, Any]) -> None:
    made = [Sample("keys", " are", " is"), Sample("the keys", " are", " is")]
    found = bench_deletion(graphs["demo-gpt2"].model, tasks.Task("x", made), ["lrp"])
    assert found.tasks["x"]["dropped"] == {"fewer than two words to delete": 1}
    assert found.tasks["x"]["used"] == 1
    none = bench_deletion(graphs["demo-gpt2"].model, tasks.Task("x", made[:1]), ["lrp"])
    assert "Nothing is left: every sample was dropped." in str(none)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0.0}, "between 0 and 100"),
        ({"k": 100.0}, "between 0 and 100"),
        ({"sweep": ()}, "between 0 and 100"),
        ({"unit": "words"}, "did you mean 'word'"),
        ({"delete": "zeros"}, "did you mean 'zero'"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Deletion(**settings)


def test_a_deletion_token_must_be_one(graphs: dict[str, Any]) -> None:
    settings = Deletion(delete="token", token=" extraordinarily")
    with pytest.raises(InputError, match=r"is \d+ tokens.*name one token"):
        task = tasks.built_in("sva", 2)
        bench_deletion(graphs["demo-gpt2"].model, task, ["lrp"], settings=settings)


# --- paragraphs

TEXT = "Yesterday the old keeper found a strange lamp behind the door , and it was heavy"


def test_the_last_content_word_is_predicted(graphs: dict[str, Any]) -> None:
    task = tasks.Task("imdb", [Sample(TEXT, "", "")])
    (cut,) = tasks.paragraphs(graphs["demo-gpt2"], task)
    (sample,) = cut.samples
    assert sample.answer == " heavy" and sample.suffix == ""
    assert sample.text == TEXT.removesuffix(" heavy")


def test_a_seeded_word_may_be_asked_for(graphs: dict[str, Any]) -> None:
    task = tasks.Task("imdb", [Sample(TEXT, "", "")] * 12)
    drawn = [
        [s.answer for s in tasks.paragraphs(graphs["demo-gpt2"], task, interest="random",
                                            seed=seed)[0].samples]
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) <= {" old", " keeper", " found", " strange", " lamp", " door", " heavy",
                             " behind"}  # fmt: skip
    for sample in tasks.paragraphs(graphs["demo-gpt2"], task, interest="random")[0].samples:
        assert sample.text + sample.answer + sample.suffix == TEXT


def test_lengths_become_tasks_of_equal_size(graphs: dict[str, Any]) -> None:
    graph = graphs["demo-bert"]
    made = [
        Sample(TEXT, "", ""),
        Sample("the old lamp fell", "", ""),
        Sample(f"{TEXT} {TEXT}", "", ""),
    ]
    short, long = tasks.paragraphs(graph, tasks.Task("imdb", made), (10, 30), n=1)
    assert (short.name, long.name) == ("imdb/10", "imdb/30")
    assert len(short.samples) == len(long.samples) == 1
    assert sum(long.left_out.values()) == 2
    found = bench_deletion(graph.model, [short, long], ["lrp"])
    assert set(found.rows["task"]) == {"imdb/10", "imdb/30"}


def test_lengths_of_unequal_supply_are_cut_to_the_scarcest(graphs: dict[str, Any]) -> None:
    graph = graphs["demo-bert"]
    long = [Sample(f"{TEXT} {TEXT} {TEXT} {i}", "", "") for i in range(3)]
    texts = [*long, *(Sample(f"{TEXT} {i}", "", "") for i in range(5))]
    unreadable = Sample(f"[MASK] {TEXT}", "", "")
    task = tasks.Task("imdb", [unreadable, *texts])
    short, middle, none = tasks.paragraphs(graph, task, (10, 40, 400), n=6)
    assert [len(one.samples) for one in (short, middle, none)] == [3, 3, 0]
    assert short.left_out["more than there are texts of another length"] == 3
    assert short.left_out["the text itself holds [MASK]"] == 1
    assert middle.left_out["shorter than 40 tokens"] == 6
    found = bench_deletion(graph.model, [short, middle, none], ["lrp"])
    assert [facts["used"] for facts in found.tasks.values()] == [3, 3, 0]


def test_texts_without_content_words_are_left_out(graphs: dict[str, Any]) -> None:
    task = tasks.Task("x", [Sample("it is what it is", "", "")])
    (cut,) = tasks.paragraphs(graphs["demo-gpt2"], task)
    assert not cut.samples and sum(cut.left_out.values()) == 1
    with pytest.raises(InputError, match="unknown interest"):
        tasks.paragraphs(graphs["demo-gpt2"], task, interest="first")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 4 tokens"):
        tasks.paragraphs(graphs["demo-gpt2"], task, (2,))


def test_samples_with_an_answer_keep_their_place(graphs: dict[str, Any]) -> None:
    task = tasks.built_in("sva", 4)
    (kept,) = tasks.paragraphs(graphs["demo-gpt2"], task, n=3)
    assert kept == replace(task, samples=task.samples[:3])
