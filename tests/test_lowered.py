"""The form that `la.attribute` installs is the backward hooks, with work left out.

Recording anything makes `attribute` install the backward hooks themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import tiny
import torch
from test_rules import supported
from tiny import EXACT, error, explain
from torch import Tensor

import lens_attr as la
from lens_attr.graph import resolve
from lens_attr.rules import PRESETS

EVERY = tiny.on_backends(tiny.FAMILIES)
BACKWARD_HOOKS = {"record": ["residual"]}


@pytest.mark.parametrize("preset", ["lrp", "attnlrp", "gim", "relp"])
@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_tokens_heads_and_flow_are_those_of_the_backward_hooks(
    case: tuple[str, str], preset: str
) -> None:
    if not supported(*case, preset):
        pytest.skip("no GIM here")
    model, ids = tiny.model(*case, EXACT), tiny.token_ids(case[0], rows=2)
    lowered = explain(model, PRESETS[preset](), ids)
    hooks = explain(model, PRESETS[preset](), ids, **BACKWARD_HOOKS)
    assert error(lowered.tokens, hooks.tokens) <= 1e-12
    assert error(lowered.head_tokens, hooks.head_tokens) <= 1e-12
    for joint, relevance in hooks.flow.items():
        assert error(lowered.flow[joint], relevance) <= 1e-12


@pytest.mark.parametrize("preset", ["lrp", "attnlrp", "relp"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_factors_and_identity_rule_are_bitwise_the_same(family: str, preset: str) -> None:
    for backend in tiny.BACKENDS:
        model, ids = tiny.model(family, backend), tiny.token_ids(family)
        lowered = explain(model, preset, ids)
        assert torch.equal(lowered.tokens, explain(model, preset, ids, **BACKWARD_HOOKS).tokens)


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations that torch runs, and apart those that make something square."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.ndim == 4 and made.shape[-1] == made.shape[-2]:
            self.counts[f"{name} of [batch, head, query, key]"] += 1
        return made


def operations(preset: str, family: str = "gpt2", **options: Any) -> Counter[str]:
    model, ids = tiny.model(family, "bridge"), tiny.token_ids(family)
    with Operations() as run:
        explain(model, preset, ids, **options)
    return run.counts


@pytest.mark.parametrize(
    ("preset", "operation"),
    [("lrp", "_softmax_backward_data"), ("lrp", "gelu_backward"), ("attnlrp", "tanh_backward")],
)
def test_work_behind_a_zero_or_a_replaced_gradient_is_left_out(preset: str, operation: str) -> None:
    true, lowered = operations("gradient_x_input"), operations(preset)
    if true[operation] == 0:
        pytest.skip(f"this activation has no {operation}")
    assert lowered[operation] == 0


def test_lrp_multiplies_only_what_its_gradient_needs() -> None:
    """Of a layer's four products in the attention's backward only the one for values is left."""
    lrp, hooks, true = (
        operations("lrp"),
        operations("lrp", **BACKWARD_HOOKS),
        operations("gradient_x_input"),
    )
    layers = resolve(tiny.model("gpt2", "bridge")).n_layers
    assert true["bmm"] - lrp["bmm"] == 3 * layers
    assert true["mm"] - lrp["mm"] == 2 * layers
    assert (hooks["bmm"], hooks["mm"]) == (true["bmm"], true["mm"])


def test_a_constant_gate_is_not_multiplied_back() -> None:
    """Queries, keys and gate: three of the seven matrices of a Llama layer."""
    lrp, true = operations("lrp", "llama"), operations("gradient_x_input", "llama")
    assert true["mm"] - lrp["mm"] == 3 * resolve(tiny.model("llama", "bridge")).n_layers


def test_a_gate_that_a_rule_replaces_is_not_differentiated() -> None:
    attnlrp, true = operations("attnlrp", "llama"), operations("gradient_x_input", "llama")
    assert true["silu_backward"] == resolve(tiny.model("llama", "bridge")).n_layers
    assert attnlrp["silu_backward"] == 0
    assert attnlrp["mm"] == true["mm"]


def test_the_factor_of_a_pattern_multiplies_queries_and_keys_which_are_smaller() -> None:
    square = "mul of [batch, head, query, key]"
    attnlrp, hooks = operations("attnlrp"), operations("attnlrp", **BACKWARD_HOOKS)
    assert attnlrp[square] == operations("gradient_x_input")[square]
    assert hooks[square] == attnlrp[square] + resolve(tiny.model("gpt2", "bridge")).n_layers


def gradient_at(name: str, model: Any, rules: la.RuleSet, ids: Tensor) -> Tensor:
    """What a backward hook of yours reads there during a call."""
    seen: list[Tensor] = []
    with model.hooks(bwd_hooks=[(name, lambda grad, hook: seen.append(grad.clone()))]):
        explain(model, rules, ids)
    (grad,) = seen
    return grad


@pytest.mark.parametrize("where", ["q", "attn_scores", "pattern"])
def test_a_hook_of_yours_sees_the_factor_where_the_rule_says_that_it_acts(where: str) -> None:
    """AttnLRP halves what arrives at z, and what leaves the pattern."""
    for backend in tiny.BACKENDS:
        model, ids = tiny.model("gpt2", backend, EXACT), tiny.token_ids("gpt2")
        halved, whole = (
            gradient_at(f"blocks.1.attn.hook_{where}", model, rules, ids)
            for rules in (la.rules.attnlrp(), la.rules.attnlrp(pattern=1.0))
        )
        assert error(halved * (1.0 if where == "pattern" else 2.0), whole) <= 1e-12


def test_a_hook_of_yours_behind_the_pattern_still_fires() -> None:
    model, ids = tiny.model("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    seen = []
    hook = ("blocks.0.attn.hook_q", lambda grad, hook: seen.append(grad.abs().max().item()))
    with model.hooks(bwd_hooks=[hook]):
        explain(model, "lrp", ids)
    assert seen == [0.0]


def test_every_rule_is_counted_although_its_work_is_left_out() -> None:
    model, ids = tiny.model("gpt2", tiny.BACKENDS[0]), tiny.token_ids("gpt2")
    lowered = explain(model, "lrp", ids).metadata["fired"]
    hooks = explain(model, "lrp", ids, **BACKWARD_HOOKS).metadata["fired"]
    every_point = len(la.rules.lrp().placements(resolve(model)))
    assert lowered["points"] == hooks["points"] == every_point
    assert every_point <= lowered["backward_calls"] <= hooks["backward_calls"]
