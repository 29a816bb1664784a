"""`la.load` of hub names: what lies in the cache of the hub loads, or says truly why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch

import lens_attr as la
from lens_attr.graph.loading import _architecture_on_hub
from lens_attr.graph.model import backend_of

REVISION = "0" * 40
Publish = Callable[[str, str], None]

needs_both = pytest.mark.skipif(
    "hooked" not in tiny.BACKENDS, reason="transformer-lens 4 has the Bridge only"
)


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put a tiny model of a family under a hub name into a cache of this test alone."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def into_the_cache(name: str, family: str) -> None:
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(tiny.directory(family), repository / "snapshots" / REVISION)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(REVISION)

    return into_the_cache


def same_logits(model: object, family: str) -> None:
    ids = tiny.token_ids(family)
    with torch.no_grad():
        expected = tiny.hugging_face(family)(ids).logits
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=1e-4)  # type: ignore[operator]


@needs_both
def test_a_listed_name_is_a_hooked_transformer(publish: Publish) -> None:
    publish("gpt2", "gpt2")
    model = la.load("gpt2", device="cpu")
    assert backend_of(model) == "HookedTransformer"
    same_logits(model, "gpt2")


@needs_both
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_name_that_is_not_listed_falls_back_to_the_bridge(family: str, publish: Publish) -> None:
    publish("someone/my-model", family)
    with pytest.warns(
        la.Notice, match="my-model is loaded as a TransformerBridge: transformer-lens"
    ):
        model = la.load("someone/my-model", device="cpu")
    assert backend_of(model) == "TransformerBridge"
    same_logits(model, family)


@needs_both
def test_a_name_that_needs_code_from_the_hub_falls_back_to_the_bridge(publish: Publish) -> None:
    publish("microsoft/phi-1", "llama")
    with pytest.warns(la.Notice, match="would run Python code from the hub to load microsoft"):
        model = la.load("microsoft/phi-1", device="cpu")
    assert backend_of(model) == "TransformerBridge"


@needs_both
def test_a_directory_that_does_not_convert_falls_back_to_the_bridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lens_attr.graph.loading.CONVERSION_TOLERANCE", -1.0)
    with pytest.warns(la.Notice, match="loaded as a TransformerBridge: .*logits are off by"):
        model = la.load(tiny.directory("gpt2"), device="cpu")
    assert backend_of(model) == "TransformerBridge"


@needs_both
def test_a_listed_bert_is_a_hooked_encoder(publish: Publish) -> None:
    publish("google-bert/bert-base-cased", "bert")
    model = la.load("bert-base-cased", device="cpu")
    assert backend_of(model) == "HookedEncoder"
    same_logits(model, "bert")


@needs_both
def test_bert_in_a_listed_name_is_no_architecture(publish: Publish) -> None:
    """HuBERT reads sound, and its name says BERT."""
    publish("facebook/hubert-base-ls960", "gpt2")
    assert _architecture_on_hub("facebook/hubert-base-ls960") == "GPT2LMHeadModel"


@needs_both
def test_hooked_alone_says_who_does_not_know_the_name(publish: Publish) -> None:
    publish("someone/my-gpt2", "gpt2")
    with pytest.raises(la.UnsupportedModelError, match=r"lists no .*use backend='bridge'") as e:
        la.load("someone/my-gpt2", "hooked")
    assert isinstance(e.value, la.InputError)
    assert "hub" not in str(e.value)


def test_what_no_backend_loads_says_what_the_hub_said(publish: Publish) -> None:
    with pytest.raises(
        la.InputError, match=r"'someone/nothing': .*no demo model .* and the hub said: We couldn't"
    ):
        la.load("someone/nothing")


def test_a_broken_model_of_the_hub_is_not_the_hubs_answer(publish: Publish, tmp_path: Path) -> None:
    publish("someone/broken", "gpt2")
    weights = next(tmp_path.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(la.InputError, match="cannot load 'someone/broken' on backend 'bridge'"):
        la.load("someone/broken")
