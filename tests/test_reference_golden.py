"""The reference in ``tests/reference`` against golden values, autograd, Hugging Face and theory."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from reference import PRESETS, Reference, Rules, contrast, forward, relevance
from reference.multipliers import softmax_vjp
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no ../shared/golden beside the repo")

VOCAB = 37
TOKENS = [3, 11, 30, 7, 7, 19, 2]
DIRECTION = contrast(VOCAB, 4, 21)
MODELS = ["gpt2", "llama", "llama_tied", "qwen2"]
LXT_EPSILON = 1e-10
WITH_RELEVANCE_FORM = ["lrp", "attnlrp", "relp"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only lose to threads, badly so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def error(got: Tensor, want: Tensor) -> float:
    """Largest absolute error over largest absolute value."""
    return ((got - want).abs().max() / want.abs().max()).item()


@cache
def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    from safetensors.torch import load_file

    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())
    return load_file(folder / "model.safetensors"), config, expected


@cache
def tiny(name: str) -> PreTrainedModel:
    """A random model with every parameter random, biases and norm weights too."""
    llama = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,
    }
    torch.manual_seed(0)
    if name == "gpt2":
        config = GPT2Config(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=3, n_positions=16)
        model = GPT2LMHeadModel(config)
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**llama, tie_word_embeddings=False))
    else:
        tied = name == "llama_tied"
        model = LlamaForCausalLM(LlamaConfig(**llama, head_dim=8, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in parameter_name or "ln_" in parameter_name else 0.0
            parameter.normal_(centre, 0.3)
    return model.double().eval()


def reference(name: str, preset: str | Rules, **options: Any) -> Reference:
    model = tiny(name)
    return relevance(model.state_dict(), model.config, TOKENS, DIRECTION, preset, **options)


@needs_golden
@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("gradient_x_input", "multiplier"),
        ("gim", "multiplier"),
        ("lrp", "multiplier"),
        ("lrp", "relevance"),
        ("attnlrp", "multiplier"),
        ("attnlrp", "relevance"),
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_equals_golden(name: str, method: str, form: Literal["multiplier", "relevance"]) -> None:
    weights, config, expected = golden(name)
    want = expected["methods"][method]
    direction = contrast(config["vocab_size"], expected["positive"], expected["negative"])
    tokens = torch.tensor(want["tokens"], dtype=torch.float64)
    heads = torch.tensor(want["heads_layer_pos_head"], dtype=torch.float64)
    # As the papers say, and with the stabiliser of LXT, which alone makes the difference.
    for epsilon, tolerance in ((0.0, 1e-8), (LXT_EPSILON, 1e-12)):
        rules = replace(PRESETS[method], epsilon=epsilon)
        got = relevance(weights, config, expected["tokens"], direction, rules, form=form)
        assert got.target == pytest.approx(want["target_value"], rel=1e-12)
        assert error(got.tokens, tokens) <= tolerance
        assert error(got.heads, heads) <= tolerance


@pytest.mark.parametrize("name", MODELS)
def test_forward_equals_hugging_face(name: str) -> None:
    model = tiny(name)
    with torch.no_grad():
        want = model(torch.tensor([TOKENS])).logits[0]
    # Hugging Face casts norms, softmax and rotary to float32 inside a float64 model.
    assert error(forward(model.state_dict(), model.config, TOKENS).logits, want) <= 1e-5


@pytest.mark.parametrize("position", [-1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_gradient_equals_autograd_of_the_forward(name: str, position: int) -> None:
    model = tiny(name)
    base = forward(model.state_dict(), model.config, TOKENS)
    leaf = base.embedding.requires_grad_()
    trace = forward(model.state_dict(), model.config, TOKENS, embedding=leaf)
    target = trace.logits[position] @ DIRECTION
    zs, posts = [t.z for t in trace.layers], [t.post for t in trace.layers]
    g, *rest = torch.autograd.grad(target, [leaf, *zs, *posts])
    heads = [(z * gz).sum(-1).T for z, gz in zip(zs, rest[: len(zs)], strict=True)]
    neurons = [p * gp for p, gp in zip(posts, rest[len(zs) :], strict=True)]
    got = reference(name, "gradient_x_input", position=position)
    assert got.target == pytest.approx(target.item(), rel=1e-14)
    assert error(got.full, (leaf * g).sum(-1)) <= 1e-12
    assert error(got.tokens, (base.token_embedding * g).sum(-1)) <= 1e-12
    assert error(got.heads, torch.stack(heads)) <= 1e-12
    assert error(got.neurons, torch.stack(neurons)) <= 1e-12


@pytest.mark.parametrize("preset", [*WITH_RELEVANCE_FORM, Rules("frozen", 0.3, 0.7, "identity")])
@pytest.mark.parametrize("name", MODELS)
def test_both_forms_agree(name: str, preset: str | Rules) -> None:
    multiplier, other = (reference(name, preset, form=f) for f in ("multiplier", "relevance"))
    for field in ("tokens", "full", "heads", "resid", "neurons"):
        assert error(getattr(other, field), getattr(multiplier, field)) <= 1e-11, field


@pytest.mark.parametrize("preset", ["gradient_x_input", "gim"])
def test_relevance_form_is_refused_where_there_is_none(preset: str) -> None:
    with pytest.raises(ValueError, match="no relevance form"):
        reference("llama", preset, form="relevance")


@pytest.mark.parametrize("rules", [PRESETS["lrp"], replace(PRESETS["lrp"], gate="half")])
@pytest.mark.parametrize("form", ["multiplier", "relevance"])
def test_lrp_conserves_without_biases(form: str, rules: Rules) -> None:
    got = reference("llama", rules, form=form)
    assert float(got.full.sum()) == pytest.approx(got.target, rel=1e-9)
    for layer in got.resid:
        assert float(layer.sum()) == pytest.approx(got.target, rel=1e-9)


@pytest.mark.parametrize("preset", ["attnlrp", "gim", "relp", "gradient_x_input"])
def test_the_others_do_not_conserve(preset: str) -> None:
    got = reference("llama", preset)
    assert abs(float(got.full.sum()) - got.target) > 1e-2 * abs(got.target)


def test_lrp_conserves_on_gpt2_only_without_biases_and_with_positions() -> None:
    model = tiny("gpt2")
    weights = model.state_dict()
    bare = {n: w * (not n.endswith(".bias")) for n, w in weights.items()}
    got = relevance(bare, model.config, TOKENS, DIRECTION, "lrp")
    assert float(got.full.sum()) == pytest.approx(got.target, rel=1e-9)
    assert abs(float(got.tokens.sum()) - got.target) > 1e-2 * abs(got.target)
    biased = reference("gpt2", "lrp")
    assert abs(float(biased.full.sum()) - biased.target) > 1e-2 * abs(biased.target)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gim_at_temperature_one_is_attnlrp_with_the_true_derivative(name: str) -> None:
    gim = reference(name, "gim", temperature=1.0)
    true_act = reference(name, replace(PRESETS["attnlrp"], act="true"))
    assert error(gim.tokens, true_act.tokens) <= 1e-13
    assert error(gim.heads, true_act.heads) <= 1e-13
    # Negative controls: the temperature and the activation rule both matter.
    assert error(reference(name, "gim").tokens, true_act.tokens) > 1e-3
    assert error(reference(name, "attnlrp").tokens, true_act.tokens) > 1e-3


def test_softmax_jacobian_against_finite_differences() -> None:
    torch.manual_seed(0)
    s, m, h = torch.randn(1, 5).double(), torch.randn(1, 5).double(), 1e-6
    steps = h * torch.eye(5).double()
    for t in (0.5, 1.0, 2.0):
        numeric = (torch.softmax((s + steps) / t, -1) - torch.softmax((s - steps) / t, -1)) @ m[0]
        # TSG leaves out the chain rule's 1/T.
        assert error(softmax_vjp(s, m, t)[0], t * numeric / (2 * h)) <= 1e-8


@pytest.mark.parametrize("gap", [0.0, 50.0, 200.0, float("inf")])
def test_softmax_jacobian_is_finite_for_any_gap(gap: float) -> None:
    s = torch.tensor([[0.0, -gap, -gap / 2]]).double()
    for t in (0.1, 1.0, 2.0, 100.0):
        assert bool(softmax_vjp(s, torch.ones_like(s), t).isfinite().all())


def test_unknown_settings_are_refused() -> None:
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        config = {**model.config.to_dict(), "scale_attn_by_inverse_layer_idx": True}
        forward(model.state_dict(), config, TOKENS)
    with pytest.raises(ValueError, match="model_type"):
        forward(model.state_dict(), {"model_type": "bert"}, TOKENS)
    with pytest.raises(ValueError, match="temperature"):
        reference("gpt2", "gim", temperature=0.0)
    with pytest.raises(ValueError, match="gate"):
        Rules(gate="both")  # type: ignore[arg-type]
