"""An explanation never touches the world: not the model, its hooks, its gradients, or yours."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

import pytest
import small
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

import lens_attr as la
from lens_attr.graph import resolve
from lens_attr.rules import RuleSet, ScalePattern, ScaleZ

TARGET = la.LogitDiff(" w6", " w8")
IDS = torch.tensor([[5, 9, 12, 7]])
Z = "blocks.1.attn.hook_z"
ELSEWHERE = "blocks.0.hook_mlp_out"
"""A hook point where no preset has a rule."""

every_model = pytest.mark.parametrize("name", small.EVERY)
causal_models = pytest.mark.parametrize("name", small.CAUSAL)


class Boom(Exception):
    """Raised by user code in these tests."""


def warm(name: str) -> Any:
    """The shared model after a first use, when the Bridge has added permanent hooks of its own."""
    model = small.model(name)
    explain(name)
    return model


def explain(name: str, method: str | RuleSet = "attnlrp", **options: Any) -> la.Relevance:
    return la.attribute(small.model(name), small.text(name), TARGET, method, **options)


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    before = small.world(model)
    yield
    after = small.world(model)
    assert [what for what in before if before[what] != after[what]] == []


def raiser(error: type[BaseException]) -> Callable[..., None]:
    def hook(tensor: Tensor, hook: Any) -> None:
        raise error

    return hook


def gradient(model: Any) -> Tensor:
    """Forward and backward: the gradient of the embedding."""
    value, leaf = small.run(model, IDS)
    return torch.autograd.grad(value, leaf)[0]


def gradient_on(model: Any, rules: RuleSet) -> Tensor:
    with rules.on(model):
        return gradient(model)


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to rounding: a hooked RMSNorm of the Bridge takes another path in float32."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


# ------------------------------------------------------------------------------- nothing is left


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "attnlrp"])
def test_success_leaves_no_trace(name: str, method: str) -> None:
    model = warm(name)
    with unchanged(model):
        explain(name, method, record=["z", "neurons"], baseline=7)


@every_model
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("side", ["fwd_hooks", "bwd_hooks"])
def test_an_error_in_a_users_hook_leaves_no_trace(
    name: str, side: str, error: type[BaseException]
) -> None:
    model = warm(name)
    with unchanged(model), model.hooks(**{side: [(Z, raiser(error))]}), pytest.raises(error):
        explain(name)


@every_model
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_an_error_in_a_metric_leaves_no_trace(name: str, error: type[BaseException]) -> None:
    def function(logits: Tensor) -> Tensor:
        raise error

    model = warm(name)
    with unchanged(model), pytest.raises(error):
        la.attribute(model, small.text(name), la.Metric(function))


@every_model
@pytest.mark.parametrize("side", ["fwd_hooks", "bwd_hooks"])
def test_an_error_inside_a_context_leaves_no_trace(name: str, side: str) -> None:
    model = warm(name)
    hooks = {side: [(Z, raiser(Boom))]}
    with unchanged(model), pytest.raises(Boom), la.rules.lrp().on(model), model.hooks(**hooks):
        gradient(model)


@pytest.mark.parametrize("name", small.GPT2 + small.MASKED)
@pytest.mark.parametrize("added", [False, True], ids=["before", "after"])
def test_an_interrupt_while_hooks_are_attached_leaves_no_trace(
    name: str, added: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before or after the n-th hook is added, for every n."""
    model = warm(name)
    add_hook = HookPoint.add_hook
    n, calls = 0, itertools.count()

    def interrupted(*args: Any, **options: Any) -> Any:
        last = next(calls) == n - 1
        if last and not added:
            raise KeyboardInterrupt
        result = add_hook(*args, **options)
        if last:
            raise KeyboardInterrupt
        return result

    with unchanged(model), monkeypatch.context() as patch:
        patch.setattr(HookPoint, "add_hook", interrupted)
        while True:
            n, calls = n + 1, itertools.count()
            try:
                explain(name)
            except KeyboardInterrupt:
                continue
            break
    assert n > 20


ATTACHING = {
    "on_forward",
    "on_backward",
    "guard",
    "_guard_backward_hooks",
    "_attach",
    "_install",
    "_suspend_outer",
    "_watch_forwards",
    "add_hook",
    "register_forward_hook",
    "register_full_backward_hook",
}
"""Functions on the way from a rule to a hook table, ours, TransformerLens's and torch's."""


@contextmanager
def interrupted_at(line: int) -> Iterator[list[int]]:
    """Ctrl-C before the n-th line that runs inside `ATTACHING`; yields the lines counted."""
    counted = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            counted[0] += 1
            if counted[0] == line:
                raise KeyboardInterrupt
        return trace if frame.f_code.co_name in ATTACHING else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield counted
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("name", [small.GPT2[0], *small.MASKED])
def test_an_interrupt_at_any_line_while_attaching_leaves_no_trace(name: str) -> None:
    model = warm(name)

    def outer_and_inner() -> None:
        with la.rules.lrp().on(model), la.rules.attnlrp().on(model):
            gradient(model)

    with small.untyped(), unchanged(model):
        with interrupted_at(-1) as lines:
            outer_and_inner()
        assert lines[0] > 1000
        for line in range(1, lines[0], 37):
            with pytest.raises(KeyboardInterrupt), interrupted_at(line):
                outer_and_inner()


@every_model
def test_users_hooks_survive_and_still_fire(name: str) -> None:
    model = warm(name)
    fired: list[str] = []
    hooks = {
        "fwd_hooks": [(Z, lambda tensor, hook: fired.append("forward"))],
        "bwd_hooks": [(Z, lambda tensor, hook: fired.append("backward"))],
    }
    with model.hooks(**hooks):
        with unchanged(model):
            explain(name)
        fired.clear()
        gradient(model)
    assert fired == ["forward", "backward"]


# ------------------------------------------------------------------------------- under any mode


@every_model
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_every_grad_mode(name: str, mode: Callable[[], Any]) -> None:
    expected = explain(name)
    with mode():
        found = explain(name)
        ids = expected.token_ids.clone()
        mask = torch.ones_like(ids)
        from_ids = la.attribute(small.model(name), ids, la.LogitDiff(6, 8), attention_mask=mask)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(from_ids.tokens, expected.tokens)


@every_model
def test_works_with_frozen_parameters_and_fills_no_gradient(name: str) -> None:
    model = small.fresh(name)
    model.requires_grad_(False)
    found = la.attribute(model, small.text(name), TARGET)
    assert torch.equal(found.tokens, explain(name).tokens)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@every_model
def test_a_gradient_you_keep_is_not_changed(name: str) -> None:
    model = small.fresh(name)
    gradient(model)
    model(IDS).sum().backward()
    kept = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    la.attribute(model, small.text(name), TARGET)
    for parameter, grad in zip(model.parameters(), kept, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)


@every_model
@pytest.mark.parametrize(
    "record", [(), ("z", "neurons", "residual", "q", "blocks.*.hook_mlp_out")], ids=["no", "much"]
)
@pytest.mark.parametrize(("batch_size", "batches"), [(None, 1), (2, 3)])
def test_one_forward_and_one_backward_per_batch(
    name: str, record: tuple[str, ...], batch_size: int | None, batches: int
) -> None:
    model = warm(name)
    passes: list[str] = []
    hooks = {
        "fwd_hooks": [(ELSEWHERE, lambda tensor, hook: passes.append("forward"))],
        "bwd_hooks": [(ELSEWHERE, lambda tensor, hook: passes.append("backward"))],
    }
    with model.hooks(**hooks):
        texts = [small.text(name)] * 5
        la.attribute(model, texts, TARGET, record=record, batch_size=batch_size, progress=False)
    assert passes == ["forward", "backward"] * batches


@pytest.mark.parametrize("backend", small.BACKENDS)
def test_two_threads_do_not_disturb_each_other(backend: str) -> None:
    jobs = [(f"gpt2-{backend}", "lrp"), (f"llama-{backend}", "gim")]
    serial = [explain(*job) for job in jobs]
    with ThreadPoolExecutor(max_workers=2) as pool:
        for _ in range(8):
            parallel = list(pool.map(lambda job: explain(*job), jobs))
            for found, expected in zip(parallel, serial, strict=True):
                assert torch.equal(found.tokens, expected.tokens)
                assert torch.equal(found.head_tokens, expected.head_tokens)


# ------------------------------------------------------------------- your hooks beside our rules

RULE_POINTS = [Z, "blocks.0.ln1.hook_scale", "blocks.1.mlp.hook_pre"]
rule_points = pytest.mark.parametrize("point", RULE_POINTS)


def double(grad: Tensor, hook: Any) -> Tensor:
    return grad * 2


@every_model
@rule_points
def test_a_backward_hook_that_only_looks_sees_the_arriving_gradient(name: str, point: str) -> None:
    seen: list[Tensor] = []
    hooks = {
        "fwd_hooks": [(point, lambda value, hook: seen.append(value.detach()))],
        "bwd_hooks": [(point, lambda grad, hook: seen.append(grad.detach()))],
    }
    expected = explain(name, record=[point])
    with small.model(name).hooks(**hooks):
        found = explain(name)
    assert torch.equal(found.tokens, expected.tokens)
    passes = len(seen) // 2  # HookedTransformer calls ln1.hook_scale once for each of q, k, v
    products = [seen[i] * seen[-1 - i] for i in range(passes)]
    torch.testing.assert_close(sum(products), expected.records[point])


@every_model
@rule_points
def test_a_backward_hook_that_changes_the_gradient_of_a_rule_is_a_conflict(
    name: str, point: str
) -> None:
    model = warm(name)
    named = pytest.raises(la.RuleConflictError, match=re.escape(point))
    with unchanged(model), model.hooks(bwd_hooks=[(point, double)]), named:
        explain(name)


@every_model
@rule_points
def test_such_a_hook_added_inside_a_context_is_a_conflict(name: str, point: str) -> None:
    model = warm(name)
    named = pytest.raises(la.RuleConflictError, match=re.escape(point))
    with named, la.rules.attnlrp().on(model), model.hooks(bwd_hooks=[(point, double)]):
        gradient(model)


@pytest.mark.parametrize("name", [name for name in small.MASKED if name.endswith("hooked")])
def test_such_a_hook_on_a_plain_module_is_a_conflict(name: str) -> None:
    """HookedEncoder's masked-word head has a rule but no hook point."""
    model = small.fresh(name)
    model.mlm_head.act_fn.register_full_backward_hook(lambda module, grads, _: (grads[0] * 2,))
    with pytest.raises(la.RuleConflictError, match=r"mlm_head\.act_fn"):
        la.attribute(model, small.text(name), TARGET)


@every_model
def test_a_backward_hook_elsewhere_takes_effect(name: str) -> None:
    as_a_rule = la.rules.attnlrp() + la.rules.custom(ELSEWHERE)(lambda grad: grad * 2)
    with small.model(name).hooks(bwd_hooks=[(ELSEWHERE, double)]):
        found = explain(name)
    assert torch.equal(found.tokens, explain(name, as_a_rule).tokens)
    assert not torch.equal(found.tokens, explain(name).tokens)


def zero_in_place(z: Tensor, hook: Any) -> Tensor:
    z[:, 0] = 0
    return z


def zero_a_copy(z: Tensor, hook: Any) -> Tensor:
    return zero_in_place(z.clone(), hook)


@every_model
@pytest.mark.parametrize("method", ["gradient_x_input", "attnlrp"])
def test_an_in_place_forward_hook_counts_or_is_refused_with_the_way_out(
    name: str, method: str
) -> None:
    """Recording installs backward hooks, beside which torch forbids edits in place."""
    model = warm(name)
    with unchanged(model), model.hooks(fwd_hooks=[(Z, zero_in_place)]):
        in_place = explain(name, method)
        with pytest.raises(la.RuleConflictError, match="clone"):
            explain(name, method, record=[Z])
    with model.hooks(fwd_hooks=[(Z, zero_a_copy)]):
        on_a_copy = explain(name, method, record=[Z])
    assert (on_a_copy.records[Z][:, 0] == 0).all()
    assert on_a_copy.records[Z].any()
    close(in_place.tokens, on_a_copy.tokens)


@every_model
def test_an_in_place_forward_hook_in_a_context_is_refused_too(name: str) -> None:
    model = warm(name)
    refused = pytest.raises(la.RuleConflictError, match="clone")
    with refused, la.rules.attnlrp().on(model), model.hooks(fwd_hooks=[(Z, zero_in_place)]):
        gradient(model)


# ------------------------------------------------------------------------ `with rules.on(model):`


@every_model
def test_a_context_modifies_the_backward_inside_only(name: str) -> None:
    model = warm(name)
    before = gradient(model)
    with unchanged(model):
        inside = gradient_on(model, la.rules.attnlrp())
    assert torch.equal(gradient(model), before)
    assert not torch.allclose(inside, before)
    explained = la.attribute(model, IDS, la.LogitDiff(6, 8, position=3), embeddings="token")
    embedding = small.run(model, IDS)[1]
    torch.testing.assert_close((inside * embedding).sum(-1), explained.tokens)


@every_model
def test_contexts_nest_and_the_innermost_counts(name: str) -> None:
    model = warm(name)
    outer, inner = la.rules.lrp(), la.rules.relp()
    alone = [gradient_on(model, outer), gradient_on(model, inner)]
    with unchanged(model), outer.on(model):
        first = gradient(model)
        second = gradient_on(model, inner)
        with la.rules.gradient().on(model):
            third = gradient(model)
        fourth = gradient(model)
    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])
    assert torch.equal(fourth, alone[0])
    close(third, gradient(model))


@every_model
def test_attribute_inside_a_context_of_another_preset_is_unaffected(name: str) -> None:
    model = warm(name)
    token: dict[str, Any] = {"embeddings": "token"}
    expected = [explain(name, method, **token) for method in ("gradient_x_input", "attnlrp")]
    outer = gradient_on(model, la.rules.lrp())
    with la.rules.lrp().on(model):
        found = [explain(name, method, **token) for method in ("gradient_x_input", "attnlrp")]
        after = gradient(model)
    close(found[0].tokens, expected[0].tokens)
    close(found[1].tokens, expected[1].tokens)
    assert torch.equal(after, outer)


@every_model
def test_a_context_that_only_holds_an_attribute_call_is_no_error(name: str) -> None:
    model = warm(name)
    with la.rules.lrp().on(model):
        explain(name)


@every_model
def test_an_error_in_an_inner_context_restores_the_outer_one(name: str) -> None:
    model = warm(name)
    alone = gradient_on(model, la.rules.lrp())
    with unchanged(model), la.rules.lrp().on(model):
        with pytest.raises(Boom), la.rules.relp().on(model):
            raise Boom
        assert torch.equal(gradient(model), alone)


@every_model
def test_one_rule_set_can_be_used_again_and_inside_itself(name: str) -> None:
    model = warm(name)
    rules = la.rules.lrp()
    alone = gradient_on(model, rules)
    context = rules.on(model)
    with context:
        assert torch.equal(gradient(model), alone)
        assert torch.equal(gradient_on(model, rules), alone)
    with context:
        assert torch.equal(gradient(model), alone)


@pytest.mark.parametrize("name", small.GPT2)
def test_one_context_object_inside_itself_leaves_no_trace(name: str) -> None:
    """Refused or not, it may not lose track of its hooks."""
    model = small.fresh(name)
    la.attribute(model, small.text(name))
    context = la.rules.lrp().on(model)
    with unchanged(model), suppress(la.LensAttrError), context, context:
        gradient(model)


@every_model
def test_forward_before_the_context_is_an_error(name: str) -> None:
    model = warm(name)
    value, leaf = small.run(model, IDS)
    with pytest.raises(la.RuleNotAppliedError, match="forward"), la.rules.lrp().on(model):
        torch.autograd.grad(value, leaf)


@every_model
def test_backward_after_the_context_is_an_error(name: str) -> None:
    model = warm(name)
    with la.rules.lrp().on(model):
        value, leaf = small.run(model, IDS)
    with pytest.raises(la.RuleNotAppliedError, match="inside the context"):
        torch.autograd.grad(value, leaf)


@every_model
def test_two_forwards_before_a_backward_are_ambiguous(name: str) -> None:
    model = warm(name)
    with pytest.raises(la.RuleNotAppliedError, match="ambiguous"), la.rules.lrp().on(model):
        value, leaf = small.run(model, IDS)
        another = small.run(model, IDS)
        torch.autograd.grad(value, leaf)
    assert another


@every_model
def test_a_second_forward_whose_graph_is_gone_never_lends_its_values(name: str) -> None:
    """Where the hooks see a converted copy, it cannot be told that the graph is gone."""
    model = warm(name)
    expected = gradient_on(model, la.rules.lrp())
    with suppress(la.RuleNotAppliedError), la.rules.lrp().on(model):
        value, leaf = small.run(model, IDS)
        small.run(model, IDS.flip(1))
        close(torch.autograd.grad(value, leaf)[0], expected)


@every_model
def test_a_second_forward_without_gradients_is_fine(name: str) -> None:
    model = warm(name)
    expected = gradient_on(model, la.rules.lrp())
    with la.rules.lrp().on(model):
        value, leaf = small.run(model, IDS)
        with torch.no_grad():
            model(torch.tensor([[20, 21, 22]]))
        (found,) = torch.autograd.grad(value, leaf)
    assert torch.equal(found, expected)


@every_model
def test_one_forward_after_the_other_is_fine(name: str) -> None:
    model = warm(name)
    expected = gradient_on(model, la.rules.lrp())
    with la.rules.lrp().on(model):
        assert torch.equal(gradient(model), expected)
        assert torch.equal(gradient(model), expected)


@every_model
def test_a_retained_graph_gives_the_same_gradient_twice(name: str) -> None:
    model = warm(name)
    with la.rules.lrp().on(model):
        value, leaf = small.run(model, IDS)
        (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
        (second,) = torch.autograd.grad(value, leaf)
    assert torch.equal(first, second)
    assert torch.equal(first, gradient_on(model, la.rules.lrp()))


@pytest.mark.parametrize("name", [name for name in small.CAUSAL if name.endswith("hooked")])
def test_a_partial_forward_is_tolerated(name: str) -> None:
    """Rules of layers that were never reached are silent; those that were reached act."""
    model = warm(name)

    def first_block() -> Tensor:
        (embed,) = resolve(model).points("embed")
        leaves: list[Tensor] = []
        with ExitStack() as stack:
            embed.on_forward(
                lambda e: leaves.append(e.detach().requires_grad_()) or leaves[0], stack
            )
            residual = model(IDS, stop_at_layer=1)
        return torch.autograd.grad(residual[0, -1].sum(), leaves[0])[0]

    with la.rules.lrp().on(model) as session:
        inside = first_block()
    assert not torch.allclose(inside, first_block())
    assert session.fired["blocks.0.attn.hook_pattern"] == 1
    assert session.fired["blocks.1.attn.hook_pattern"] == 0


# ----------------------------------------------------------------- rules as TransformerLens hooks


@causal_models
@pytest.mark.parametrize("preset", ["lrp", "attnlrp", "gim", "relp"])
def test_hooks_equal_the_context(name: str, preset: str) -> None:
    model = warm(name)
    rules = la.rules.preset(preset)
    with unchanged(model), model.hooks(**rules.hooks(model)):
        found = gradient(model)
    assert torch.equal(found, gradient_on(model, rules))


@every_model
def test_backward_hooks_alone_are_enough_for_attention_rules(name: str) -> None:
    model = warm(name)
    rules = RuleSet((ScalePattern(factor=0.5), ScaleZ(factor=0.5)))
    with model.hooks(bwd_hooks=rules.bwd_hooks(model)):
        found = gradient(model)
    assert torch.equal(found, gradient_on(model, rules))
    assert not torch.allclose(found, gradient(model))


@causal_models
@pytest.mark.parametrize("preset", ["lrp", "gim"])
def test_backward_hooks_alone_say_how_to_get_forward_values(name: str, preset: str) -> None:
    model = warm(name)
    hooks = la.rules.preset(preset).bwd_hooks(model)
    wanted = re.escape("model.hooks(**rules.hooks(model))")
    with pytest.raises(la.RuleNotAppliedError, match=wanted), model.hooks(bwd_hooks=hooks):
        gradient(model)


# ------------------------------------------------------------------------- a rule that never acts


@every_model
def test_a_metric_cut_off_from_the_logits_is_refused(name: str) -> None:
    detached = la.Metric(lambda logits: logits.detach().sum(dim=(1, 2)))
    with pytest.raises(la.InputError, match="does not depend on the logits"):
        la.attribute(small.model(name), small.text(name), detached)


@every_model
def test_a_target_that_skips_a_layer_is_refused(name: str) -> None:
    """Read off the stream before block 1, a target gives the rules of block 1 nothing to do."""
    stream: list[Tensor] = []
    target = la.Metric(lambda logits: stream[0].sum(dim=(1, 2)))
    hooks = [("blocks.0.hook_mlp_out", lambda value, hook: stream.append(value))]
    refused = pytest.raises(la.RuleNotAppliedError, match=r"blocks\.1")
    with small.model(name).hooks(fwd_hooks=hooks), refused:
        la.attribute(small.model(name), small.text(name), target)


@pytest.mark.parametrize("name", ["bert-bridge"])
@pytest.mark.parametrize("where", ["attribute", "context"])
def test_a_rule_where_no_gradient_passes_is_refused(name: str, where: str) -> None:
    """The Bridge computes BERT's attention outside the autograd graph."""
    rule = la.rules.custom("blocks.*.attn.hook_pattern")(lambda grad: grad * 0)
    rules = la.rules.lrp() + rule
    with pytest.raises(la.UnsupportedModelError, match=r"blocks\.0\.attn\.hook_pattern"):
        explain(name, rules) if where == "attribute" else gradient_on(small.model(name), rules)
