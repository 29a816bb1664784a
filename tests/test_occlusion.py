"""Occlusion: what the explained number loses, checked against forwards made by hand."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import small
import tiny
import torch
from reference import paths as literal
from tiny import EXACT, MASK, PAD, error
from torch import Tensor

import lens_attr as la
from lens_attr.attribution.occlusion import Windows
from lens_attr.graph import resolve

THREE = tiny.on_backends(["gpt2", "llama", "bert"])
FAMILIES = tiny.on_backends(["gpt2", "llama", "gemma2", "gemma3", "neox", "bert", "opt"])
BASELINE = 9


def occlude(case: tuple[str, str], ids: Tensor, **options: Any) -> la.Relevance:
    return tiny.explain(tiny.model(*case, EXACT), "occlusion", ids, **options)


def score(family: str, ids: list[int], position: int) -> float:
    """By Hugging Face, from token ids."""
    with torch.no_grad():
        logits = tiny.hugging_face(family, EXACT)(torch.tensor([ids])).logits[0, position]
    return float(logits[12] - logits[13])


# ----------------------------------------------------------------------- against forwards by hand


@pytest.mark.parametrize("case", FAMILIES, ids=tiny.case_id)
@pytest.mark.parametrize("baseline", [None, BASELINE, "pad"])
def test_replacing_equals_replacing_by_hand(case: tuple[str, str], baseline: Any) -> None:
    ids = tiny.token_ids(case[0], rows=2)
    options = {} if baseline is None else {"baseline": baseline}
    result = occlude(case, ids, special_tokens="occlude", **options)
    with tiny.precision(EXACT), torch.no_grad():
        hf = tiny.hugging_face(case[0], EXACT)
        for row in range(2):
            words = ids[row].tolist()
            position = words.index(MASK) if MASK in words else len(words) - 1
            x = literal.word_embeddings(hf, words)
            token = PAD if baseline == "pad" else baseline
            x0 = torch.zeros_like(x)
            if token is not None:
                x0 = literal.word_embeddings(hf, [token] * len(words))
            want = literal.occlusion(literal.score(hf, position, 12, 13), x, x0)
            assert error(result.tokens[row], want) < 1e-9


@pytest.mark.parametrize("case", THREE, ids=tiny.case_id)
def test_removing_equals_the_shorter_text(case: tuple[str, str]) -> None:
    """Where the token that predicts is removed, the one before it predicts."""
    ids = tiny.token_ids(case[0])
    result = occlude(case, ids, baseline="remove")
    words = ids[0].tolist()
    masked = case[0] == "bert"
    with tiny.precision(EXACT):
        for i in range(len(words)):
            shorter = [*words[:i], *words[i + 1 :]]
            if masked and words[i] == MASK:
                assert float(result.tokens[0, i]) == 0
                continue
            position = shorter.index(MASK) if masked else len(shorter) - 1
            before = score(case[0], words, words.index(MASK) if masked else -1)
            want = before - score(case[0], shorter, position)
            assert abs(float(result.tokens[0, i]) - want) < 1e-8


def test_tokens_after_the_explained_position_lose_nothing() -> None:
    target = la.LogitDiff(12, 13, position=3)
    for baseline in ({}, {"baseline": "remove"}):
        case = tiny.on_backends(["gpt2"])[0]
        result = occlude(case, tiny.token_ids("gpt2"), target=target, **baseline)
        assert float(result.tokens[0, 4:].abs().max()) < 1e-12
        assert float(result.tokens[0, :4].abs().min()) > 1e-4


def test_whole_embeddings_lose_their_position_too() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    ids = tiny.token_ids("gpt2")
    whole = occlude(case, ids, embeddings="full")
    with tiny.precision(EXACT), torch.no_grad():
        hf = tiny.hugging_face("gpt2", EXACT)
        x = literal.word_embeddings(hf, ids[0].tolist())
        positions = hf.transformer.wpe.weight[: len(x)]
        want = literal.occlusion(literal.score(hf, -1, 12, 13), x, -positions)
    assert error(whole.tokens[0], want) < 1e-9
    assert error(whole.tokens, occlude(case, ids).tokens) > 0.05


# ---------------------------------------------------------------------------------------- windows


def test_windows_pass_over_what_stays() -> None:
    occludable = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 0]]).bool()
    windows = Windows.of(occludable, 2)
    assert windows.rows(whole_batch=False).tolist() == [[0, 0], [0, 1], [1, 0], [2, 0]]
    every = windows.rows(whole_batch=True)
    assert every.tolist() == [[w, e] for w in range(3) for e in range(2)]
    found = windows.hidden(*every.unbind(1)).int().tolist()
    assert found[0::2] == [[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1]]
    assert found[1::2] == [[0, 0, 0, 0, 1, 0], [0] * 6, [0] * 6]
    nothing = Windows.of(torch.zeros_like(occludable), 2)
    assert len(nothing.rows(whole_batch=False)) == 0


def test_a_token_gets_the_mean_over_the_windows_that_cover_it() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    ids = tiny.token_ids("gpt2", length=4)
    result = occlude(case, ids, baseline=BASELINE, window=2)
    words = ids[0].tolist()
    with tiny.precision(EXACT):
        whole = score("gpt2", words, -1)
        drops = []
        for i in range(3):
            changed = [*words]
            changed[i : i + 2] = [BASELINE, BASELINE]
            drops.append(whole - score("gpt2", changed, -1))
    want = [drops[0], (drops[0] + drops[1]) / 2, (drops[1] + drops[2]) / 2, drops[2]]
    assert error(result.tokens[0], torch.tensor(want, dtype=torch.float64)) < 1e-8
    everything = occlude(case, ids, baseline=BASELINE, window=9)
    assert error(everything.tokens[0], everything.tokens[0, :1].expand(4)) < 1e-12


# -------------------------------------------------------------------------- special tokens, batches


@pytest.mark.parametrize("name", small.MASKED + small.GPT2)
def test_special_tokens_are_left_alone_unless_asked(name: str) -> None:
    model = small.model(name)
    ids = torch.tensor([[1, 5, MASK, 12, 2]])
    special = torch.tensor([True, False, True, False, True])
    target = la.Logit(6, position=3)
    kept = la.attribute(model, ids, target, "occlusion").tokens[0]
    assert bool((kept[special] == 0).all()) and bool((kept[~special] != 0).all())
    all_of_them = la.attribute(model, ids, target, "occlusion", special_tokens="occlude").tokens[0]
    reached = torch.tensor([True, True, True, True, name.startswith("bert")])
    assert bool((all_of_them[reached] != 0).all())
    assert error(all_of_them[~special], kept[~special]) < 1e-4


@pytest.mark.parametrize("name", small.EVERY)
@pytest.mark.parametrize("baseline", [None, " w9", "remove"])
def test_a_padded_batch_equals_its_texts_alone(name: str, baseline: Any) -> None:
    model = small.model(name, EXACT)
    texts = [small.text(name), small.text(name, "w5 w9 w8"), small.text(name, "w8 w3 w20")]
    options = {"method": "occlusion", "target": la.Logit(6), "baseline": baseline}
    with tiny.precision(EXACT):
        both = la.attribute(model, texts, **options)
        tight = la.attribute(model, texts, max_batch_tokens=1, **options)
        for i, text in enumerate(texts):
            assert error(both[i].tokens, la.attribute(model, text, **options).tokens) < 1e-7
    assert error(tight.tokens, both.tokens) < 1e-7
    assert bool((both.tokens[~both.attention_mask] == 0).all())


def test_texts_padded_on_the_right() -> None:
    ids = torch.tensor([[5, 9, 12, 7], [8, 30, PAD, PAD]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    case = tiny.on_backends(["gpt2"])[-1]
    both = occlude(case, ids, attention_mask=mask, baseline="remove")
    alone = occlude(case, ids[1:, :2], baseline="remove")
    assert error(both[1].tokens, alone.tokens) < 1e-8


@pytest.mark.parametrize("name", small.GPT2)
def test_one_forward_per_token_and_one_more_in_batches(name: str) -> None:
    model, ids = small.model(name), tiny.token_ids("gpt2", rows=2)
    rows: list[int] = []
    backwards: list[int] = []
    graph = resolve(model)
    for budget, calls in ((1, [2] + [1] * 14), (70, [2, 10, 4]), (2048, [2, 14])):
        rows.clear()
        with ExitStack() as stack:
            graph.points("residual")[0].on_forward(lambda x: rows.append(len(x)), stack)
            graph.points("residual")[1].on_backward(lambda _: backwards.append(1), stack)
            la.attribute(model, ids, la.Logit(6), "occlusion", max_batch_tokens=budget)
        assert rows == calls and not backwards


def test_a_metric_sees_the_batch_it_was_written_for() -> None:
    ids = torch.tensor([[5, 9, 12, 7], [PAD, PAD, 8, 30]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    metric = la.Metric(lambda logits: weights * (logits[:, -1, 12] - logits[:, -1, 13]))
    case = tiny.on_backends(["gpt2"])[0]
    for options in ({}, {"baseline": "remove"}):
        found = occlude(case, ids, target=metric, attention_mask=mask, **options)
        want = occlude(case, ids, attention_mask=mask, **options)
        assert error(found.tokens, want.tokens * weights[:, None]) < 1e-9


def test_the_top_logit_stays_that_token() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    ids = tiny.token_ids("gpt2")
    with tiny.precision(EXACT), torch.no_grad():
        top = int(tiny.model(*case, EXACT)(ids)[0, -1].argmax())
    found = occlude(case, ids, target=la.TopLogit(), baseline="remove")
    assert (
        error(found.tokens, occlude(case, ids, target=la.Logit(top), baseline="remove").tokens) == 0
    )


def test_a_text_of_special_tokens_alone_has_nothing_to_occlude() -> None:
    ids = torch.tensor([[1]])
    with pytest.warns(la.Notice, match="nothing but tokens that are left alone"):
        result = la.attribute(small.model(small.GPT2[0]), ids, la.Logit(6), "occlusion")
    assert float(result.tokens) == 0
    occluded = la.attribute(
        small.model(small.GPT2[0]), ids, la.Logit(6), "occlusion", special_tokens="occlude"
    )
    assert float(occluded.tokens) != 0 and not occluded.metadata["notices"]


# ------------------------------------------------------------------------------------- bad input

BAD = {
    "no window": ({"window": 0}, "window must be a whole number of at least 1"),
    "special": ({"special_tokens": "ignore"}, "must be 'keep' or 'occlude'"),
    "everything": ({"baseline": "remove", "window": 9}, "leaves nothing to predict from"),
    "token": ({"baseline": " w6 w5"}, "tokens"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=list(BAD))
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        la.attribute(
            small.model(small.GPT2[0]), torch.tensor([[5, 9]]), la.Logit(6), "occlusion", **options
        )


@pytest.mark.parametrize("name", small.EVERY)
@pytest.mark.parametrize("baseline", [None, "remove"])
def test_nothing_is_left_on_the_model(name: str, baseline: Any) -> None:
    model = small.fresh(name)
    options = {"method": "occlusion", "baseline": baseline}
    la.attribute(model, small.text(name), la.Logit(6), **options)
    before = small.world(model)
    la.attribute(model, small.text(name), la.Logit(6), **options)
    assert small.world(model) == before
