"""Same seed, same machine, same bits; and a result says enough to make it again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import pytest
import small
import torch

import lens_attr as la
from lens_attr.attribution.registry import METHODS
from lens_attr.demo import DEMO_MODELS
from lens_attr.errors import UnsupportedModelError
from lens_attr.graph import resolve
from lens_attr.graph.fingerprint import fingerprint

every_model = pytest.mark.parametrize("name", small.EVERY)
every_method = pytest.mark.parametrize("method", list(METHODS))


def explain(name: str, method: str, **options: Any) -> la.Relevance:
    texts = [small.text(name), small.text(name, "w8 w30 w6 w41 w17")]
    try:
        return la.attribute(small.model(name), texts, la.LogitDiff(" w6", " w8"), method, **options)
    except UnsupportedModelError as error:
        pytest.skip(str(error))


def same_bits(one: la.Relevance, other: la.Relevance) -> None:
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.target_value, other.target_value)
    assert (one.head_tokens is None) == (other.head_tokens is None)
    if one.head_tokens is not None and other.head_tokens is not None:
        assert torch.equal(one.head_tokens, other.head_tokens)


@every_model
@every_method
def test_twice_is_the_same(name: str, method: str) -> None:
    first = explain(name, method)
    torch.rand(17)  # the global random state plays no part
    same_bits(explain(name, method), first)


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_two_loads_have_one_fingerprint(name: str) -> None:
    """Or a run that was stopped could not be resumed by another process."""
    prints = []
    for seed in (1, 2):  # HookedEncoder fills what the weights leave out at random
        torch.manual_seed(seed)
        prints.append(fingerprint(resolve(la.load(name))))
    assert prints[0] == prints[1]


def test_a_changed_weight_changes_the_fingerprint() -> None:
    model = la.load("demo-bert")
    before = fingerprint(resolve(model))
    parameter = next(p for name, p in model.named_parameters() if "W_out" in name or "out" in name)
    with torch.no_grad():
        parameter.view(-1)[7] += 1e-3
    after = fingerprint(resolve(model))
    assert after["weights_sha256"] != before["weights_sha256"]
    assert after["tokenizer_sha256"] == before["tokenizer_sha256"]


@every_model
@every_method
def test_a_result_says_enough_to_make_it_again(name: str, method: str) -> None:
    """Ids, positions, target ids, method and options are all there; nothing else is used."""
    first = explain(name, method)
    answers, foils = zip(*first.metadata["target_ids"], strict=True)
    starts = first.attention_mask.int().argmax(dim=1)
    target = la.LogitDiff(answers, foils, position=(first.position - starts).tolist())
    options: dict[str, Any] = {}
    if "embeddings" in first.metadata:
        options["embeddings"] = first.metadata["embeddings"]
    again = la.attribute(
        small.model(name),
        first.token_ids,
        target,
        first.method,
        attention_mask=first.attention_mask,
        **options,
    )
    same_bits(again, first)
    said = first.metadata
    assert said["device"] == "cpu" and said["threads"] == torch.get_num_threads()
    assert set(said["versions"]) >= {"lens_attr", "torch", "transformer-lens", "transformers"}


@pytest.mark.slow
def test_another_process_gets_the_same_bits() -> None:
    code = (
        "import hashlib, torch, lens_attr as la; torch.set_num_threads(1)\n"
        "r = la.attribute(la.load('demo-gpt2', device='cpu'), 'the keys near the cabinet')\n"
        "print(hashlib.sha256(r.tokens.numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    here = la.attribute(la.load("demo-gpt2", device="cpu"), "the keys near the cabinet")
    assert done.stdout.split()[-1] == hashlib.sha256(here.tokens.numpy().tobytes()).hexdigest()
