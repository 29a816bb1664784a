"""Attribution against `reference`: the papers' formulas, written out without autograd or hooks.

Float64 with Hugging Face's float32 casts lifted, so that only rounding remains.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import tiny
import torch
from reference import PRESETS, Reference, Rules, contrast, relevance
from tiny import EXACT, TARGET, error, explain
from torch import Tensor
from transformers import PreTrainedModel

import lens_attr as la

MODELS = tiny.on_backends(["gpt2", "llama", "qwen2"])
METHODS = list(PRESETS)
IDS = tiny.token_ids("gpt2")
DIRECTION = contrast(tiny.VOCAB, TARGET.token, TARGET.foil)
TOLERANCE = 1e-9


@cache
def weights(family: str) -> tuple[dict[str, Tensor], Any]:
    original = tiny.hugging_face(family, EXACT)
    return original.state_dict(), original.config


@cache
def expected(family: str, rules: str | Rules, position: int = -1) -> Reference:
    return relevance(*weights(family), IDS[0], DIRECTION, rules, position=position)


def assert_equal(got: la.Relevance, want: Reference) -> None:
    assert float(got.target_value) == pytest.approx(want.target, rel=1e-12)
    assert error(got.tokens[0], want.tokens) <= TOLERANCE
    assert error(got.head_tokens[0], want.heads) <= TOLERANCE


# ------------------------------------------------------------------------------- the presets


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", MODELS, ids=tiny.case_id)
def test_every_number_equals_the_reference(case: tuple[str, str], method: str) -> None:
    model, want = tiny.model(*case, EXACT), expected(case[0], method)
    got = explain(model, method, IDS, embeddings="token", record=["residual", "neurons"])
    assert_equal(got, want)
    assert error(got.records["residual"][0, :-1], want.resid) <= TOLERANCE
    assert error(got.records["neurons"][0], want.neurons) <= TOLERANCE
    full = explain(model, method, IDS, embeddings="full")
    assert error(full.tokens[0], want.full) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", MODELS, ids=tiny.case_id)
def test_a_prediction_in_the_middle_equals_the_reference(
    case: tuple[str, str], method: str
) -> None:
    target = replace(TARGET, position=3)
    got = explain(tiny.model(*case, EXACT), method, IDS, target=target, embeddings="token")
    assert_equal(got, expected(case[0], method, position=3))
    assert got.tokens[0, 4:].abs().max() == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_no_two_presets_agree(family: str) -> None:
    for i, one in enumerate(METHODS):
        for other in METHODS[:i]:
            apart = error(expected(family, one).tokens, expected(family, other).tokens)
            assert apart > 1e-3, (one, other)


# -------------------------------------------------------------------------------- ablations

ABLATIONS = {
    "attnlrp, true activation": ("attnlrp", {"activation": "true"}, {"act": "true"}),
    "attnlrp, gate constant": ("attnlrp", {"gate": "constant"}, {"gate": "constant"}),
    "attnlrp, true norms": ("attnlrp", {"norm": 1.0}, {"norm": "true"}),
    "attnlrp, uneven": ("attnlrp", {"z": 0.3, "pattern": 0.7}, {"z": 0.3, "pattern": 0.7}),
    "gim, T = 0.7": ("gim", {"temperature": 0.7}, {"temperature": 0.7}),
    "gim, T = 1.5": ("gim", {"temperature": 1.5}, {"temperature": 1.5}),
    "gim, T = 3": ("gim", {"temperature": 3.0}, {"temperature": 3.0}),
    "gim, T = 9": ("gim", {"temperature": 9.0}, {"temperature": 9.0}),
    "gim, z true": ("gim", {"z": 1.0}, {"z": 1.0}),
    "lrp, pattern true": ("lrp", {"pattern": 1.0}, {"pattern": 1.0}),
    "lrp, gate half": ("lrp", {"gate": "half"}, {"gate": "half"}),
    "relp, pattern constant": ("relp", {"pattern": 0.0}, {"pattern": 0.0}),
    "gradient, norms frozen": ("gradient_x_input", {"norm": 0.0}, {"norm": "frozen"}),
    "gradient, T = 2": ("gradient_x_input", {"temperature": 2.0}, {"temperature": 2.0}),
}
"""Method, switches of `la.attribute`, and the same switches in the reference's words."""


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_every_switch_equals_the_reference(case: tuple[str, str], name: str) -> None:
    method, switches, in_reference = ABLATIONS[name]
    want = expected(case[0], replace(PRESETS[method], **in_reference))
    model = tiny.model(*case, EXACT)
    assert_equal(explain(model, method, IDS, embeddings="token", **switches), want)
    unchanged = expected(case[0], method)
    ungated = case[0] == "gpt2" and "gate" in switches
    assert (error(want.tokens, unchanged.tokens) > 1e-3) is not ungated


@pytest.mark.parametrize("case", MODELS, ids=tiny.case_id)
def test_gim_without_temperature_is_attnlrp_with_the_true_derivative(
    case: tuple[str, str],
) -> None:
    explained = partial(explain, tiny.model(*case, EXACT), ids=IDS)
    gim, attnlrp = explained("gim", temperature=1.0), explained("attnlrp", activation="true")
    assert error(gim.tokens, attnlrp.tokens) <= 1e-12
    assert error(gim.head_tokens, attnlrp.head_tokens) <= 1e-12
    assert error(explained("gim").tokens, attnlrp.tokens) > 1e-3
    assert error(explained("attnlrp").tokens, attnlrp.tokens) > 1e-3


# ----------------------------------------------------------------------------- conservation


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_lrp_loses_nothing_on_a_model_without_biases(backend: str) -> None:
    r = explain(tiny.model("llama", backend, EXACT), "lrp", IDS, record=["residual"])
    target = float(r.target_value)
    assert float(r.tokens.sum()) == pytest.approx(target, rel=TOLERANCE)
    for layer in r.records["residual"][0].sum(dim=-1).tolist():
        assert layer == pytest.approx(target, rel=TOLERANCE)
    check = r.check()
    assert check.relative_gap.item() <= TOLERANCE
    for lost in (*check.parts.values(), *check.layers.values()):
        assert lost.abs().max() <= TOLERANCE * abs(target)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "lrp"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_other_methods_do_lose_some_and_check_says_where(backend: str, method: str) -> None:
    r = explain(tiny.model("llama", backend, EXACT), method, IDS)
    check = r.check()
    assert check.relative_gap.item() > 1e-2
    assert float(sum(check.parts.values()) - check.gap) == pytest.approx(0, abs=1e-12)
    for part, lost in check.layers.items():
        assert lost.sum().item() == pytest.approx(check.parts[part].item(), abs=1e-12)
    # The products with the pattern and the gate are counted twice, or the softmax adds.
    assert check.parts["attention"].abs().item() > 1e-2 * abs(float(r.target_value))


def _only_bias(model: PreTrainedModel, kept: str) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and not name.endswith(kept):
                parameter.zero_()


BIASES = {
    "ln_1.bias": "attention",
    "attn.c_attn.bias": "attention",
    "attn.c_proj.bias": "attention output bias",
    "ln_2.bias": "mlp",
    "mlp.c_fc.bias": "mlp",
    "mlp.c_proj.bias": "mlp output bias",
    "ln_f.bias": "final norm and unembedding",
}
ONLY = {name: partial(_only_bias, kept=name) for name in BIASES}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_what_lrp_loses_to_a_bias_is_reported_where_the_bias_is(backend: str, bias: str) -> None:
    r = explain(tiny.fresh("gpt2", backend, EXACT, edit=ONLY[bias]), "lrp", IDS)
    target = abs(float(r.target_value))
    check = r.check()
    assert check.gap.abs().item() > 1e-4 * target
    for part, lost in check.parts.items():
        if part == BIASES[bias]:
            assert lost.item() == pytest.approx(check.gap.item(), rel=1e-6)
        else:
            assert lost.abs().item() <= TOLERANCE * target, part


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_conservation_counts_the_position_embeddings(backend: str) -> None:
    bare = tiny.fresh("gpt2", backend, EXACT, edit=partial(_only_bias, kept="none"))
    full, token = (explain(bare, "lrp", IDS, embeddings=e) for e in ("full", "token"))
    target = float(full.target_value)
    assert float(full.tokens.sum()) == pytest.approx(target, rel=TOLERANCE)
    assert abs(float(token.tokens.sum()) - target) > 1e-2 * abs(target)
    assert token.check().relative_gap.item() <= TOLERANCE
