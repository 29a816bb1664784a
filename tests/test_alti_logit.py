"""ALTI-Logit against its dense, literal form, and the laws it must keep.

The reference holds every [head, query, key, d] tensor; the method never does, and must not differ.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from memory import Memory
from reference import alti, contrast, forward
from tiny import EXACT, TARGET, error, explain
from torch import Tensor

import lens_attr as la
from lens_attr.attribution.mixing import Mixing, mixing_matrix
from lens_attr.graph import resolve

TRACED = ["gpt2", "llama", "qwen2"]
CAUSAL = [family for family in tiny.FAMILIES if family not in ("bert", "gemma2")] + tiny.DELEGATED
MODELS = tiny.on_backends([*TRACED, "gemma3", "neox"])
EVERY = tiny.on_backends(CAUSAL)
TOLERANCE = 1e-10
IDS = tiny.token_ids("gpt2")


@cache
def expected(family: str, target: la.LogitDiff | la.Logit = TARGET, position: int = -1) -> Any:
    ids = IDS[0, : position + 1 or None]
    foil = target.foil if isinstance(target, la.LogitDiff) else None
    direction = contrast(tiny.VOCAB, target.token, foil)
    original = tiny.hugging_face(family, EXACT)
    if family in TRACED:
        trace = forward(original.state_dict(), original.config, ids)
        unembed = trace.model.unembed
        blocks, norm = alti.blocks_of_trace(trace), trace.model.final_norm
        weight, bias = unembed.weight, unembed.bias
    else:
        read = {"gemma3": alti.blocks_of_gemma3, "neox": alti.blocks_of_neox}[family]
        with tiny.precision(EXACT):
            blocks, norm = read(original, ids)
        head = original.get_output_embeddings()
        weight, bias = head.weight.detach().T, head.bias
    constant = 0.0 if bias is None else float(bias @ direction)
    return alti.alti_logit(blocks, norm, weight @ direction, constant, len(ids) - 1)


def separate(r: la.Relevance) -> Tensor:
    """Everything but the tokens, [batch]."""
    return torch.stack([part.reshape(len(r), -1).sum(dim=1) for part in r.extra.values()]).sum(0)


# --------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("case", MODELS, ids=tiny.case_id)
def test_every_number_equals_the_dense_reference(case: tuple[str, str]) -> None:
    r, want = explain(tiny.model(*case, EXACT), "alti_logit", IDS), expected(case[0])
    assert float(r.target_value) == pytest.approx(float(want.target), rel=TOLERANCE)
    assert error(r.tokens[0], want.tokens) <= TOLERANCE
    assert error(r.head_tokens[0], want.head_tokens) <= TOLERANCE
    assert error(r.heads("relu_dim")[0], want.heads_relu_dim) <= TOLERANCE
    for name in ("initial", "mlps", "attention_biases", "final_bias"):
        term = getattr(want, name)
        assert (r.extra[name][0] - term).abs().max() <= TOLERANCE * max(1, term.abs().max()), name


@pytest.mark.parametrize("family", [*TRACED, "gemma3", "neox"])
def test_no_term_of_the_reference_is_zero_by_accident(family: str) -> None:
    """Otherwise the comparison above could miss a term."""
    want = expected(family)
    assert want.tokens.abs().min() > 1e-6
    assert want.initial.abs() > 1e-4 and want.mlps.abs().min() > 1e-3
    has_biases = family in ("gpt2", "neox")
    assert (want.attention_biases.abs().min() > 1e-3) == has_biases
    assert (want.final_bias.abs() > 1e-3) == has_biases


@pytest.mark.parametrize("target", [la.Logit(12), la.LogitDiff(30, 9)], ids=["logit", "difference"])
@pytest.mark.parametrize("case", tiny.on_backends(TRACED), ids=tiny.case_id)
def test_other_targets_and_positions(case: tuple[str, str], target: la.Target) -> None:
    model = tiny.model(*case, EXACT)
    r = explain(model, "alti_logit", IDS, target=replace(target, position=3))
    want = expected(case[0], target, position=3)
    assert error(r.tokens[0, :4], want.tokens) <= TOLERANCE
    assert error(r.head_tokens[0, :, :4], want.head_tokens) <= TOLERANCE
    assert r.tokens[0, 4:].abs().max() == 0 and r.head_tokens[0, :, 4:].abs().max() == 0


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_top_logit_is_the_logit_of_that_token(backend: str) -> None:
    model = tiny.model("gpt2", backend, EXACT)
    top = explain(model, "alti_logit", IDS, target=la.TopLogit())
    with tiny.precision(EXACT), torch.no_grad():
        token = int(model(IDS)[0, -1].argmax())
    by_name = explain(model, "alti_logit", IDS, target=la.Logit(token))
    assert error(top.tokens, by_name.tokens) <= 1e-12


# ------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_tokens_and_terms_sum_to_the_target(case: tuple[str, str]) -> None:
    r = explain(tiny.model(*case, EXACT), "alti_logit", tiny.token_ids(case[0], rows=3))
    assert torch.allclose(r.tokens.sum(dim=1) + separate(r), r.target_value, atol=1e-12)
    # What heads add directly is what the tokens hold in the end: C only moves it.
    assert torch.allclose(r.head_tokens.sum(dim=(1, 2, 3)), r.tokens.sum(dim=1), atol=1e-12)
    assert (r.tokens.sum(dim=1) - r.target_value).abs().min() > 1e-3  # the terms are needed


@pytest.mark.skipif(tiny.BACKENDS == ["bridge"], reason="needs two backends")
@pytest.mark.parametrize("family", [family for family in CAUSAL if family != "gptj"])
def test_both_backends_agree(family: str) -> None:
    hooked, bridge = (
        explain(tiny.model(family, backend, EXACT), "alti_logit", IDS) for backend in tiny.BACKENDS
    )
    assert error(hooked.tokens, bridge.tokens) <= TOLERANCE
    assert error(hooked.head_tokens, bridge.head_tokens) <= TOLERANCE
    for name, term in hooked.extra.items():
        assert torch.allclose(term, bridge.extra[name], atol=1e-10), name


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_a_padded_batch_equals_single_runs(case: tuple[str, str]) -> None:
    model = tiny.model(*case)
    texts = ["w5 w9 w12 w7", "w30 w8", "w6 w6 w40 w21 w11 w50 w9"]
    batch = explain(model, "alti_logit", texts)
    for row, text in zip(batch, texts, strict=True):
        alone = explain(model, "alti_logit", text)
        assert error(row.tokens, alone.tokens) <= 1e-4
        assert error(row.head_tokens, alone.head_tokens) <= 1e-4
        assert torch.allclose(separate(row), separate(alone), atol=1e-4)
    assert (batch.tokens[~batch.attention_mask] == 0).all()
    in_twos = explain(model, "alti_logit", texts, batch_size=2)
    assert error(in_twos.tokens, batch.tokens) <= 1e-4


def test_ids_with_holes_in_their_mask_equal_the_text_without_them() -> None:
    model = tiny.model("llama", tiny.BACKENDS[0], EXACT)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    r = explain(model, "alti_logit", IDS, attention_mask=mask)
    alone = explain(model, "alti_logit", IDS[:, 2:])
    assert error(r.tokens[:, 2:], alone.tokens) <= 1e-9
    assert r.tokens[:, :2].abs().max() == 0


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_last_token_may_take_the_initial_embedding(backend: str) -> None:
    model = tiny.model("gpt2", backend, EXACT)
    apart, added = (
        explain(model, "alti_logit", IDS, initial=initial) for initial in ("separate", "last_token")
    )
    assert "initial" not in added.extra
    difference = added.tokens - apart.tokens
    assert difference[0, -1].item() == pytest.approx(apart.extra["initial"].item(), rel=1e-12)
    assert difference[0, :-1].abs().max() == 0
    assert torch.allclose(added.tokens.sum(dim=1) + separate(added), added.target_value)


def test_contrast_is_the_difference_of_two_logits() -> None:
    """Linear in the target, since C does not depend on it."""
    model = tiny.model("llama", tiny.BACKENDS[0], EXACT)
    a, b = (explain(model, "alti_logit", IDS, target=la.Logit(t)) for t in (12, 13))
    both = explain(model, "alti_logit", IDS)
    assert error(a.tokens - b.tokens, both.tokens) <= 1e-12
    assert error(a.tokens, both.tokens) > 1e-2


@pytest.mark.parametrize("pool", ["sum", "relu_token", "relu_dim"])
def test_heads_support_every_pooling(pool: str) -> None:
    r = explain(tiny.model("llama", tiny.BACKENDS[0]), "alti_logit", IDS)
    heads = r.heads(pool)
    assert heads.shape == (1, tiny.N_LAYERS, tiny.N_HEADS)
    assert (r.heads("relu_dim") + 1e-6 >= r.heads("relu_token")).all()
    assert (r.heads("relu_token") + 1e-6 >= r.heads("sum")).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_lower_precision_is_close_to_the_exact_result(backend: str, dtype: str) -> None:
    r = explain(tiny.model("llama", backend, dtype), "alti_logit", IDS)
    exact = explain(tiny.model("llama", backend, EXACT), "alti_logit", IDS)
    assert r.tokens.dtype == torch.float32
    assert error(r.tokens.double(), exact.tokens) < (1e-5 if dtype == "float32" else 0.2)


@pytest.mark.shared
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_trained_model_sums_to_the_target(backend: str, shared: Path) -> None:
    model = la.load(shared / "models" / "stories260K", backend, "float32")
    text = "Once upon a time, there was a little girl named Lily. She loved to play with"
    r = la.attribute(model, text, la.TopLogit(), "alti_logit")
    assert float(r.tokens.sum() + separate(r)) == pytest.approx(float(r.target_value), rel=1e-5)
    added = la.attribute(model, text, la.TopLogit(), "alti_logit", initial="last_token")
    assert added.tokens[0, :-1].equal(r.tokens[0, :-1])


# ---------------------------------------------------------------------------------- the kernel


def mixing(n: int, causal: bool, kv_heads: int = 2) -> Mixing:
    heads, width, d = 4, 3, 10
    scores = torch.randn(heads, n, n).double()
    pattern = scores.masked_fill(torch.ones(n, n).triu(1).bool() & causal, -torch.inf).softmax(-1)
    values, weight = torch.randn(n, kv_heads, width), torch.randn(heads, width, d)
    skip, constant, scale = torch.randn(n, d), torch.randn(n, d), torch.rand(n, 1) + 0.5
    values, weight, skip, constant, scale = (
        one.double() for one in (values, weight, skip, constant, scale)
    )
    outputs = torch.einsum("jhe,hed->hjd", values.repeat_interleave(heads // kv_heads, 1), weight)
    mixed = scale * torch.einsum("hij,hjd->id", pattern, outputs) + skip + constant
    return Mixing(pattern, values, weight, scale, skip, constant, mixed)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("budget", [1e-9, 0.002, 0.01, 64.0])
def test_the_memory_budget_does_not_change_the_result(budget: float, causal: bool) -> None:
    one = mixing(37, causal)
    got = mixing_matrix(one, causal, budget)
    assert error(got, literal(one)) <= 1e-12
    assert torch.allclose(got.sum(dim=1), torch.ones(37).double())


def literal(one: Mixing) -> Tensor:
    values = one.values.repeat_interleave(len(one.pattern) // one.values.shape[1], 1)
    outputs = torch.einsum("jhe,hed->hjd", values, one.weight)
    transformed = (one.pattern[..., None] * outputs[:, None]).sum(0) * one.scale[:, None]
    transformed += torch.eye(len(one.skip)).double()[..., None] * one.skip[:, None]
    closer = one.mixed.abs().sum(-1, keepdim=True) - (one.mixed[:, None] - transformed).abs().sum(
        -1
    )
    return closer.relu() / closer.relu().sum(dim=1, keepdim=True)


def test_a_row_to_which_nothing_contributes_stays_itself() -> None:
    one = mixing(5, causal=True)
    positive = {name: getattr(one, name).abs() for name in ("values", "weight", "skip", "mixed")}
    positive["mixed"][2] *= -1  # every transformed vector points away from it
    matrix = mixing_matrix(replace(one, **positive), True, 1.0)
    assert matrix[2].tolist() == [0, 0, 1, 0, 0]
    assert matrix[3].tolist() != [0, 0, 0, 1, 0]


# ---------------------------------------------------------------------------------------- memory


def memory_of(model: Any, ids: Tensor, method: str | None) -> Memory:
    with Memory() as memory, torch.no_grad():
        if method is None:
            model(ids)
        else:
            explain(model, method, ids, memory_budget=0.02)
    return memory


def test_no_tensor_is_larger_than_the_forwards_own() -> None:
    """Nor does what is alive at a time grow with heads x pos x pos, let alone times d_model."""
    model = tiny.fresh("gpt2", tiny.BACKENDS[0])
    d_model, n_layers, size = 32, tiny.N_LAYERS, 4
    for length in (32, 64):
        ids = tiny.token_ids("gpt2", length=length)
        bare, own = (memory_of(model, ids, method) for method in (None, "alti_logit"))
        assert own.largest <= bare.largest
        squares = (n_layers + 2) * length**2 * size
        rows = (3 * n_layers + 16) * length * d_model * size
        assert own.peak - bare.peak <= squares + rows + 0.02 * 2**20 + 2**15


def test_the_dense_form_is_larger() -> None:
    """What the bounds above would catch."""
    ids = tiny.token_ids("gpt2", length=32)
    original = tiny.hugging_face("gpt2", EXACT)
    blocks = alti.blocks_of_trace(forward(original.state_dict(), original.config, ids[0]))
    with Memory() as memory:
        alti.mix(blocks[0])
    assert memory.largest == tiny.N_HEADS * 32 * 32 * 32 * 8


# --------------------------------------------------------------------------------- what it refuses


def test_post_norm_models_are_refused_with_the_reason() -> None:
    for backend in tiny.BACKENDS:
        with pytest.raises(la.UnsupportedModelError, match=r'post-norm.*method="alti"'):
            explain(tiny.model("bert", backend), "alti_logit", tiny.token_ids("bert"))


def test_capped_logits_are_refused_with_the_reason() -> None:
    for backend in tiny.BACKENDS:
        with pytest.raises(la.UnsupportedModelError, match="soft cap \\(30 tanh\\)"):
            explain(tiny.model("gemma2", backend), "alti_logit", IDS)


def double(logits: Tensor) -> Tensor:
    return 2 * logits[:, -1, 12]


@pytest.mark.parametrize("target", [la.LogProb(12), la.Metric(double)], ids=["logprob", "metric"])
def test_targets_that_are_no_sum_of_logits_are_refused(target: la.Target) -> None:
    with pytest.raises(la.InputError, match=r"la\.Logit, la\.LogitDiff or la\.TopLogit"):
        explain(tiny.model("gpt2", tiny.BACKENDS[0]), "alti_logit", IDS, target=target)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"initial": "first"}, "'separate' or 'last_token'"),
        ({"memory_budget": 0}, "positive number of MiB"),
        ({"memory_budget": "1GB"}, "positive number of MiB"),
        ({"memory_budget": float("nan")}, "positive number of MiB"),
        ({"memory_budget": float("inf")}, "positive number of MiB"),
        ({"budget": 3}, "no option 'budget'; did you mean 'memory_budget'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], match: str) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=match):
        explain(tiny.model("gpt2", tiny.BACKENDS[0]), "alti_logit", IDS, **options)


@pytest.mark.parametrize(
    ("hook", "match"),
    [
        ("blocks.0.attn.hook_z", "attention is not the sum over tokens"),
        ("blocks.1.hook_resid_pre", "do not sum to the target"),
    ],
)
def test_a_users_hook_that_breaks_the_sum_is_noticed(hook: str, match: str) -> None:
    model = tiny.fresh("gpt2", tiny.BACKENDS[0])

    def steer(activation: Tensor, hook: Any) -> Tensor:
        return activation + torch.linspace(-2, 2, activation.shape[-1])

    with model.hooks(fwd_hooks=[(hook, steer)]):
        with pytest.raises(la.UnsupportedModelError, match=match):
            explain(model, "alti_logit", IDS)


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_nothing_is_left_on_the_model(case: tuple[str, str]) -> None:
    model = tiny.model(*case)
    with torch.no_grad():
        before = model(IDS)
    explain(model, "alti_logit", IDS)
    with pytest.raises(la.InputError):
        explain(model, "alti_logit", IDS, target=la.LogProb(12))
    graph = resolve(model)
    assert all(not p.own_hooks() for p in graph.every_point)
    assert all(not point.fwd_hooks for point in model.hook_dict.values())
    with torch.no_grad():
        assert model(IDS).equal(before)
