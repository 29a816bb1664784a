"""gradient_l1 and gradient_l2: norms of the true gradient, at tokens and at heads."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest
import small
import tiny
import torch
from tiny import EXACT, error, explain
from torch import Tensor
from typer.testing import CliRunner

import lens_attr as la
from lens_attr.cli.app import app
from lens_attr.graph import resolve

EVERY = tiny.on_backends(["gpt2", "llama", "gemma2", "bert", "gptj"])
SIZES = {"gradient_l1": torch.abs, "gradient_l2": torch.square}


def true_gradients(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of the explained logit difference, with respect to what is added at embedding and z."""
    graph = resolve(model)
    added: list[Tensor] = []

    def add_zero(activation: Tensor) -> Tensor:
        added.append(torch.zeros_like(activation).requires_grad_())
        return activation + added[-1]

    with tiny.precision(EXACT), torch.enable_grad(), ExitStack() as stack:
        for point in [*graph.points("embed"), *graph.points("z")]:
            point.on_forward(add_zero, stack)
        logits = model(ids)
        row = ids[0].tolist().index(tiny.MASK) if graph.is_masked_model else -1
        value = (logits[:, row, 12] - logits[:, row, 13]).sum()
        embedding, *heads = torch.autograd.grad(value, added)
    return embedding, torch.stack(heads, dim=1)


@pytest.mark.parametrize("method", SIZES)
@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_they_are_norms_of_torchs_own_gradient(case: tuple[str, str], method: str) -> None:
    model, ids = tiny.model(*case, EXACT), tiny.token_ids(case[0], rows=2)
    embedding, heads = true_gradients(model, ids)
    result = explain(model, method, ids)
    assert error(result.tokens, SIZES[method](embedding).sum(-1)) < 1e-10
    assert error(result.head_tokens, SIZES[method](heads).sum(-1)) < 1e-10


@pytest.mark.parametrize("method", SIZES)
def test_all_poolings_of_heads_agree_because_nothing_is_negative(method: str) -> None:
    case = tiny.on_backends(["gpt2"])[0]
    result = explain(tiny.model(*case), method, tiny.token_ids("gpt2", rows=2))
    pools = [result.heads(pool) for pool in ("sum", "relu_token", "relu_dim")]
    assert torch.equal(pools[0], pools[1]) and error(pools[2], pools[0]) < 1e-6
    assert float(result.tokens.min()) > 0
    ranking = la.circuits.rank_heads(result, "relu_dim")
    assert ranking.scores.shape == (tiny.N_LAYERS, tiny.N_HEADS)


def test_the_unit_is_that_of_the_norm() -> None:
    model, ids = tiny.model(*tiny.on_backends(["gpt2"])[0]), tiny.token_ids("gpt2")
    assert explain(model, "gradient_l1", ids).unit == "|d logit| per unit of embedding"
    assert explain(model, "gradient_l2", ids).unit == "(d logit per unit of embedding)^2"
    assert explain(model, "gradient_l2", ids, target=la.LogProb(12)).unit.startswith("(d nat")


@pytest.mark.parametrize("name", small.EVERY)
def test_a_padded_batch_equals_its_texts_alone(name: str) -> None:
    model, texts = small.model(name, EXACT), [small.text(name), small.text(name, "w5 w9")]
    target = la.Logit(6)
    with tiny.precision(EXACT):
        both = la.attribute(model, texts, target, "gradient_l1")
        for i, text in enumerate(texts):
            alone = la.attribute(model, text, target, "gradient_l1")
            assert error(both[i].tokens, alone.tokens) < 1e-9
            assert error(both[i].head_tokens, alone.head_tokens) < 1e-9
    assert bool((both.tokens[~both.attention_mask] == 0).all())


def test_one_forward_and_one_backward() -> None:
    model = small.model(small.GPT2[0])
    forwards, backwards = [], []
    (embed,) = resolve(model).points("embed")
    z = resolve(model).points("z")[0]
    with ExitStack() as stack:
        embed.on_forward(lambda _: forwards.append(1), stack)
        z.on_backward(lambda _: backwards.append(1), stack)
        la.attribute(model, "w5 w9", la.Logit(6), "gradient_l1")
    assert (len(forwards), len(backwards)) == (1, 1)


def test_an_option_it_does_not_have() -> None:
    with pytest.raises(la.InputError, match="gradient_l1 has no option 'embeddings'"):
        la.attribute(
            small.model(small.GPT2[0]), "w5", la.Logit(6), "gradient_l1", embeddings="full"
        )


@pytest.mark.parametrize("method", ["gradient_l1", "occlusion"])
def test_the_command_line_leaves_the_embeddings_to_the_method(method: str) -> None:
    """Some methods have no choice of embeddings, others a default of their own."""
    command = ["attribute", "the keys", "--method", method, "--json", "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    embeddings = json.loads(done.stdout)["metadata"][method].get("embeddings")
    assert embeddings == {"gradient_l1": None, "occlusion": "token"}[method]


@pytest.mark.parametrize("name", small.EVERY)
@pytest.mark.parametrize("method", SIZES)
def test_nothing_is_left_on_the_model(name: str, method: str) -> None:
    model = small.fresh(name)
    la.attribute(model, small.text(name), la.Logit(6), method)
    before = small.world(model)
    with torch.no_grad():
        la.attribute(model, small.text(name), la.Logit(6), method)
    assert small.world(model) == before
