"""ALTI against its dense, literal form: post-norm (BERT), pre-norm, and a norm behind attention."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from reference import alti, forward
from tiny import EXACT, error, explain
from torch import Tensor

import lens_attr as la

TRACED = ["gpt2", "llama", "qwen2"]
FAMILIES = [*TRACED, "bert", "gemma3", "neox"]
EVERY = tiny.on_backends(tiny.FAMILIES + tiny.DELEGATED)
TOLERANCE = 1e-10


@cache
def blocks(family: str) -> list[alti.Block]:
    original, ids = tiny.hugging_face(family, EXACT), tiny.token_ids(family)[0]
    if family in TRACED:
        return alti.blocks_of_trace(forward(original.state_dict(), original.config, ids))
    with tiny.precision(EXACT):
        if family == "bert":
            return alti.blocks_of_bert(original, ids)
        read = {"gemma3": alti.blocks_of_gemma3, "neox": alti.blocks_of_neox}[family]
        return read(original, ids)[0]


def run(model: object, family: str, position: int = -1, rows: int = 1) -> la.Relevance:
    target = replace(tiny.TARGET, position=position)
    return explain(model, "alti", tiny.token_ids(family, rows), target=target)


@pytest.mark.parametrize("position", [2, 6])
@pytest.mark.parametrize("case", tiny.on_backends(FAMILIES), ids=tiny.case_id)
def test_every_number_equals_the_dense_reference(case: tuple[str, str], position: int) -> None:
    r = run(tiny.model(*case, EXACT), case[0], position)
    assert error(r.tokens[0], alti.alti(blocks(case[0]), position)) <= TOLERANCE


def without_norm(block: alti.Block) -> alti.Block:
    return replace(block, norm=None, post_norm=False)


def without_bias(block: alti.Block) -> alti.Block:
    return replace(block, bias=torch.zeros_like(block.bias))


@pytest.mark.parametrize(
    ("family", "edit"),
    [("bert", without_norm), ("gemma3", without_norm), ("bert", without_bias)],
)
def test_the_norm_and_the_bias_are_part_of_it(family: str, edit: object) -> None:
    """Without them the reference says something else, so the comparison above sees them."""
    whole = alti.alti(blocks(family), 2)
    assert error(alti.alti([edit(block) for block in blocks(family)], 2), whole) > 1e-3


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_shares_sum_to_one_and_do_not_depend_on_the_target(case: tuple[str, str]) -> None:
    model, ids = tiny.model(*case, EXACT), tiny.token_ids(case[0], rows=3)
    r = explain(model, "alti", ids)
    assert torch.allclose(r.tokens.sum(dim=1), torch.ones(3).double(), atol=1e-12)
    assert (r.tokens >= 0).all()
    assert r.unit == "share"
    other = explain(model, "alti", ids, target=la.LogProb(30))
    assert other.tokens.equal(r.tokens)
    elsewhere = explain(model, "alti", ids, target=replace(tiny.TARGET, position=1))
    assert error(elsewhere.tokens, r.tokens) > 1e-2
    if case[0] != "bert":
        assert elsewhere.tokens[:, 2:].abs().max() == 0


@pytest.mark.skipif(tiny.BACKENDS == ["bridge"], reason="needs two backends")
@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES + tiny.DELEGATED if f != "gptj"])
def test_both_backends_agree(family: str) -> None:
    hooked, bridge = (run(tiny.model(family, backend, EXACT), family) for backend in tiny.BACKENDS)
    assert error(hooked.tokens, bridge.tokens) <= TOLERANCE


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama", "bert"]), ids=tiny.case_id)
def test_a_padded_batch_equals_single_runs(case: tuple[str, str]) -> None:
    model = tiny.model(*case)
    hidden = "[MASK] " if case[0] == "bert" else ""
    texts = [hidden + text for text in ("w5 w9 w12 w7", "w30 w8", "w6 w6 w40 w21 w11 w50 w9")]
    batch = explain(model, "alti", texts)
    for row, text in zip(batch, texts, strict=True):
        assert error(row.tokens, explain(model, "alti", text).tokens) <= 1e-4
    assert (batch.tokens[~batch.attention_mask] == 0).all()


@pytest.mark.shared
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_trained_model(backend: str, shared: Path) -> None:
    model = la.load(shared / "models" / "stories260K", backend, "float32")
    r = la.attribute(model, "Once upon a time, there was a little girl", method="alti")
    assert float(r.tokens.sum()) == pytest.approx(1, abs=1e-5)
    assert (r.tokens > 0).sum() > 3


def test_a_users_hook_that_breaks_the_sum_is_noticed() -> None:
    model = tiny.fresh("bert", tiny.BACKENDS[0])

    def ablate(z: Tensor, hook: object) -> Tensor:
        return z * torch.tensor([0.0, 1, 1, 1])[:, None]

    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", ablate)]):
        with pytest.raises(la.UnsupportedModelError, match="a forward hook of yours changes z"):
            run(model, "bert")


def test_bad_options_are_refused() -> None:
    with pytest.raises(la.InputError, match="positive number of MiB"):
        explain(tiny.model("bert", "bridge"), "alti", tiny.token_ids("bert"), memory_budget=-1.0)
    with pytest.raises(la.InputError, match="alti has no option 'initial'"):
        explain(tiny.model("bert", "bridge"), "alti", tiny.token_ids("bert"), initial="separate")
