"""Every supported family on every backend: same model, same relevance, or a clear refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from tiny import EXACT, TARGET, error, explain
from torch import Tensor
from transformers import PreTrainedModel

import lens_attr as la
from lens_attr.graph import resolve
from lens_attr.rules import PRESETS, RuleSet

EVERY = tiny.on_backends(tiny.FAMILIES)
METHODS = ["gradient_x_input", "lrp", "attnlrp", "gim", "relp"]
OTHER_PRESETS = ["gradient", "lrp", "relp"]
AUDITED = [(case, preset) for case in EVERY for preset in ("attnlrp", "gim")]
AUDITED += [(c, p) for c in tiny.on_backends(["gpt2", "llama", "bert"]) for p in OTHER_PRESETS]
ROUNDING = 2e-5
PADDING_ROUNDS = 2e-6
"""How far a padded row may be from the same text alone, in float32."""
PADDING_ROUNDS_MORE = {("mistral", "gradient_x_input"): 2e-5}
"""Exceptions, measured: up to 1.4e-5. Large parts cancel there; in float64 it is 1e-14."""

needs_both = pytest.mark.skipif(
    "hooked" not in tiny.BACKENDS, reason="transformer-lens 4 has the Bridge only"
)


def supported(case: tuple[str, str], method: str) -> bool:
    """GIM needs the pattern in the autograd graph."""
    delegated = case in [(family, "bridge") for family in ("bert", *tiny.DELEGATED)]
    return not (method == "gim" and delegated)


def exact(family: str) -> float:
    """Rounding in float64; Hugging Face's GPT-J rounds the scale of its scores to float32."""
    return 1e-7 if family == "gptj" else 1e-12


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids)


# --------------------------------------------------------------------------- the same model


@pytest.mark.parametrize("case", EVERY + tiny.on_backends(tiny.DELEGATED), ids=tiny.case_id)
def test_a_loaded_model_is_the_hugging_face_model(case: tuple[str, str]) -> None:
    family, backend = case
    ids = tiny.token_ids(family, rows=2)
    with tiny.precision(EXACT):
        want = logits(tiny.hugging_face(family, EXACT), ids).logits
        assert error(logits(tiny.model(family, backend, EXACT), ids), want) <= exact(family)
        others = logits(tiny.hugging_face(family, EXACT), (ids + 1) % tiny.VOCAB).logits
        assert error(others, want) > 1e-2


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_the_directory_says_another_family(case: tuple[str, str]) -> None:
    assert "llama-bert-gemma-3" in tiny.directory(case[0]).name
    described = resolve(tiny.model(*case)).describe()
    name = {"neox": "GPTNeoX"}.get(case[0], case[0])
    assert described["architecture"].lower().startswith(name.lower())


# ------------------------------------------------------------------------ the same relevance


@needs_both
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.DELEGATED])
def test_both_backends_agree(family: str, method: str) -> None:
    """Where the Bridge delegates attention, its rules act at q, k and z instead of the pattern."""
    if not supported((family, "bridge"), method):
        pytest.skip("refused, see below")
    ids = tiny.token_ids(family)
    hooked, bridge = (
        explain(tiny.model(family, b, EXACT), method, ids, embeddings="token", record=["residual"])
        for b in ("hooked", "bridge")
    )
    tolerance = exact(family)
    assert error(hooked.target_value, bridge.target_value) <= tolerance
    assert error(hooked.tokens, bridge.tokens) <= tolerance
    assert error(hooked.head_tokens, bridge.head_tokens) <= tolerance
    assert error(hooked.heads("relu_dim"), bridge.heads("relu_dim")) <= tolerance
    assert error(hooked.records["residual"], bridge.records["residual"]) <= tolerance


def padded(family: str) -> tuple[Tensor, Tensor]:
    """Three rows with 0, 3 and 1 pads: on the left; on the right where BERT counts positions."""
    ids = tiny.token_ids(family, rows=3)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 1)):
        hidden = slice(7 - padding, 7) if family == "bert" else slice(0, padding)
        mask[row, hidden], ids[row, hidden] = 0, tiny.PAD
    return ids, mask


def difference_of_padding(case: tuple[str, str], method: str, dtype: str) -> float:
    """Between a padded batch, the same in chunks, and each of its texts alone."""
    model, (ids, mask) = tiny.model(*case, dtype), padded(case[0])
    whole = explain(model, method, ids, attention_mask=mask, embeddings="token")
    options = {"attention_mask": mask, "embeddings": "token", "batch_size": 2, "progress": False}
    chunks = explain(model, method, ids, **options)
    assert whole.tokens[mask == 0].abs().max() == 0
    pairs = [(chunks, whole)]
    for row, batched in enumerate(whole):
        alone = explain(model, method, ids[row, mask[row] == 1][None], embeddings="token")
        pairs.append((batched, alone))
    return max(
        error(read(got), read(want))
        for got, want in pairs
        for read in (lambda r: r.tokens, lambda r: r.head_tokens, lambda r: r.heads("relu_dim"))
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_a_padded_batch_equals_its_examples_alone(case: tuple[str, str], method: str) -> None:
    if not supported(case, method):
        pytest.skip("refused, see below")
    tolerance = PADDING_ROUNDS_MORE.get((case[0], method), PADDING_ROUNDS)
    assert difference_of_padding(case, method, "float32") <= tolerance


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_what_padding_changes_is_rounding(case: tuple[str, str]) -> None:
    """Of the method that rounds most."""
    assert difference_of_padding(case, "gradient_x_input", EXACT) <= 1e-12


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_padding_that_is_not_declared_changes_the_result(case: tuple[str, str]) -> None:
    model, ids = tiny.model(*case), tiny.token_ids(case[0])
    padding = torch.full((1, 2), tiny.PAD)
    padded = torch.cat([ids, padding] if case[0] == "bert" else [padding, ids], dim=1)
    real = slice(0, 7) if case[0] == "bert" else slice(2, 9)
    undeclared = explain(model, "lrp", padded, embeddings="token").tokens[:, real]
    assert error(undeclared, explain(model, "lrp", ids, embeddings="token").tokens) > 1e-3


@pytest.mark.parametrize("method", ["attnlrp", "gim"])
@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_bfloat16_runs_and_stays_near(case: tuple[str, str], method: str) -> None:
    if not supported(case, method):
        pytest.skip("refused, see below")
    ids = tiny.token_ids(case[0])
    low = explain(tiny.model(*case, "bfloat16"), method, ids, embeddings="token")
    exact = explain(tiny.model(*case), method, ids, embeddings="token")
    assert low.tokens.dtype == torch.float32
    both = torch.stack([low.tokens[0], exact.tokens[0]])
    assert torch.corrcoef(both)[0, 1] > 0.95
    assert error(low.tokens, exact.tokens) > 1e-6


# ------------------------------------------------------------------- the forward never changes


@contextmanager
def hooks_that_do_nothing(model: Any) -> Iterator[None]:
    """Backward hooks on every norm's scale: the Bridge then computes most norms in Python."""
    names = [point.name for point in resolve(model).points("norm_scale")]
    with model.hooks(bwd_hooks=[(name, lambda grad, hook: None) for name in names]):
        yield


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_the_logits_never_change(case: tuple[str, str]) -> None:
    """Bitwise; where the Bridge changes to norms in Python, as under hooks that do nothing."""
    family, backend = case
    model, ids = tiny.model(*case), tiny.token_ids(family, rows=2)
    untouched = model(ids)
    with hooks_that_do_nothing(model):
        with_hooks = model(ids)
    assert error(with_hooks, untouched) <= ROUNDING
    if backend == "hooked" or family == "gpt2":
        assert torch.equal(with_hooks, untouched)
    for preset in PRESETS:
        if supported(case, preset):
            with PRESETS[preset]().on(model):
                ruled = model(ids)
            assert torch.equal(ruled, untouched if preset == "gradient" else with_hooks), preset
    explain(model, "attnlrp", ids)
    assert torch.equal(model(ids), untouched)


# ------------------------------------------------------------------------------- the audit


@pytest.mark.parametrize(("case", "preset"), AUDITED, ids=tiny.case_id)
def test_the_audit_accepts_every_preset(case: tuple[str, str], preset: str) -> None:
    audit = la.check(tiny.model(*case), preset)
    if not supported(case, preset):
        assert not audit.accepted
        assert "hook_pattern never sees a gradient" in audit.reasons[0]
        return
    assert audit.accepted, audit.reasons
    assert audit.findings
    assert all(finding.holds for finding in audit.findings)
    claims = {finding.claim for finding in audit.findings}
    in_graph = resolve(tiny.model(*case)).attention_in_graph
    assert ("pattern = softmax(scores)" in claims) is in_graph
    assert ("grad(scores) = softmax backward of grad(pattern)" in claims) is in_graph
    table = audit.to_pandas()
    assert (table.loc[table["rule"] != "", "fired"] > 0).all()
    assert len(audit.uncovered) == len(table) if preset == "gradient" else len(table) > 0


def doubled(activation: Tensor, hook: Any) -> Tensor:
    return activation * 2


@pytest.mark.parametrize(
    ("hook", "claim"),
    [
        ("attn.hook_pattern", "pattern = softmax(scores)"),
        ("attn.hook_z", "z = pattern @ v"),
        ("mlp.hook_post", "post = f(pre)"),
    ],
)
@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_the_audit_refuses_a_model_that_breaks_an_identity(
    case: tuple[str, str], hook: str, claim: str
) -> None:
    model = tiny.model(*case)
    with model.hooks(fwd_hooks=[(f"blocks.1.{hook}", doubled)]):
        audit = la.check(model, "attnlrp")
    assert not audit.accepted
    assert any(claim in reason and f"blocks.1.{hook}" in reason for reason in audit.reasons)
    assert not any("blocks.0" in reason for reason in audit.reasons)
    assert la.check(model, "attnlrp").accepted


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("family", ["bert", *tiny.DELEGATED])
def test_where_the_bridge_delegates_attention_gim_is_refused(family: str) -> None:
    model, ids = tiny.model(family, "bridge"), tiny.token_ids(family)
    with pytest.raises(la.UnsupportedModelError, match=r"hook_pattern.*Use 'attnlrp' or 'lrp'"):
        explain(model, "gim", ids, target=la.LogitDiff(12, 13, position=3))


@pytest.mark.parametrize("family", tiny.DELEGATED)
def test_where_the_bridge_delegates_attention_rules_act_at_q_and_k(family: str) -> None:
    model, ids = tiny.model(family, "bridge"), tiny.token_ids(family)
    graph = resolve(model)
    for method in ("lrp", "attnlrp"):
        places = set(PRESETS[method]().placements(graph))
        assert {p.name for role in ("q", "k") for p in graph.points(role)} <= places
        assert not any("pattern" in place for place in places)
        assert explain(model, method, ids).tokens.isfinite().all()
    without = explain(model, la.rules.attnlrp().without("ScalePattern"), ids)
    assert error(without.tokens, explain(model, "attnlrp", ids).tokens) > 1e-4


def refused(model: Any, message: str, error: type[Exception] = la.UnsupportedModelError) -> None:
    """Both front doors refuse: `la.attribute` and ``rules.on``."""
    with pytest.raises(error, match=message):
        la.attribute(model, tiny.token_ids("gpt2"), TARGET)
    with pytest.raises(error, match=message), la.rules.lrp().on(model):
        pytest.fail("the context was entered")


def test_a_mixture_of_experts_is_refused() -> None:
    refused(tiny.model("mixtral", "bridge"), "mixture of experts")


def test_an_architecture_nobody_verified_is_refused_on_the_bridge() -> None:
    refused(tiny.model("stablelm", "bridge"), r"StableLmForCausalLM.*not verified.*Verified: ")


@pytest.mark.parametrize("flag", ["use_split_qkv_input", "use_attn_in"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_split_inputs_of_attention_are_refused_on_the_bridge(family: str, flag: str) -> None:
    model = tiny.fresh(family, "bridge")
    switch = getattr(model, f"set_{flag}")
    switch(True)
    refused(model, rf"call model\.set_{flag}\(False\)")
    switch(False)
    la.attribute(model, tiny.token_ids(family), TARGET)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_quantised_model_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.fresh("llama", backend)
    monkeypatch.setattr(model.cfg, "load_in_4bit", True, raising=False)
    refused(model, "quantised.*Load it in float32 or bfloat16")


def some_weight(model: Any) -> tuple[torch.nn.Module, str]:
    """Where the weight of a projection in the second block lives, on either backend."""
    attention = model.blocks[1].attn
    if hasattr(attention, "o"):
        linear = next(m for m in attention.o.modules() if isinstance(m, torch.nn.Linear))
        return linear, "weight"
    return attention, "W_O"


def as_int8(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    return torch.nn.Parameter((weight.detach() * 100).to(torch.int8), requires_grad=False)


def elsewhere(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.detach().to("meta"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_int8, "quantised.*Load it in float32 or bfloat16"),
        (elsewhere, r"spread over \['cpu', 'meta'\]; load it on one device"),
    ],
)
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_one_weight_that_is_packed_or_elsewhere_is_enough(
    backend: str, change: Any, message: str
) -> None:
    model = tiny.fresh("llama", backend)
    module, name = some_weight(model)
    setattr(module, name, change(getattr(module, name)))
    refused(model, message)


def drop_out(model: PreTrainedModel) -> None:
    """Every dropout that the family's configuration knows, layers or functions alike."""
    rates = [name for name in vars(model.config) if "drop" in name and name != "layerdrop"]
    vars(model.config).update(dict.fromkeys(rates, 0.5))


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.DELEGATED])
def test_dropout_in_train_mode_is_refused(family: str) -> None:
    """Most families drop attention weights by a function, at a rate that no layer shows."""
    model, ids = tiny.fresh(family, "bridge", edit=drop_out), tiny.token_ids(family)
    model.train()
    assert not torch.equal(logits(model, ids), logits(model, ids))
    refused(model, r"train mode with dropout.*call model\.eval\(\) first", la.InputError)
    model.eval()
    expected = explain(tiny.model(family, "bridge"), "attnlrp", ids, embeddings="token")
    assert torch.equal(explain(model, "attnlrp", ids, embeddings="token").tokens, expected.tokens)


@pytest.mark.parametrize("case", tiny.on_backends(["llama"]), ids=tiny.case_id)
def test_train_mode_without_dropout_is_explained(case: tuple[str, str]) -> None:
    model, ids = tiny.fresh(*case), tiny.token_ids("llama")
    model.train()
    expected = explain(tiny.model(*case), "attnlrp", ids)
    assert torch.equal(explain(model, "attnlrp", ids).tokens, expected.tokens)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_weights_made_under_inference_mode_are_refused(backend: str) -> None:
    with torch.inference_mode():
        model = tiny.fresh("gpt2", backend)
    if any(parameter.is_inference() for parameter in model.parameters()):
        refused(model, "inference_mode.*load the model outside of it")
    else:  # the Bridge of transformer-lens 4 makes ordinary weights all the same
        ids, usual = tiny.token_ids("gpt2"), tiny.model("gpt2", backend)
        assert torch.equal(explain(model, "gim", ids).tokens, explain(usual, "gim", ids).tokens)


@pytest.mark.parametrize("other", [torch.nn.Linear(2, 2), "gpt2", None], ids=str)
def test_what_is_no_transformer_lens_model_is_refused(other: Any) -> None:
    refused(other, "expected a TransformerLens model", la.InputError)


def test_bert_gradient_of_the_full_embedding_is_zero_and_says_so() -> None:
    model, ids = tiny.model("bert", "bridge", EXACT), tiny.token_ids("bert")
    with pytest.warns(la.errors.Notice, match='embeddings="token"'):
        full = explain(model, "gradient_x_input", ids, embeddings="full")
    token = explain(model, "gradient_x_input", ids, embeddings="token")
    assert full.tokens.abs().max() <= 1e-9 * token.tokens.abs().max()
    assert explain(model, RuleSet((la.rules.FreezeNorm(),)), ids).tokens.abs().max() > 1e-3
