"""Which relevance depends on the weight processing a user's model went through.

TransformerLens folds and centres weights by default; the model computes the same (up to softmax),
but activations and weights are others. The table says what may be compared across such models.
"""

from __future__ import annotations

import warnings

import pytest
import tiny
import torch
from precision import Float64Throughout

import lens_attr as la
from lens_attr.graph import resolve

PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
DETECTED = {
    "fold_ln": "layer norm folded",
    "center_writing_weights": "writing weights centred",
    "center_unembed": "unembedding centred",
    "fold_value_biases": "value biases folded",
}
HEADS_CHANGE = {"fold_value_biases"}
TOKENS_CHANGE = {
    "alti": {"center_writing_weights", "fold_value_biases"},
    "alti_logit": {"center_writing_weights", "fold_value_biases"},
}
"""Everything else is invariant. ALTI measures l1 norms, and the share of value biases in them;
what single heads add to a logit does not depend on l1 norms."""

GRADIENTS = ("gradient_x_input", "lrp", "attnlrp", "gim", "relp")
METHODS = (*GRADIENTS, "attention_only", "attention_rollout", "alti", "alti_logit")
IDS = torch.tensor([[1, 7, 9, 12, 30, 8]])
TARGET = la.LogitDiff(12, 13)

pytestmark = pytest.mark.skipif(
    tiny.BACKENDS == ["bridge"], reason="HookedTransformer was removed in transformer-lens 4"
)


def processed(step: str):
    """A GPT-2 in float64 to which one step was applied."""
    with Float64Throughout(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny.fresh("gpt2", "hooked", tiny.EXACT)
        steps = {name: name == step for name in PROCESSING}
        model.load_and_process_state_dict(model.state_dict(), **steps)
    return model


def explain(model, method: str):
    with Float64Throughout(), warnings.catch_warnings():
        warnings.simplefilter("ignore", la.Notice)
        return la.attribute(model, IDS, TARGET, method)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-5 * b.abs().max())


@pytest.mark.parametrize("step", PROCESSING)
@pytest.mark.parametrize("method", METHODS)
def test_invariance_to_weight_processing(method: str, step: str) -> None:
    raw, other = explain(processed(""), method), explain(processed(step), method)
    assert same(other.target_value, raw.target_value)
    assert same(other.tokens, raw.tokens) == (step not in TOKENS_CHANGE.get(method, ()))
    if raw.head_tokens is not None:
        assert same(other.head_tokens, raw.head_tokens) == (step not in HEADS_CHANGE)


@pytest.mark.parametrize("step", PROCESSING)
def test_processing_is_detected_and_stored(step: str) -> None:
    assert resolve(processed(step)).processing() == [DETECTED[step]]
    assert explain(processed(step), "lrp").metadata["model"]["weight_processing"]


def test_raw_weights_are_called_raw() -> None:
    assert resolve(processed("")).processing() == []


def test_folded_value_biases_come_with_a_notice_about_heads() -> None:
    with pytest.warns(la.Notice, match="value biases"):
        la.attribute(processed("fold_value_biases"), IDS, TARGET, "lrp")


@pytest.mark.parametrize("method", ["alti", "alti_logit"])
@pytest.mark.parametrize("step", PROCESSING)
def test_a_method_that_is_not_invariant_says_so(step: str, method: str) -> None:
    notices = explain(processed(step), method).metadata["notices"]
    assert [DETECTED[step] in notice for notice in notices] == [True] * (
        step in TOKENS_CHANGE[method]
    )


@pytest.mark.parametrize("method", ["attention_only", "attention_rollout"])
def test_methods_without_heads_say_nothing_about_heads(method: str) -> None:
    assert explain(processed("fold_value_biases"), method).metadata["notices"] == []
