"""Attention-only and attention rollout against patterns read from Hugging Face itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import small
import tiny
import torch
from tiny import EXACT, error, explain
from torch import Tensor

import lens_attr as la

METHODS = ["attention_only", "attention_rollout"]
EVERY = tiny.on_backends(tiny.FAMILIES + tiny.DELEGATED)
TOLERANCE = 1e-9


@cache
def patterns(family: str) -> Tensor:
    """[layer, head, query, key], as Hugging Face returns them."""
    model, ids = tiny.hugging_face(family, EXACT), tiny.token_ids(family)
    with tiny.precision(EXACT), torch.no_grad():
        return torch.stack(model(ids, output_attentions=True).attentions)[:, 0]


def only(patterns: Tensor, row: int) -> Tensor:
    return patterns[:, :, row].mean(dim=(0, 1))


def rollout(patterns: Tensor, row: int) -> Tensor:
    result = torch.eye(patterns.shape[-1]).double()
    for heads in patterns:
        layer = heads.mean(dim=0) + torch.eye(len(result)).double()
        result = (layer / layer.sum(dim=1, keepdim=True)) @ result
    return result[row]


EXPECTED = {"attention_only": only, "attention_rollout": rollout}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_it_is_what_hugging_faces_patterns_give(case: tuple[str, str], method: str) -> None:
    """Also where the Bridge's patterns only fire forward: BERT, GPT-J, GPT-Neo, OPT."""
    for position in (3, 6):
        target = replace(tiny.TARGET, position=position)
        model, ids = tiny.model(*case, EXACT), tiny.token_ids(case[0])
        r = explain(model, method, ids, target=target)
        assert error(r.tokens[0], EXPECTED[method](patterns(case[0]), position)) <= TOLERANCE
        assert r.unit == "attention"
        assert float(r.tokens.sum()) == pytest.approx(1, abs=1e-12)


def test_the_two_methods_and_the_order_of_blocks_differ() -> None:
    """The comparison above would see a wrong row, method or order."""
    layers = patterns("gpt2")
    assert error(only(layers, 6), rollout(layers, 6)) > 0.1
    assert error(only(layers, 5), only(layers, 6)) > 0.1
    assert error(rollout(layers.flip(0), 6), rollout(layers, 6)) > 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama", "bert"]), ids=tiny.case_id)
def test_a_padded_batch_equals_single_runs(case: tuple[str, str], method: str) -> None:
    model = tiny.model(*case)
    hidden = "[MASK] " if case[0] == "bert" else ""
    texts = [hidden + text for text in ("w5 w9 w12 w7", "w30 w8", "w6 w6 w40 w21 w11 w50 w9")]
    batch = explain(model, method, texts)
    for row, text in zip(batch, texts, strict=True):
        assert error(row.tokens, explain(model, method, text).tokens) <= 1e-5
    assert (batch.tokens[~batch.attention_mask] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_sums_in_float32(method: str) -> None:
    model = tiny.model("llama", "bridge", "bfloat16")
    r = explain(model, method, tiny.token_ids("llama"))
    assert r.tokens.dtype == torch.float32
    assert float(r.tokens.sum()) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_the_target_does_not_matter_but_its_position_does(method: str) -> None:
    model, ids = tiny.model("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    by_target = [explain(model, method, ids, target=t) for t in (la.LogProb(9), la.TopLogit())]
    assert by_target[0].tokens.equal(by_target[1].tokens)
    assert by_target[0].target != by_target[1].target


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.shared
def test_a_trained_model(method: str, backend: str, shared: Path) -> None:
    model = la.load(shared / "models" / "stories260K", backend, "float32")
    r = la.attribute(model, "Once upon a time, there was a little girl", method=method)
    assert float(r.tokens.sum()) == pytest.approx(1, abs=1e-5)
    assert not la.methods()[method].target_aware


# ------------------------------------------------------------------------- the token of interest


def interest(ids: list[int], token: int, **options: object) -> Tensor:
    target = la.LogitDiff(token, 13, position=1)
    model = tiny.model("gpt2", tiny.BACKENDS[0], EXACT)
    ids_ = torch.tensor([ids])
    return explain(model, "attention_only", ids_, target=target, row="token", **options).tokens


def predicting(ids: list[int], position: int) -> Tensor:
    model = tiny.model("gpt2", tiny.BACKENDS[0], EXACT)
    target = replace(tiny.TARGET, position=position)
    return explain(model, "attention_only", torch.tensor([ids]), target=target).tokens


def test_the_row_of_the_token_of_interest() -> None:
    ids = [5, 9, 30, 7, 12, 8]
    assert error(interest(ids, 30), predicting(ids, 2)) <= 1e-12
    assert error(interest(ids, 30), predicting(ids, 1)) > 1e-2


def test_the_occurrence_of_the_token_of_interest() -> None:
    ids = [5, 30, 9, 30, 7]
    for occurrence, place in ((-1, 3), (0, 1), (1, 3)):
        row = interest(ids, 30, occurrence=occurrence)
        assert error(row, predicting(ids, place)) <= 1e-12


def test_the_row_of_interest_is_found_in_every_example() -> None:
    model = tiny.model("gpt2", tiny.BACKENDS[0], EXACT)
    texts, target = ["w5 w9 w30 w7", "w30 w8"], la.Logit([30, 8])
    found = explain(model, "attention_only", texts, target=target, row="token")
    for row, text, place in zip(found, texts, (3, 2), strict=True):
        at = la.Logit(12, position=place)
        alone = explain(model, "attention_only", text, target=at)
        assert error(row.tokens, alone.tokens) <= 1e-9


@pytest.mark.parametrize(
    ("target", "options", "match"),
    [
        (la.Logit(40), {"row": "token"}, "holds the token 'w40' 0 times"),
        (la.Logit(5), {"row": "token", "occurrence": 1}, "1 times, so there is no occurrence 1"),
        (la.TopLogit(), {"row": "token"}, "names a token"),
        (la.Logit(5), {"row": "last"}, "'predicting' or 'token'"),
        (la.Logit(5), {"occurrence": 0.5}, "occurrence must be a whole number"),
        (la.Logit(5), {"rows": "token"}, "no option 'rows'; did you mean 'row'"),
    ],
)
def test_bad_options_are_refused(target: la.Target, options: dict, match: str) -> None:
    model, ids = tiny.model("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    with small.untyped(), pytest.raises(la.InputError, match=match):
        explain(model, "attention_only", ids, target=target, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_users_hook_that_makes_patterns_none_is_noticed(method: str) -> None:
    model = tiny.fresh("gpt2", tiny.BACKENDS[0])

    def shift(pattern: Tensor, hook: object) -> Tensor:
        return pattern - 0.2

    def cut(pattern: Tensor, hook: object) -> Tensor:
        return pattern * torch.tensor([0.0, 1, 1, 1])[:, None, None]

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", shift)]):
        with pytest.raises(la.UnsupportedModelError, match="block 1 carries no attention weights"):
            explain(model, method, tiny.token_ids("gpt2"))
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", cut)]):
        explain(model, method, tiny.token_ids("gpt2"))  # a head switched off is still attention
