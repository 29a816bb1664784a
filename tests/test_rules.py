"""Rules are backward hooks: each one matters, they compose, and every way to use them agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from reference import PRESETS as REFERENCE_PRESETS
from reference import contrast, relevance
from tiny import EXACT, TARGET, error, explain
from torch import Tensor

import lens_attr as la
from lens_attr.graph import ModelGraph, resolve
from lens_attr.graph.points import HookedPoint
from lens_attr.rules import PRESETS, RuleSet, attention
from lens_attr.rules.attention import before_softmax_backward, tempered_jacobian
from lens_attr.rules.session import Session

BOTH = tiny.on_backends(["gpt2", "llama"])
EVERY = tiny.on_backends(tiny.FAMILIES)
IDS = tiny.token_ids("gpt2")


def preset_rules() -> list[tuple[str, str]]:
    return [(name, rule.name) for name in PRESETS for rule in PRESETS[name]()]


def supported(family: str, backend: str, preset: str) -> bool:
    """GIM needs the pattern in the autograd graph."""
    return (family, backend, preset) != ("bert", "bridge", "gim")


def placed(family: str, backend: str, preset: str) -> list[str]:
    """The hook points of a preset, in the form that `la.attribute` installs."""
    graph = resolve(tiny.model(family, backend, EXACT))
    return list(PRESETS[preset]().placements(graph, lowered=True))


def attached(graph: ModelGraph, preset: str, lowered: bool) -> list[str]:
    """The hook points where `la.attribute` attaches something for a preset."""
    names: dict[str, None] = {}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(la.RuleNotAppliedError):
        for method in ("on_forward", "on_backward"):
            patch.setattr(HookedPoint, method, lambda point, *rest: names.setdefault(point.name))
        with Session(graph, PRESETS[preset](), strict=True, lowered=lowered):
            pass  # no forward runs, so no rule acts
    return list(names)


@cache
def explained(family: str, backend: str, preset: str) -> la.Relevance:
    model = tiny.model(family, backend, EXACT)
    return explain(model, PRESETS[preset](), tiny.token_ids(family), embeddings="token")


# ----------------------------------------------------------- each rule and each point matters


@cache
def reference_tokens(family: str, preset: str) -> Tensor:
    original = tiny.hugging_face(family, EXACT)
    direction = contrast(tiny.VOCAB, TARGET.token, TARGET.foil)
    name = {"gradient": "gradient_x_input"}.get(preset, preset)
    rules = REFERENCE_PRESETS[name]
    return relevance(original.state_dict(), original.config, IDS[0], direction, rules).tokens


WITHOUT_EFFECT = {
    # GPT-2 has no gated MLP.
    *(("gpt2", preset, "GateSplit") for preset in ("lrp", "attnlrp", "gim", "relp")),
    # LRP's gate is a constant, so nothing passes the activation inside it.
    ("llama", "lrp", "IdentityActivation"),
}


@pytest.mark.parametrize(("preset", "rule"), preset_rules())
@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_without_one_of_its_rules_a_preset_is_wrong(
    case: tuple[str, str], preset: str, rule: str
) -> None:
    want, whole = reference_tokens(case[0], preset), explained(*case, preset)
    fewer = PRESETS[preset]().without(rule)
    part = explain(tiny.model(*case, EXACT), fewer, IDS, embeddings="token")
    assert error(whole.tokens[0], want) <= 1e-9
    if (case[0], preset, rule) in WITHOUT_EFFECT:
        assert error(part.tokens, whole.tokens) <= 1e-12
    else:
        assert error(part.tokens[0], want) > 1e-4


@dataclass(frozen=True)
class Without(RuleSet):
    """A rule set that leaves out one hook point."""

    point: str = ""

    def placements(self, graph: ModelGraph, *, lowered: bool = False) -> dict[str, Any]:
        everywhere = super().placements(graph, lowered=lowered)
        assert self.point in everywhere
        return {name: here for name, here in everywhere.items() if name != self.point}


def assert_every_point_matters(family: str, backend: str, preset: str) -> None:
    model, rules = tiny.model(family, backend, EXACT), PRESETS[preset]()
    whole = explained(family, backend, preset)
    points = placed(family, backend, preset)
    assert points
    for point in points:
        fewer = Without(rules.rules, rules.name, point)
        part = explain(model, fewer, tiny.token_ids(family), embeddings="token")
        tokens = error(part.tokens, whole.tokens)
        assert max(tokens, error(part.head_tokens, whole.head_tokens)) > 1e-9, point
        assert part.metadata["fired"]["points"] == whole.metadata["fired"]["points"] - 1


@pytest.mark.parametrize("preset", ["lrp", "attnlrp", "gim"])  # RelP's are among them
@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_every_hook_point_of_every_preset_matters(case: tuple[str, str], preset: str) -> None:
    assert_every_point_matters(*case, preset)


# One backend each, but both for BERT, whose masked-word head lies elsewhere on each.
OTHERS = tiny.on_backends(tiny.FAMILIES[2:-1], ["bridge"]) + tiny.on_backends(["bert"])


@pytest.mark.parametrize("case", OTHERS, ids=tiny.case_id)
def test_every_hook_point_matters_in_every_family(case: tuple[str, str]) -> None:
    assert_every_point_matters(*case, "attnlrp")


@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
@pytest.mark.parametrize("record", [(), ("residual",)], ids=["lowered", "backward hooks"])
@pytest.mark.parametrize("method", ["attnlrp", "gim"])
def test_a_hook_that_never_fires_is_an_error(
    case: tuple[str, str], method: str, record: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(*case)
    graph = resolve(model)
    points = attached(graph, method, lowered=not record)
    assert len(points) >= len(PRESETS[method]().placements(graph))
    for silent in points:
        with monkeypatch.context() as patch:
            patch.setattr(HookedPoint, "on_forward", deaf_at(silent, HookedPoint.on_forward))
            patch.setattr(HookedPoint, "on_backward", deaf_at(silent, HookedPoint.on_backward))
            # Points whose relevance is recorded are silent for the recorder, too.
            with pytest.raises(
                la.RuleNotAppliedError, match=r"no gradient arrived at|not captured"
            ):
                explain(model, method, IDS, record=record)
    explain(model, method, IDS, record=record)


def deaf_at(name: str, attach: Callable[..., None]) -> Callable[..., None]:
    """A method of `HookedPoint` that attaches nothing at one point."""
    return lambda point, *rest: None if point.name == name else attach(point, *rest)


# ------------------------------------------------------------- three ways to use the same rules


def tokens_by_hand(model: Any, ids: Tensor, position: int) -> Tensor:
    """Token relevance as a user would compute it, under whatever hooks are attached."""
    (embed,) = resolve(model).points("embed")
    leaves: list[Tensor] = []

    def make_leaf(embedding: Tensor) -> Tensor:
        leaves.append(embedding.detach().requires_grad_())
        return leaves[-1]

    with ExitStack() as stack:
        embed.on_forward(make_leaf, stack)
        logits = model(ids)[0, position]
        (grad,) = torch.autograd.grad(logits[TARGET.token] - logits[TARGET.foil], leaves)
    return (leaves[0] * grad).sum(dim=-1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
def test_hook_lists_and_context_give_what_attribute_gives(
    case: tuple[str, str], preset: str
) -> None:
    if not supported(*case, preset):
        pytest.skip("no GIM here")
    model, rules = tiny.model(*case, EXACT), PRESETS[preset]()
    want = explained(*case, preset)
    position = int(want.position)
    with tiny.precision(EXACT):
        with rules.on(model):
            in_context = tokens_by_hand(model, want.token_ids, position)
        true = tokens_by_hand(model, want.token_ids, position)
        assert error(in_context, want.tokens) <= 1e-12
        assert (error(true, want.tokens) > 1e-4) is (preset != "gradient")
        if case == ("bert", "hooked") and preset in ("lrp", "attnlrp", "relp"):
            # The activation of its masked-word head has no HookPoint.
            with pytest.raises(la.UnsupportedModelError, match=r"mlm_head\.act_fn.*rules\.on"):
                rules.hooks(model)
        else:
            with model.hooks(**rules.hooks(model)):
                with_lists = tokens_by_hand(model, want.token_ids, position)
            assert error(with_lists, want.tokens) <= 1e-12


@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_backward_hooks_alone_do_for_rules_that_read_no_values(case: tuple[str, str]) -> None:
    model, rules = tiny.model(*case, EXACT), PRESETS["lrp"](activation="true")
    want = explain(model, rules, IDS, embeddings="token")
    with tiny.precision(EXACT), model.hooks(bwd_hooks=rules.bwd_hooks(model)):
        got = tokens_by_hand(model, IDS, -1)
    assert error(got, want.tokens) <= 1e-12


@pytest.mark.parametrize("preset", ["lrp", "gim"])
@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_backward_hooks_alone_raise_for_rules_that_read_values(
    case: tuple[str, str], preset: str
) -> None:
    model = tiny.model(*case)
    with (
        pytest.raises(la.RuleNotAppliedError, match="attach the forward hooks too"),
        model.hooks(bwd_hooks=PRESETS[preset]().bwd_hooks(model)),
    ):
        tokens_by_hand(model, IDS, -1)


# ----------------------------------------------------------------------- rules of your own


@la.rules.custom(at="z")
def halved(grad: Tensor) -> Tensor:
    return grad / 2


@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_a_custom_rule_is_a_function_of_the_gradient(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)
    own = explain(model, RuleSet((halved,)), IDS)
    built_in = explain(model, RuleSet((la.rules.ScaleZ(factor=0.5),)), IDS)
    assert torch.equal(own.tokens, built_in.tokens)
    assert error(own.tokens, explain(model, "gradient_x_input", IDS).tokens) > 1e-4
    assert own.metadata["rules"][0]["rule"] == "halved"


@pytest.mark.parametrize("at", ["attn_out", "blocks.*.hook_attn_out"])
@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_a_custom_rule_acts_at_a_role_a_glob_or_a_name(case: tuple[str, str], at: str) -> None:
    model = tiny.model(*case, EXACT)

    def without_attention(grad: Tensor) -> Tensor:
        return grad * 0

    own = explain(model, RuleSet((la.rules.custom(at=at)(without_attention),)), IDS)
    assert own.tokens[0, :-1].abs().max() == 0
    assert own.tokens[0, -1] != 0
    first = la.rules.custom(at="blocks.0.hook_attn_out")(without_attention)
    only_second_layer = explain(model, RuleSet((first,)), IDS)
    assert only_second_layer.tokens[0, :-1].abs().max() > 0
    assert only_second_layer.metadata["fired"]["points"] == 1


def test_a_rule_of_your_own_class_sees_the_graph() -> None:
    @dataclass(frozen=True, kw_only=True)
    class FreezeFinalNorm(la.rules.Rule):
        def place(self, graph: ModelGraph) -> Iterator[la.rules.Placement]:
            last = graph.points("norm_scale")[-1]
            yield la.rules.scale(last, 0.0)

    model = tiny.model("gpt2", tiny.BACKENDS[0], EXACT)
    own = explain(model, RuleSet((FreezeFinalNorm(),)), IDS)
    same = explain(model, RuleSet((la.rules.FreezeNorm(only="ln_final*"),)), IDS)
    assert torch.equal(own.tokens, same.tokens)


@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_rules_at_one_point_compose_in_order(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)

    @la.rules.custom(at="z")
    def doubled(grad: Tensor) -> Tensor:
        return grad * 2

    @la.rules.custom(at="z")
    def clipped(grad: Tensor) -> Tensor:
        return grad.clamp(-0.1, 0.1)

    @la.rules.custom(at="z")
    def doubled_then_clipped(grad: Tensor) -> Tensor:
        return (grad * 2).clamp(-0.1, 0.1)

    def tokens(*rules: la.rules.Rule) -> Tensor:
        return explain(model, RuleSet(rules), IDS).tokens

    assert torch.equal(tokens(doubled, clipped), tokens(doubled_then_clipped))
    assert error(tokens(clipped, doubled), tokens(doubled_then_clipped)) > 1e-4
    assert torch.equal(tokens(doubled, halved), tokens())
    quarter = la.rules.ScaleZ(factor=0.25)
    assert torch.equal(tokens(la.rules.ScaleZ(factor=0.5), halved), tokens(quarter))
    appended = explain(model, la.rules.gim() + doubled, IDS).tokens
    assert error(appended, explain(model, "gim", IDS, z=1.0).tokens) <= 1e-12


def test_rule_sets_are_edited_by_name() -> None:
    gim = la.rules.gim()
    names = [rule.name for rule in gim]
    assert names == ["FreezeNorm", "TemperedSoftmax", "ScalePattern", "ScaleZ", "GateSplit"]
    fewer = gim.without("TemperedSoftmax")
    assert [rule.name for rule in fewer] == [n for n in names if n != "TemperedSoftmax"]
    warmer = gim.replace("TemperedSoftmax", temperature=3.0)
    assert warmer.rules == la.rules.gim(temperature=3.0).rules
    assert (gim + halved).rules == (*gim.rules, halved)
    assert (gim + la.rules.RuleSet((halved,))).rules == (gim + halved).rules
    assert len(gim.rules) == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: la.rules.gim().without("TemperdSoftmax"), "did you mean 'TemperedSoftmax'"),
        (lambda: la.rules.lrp().replace("ScaleZ", factor=1.0), "no rule 'ScaleZ' in lrp"),
        (lambda: la.rules.gim().replace("ScaleZ", faktor=1.0), "did you mean 'factor'"),
        (lambda: la.rules.preset("attn_lrp"), "did you mean 'attnlrp'"),
        (lambda: la.rules.gim(activation="relu"), "activation must be"),
        (lambda: la.rules.gim(gate="both"), "gate must be"),
        (lambda: la.rules.gim(temprature=3.0), "did you mean 'temperature'"),
        (lambda: la.rules.TemperedSoftmax(temperature=0.0), "temperature must be positive"),
        (lambda: la.rules.TemperedSoftmax(temperature=-2.0), "temperature must be positive"),
        (lambda: la.rules.TemperedSoftmax(temperature=float("nan")), "must be positive"),
        (lambda: la.rules.gim(temperature=0.0), "temperature must be positive"),
    ],
)
def test_what_does_not_exist_is_refused_with_a_suggestion(wrong: Any, message: str) -> None:
    with pytest.raises(la.InputError, match=message):
        wrong()


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_unknown_method_role_or_hook_is_refused_with_a_suggestion(backend: str) -> None:
    model = tiny.model("llama", backend)
    with pytest.raises(la.InputError, match="did you mean 'attnlrp'"):
        la.attribute(model, IDS, TARGET, "attnlpr")
    for at, message in (
        ("paterns", "unknown role or hook .paterns.; did you mean .pattern."),
        ("blocks.0.attn.hook_patern", r"did you mean 'blocks\.0\.attn\.hook_pattern'"),
        ("blocks.*.attn.hook_zz", r"no hook point matches 'blocks\.\*\.attn\.hook_zz'"),
    ):
        with pytest.raises(la.InputError, match=message):
            RuleSet((la.rules.custom(at=at)(torch.neg),)).hooks(model)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_rule_that_replaces_the_gradient_must_come_first(backend: str) -> None:
    model = tiny.model("llama", backend)
    split, identity = la.rules.GateSplit(), la.rules.IdentityActivation()
    explain(model, RuleSet((identity, split)), IDS)
    with pytest.raises(la.RuleConflictError, match=r"IdentityActivation.*GateSplit.*put it first"):
        explain(model, RuleSet((split, identity)), IDS)
    at_scores = la.rules.custom(at="scores")(torch.neg)
    hot = la.rules.TemperedSoftmax(temperature=8.0)
    explain(model, RuleSet((hot, at_scores)), IDS)
    with pytest.raises(la.RuleConflictError, match=r"hook_attn_scores"):
        explain(model, RuleSet((at_scores, hot)), IDS)


@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_layers_and_only_narrow_a_rule(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)
    graph = resolve(model)
    top = [p.name for p in graph.points("norm_scale") if p.layer == 1]
    assert list(RuleSet((la.rules.FreezeNorm(layers=[1]),)).placements(graph)) == top
    ln1 = RuleSet((la.rules.FreezeNorm(only="*.ln1.*"),)).placements(graph)
    assert list(ln1) == ["blocks.0.ln1.hook_scale", "blocks.1.ln1.hook_scale"]
    halves = [la.rules.ScaleZ(layers=[layer]) for layer in range(tiny.N_LAYERS)]
    both, all_at_once = explain(model, RuleSet(tuple(halves)), IDS), RuleSet((la.rules.ScaleZ(),))
    assert torch.equal(both.tokens, explain(model, all_at_once, IDS).tokens)
    assert error(explain(model, RuleSet((halves[0],)), IDS).tokens, both.tokens) > 1e-4


@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_a_rule_that_matches_nothing_is_an_error(case: tuple[str, str]) -> None:
    model = tiny.model(*case)
    for rule in (
        la.rules.FreezeNorm(only="*ln7*"),
        la.rules.ScaleZ(layers=[]),
        la.rules.ScaleZ(layers=[0], only="blocks.1.*"),
    ):
        with pytest.raises(la.RuleNotAppliedError, match="matches no hook point"):
            explain(model, RuleSet((rule,)), IDS)
    for layers in ([2], [-1], [0, 99]):
        with pytest.raises(la.InputError, match="layers 0 to 1"):
            explain(model, RuleSet((la.rules.ScaleZ(layers=layers),)), IDS)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_a_gate_rule_may_be_absent_only_where_there_is_no_gate(backend: str) -> None:
    gates = RuleSet((la.rules.GateSplit(),))
    assert explain(tiny.model("gpt2", backend), gates, IDS).metadata["fired"]["points"] == 0
    assert explain(tiny.model("llama", backend), gates, IDS).metadata["fired"]["points"] == 4
    with pytest.raises(la.RuleNotAppliedError):
        explain(tiny.model("llama", backend), RuleSet((la.rules.GateSplit(only="*ln*"),)), IDS)


# -------------------------------------------------------------------- the tempered softmax

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TEMPERATURES = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 100.0]
GAPS = [0, 1, 5, 10, 20, 40, 80, 87, 90, 100, 103, 110, 150, 200]


def jacobian(grad: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """What must come out, in float64: pT (g - sum pT g) with pT = softmax(scores / T)."""
    s, g = scores.double(), grad.double()
    weights = torch.exp((s - s.max(dim=-1, keepdim=True).values) / temperature)
    p = weights / weights.sum(dim=-1, keepdim=True)
    matrix = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    return (matrix @ g[..., None])[..., 0]


def one_hook(grad: Tensor, scores: Tensor, temperature: float, softmax: torch.dtype) -> Tensor:
    """`before_softmax_backward` at the pattern, then torch's own softmax backward."""
    leaf = scores.clone().requires_grad_()
    pattern = torch.softmax(leaf, dim=-1, dtype=softmax).to(scores.dtype)
    changed = before_softmax_backward(grad, pattern.detach(), temperature).to(scores.dtype)
    return torch.autograd.grad(pattern, leaf, changed)[0]


def chosen_form(grad: Tensor, scores: Tensor, temperature: float, softmax: torch.dtype) -> Tensor:
    if temperature <= attention.ONE_HOOK_LIMIT and scores.dtype != torch.float16:
        return one_hook(grad, scores, temperature, softmax)
    return tempered_jacobian(grad, scores, temperature).to(scores.dtype)


def off_by(got: Tensor, want: Tensor, grad: Tensor) -> float:
    """Largest error in a row, in units of the dtype's precision at the row's gradient."""
    assert got.isfinite().all()
    size = grad.double().abs().amax(dim=-1).clamp_min(1e-300)
    return (
        float(((got.double() - want).abs().amax(dim=-1) / size).max()) / torch.finfo(got.dtype).eps
    )


def rows(gap: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores that span ``gap`` and a gradient."""
    scores = torch.rand(12, 8, dtype=torch.float64) * gap
    scores[:, 0], scores[:, 1] = 0, gap
    return scores.to(dtype), torch.randn(12, 8, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("softmax_in", ["its dtype", "float32"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tempered_softmax_is_exact_for_every_gap(
    dtype: torch.dtype, temperature: float, softmax_in: str
) -> None:
    softmax = torch.promote_types(dtype, torch.float32) if softmax_in == "float32" else dtype
    for gap in GAPS:
        scores, grad = rows(gap, dtype)
        got = chosen_form(grad, scores, temperature, softmax)
        assert off_by(got, jacobian(grad, scores, temperature), grad) <= 8, gap


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float32, 10.0), (torch.float16, 3.0)])
def test_the_other_form_would_fail_there(dtype: torch.dtype, temperature: float) -> None:
    worst = 0.0
    for gap in GAPS:
        scores, grad = rows(gap, dtype)
        got = one_hook(grad, scores, temperature, dtype)
        if not got.isfinite().all():
            return
        worst = max(worst, off_by(got, jacobian(grad, scores, temperature), grad))
    assert worst > 100


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_keys_and_fully_masked_rows_get_nothing(
    dtype: torch.dtype, temperature: float
) -> None:
    scores, grad = rows(20, dtype)
    scores[:, 5:] = -torch.inf
    got = chosen_form(grad, scores, temperature, dtype)
    assert got[:, 5:].abs().max() == 0
    want = jacobian(grad[:, :5], scores[:, :5], temperature)
    assert off_by(got[:, :5], want, grad[:, :5]) <= 8
    # A row without any key: models write zeros (or NaN, before they are replaced) in its pattern.
    nowhere = torch.full_like(scores, -torch.inf)
    assert tempered_jacobian(grad, nowhere, temperature).abs().max() == 0
    for pattern in (torch.zeros_like(scores), torch.softmax(nowhere, dim=-1)):
        assert before_softmax_backward(grad, pattern, temperature).abs().max() == 0


numbers = st.floats(-40, 40, width=32)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6),
    st.floats(0.25, 4),
)
@example([(0.0, 1.0), (-40.0, 2.0), (40.0, -3.0)], 4.0)
def test_both_forms_are_the_jacobian(pairs: list[tuple[float, float]], temperature: float) -> None:
    scores, grad = torch.tensor(pairs, dtype=torch.float64).T.contiguous()[:, None]
    want = jacobian(grad, scores, temperature)
    one = one_hook(grad, scores, temperature, torch.float64)
    two = tempered_jacobian(grad, scores, temperature)
    size = float(grad.abs().max()) or 1.0
    assert (one - want).abs().max() <= 1e-13 * size
    assert (two - want).abs().max() <= 1e-13 * size
    # As of every softmax: a constant added to all scores changes nothing.
    assert two.sum().abs() <= 1e-13 * size


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "temperature", "hook"),
    [
        ("float32", 2.0, "pattern"),
        ("float32", 4.0, "pattern"),
        ("float32", 4.5, "attn_scores"),
        ("bfloat16", 2.0, "pattern"),
        ("float16", 2.0, "attn_scores"),
    ],
)
def test_the_rule_chooses_the_form_that_is_exact(
    backend: str, dtype: str, temperature: float, hook: str
) -> None:
    graph = resolve(tiny.model("llama", backend, dtype))
    points = RuleSet((la.rules.TemperedSoftmax(temperature=temperature),)).placements(graph)
    assert list(points) == [f"blocks.{i}.attn.hook_{hook}" for i in range(tiny.N_LAYERS)]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.5])
@pytest.mark.parametrize("case", BOTH, ids=tiny.case_id)
def test_both_forms_agree_on_a_model(
    case: tuple[str, str], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(*case, EXACT)
    options = {"temperature": temperature, "record": ["residual"]}
    one = explain(model, "gim", IDS, **options)
    monkeypatch.setattr(attention, "ONE_HOOK_LIMIT", 0.0)
    two = explain(model, "gim", IDS, **options)
    assert error(two.tokens, one.tokens) <= 1e-12
    assert error(two.head_tokens, one.head_tokens) <= 1e-12
    assert not torch.equal(two.tokens, one.tokens)
