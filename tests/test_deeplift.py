"""DeepLIFT: every rule exact, so the relevance sums to F(x) - F(x0), at every block."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import reference
import small
import tiny
import torch
from tiny import EXACT, TARGET, error, explain
from torch import Tensor

import lens_attr as la
from lens_attr.attribution.deeplift import CANCELLATION, DeepLift
from lens_attr.attribution.explainer import Explained
from lens_attr.errors import InputError, Notice, UnsupportedModelError
from lens_attr.graph import ModelGraph, Role, resolve
from lens_attr.graph.tokens import tokenize
from lens_attr.rules import Placement, Rule, RuleSet
from lens_attr.rules.deeplift import (
    both,
    deeplift,
    halves,
    log_secant_of_exp,
    log_sum_exp_multiplier,
    mean_of,
    norm_scale_gradient,
    secant,
    soft_cap_gradient,
    softmax_multiplier,
)

EVERY = [case for case in tiny.on_backends(tiny.FAMILIES) if case != ("bert", "bridge")]
REFERENCED = tiny.on_backends(["gpt2", "llama", "qwen2"])
pytestmark = pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")

BOTH_KINDS = tiny.on_backends(["gpt2", "llama"])
IDS = tiny.token_ids("gpt2")
TOKEN = 7
"""The baseline, unless a test is about baselines."""

every_model = pytest.mark.parametrize("case", EVERY, ids=tiny.case_id)
both_kinds = pytest.mark.parametrize("case", BOTH_KINDS, ids=tiny.case_id)


def difference(r: la.Relevance) -> Tensor:
    """F(x) - F(x0)."""
    return r.target_value - r.extra["baseline_value"]


def embeddings(model: Any, ids: Tensor) -> Tensor:
    """The token embedding of every token."""
    return torch.stack([resolve(model).token_embedding(i) for i in ids.flatten().tolist()])


# ---------------------------------------------------------------------- against the definitions


@cache
def weights(family: str) -> tuple[dict[str, Tensor], Any]:
    original = tiny.hugging_face(family, EXACT)
    return original.state_dict(), original.config


def expected(family: str, baseline: Tensor, **options: Any) -> reference.DeepLift:
    direction = reference.contrast(tiny.VOCAB, TARGET.token, TARGET.foil)
    return reference.deeplift(*weights(family), IDS[0], baseline, direction, **options)


def random_baseline() -> Tensor:
    return torch.randn(IDS.shape[1], 32, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("which", ["token", "full"])
@pytest.mark.parametrize("softmax", ["product", "log"])
@pytest.mark.parametrize("case", REFERENCED, ids=tiny.case_id)
def test_every_number_equals_the_definitions(
    case: tuple[str, str], softmax: str, which: str
) -> None:
    baseline = random_baseline()
    want = expected(case[0], baseline, full=which == "full", log_form=softmax == "log")
    got = explain(
        tiny.model(*case, EXACT),
        "deeplift",
        IDS,
        baseline=baseline,
        embeddings=which,
        softmax=softmax,
    )
    assert got.target_value.item() == pytest.approx(want.target, rel=1e-12)
    assert got.extra["baseline_value"].item() == pytest.approx(want.baseline, rel=1e-12)
    assert error(got.tokens[0], want.tokens) <= 1e-9
    assert error(got.head_tokens[0], want.heads) <= 1e-9
    assert error(got.flow["stream"][0], want.stream) <= 1e-9


@both_kinds
def test_the_two_forms_of_the_softmax_share_the_same_sum(case: tuple[str, str]) -> None:
    product, log = (
        explain(tiny.model(*case, EXACT), "deeplift", IDS, baseline=TOKEN, softmax=form)
        for form in ("product", "log")
    )
    assert product.tokens.sum().item() == pytest.approx(log.tokens.sum().item(), rel=1e-9)
    assert error(product.tokens, log.tokens) > 1e-2


# -------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("softmax", ["product", "log"])
@pytest.mark.parametrize("baseline", [TOKEN, None], ids=["a token", "the default"])
@every_model
def test_the_relevance_sums_to_the_difference_at_every_block(
    case: tuple[str, str], baseline: int | None, softmax: str
) -> None:
    ids = tiny.token_ids(case[0], rows=2)
    model = tiny.model(*case, EXACT)
    r = explain(model, "deeplift", ids, baseline=baseline, softmax=softmax)
    want = difference(r)
    assert want.abs().min() > 1e-3
    assert r.tokens.sum(dim=1) == pytest.approx(want, rel=1e-9)
    assert r.flow["stream"] == pytest.approx(want[:, None].expand(-1, 3), rel=1e-9)
    assert r.extra["summation_gap"] == pytest.approx(want - r.tokens.sum(dim=1), abs=1e-12)
    check = r.check()
    assert check.relative_gap.max() <= 1e-9
    for lost in check.layers.values():
        assert lost.abs().max() <= 1e-9 * want.abs().max()


STORIES = pytest.param("../shared/models/stories260K", marks=pytest.mark.shared)
TRAINED = {
    "demo-gpt2": ("the keys to the cabinet", la.LogitDiff(" are", " is")),
    "demo-llama": ("the keys to the cabinet", la.LogitDiff(" are", " is")),
    "../shared/models/stories260K": ("Once upon a time, there was a little girl", la.TopLogit()),
}


def trained(name: str, backend: str, dtype: str = "float64") -> Any:
    path = Path(__file__).parents[1] / name
    return la.load(path if path.exists() else name, backend, dtype, "cpu")


@pytest.mark.parametrize("backend", tiny.BACKENDS)
@pytest.mark.parametrize("name", ["demo-gpt2", "demo-llama", STORIES])
def test_the_default_call_sums_on_trained_models(name: str, backend: str) -> None:
    r = la.attribute(trained(name, backend), *TRAINED[name], "deeplift")
    assert r.check().relative_gap.item() <= 1e-6
    assert r.flow["stream"] == pytest.approx(difference(r)[:, None].expand_as(r.flow["stream"]))
    assert r.tokens.abs().sum() < 5 * difference(r).abs()
    assert not any("cancel" in notice for notice in r.metadata["notices"])


@dataclass(frozen=True, kw_only=True)
class PlainGradient(Rule):
    """At the inputs of an operation: its ordinary gradient at x, for both halves."""

    at: tuple[Role, ...]

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        points = [point for role in self.at for point in graph.points(role)]
        return [Placement(point, lambda grad, tape: both(halves(grad)[0])) for point in points]


@dataclass(frozen=True, kw_only=True)
class HalfPlainNorm(Rule):
    """The norm's rule with the derivative of 1 / sigma, or of the root, in place of the secant."""

    plain: str

    def place(self, graph: ModelGraph) -> Iterable[Placement]:
        def transform(grad: Tensor, tape: Any, point: Any) -> Tensor:
            sigma, sigma0 = halves(tape.latest(point))
            right = norm_scale_gradient(grad, tape.latest(point))
            wrong = sigma0 / sigma if self.plain == "reciprocal" else (sigma + sigma0) / (2 * sigma)
            return right * both(wrong)

        points = graph.points("norm_scale")
        return [Placement(p, partial(transform, point=p), values=(p,)) for p in points]


RIGHT = deeplift()


def first(*at: Role) -> RuleSet:
    """The plain gradient first, then every rule."""
    return RuleSet((PlainGradient(at=at), *RIGHT))


def instead(name: str, rule: Rule) -> RuleSet:
    return RuleSet(tuple(rule if r.name == name else r for r in RIGHT))


SWAPS: dict[str, RuleSet] = {
    "A.V": first("pattern", "v"),
    "A.V, pattern only": first("pattern"),
    "Q.K": first("q", "k"),
    "softmax": instead("SecantSoftmax", PlainGradient(at=("scores",))),
    "activation": instead("SecantActivation", PlainGradient(at=("mlp_pre",))),
    "gate x up": first("mlp_up"),
    "c r and c c": first("residual", "resid_mid", "mlp_in"),
    "1 / sigma": instead("SecantNorm", HalfPlainNorm(plain="reciprocal")),
    "square root": instead("SecantNorm", HalfPlainNorm(plain="root")),
    "norm": RuleSet((*first("residual", "resid_mid", "mlp_in").without("SecantNorm"),)),
}
"""Every rule of DeepLIFT exchanged for the ordinary gradient at x, one at a time."""


@dataclass(frozen=True, kw_only=True)
class Swapped(DeepLift):
    """DeepLIFT under other rules."""

    chosen: RuleSet

    @property
    def rules(self) -> RuleSet:
        return self.chosen


def built(**settings: Any) -> Any:
    """A float64 HookedTransformer in which no weight is at its neutral value."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 8, "d_head": 4, "d_vocab": 60}
    model = HookedTransformer(HookedTransformerConfig(**sizes, **settings, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.copy_(0.3 * noise if weight.ndim > 1 else weight + 0.1 * noise)
    return model


GATED = ("LayerNorm and a gated MLP", "hooked")
"""The one model with every operation: LayerNorm, softmax and gate x up."""

SWAPPED = [*BOTH_KINDS, *([GATED] if "hooked" in tiny.BACKENDS else [])]


def under(rules: RuleSet, case: tuple[str, str]) -> Explained:
    with tiny.precision(EXACT):
        gated = {"gated_mlp": True, "normalization_type": "LN", "act_fn": "silu"}
        graph = resolve(built(**gated) if case == GATED else tiny.model(*case, EXACT))
        batch = tokenize(graph, IDS)
        target = TARGET.resolve(graph, batch)
        return Swapped(chosen=rules, baseline=TOKEN).explain(graph, batch, target)


def relative_gap(explained: Explained) -> float:
    whole = explained.target_value - explained.extra["baseline_value"]
    return float((explained.extra["summation_gap"] / whole).abs())


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("case", SWAPPED, ids=tiny.case_id)
def test_swapping_one_rule_for_the_plain_gradient_breaks_the_sum(
    case: tuple[str, str], swap: str
) -> None:
    if swap == "gate x up" and case[0] == "gpt2":
        pytest.skip("no gated MLP")
    right = under(RIGHT, case)
    whole = right.target_value - right.extra["baseline_value"]
    assert relative_gap(right) <= 1e-9
    assert right.flow["stream"] == pytest.approx(whole[:, None].expand(-1, 3), rel=1e-9)
    assert relative_gap(under(SWAPS[swap], case)) > 1e-3


@both_kinds
def test_without_any_rule_it_is_gradient_times_difference_and_does_not_sum(
    case: tuple[str, str],
) -> None:
    everywhere = first("pattern", "v", "q", "k", "mlp_up", "residual", "resid_mid", "mlp_in")
    plain = RuleSet((PlainGradient(at=("scores",)), PlainGradient(at=("mlp_pre",)), *everywhere))
    for name in ("SecantSoftmax", "SecantActivation", "SecantNorm"):
        plain = plain.without(name)
    got = under(plain, case)
    want = explain(
        tiny.model(*case, EXACT), "gradient_x_input", IDS, baseline=TOKEN, embeddings="token"
    )
    assert error(got.tokens, want.tokens) <= 1e-9
    assert relative_gap(got) > 1e-2


@both_kinds
def test_close_to_the_baseline_it_becomes_gradient_times_difference(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)
    own = embeddings(model, IDS)

    def apart(step: float) -> float:
        near = {"baseline": own + step * random_baseline(), "embeddings": "token"}
        exact, plain = (explain(model, m, IDS, **near) for m in ("deeplift", "gradient_x_input"))
        return error(exact.tokens, plain.tokens)

    assert apart(1e-3) > 1e-4
    assert apart(1e-6) == pytest.approx(apart(1e-3) / 1e3, rel=0.5)


# -------------------------------------------------------------------------------- by hand


def test_two_keys_by_hand() -> None:
    # p goes from (1/2, 1/2) to (1/4, 3/4) while the second score grows by log 3:
    # E (1, 1) -> (1, 3), total 2 -> 4, r 1/2 -> 1/4. Of the second probability, m = (0, 1):
    # m_E = (0, 3/8), m_r = 2, m_total = 2 (1/4 - 1/2) / 2 = -1/4, so m_E = (-1/4, 1/8);
    # secants of exp: 1 and 2 / log 3.
    scores = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    m = torch.tensor([0.0, 1.0], dtype=torch.float64)
    got = softmax_multiplier(m, scores, torch.zeros(2).double(), "product")
    assert got.tolist() == pytest.approx([-1 / 4, 1 / (4 * math.log(3))], rel=1e-12)
    assert (got * scores).sum().item() == pytest.approx(3 / 4 - 1 / 2)


def test_a_norm_by_hand() -> None:
    # c (3, 3) -> (1, 1): sigma 3 -> 1, r 1/3 -> 1, c r stays (1, 1). Of the first output:
    # m_c = (2/3, 0), m_r = 2, m_sigma = 2 (1 - 1/3) / (1 - 3) = -2/3, m_v = -2/3 / 4 = -1/6,
    # m_c c = -1/12 each, and (c + c0) of that: -1/3. Together (1/3, -1/3).
    c = torch.tensor([[1.0, 1.0], [3.0, 3.0]], requires_grad=True)
    sigma = (c**2).mean(dim=-1, keepdim=True).sqrt()
    sigma.register_hook(lambda grad: norm_scale_gradient(grad, sigma.detach()))
    (grad,) = torch.autograd.grad((c / sigma)[:, 0].sum(), c)
    assert mean_of(grad)[0].tolist() == pytest.approx([1 / 3, -1 / 3])


@both_kinds
def test_all_relevance_goes_to_the_one_token_that_differs(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)
    baseline = embeddings(model, IDS)
    baseline[2] = resolve(model).token_embedding(TOKEN)
    r = explain(model, "deeplift", IDS, baseline=baseline)
    other = IDS.clone()
    other[0, 2] = TOKEN
    with tiny.precision(EXACT), torch.no_grad():
        logits = model(torch.cat([IDS, other]))[:, -1]
    changed = (logits[0] - logits[1])[TARGET.token] - (logits[0] - logits[1])[TARGET.foil]
    assert r.tokens[0, 2].item() == pytest.approx(changed.item(), rel=1e-9)
    assert r.tokens[0, [0, 1, 3, 4, 5, 6]].abs().max() == 0


@both_kinds
def test_against_itself_nothing_is_relevant(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)
    r = explain(model, "deeplift", IDS, baseline=embeddings(model, IDS))
    assert r.tokens.abs().max() == 0
    assert r.extra["summation_gap"].abs().item() <= 1e-13
    assert not r.metadata["notices"]


# ------------------------------------------------------------------------------- single rules


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_secant_passes_into_the_derivative(dtype: torch.dtype) -> None:
    function = torch.nn.functional.silu
    x = torch.linspace(-4, 4, 41, dtype=dtype)[:, None]
    steps = torch.logspace(-9, 0, 60, dtype=dtype)
    got = secant(function, x + steps, x.expand(-1, 60))
    a, b = x.double(), (x + steps).double()
    exact = (function(b) - function(a)) / torch.where(b == a, 1.0, b - a)
    wide = (b - a) > 1e-4
    tolerance = 20 * torch.finfo(dtype).eps ** (2 / 3)
    assert (got - exact)[wide].abs().max() <= tolerance
    jumps = got.diff(dim=1).abs()
    assert jumps[:, steps[1:] < 1e-2].max() <= 2e-3, "no jump where it switches"
    assert error(secant(function, x, x), _derivative(function, x)) <= tolerance


def _derivative(function: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def test_the_secant_of_exp_neither_overflows_nor_cancels() -> None:
    a = torch.tensor([0.0, 1e-12, 700.0, -800.0, 3.0, 2000.0]).double()
    b = torch.tensor([0.0, 0.0, -700.0, -800.0, 1.0, 2000.0]).double()
    want = [0.0, 5e-13, 700 - math.log(1400), -800.0, math.log((math.e**3 - math.e) / 2), 2000.0]
    assert log_secant_of_exp(a, b).tolist() == pytest.approx(want, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("form", ["product", "log"])
def test_masked_keys_take_no_part_in_the_softmax(form: Any) -> None:
    m, s, s0 = torch.randn(3, 4, 6).double()
    alone = softmax_multiplier(m[:, :4], s[:, :4], s0[:, :4], form)
    for masked in (-math.inf, torch.finfo(torch.float32).min):
        hidden = [torch.cat([each[:, :4], torch.full((4, 2), masked)], dim=1) for each in (s, s0)]
        got = softmax_multiplier(m, *hidden, form)
        assert torch.allclose(got[:, :4], alone, rtol=1e-12)
        assert (got[:, 4:] == 0).all()
    nothing = torch.full((4, 6), -math.inf).double()
    assert (softmax_multiplier(m, nothing, nothing, form) == 0).all()


@pytest.mark.parametrize("form", ["product", "log"])
def test_a_shift_of_both_scores_changes_nothing(form: Any) -> None:
    m, s, s0 = torch.randn(3, 5).double()
    want = softmax_multiplier(m, s, s0, form)
    assert torch.allclose(softmax_multiplier(m, s + 30, s0 + 30, form), want, rtol=1e-10)
    assert not torch.allclose(softmax_multiplier(m, s + 30, s0, form), want, rtol=1e-2)


def test_the_log_form_of_the_softmax_stays_bounded() -> None:
    m = torch.randn(200, 7).double()
    s, s0 = 100 * torch.randn(2, 200, 7).double()
    bound = m.abs().sum(dim=-1, keepdim=True)
    log, product = (softmax_multiplier(m, s, s0, form) for form in ("log", "product"))
    assert (log.abs() <= bound).all()
    assert (product.abs() / bound).max() > 1e20
    change = (m * (s.softmax(-1) - s0.softmax(-1))).sum(dim=-1)
    assert torch.allclose((log * (s - s0)).sum(dim=-1), change, rtol=1e-9, atol=1e-9)


def test_the_soft_cap_has_a_secant() -> None:
    x = (20 * torch.randn(2, 9)).double().requires_grad_()
    capped = 30 * torch.tanh(x / 30)
    multiplier = torch.randn(1, 9).double()
    (grad,) = torch.autograd.grad(capped, x, soft_cap_gradient(multiplier, capped.detach(), 30.0))
    change = (multiplier * (capped[:1] - capped[1:])).detach()
    assert torch.allclose(grad[:1] * (x[:1] - x[1:]).detach(), change, rtol=1e-9)
    assert torch.allclose(grad[:1], grad[1:], rtol=1e-9)
    assert (soft_cap_gradient(multiplier, torch.full((2, 9), -math.inf), 30.0) == 0).all()


def test_log_sum_exp_by_secants() -> None:
    one, two = 5 * torch.randn(2, 3, 60).double()
    got = (log_sum_exp_multiplier(one, two) * (one - two)).sum(dim=1)
    assert torch.allclose(got, one.logsumexp(1) - two.logsumexp(1), rtol=1e-12)


# ------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    "target",
    [la.Logit(12), la.LogProb(12), la.TopLogit(), la.LogitDiff(12, 13, position=3)],
    ids=lambda target: type(target).__name__,
)
@pytest.mark.parametrize("case", [*BOTH_KINDS, *tiny.on_backends(["gemma2"])], ids=tiny.case_id)
def test_every_target_sums(case: tuple[str, str], target: la.Target) -> None:
    model = tiny.model(*case, EXACT)
    r = explain(model, "deeplift", IDS, target=target, baseline=TOKEN)
    with tiny.precision(EXACT), torch.no_grad():
        one, two = model(torch.cat([IDS, torch.full_like(IDS, TOKEN)]))[:, target.position]
    if isinstance(target, la.LogProb):
        want = (one.log_softmax(0) - two.log_softmax(0))[12]
    elif isinstance(target, la.TopLogit):
        want = (one - two)[one.argmax()]
        assert one.argmax() != two.argmax()
    else:
        want = (one - two)[12] - (one - two)[13] * isinstance(target, la.LogitDiff)
    assert difference(r).item() == pytest.approx(want.item(), rel=1e-9)
    assert r.tokens.sum().item() == pytest.approx(want.item(), rel=1e-9)


def test_a_metric_is_refused_with_the_way_out() -> None:
    metric = la.Metric(lambda logits: logits[:, -1, 5] ** 2)
    with pytest.raises(InputError, match=r"linear in the logits.*use 'integrated_gradients'"):
        explain(tiny.model("gpt2", "bridge"), "deeplift", IDS, target=metric)


# ---------------------------------------------------------------------- batches and baselines

TEXTS = ["w5 w9 w12 w7 w31 w8", "w40 w9", "w5 w22 w12 w7"]


@pytest.mark.parametrize("name", [*small.CAUSAL, *small.MASKED[:-1]])
def test_a_padded_batch_equals_its_texts_alone(name: str) -> None:
    model, options = small.model(name), {"baseline": TOKEN, "record": ["mlp_out"]}
    texts = [small.text(name, words) for words in TEXTS]
    batch = explain(model, "deeplift", texts, **options)
    for one, text in zip(batch, texts, strict=True):
        alone = explain(model, "deeplift", text, **options)
        assert error(one.tokens, alone.tokens) <= 1e-4
        assert error(one.head_tokens, alone.head_tokens) <= 1e-4
        assert one.extra["baseline_value"] == pytest.approx(alone.extra["baseline_value"], rel=1e-4)
    assert (batch.tokens[~batch.attention_mask] == 0).all()
    two_at_a_time = explain(model, "deeplift", texts, batch_size=2, **options)
    assert error(two_at_a_time.tokens, batch.tokens) <= 1e-4
    assert error(two_at_a_time.records["mlp_out"], batch.records["mlp_out"]) <= 1e-4


@both_kinds
def test_a_baseline_is_zero_a_token_an_id_or_a_tensor(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)
    token = resolve(model).token_embedding(TOKEN)
    wanted = explain(model, "deeplift", IDS, baseline=f" w{TOKEN}").tokens
    tensors = [token, token.expand(7, -1), token.expand(1, 7, -1)]
    for same in (TOKEN, *tensors):
        assert torch.equal(explain(model, "deeplift", IDS, baseline=same).tokens, wanted)
    with pytest.raises(InputError, match=r"\[3\] does not fit the input"):
        explain(model, "deeplift", IDS, baseline=torch.zeros(3))
    if case[0] == "gpt2":
        zero = explain(model, "deeplift", IDS, baseline=torch.zeros(32)).tokens
        assert torch.equal(explain(model, "deeplift", IDS).tokens, zero)
        assert error(zero, wanted) > 1e-2


@both_kinds
def test_every_example_may_have_a_baseline_of_its_own(case: tuple[str, str]) -> None:
    model, ids = tiny.model(*case, EXACT), tiny.token_ids(case[0], rows=3)
    own = torch.randn(3, 7, 32).double()
    together = explain(model, "deeplift", ids, baseline=own, batch_size=2)
    for i in range(3):
        alone = explain(model, "deeplift", ids[i : i + 1], baseline=own[i])
        assert error(together.tokens[i], alone.tokens[0]) <= 1e-9


# ------------------------------------------------------------------------- what comes with it


@both_kinds
def test_heads_and_records_are_changes_times_multipliers(case: tuple[str, str]) -> None:
    model = tiny.model(*case, EXACT)
    r = explain(model, "deeplift", IDS, baseline=TOKEN, record=["neurons", "residual", "pattern"])
    want = difference(r)
    assert r.records["residual"][0].sum(dim=1) == pytest.approx(want.expand(3), rel=1e-9)
    # What the heads of a block add to the stream passes all of it on.
    assert error(r.heads("sum").sum(dim=2), r.flow["attn_out"]) <= 1e-9
    assert error(r.records["neurons"][0].sum(dim=(1, 2)), r.flow["mlp_out"][0]) <= 1e-9
    assert (r.heads("relu_dim") >= r.heads("relu_token")).all()
    assert r.attention.shape == (1, 2, 4, 7, 7)


def test_where_multipliers_are_put_together_nothing_is_recorded() -> None:
    for role in ("scores", "mlp_pre", "norm_scale", "embed"):
        with pytest.raises(InputError, match=r"deeplift cannot record .* Record what follows"):
            explain(tiny.model("llama", "bridge"), "deeplift", IDS, record=[role])


class Fault(Exception):
    """Not one of ours."""


def raise_fault(*_: Any, **__: Any) -> None:
    raise Fault


@pytest.mark.parametrize("name", [*small.CAUSAL, *small.MASKED[:-1]])
def test_the_world_stays_as_it_is(name: str) -> None:
    model, text = small.model(name), small.text(name)
    run = partial(la.attribute, model, text, TARGET, method="deeplift", baseline=TOKEN)
    wanted = run().tokens
    before = small.world(model)
    with torch.no_grad():
        assert torch.equal(run().tokens, wanted)
    last = resolve(model).points("residual")[-1].name
    with pytest.raises(Fault), model.hooks(fwd_hooks=[(last, raise_fault)]):
        run()
    assert [what for what, value in small.world(model).items() if before[what] != value] == []


def test_a_saved_result_can_still_be_checked(tmp_path: Any) -> None:
    r = explain(tiny.model("gpt2", "bridge", EXACT), "deeplift", IDS, baseline=TOKEN)
    loaded = la.Relevance.load(r.save(tmp_path / "r"))
    assert loaded.check().relative_gap.item() <= 1e-9
    assert loaded.metadata["softmax"] == "log"
    rules = [rule["rule"] for rule in loaded.metadata["rules"]]
    assert rules == ["SecantSoftmax", "SecantActivation", "SecantNorm", "MeanMultiplier"]


# --------------------------------------------------------------------------- notice and refusal


WITHOUT_VARIANCE = tiny.on_backends(["llama", "qwen3", "gemma2", "gemma3", "mistral", "phi3"])


@pytest.mark.parametrize("case", WITHOUT_VARIANCE, ids=tiny.case_id)
def test_a_zero_that_leaves_every_norm_without_variance_is_refused(case: tuple[str, str]) -> None:
    model, zero = tiny.model(*case, EXACT), torch.zeros(32)
    with pytest.raises(InputError, match=r"of example 0 comes to ln_final.*Give a token"):
        explain(model, "deeplift", IDS, baseline=zero)
    first = torch.randn(7, 32)
    first[0] = 0  # a first token reads nothing but itself
    with pytest.raises(InputError, match="without variance"):
        explain(model, "deeplift", IDS, baseline=first)


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "neox", "qwen2"]), ids=tiny.case_id)
@pytest.mark.parametrize("which", ["token", "full"])
def test_a_zero_to_which_a_block_adds_a_bias_sums(case: tuple[str, str], which: str) -> None:
    options = {"baseline": torch.zeros(32), "embeddings": which}
    r = explain(tiny.model(*case, EXACT), "deeplift", IDS, **options)
    assert r.check().relative_gap.item() <= 1e-9


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_where_zero_cannot_be_the_baseline_it_is_the_bos_token(backend: str) -> None:
    model, bos = tiny.model("llama", backend, EXACT), 1
    with pytest.warns(Notice, match=r"no baseline was given.*'<s>' \(baseline=1\)"):
        r = explain(model, "deeplift", IDS)
    assert torch.equal(r.tokens, explain(model, "deeplift", IDS, baseline=bos).tokens)
    assert r.metadata["baseline"] == bos
    gpt2 = tiny.model("gpt2", backend, EXACT)
    zero = explain(gpt2, "deeplift", IDS)
    assert zero.metadata["baseline"] is None and not zero.metadata["notices"]
    whole = explain(gpt2, "deeplift", IDS, embeddings="full")
    assert whole.metadata["baseline"] == bos


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="HookedTransformer only")
def test_without_a_tokenizer_the_baseline_must_be_given() -> None:
    model = built(act_fn="relu", normalization_type="RMS", positional_embedding_type="rotary")
    with pytest.raises(InputError, match="no BOS, EOS or pad token to take instead: give a token"):
        explain(model, "deeplift", IDS)
    assert explain(model, "deeplift", IDS, baseline=TOKEN).check().relative_gap.item() <= 1e-9


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="its unembedding has a bias to raise")
def test_cancellation_is_measured_against_what_changed() -> None:
    """However large F(x) and F(x0) are themselves."""
    model, text = trained("demo-llama", "hooked"), "The teacher near the doctors"
    with torch.no_grad():
        model.unembed.b_U += 1e4
    options: dict[str, Any] = {"method": "deeplift", "baseline": 12}
    product = la.attribute(model, text, la.TopLogit(), softmax="product", **options)
    size, change = product.tokens.abs().sum(), difference(product).abs()
    assert CANCELLATION * change < size < product.target_value.abs()
    assert "cancel in 1 of 1" in product.metadata["notices"][0]
    assert not la.attribute(model, text, la.TopLogit(), **options).metadata["notices"]


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-llama"])
def test_a_trained_model_in_float32_keeps_the_sum(name: str) -> None:
    model = la.load(name)
    for baseline in (" the", " near"):
        r = la.attribute(
            model,
            "The teacher near the doctors",
            la.TopLogit(),
            "deeplift",
            baseline=baseline,
        )
        assert (r.extra["summation_gap"] / difference(r)).abs().item() <= 1e-2
        assert not r.metadata["notices"]


@pytest.mark.parametrize("baseline", [12, 44])
def test_the_log_form_keeps_the_tokens_of_a_trained_model_from_cancelling(baseline: int) -> None:
    model, text = la.load("demo-llama", dtype="float64"), "The teacher near the doctors"
    options: dict[str, Any] = {"method": "deeplift", "baseline": baseline}
    with pytest.warns(Notice, match="softmax='log' stays bounded"):
        product = la.attribute(model, text, la.TopLogit(), softmax="product", **options)
    log = la.attribute(model, text, la.TopLogit(), **options)
    assert product.tokens.abs().sum() > 30 * log.tokens.abs().sum()
    assert not log.metadata["notices"]
    assert log.tokens.sum().item() == pytest.approx(product.tokens.sum().item(), rel=1e-3)


@both_kinds
def test_half_precision_follows_full_precision(case: tuple[str, str]) -> None:
    half, full = (
        explain(tiny.model(*case, dtype), "deeplift", IDS, baseline=TOKEN)
        for dtype in ("bfloat16", "float32")
    )
    assert error(half.tokens, full.tokens) <= 0.2
    assert half.tokens.dtype == torch.float32


def test_attention_outside_the_graph_is_refused() -> None:
    for family in ("bert", *tiny.DELEGATED):
        model = tiny.model(family, "bridge")
        with pytest.raises(UnsupportedModelError, match="softmax outside the autograd graph"):
            explain(model, "deeplift", tiny.token_ids(family))


@pytest.mark.parametrize("flag", ["use_attention_sinks", "clip_qkv"])
def test_what_no_rule_covers_is_refused(flag: str) -> None:
    model = tiny.fresh("llama", "bridge")
    setattr(model.cfg, flag, 8.0)
    with pytest.raises(UnsupportedModelError, match=rf"cfg\.{flag}: there is no DeepLIFT rule"):
        explain(model, "deeplift", IDS)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_an_unknown_activation_is_refused(backend: str) -> None:
    model = tiny.fresh("gpt2", backend)
    model.cfg.act_fn = "solu_ln"
    with pytest.raises(UnsupportedModelError, match="'solu_ln' is not a known elementwise"):
        explain(model, "deeplift", IDS)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InputError, match="deeplift has no option 'softmx'; did you mean"):
        explain(tiny.model("gpt2", "bridge"), "deeplift", IDS, softmx="log")
    with pytest.raises(InputError, match="softmax must be 'log' or 'product', got 'centred'"):
        explain(tiny.model("gpt2", "bridge"), "deeplift", IDS, softmax="centred")


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_target_may_stand_in_the_middle(backend: str) -> None:
    model, target = tiny.model("llama", backend, EXACT), replace(TARGET, position=3)
    r = explain(model, "deeplift", IDS, target=target, baseline=TOKEN)
    assert r.tokens[0, 4:].abs().max() == 0
    short = explain(model, "deeplift", IDS[:, :4], baseline=TOKEN)
    assert error(r.tokens[0, :4], short.tokens[0]) <= 1e-9


@pytest.mark.skipif("hooked" not in tiny.BACKENDS, reason="HookedTransformer only")
@pytest.mark.parametrize("norm", [None, "LN", "LNPre", "RMS", "RMSPre"])
@pytest.mark.parametrize("attn_only", [False, True], ids=["with MLPs", "attention only"])
def test_models_built_from_a_configuration_sum_too(norm: str | None, attn_only: bool) -> None:
    act = {"act_fn": None if attn_only else "relu"}
    model = built(**act, attn_only=attn_only, normalization_type=norm)
    r = la.attribute(model, IDS[:, :6], la.Logit(5), "deeplift", baseline=3)
    assert r.tokens.sum().item() == pytest.approx(difference(r).item(), rel=1e-9)
    assert r.flow["stream"] == pytest.approx(difference(r)[:, None].expand(-1, 3), rel=1e-9)
