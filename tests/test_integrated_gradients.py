"""Integrated gradients, IGCG, GradSHAP: against literal sums on Hugging Face models, and laws."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import tiny
import torch
from reference import paths as literal
from tiny import EXACT, PAD, error
from torch import Tensor

import lens_attr as la
from lens_attr.attribution.paths import average_gradient, chunks, nodes
from lens_attr.graph import resolve
from lens_attr.graph.points import Point

pytestmark = pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")

RULES = ["left", "right", "midpoint", "gauss_legendre"]
FAMILIES = ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "neox", "bert", "opt"]
IDS = {family: tiny.token_ids(family, rows=2) for family in tiny.CONFIGS}
BASELINE = 9
PATHS = ["integrated_gradients", "ig_clipped", "gradient_shap"]


def attribute(case: tuple[str, str], method: str, ids: Tensor | None = None, **options: Any) -> Any:
    options = {"baseline": BASELINE} | options
    if options["baseline"] is None:
        del options["baseline"]
    ids = IDS[case[0]] if ids is None else ids
    return tiny.explain(tiny.model(*case, EXACT), method, ids, **options)


def reference(family: str, row: int = 0) -> tuple[Any, Any, Tensor, Tensor]:
    """The Hugging Face model, its score, the embeddings of the text and of the baseline."""
    model = tiny.hugging_face(family, EXACT)
    ids = IDS[family][row].tolist()
    position = ids.index(tiny.MASK) if family == "bert" else len(ids) - 1
    x = literal.word_embeddings(model, ids)
    x0 = literal.word_embeddings(model, [BASELINE] * len(ids))
    return model, literal.score(model, position, 12, 13), x, x0


def counted(model: Any, run: Any) -> tuple[int, int]:
    """How many forwards and backwards a call makes."""
    forwards: list[int] = []
    backwards: list[int] = []
    graph = resolve(model)
    with ExitStack() as stack:
        graph.points("residual")[0].on_forward(lambda _: forwards.append(1), stack)
        graph.points("residual")[1].on_backward(lambda _: backwards.append(1), stack)
        run()
    return len(forwards), len(backwards)


# --------------------------------------------------------------------- the maths, on any function


def along(function: Any, x: list[float], rule: Any, steps: int) -> Tensor:
    """Integrated gradients of a plain function from zero."""
    end = torch.tensor([x], dtype=torch.float64)
    start = torch.zeros_like(end)
    mean = average_gradient(
        lambda points, _: function(points), start, end, *nodes(rule, steps), size=3
    )
    return ((end - start) * mean)[0]


@pytest.mark.parametrize("rule", RULES)
def test_the_weights_of_every_quadrature_sum_to_one(rule: Any) -> None:
    for steps in (1, 2, 7, 64):
        places, weights = nodes(rule, steps)
        assert len(places) == steps and abs(float(weights.sum()) - 1) < 1e-12
        assert bool((places >= 0).all() and (places <= 1).all())


@pytest.mark.parametrize("rule", RULES)
def test_one_step_is_exact_where_the_function_is_linear(rule: Any) -> None:
    weights = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64)
    found = along(lambda points: points @ weights + 7, [1.0, 2.0, -4.0], rule, 1)
    assert torch.equal(found, torch.tensor([2.0, -6.0, -2.0], dtype=torch.float64))


@pytest.mark.parametrize(("rule", "order"), [("left", 1), ("right", 1), ("midpoint", 2)])
def test_order_of_convergence(rule: Any, order: int) -> None:
    """f(x, y) = exp(x + 2 y) at (1, 1/2): exactly half of e^2 - 1 each."""

    def gap(steps: int) -> float:
        found = along(lambda p: (p[:, 0] + 2 * p[:, 1]).exp(), [1.0, 0.5], rule, steps)
        return abs(float(found[0]) - (math.e**2 - 1) / 2)

    measured = math.log2(gap(32) / gap(64))
    assert abs(measured - order) < 0.05


def test_gauss_legendre_is_exact_up_to_degree_2n() -> None:
    """The gradient of x^2n has degree 2n - 1, the highest that n nodes integrate exactly."""
    for n in (1, 2, 3, 5):
        exact = along(lambda p, n=n: p[:, 0] ** (2 * n), [1.5], "gauss_legendre", n)
        assert abs(float(exact[0]) - 1.5 ** (2 * n)) < 1e-12 * 1.5 ** (2 * n)
        off = along(lambda p, n=n: p[:, 0] ** (2 * n + 2), [1.5], "gauss_legendre", n)
        assert abs(float(off[0]) - 1.5 ** (2 * n + 2)) > 1e-6


def test_gauss_legendre_converges_faster_than_any_power() -> None:
    gaps = [
        abs(float(along(lambda p: p[:, 0].exp(), [2.0], "gauss_legendre", n)[0]) - math.expm1(2))
        for n in (2, 4, 8)
    ]
    assert gaps[1] < 1e-3 * gaps[0] and gaps[2] < 1e-13


def test_every_pair_of_variant_and_example_is_visited_once() -> None:
    seen = [pair for v, e in chunks(5, 3, 4) for pair in zip(v.tolist(), e.tolist(), strict=True)]
    assert seen == [(v, e) for v in range(5) for e in range(3)]
    assert [len(v) for v, _ in chunks(5, 3, 4)] == [4, 4, 4, 3]


# --------------------------------------------------------------------------- integrated gradients


@pytest.mark.parametrize("case", tiny.on_backends(FAMILIES), ids=tiny.case_id)
def test_equals_the_literal_sum_on_the_hugging_face_model(case: tuple[str, str]) -> None:
    result = attribute(case, "integrated_gradients", steps=6, quadrature="midpoint")
    with tiny.precision(EXACT), torch.no_grad():
        for row in range(2):
            _, score, x, x0 = reference(case[0], row)
            want = literal.integrated_gradients(score, x, x0, "midpoint", 6)
            assert error(result.tokens[row], want) < 1e-9
            assert abs(float(result.extra["baseline_value"][row]) - float(score(x0))) < 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_every_quadrature_equals_its_literal_sum(rule: str) -> None:
    case = tiny.on_backends(["gpt2"])[-1]
    result = attribute(case, "integrated_gradients", steps=5, quadrature=rule)
    with tiny.precision(EXACT):
        _, score, x, x0 = reference("gpt2")
        want = literal.integrated_gradients(score, x, x0, rule, 5)
    assert error(result.tokens[0], want) < 1e-9


def test_whole_embeddings_start_without_their_position() -> None:
    case = tiny.on_backends(["gpt2"])[-1]
    options = {"embeddings": "full", "baseline": None, "steps": 5}
    result = attribute(case, "integrated_gradients", **options)
    with tiny.precision(EXACT):
        model, score, x, _ = reference("gpt2")
        positions = model.transformer.wpe.weight[: len(x)].detach()
        whole = x + positions
        want = literal.integrated_gradients(
            lambda e: score(e - positions), whole, torch.zeros_like(x), "gauss_legendre", 5
        )
    assert error(result.tokens[0], want) < 1e-9
    token = attribute(case, "integrated_gradients", **(options | {"embeddings": "token"}))
    assert error(token.tokens[0], want) > 0.1


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama", "bert"]), ids=tiny.case_id)
def test_completeness(case: tuple[str, str]) -> None:
    result = attribute(case, "integrated_gradients", steps=100)
    change = result.target_value - result.extra["baseline_value"]
    assert error(result.tokens.sum(1), change) < 1e-6
    gap = result.tokens.sum(1) - change
    assert error(result.extra["completeness_gap"] + change, gap + change) < 1e-9
    plain = attribute(case, "gradient_x_input")
    assert error(plain.tokens.sum(1), change) > 0.1


def test_a_large_gap_is_noticed_and_a_small_one_is_not() -> None:
    case = tiny.on_backends(["llama"])[0]
    with pytest.warns(
        la.Notice, match=r"completeness gap is up to \d+%.*Take more steps \(now 3\)"
    ):
        rough = attribute(case, "integrated_gradients", steps=3, baseline=None)
    change = rough.target_value - rough.extra["baseline_value"]
    assert float((rough.extra["completeness_gap"] / change).abs().max()) > 0.05
    fine = attribute(case, "integrated_gradients", steps=100)
    assert not fine.metadata["notices"]


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2"]), ids=tiny.case_id)
def test_the_budget_changes_the_number_of_calls_and_nothing_else(case: tuple[str, str]) -> None:
    model, ids = tiny.model(*case, EXACT), IDS["gpt2"]  # 2 x 7 tokens
    results = {}
    for budget, calls in ((1, 12), (7, 12), (14, 6), (20, 6), (42, 2), (2048, 1)):
        run = lambda budget=budget: results.__setitem__(  # noqa: E731
            budget, attribute(case, "integrated_gradients", steps=6, max_batch_tokens=budget)
        )
        at_baseline = 2 if budget < 14 else 1
        assert counted(model, run) == (1 + at_baseline + calls, calls)
    for result in results.values():
        assert error(result.tokens, results[2048].tokens) < 1e-12
    assert ids.shape == (2, 7)


@pytest.mark.parametrize("name", small.EVERY)
def test_a_padded_batch_equals_its_texts_alone(name: str) -> None:
    model = small.model(name, EXACT)
    texts = [small.text(name), small.text(name, "w5 w9"), small.text(name, "w8 w3 w20")]
    for method in PATHS:
        options = {"method": method, "baseline": " w9", "target": la.Logit(6)}
        with tiny.precision(EXACT):
            both = la.attribute(model, texts, **options, **small_count(method))
            for i, text in enumerate(texts):
                alone = la.attribute(model, text, **options, **small_count(method))
                assert error(both[i].tokens, alone.tokens) < 1e-8
            halves = la.attribute(model, texts, batch_size=2, **options, **small_count(method))
        assert error(halves.tokens, both.tokens) < 1e-8
        assert bool((both.tokens[~both.attention_mask] == 0).all())


def small_count(method: str) -> dict[str, int]:
    return {"n_samples": 3} if method == "gradient_shap" else {"steps": 3}


def test_the_top_logit_stays_that_token_along_the_path() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    model, ids = tiny.model(*case, EXACT), IDS["gpt2"]
    with tiny.precision(EXACT), torch.no_grad():
        top = model(ids)[:, -1].argmax(-1)
        at_baseline = model(torch.full_like(ids, BASELINE))[:, -1].argmax(-1)
    assert bool((top != at_baseline).any())
    found = attribute(case, "integrated_gradients", target=la.TopLogit(), steps=4)
    want = attribute(case, "integrated_gradients", target=la.Logit(top), steps=4)
    assert error(found.tokens, want.tokens) < 1e-12
    assert found.target[0].endswith("(the top logit)")
    assert error(found.target_value, want.target_value) < 1e-12


def test_a_metric_always_sees_the_batch_it_was_written_for() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    shapes = []

    def weighted(logits: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        return weights * (logits[:, -1, 12] - logits[:, -1, 13])

    for budget in (1, 2048):
        options = {"steps": 4, "max_batch_tokens": budget}
        found = attribute(case, "integrated_gradients", target=la.Metric(weighted), **options)
        want = attribute(case, "integrated_gradients", **options)
        assert error(found.tokens, want.tokens * weights[:, None]) < 1e-12
    assert set(shapes) == {(2, 7, tiny.VOCAB)}


def test_baselines_of_every_kind() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    model = tiny.model(*case, EXACT)
    vector = resolve(model).token_embedding(BASELINE)
    want = attribute(case, "integrated_gradients", steps=3).tokens
    given = [f" w{BASELINE}", vector, vector.expand(7, 32), vector.expand(2, 7, 32)]
    for baseline in given:
        assert (
            error(attribute(case, "integrated_gradients", steps=3, baseline=baseline).tokens, want)
            == 0
        )
    per_row = torch.stack([vector.expand(7, 32), torch.zeros(7, 32)])
    whole = attribute(case, "integrated_gradients", steps=3, baseline=per_row)
    rows = attribute(case, "integrated_gradients", steps=3, baseline=per_row, batch_size=1)
    assert error(whole.tokens[:1], want[:1]) < 1e-12 and error(whole.tokens, rows.tokens) < 1e-12
    pad = attribute(case, "integrated_gradients", steps=3, baseline="pad")
    assert torch.equal(
        pad.tokens, attribute(case, "integrated_gradients", steps=3, baseline=PAD).tokens
    )
    assert error(pad.tokens, want) > 0.1


def test_a_tokenizer_without_a_pad_token_has_no_pad_baseline() -> None:
    model = small.fresh(small.GPT2[0])
    model.tokenizer = None
    with pytest.raises(la.InputError, match="no pad token"):
        la.attribute(model, IDS["gpt2"], la.Logit(6), "integrated_gradients", baseline="pad")


# --------------------------------------------------------------------------------------------- IGCG


def blocks_of(model: Any, family: str) -> Any:
    return {
        "gpt2": lambda: model.transformer.h,
        "llama": lambda: model.model.layers,
        "bert": lambda: model.bert.encoder.layer,
    }[family]()


THREE = tiny.on_backends(["gpt2", "llama", "bert"])


@pytest.mark.parametrize("case", THREE, ids=tiny.case_id)
def test_clamped_blocks_equal_the_literal_clamp(case: tuple[str, str]) -> None:
    low, high = -0.02, 0.05
    result = attribute(case, "ig_clipped", steps=4, theta_minus=low, theta_plus=high)
    with tiny.precision(EXACT):
        model, score, x, x0 = reference(case[0])
        with literal.clamped(blocks_of(model, case[0]), low, high):
            want = literal.integrated_gradients(score, x, x0, "gauss_legendre", 4)
        free = literal.integrated_gradients(score, x, x0, "gauss_legendre", 4)
    assert error(result.tokens[0], want) < 1e-9
    assert error(result.tokens[0], free) > 0.1


@pytest.mark.parametrize("case", THREE, ids=tiny.case_id)
@pytest.mark.parametrize("where", ["blocks", "input"])
def test_infinite_bounds_are_integrated_gradients_bit_by_bit(
    case: tuple[str, str], where: str
) -> None:
    plain = attribute(case, "integrated_gradients", steps=4)
    free = attribute(case, "ig_clipped", steps=4, theta_plus=math.inf, where=where)
    assert torch.equal(free.tokens, plain.tokens)
    low = attribute(case, "ig_clipped", steps=4, theta_plus=1e-3, where=where)
    assert error(low.tokens, plain.tokens) > 0.05


def test_the_weaker_reading_clamps_what_arrives_at_the_input() -> None:
    case, bounds = THREE[0], (-0.5, 0.8)
    result = attribute(
        case, "ig_clipped", steps=4, theta_minus=bounds[0], theta_plus=bounds[1], where="input"
    )
    with tiny.precision(EXACT):
        _, score, x, x0 = reference(case[0])
        want = literal.integrated_gradients(
            score, x, x0, "gauss_legendre", 4, lambda g: g.clamp(*bounds)
        )
    assert error(result.tokens[0], want) < 1e-9
    default = attribute(case, "ig_clipped", steps=4, where="input")
    assert torch.equal(default.tokens, attribute(case, "integrated_gradients", steps=4).tokens)


def test_the_clamp_is_a_rule_like_any_other() -> None:
    case = THREE[0]
    rules = la.rules.gradient() + la.rules.ClampGradient(high=0.01, layers=[1])
    clamped = attribute(case, rules)
    assert error(clamped.tokens, attribute(case, "gradient_x_input").tokens) > 0.01
    assert la.check(tiny.model(*case), rules).accepted


def test_results_with_infinite_bounds_survive_saving(tmp_path: Path) -> None:
    result = attribute(THREE[0], "ig_clipped", steps=2)
    loaded = la.Relevance.load(result.save(tmp_path / "saved"))
    assert loaded.metadata["theta_minus"] == -math.inf
    assert torch.equal(loaded.extra["completeness_gap"], result.extra["completeness_gap"])


# ----------------------------------------------------------------------------------------- GradSHAP


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama", "bert"]), ids=tiny.case_id)
def test_gradient_shap_without_noise_estimates_integrated_gradients(case: tuple[str, str]) -> None:
    exact = attribute(case, "integrated_gradients", steps=100)
    found = attribute(case, "gradient_shap", n_samples=400, noise=0.0)
    standard_error = found.extra["standard_error"]
    assert bool(((found.tokens - exact.tokens).abs() < 4.5 * standard_error).all())
    few = attribute(case, "gradient_shap", n_samples=25, noise=0.0).extra["standard_error"]
    assert 2 < float(few.mean() / standard_error.mean()) < 8  # sqrt(400 / 25) = 4
    noisy = attribute(case, "gradient_shap", n_samples=400, noise=1.0)
    assert error(noisy.tokens, exact.tokens) > 0.05


def test_the_seed_decides_and_nothing_else() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    before = torch.get_rng_state()
    options = {"n_samples": 6, "noise": 0.3}
    one = attribute(case, "gradient_shap", **options)
    torch.rand(3)
    again = attribute(case, "gradient_shap", **options)
    assert torch.equal(one.tokens, again.tokens)
    small_budget = attribute(case, "gradient_shap", max_batch_tokens=1, **options)
    assert error(small_budget.tokens, one.tokens) < 1e-12
    assert error(attribute(case, "gradient_shap", seed=1, **options).tokens, one.tokens) > 0.01
    torch.set_rng_state(before)
    attribute(case, "gradient_shap", **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_set_of_baselines_is_drawn_from() -> None:
    case = tiny.on_backends(["gpt2"])[0]
    options = {"n_samples": 200, "noise": 0.0}
    alone = attribute(case, "gradient_shap", n_samples=5, noise=0.0)
    of_one = attribute(
        case, "gradient_shap", baseline=None, baselines=[BASELINE], n_samples=5, noise=0.0
    )
    assert torch.equal(alone.tokens, of_one.tokens)
    mixed = attribute(case, "gradient_shap", baseline=None, baselines=[7, "pad", None], **options)
    each = [attribute(case, "integrated_gradients", baseline=b) for b in (7, "pad", None)]
    mean = torch.stack([result.tokens for result in each]).mean(0)
    assert bool(((mixed.tokens - mean).abs() < 4.5 * mixed.extra["standard_error"]).all())


# ------------------------------------------------------------------------- contracts and bad input


@pytest.mark.parametrize("name", small.EVERY)
@pytest.mark.parametrize("method", PATHS)
def test_nothing_is_left_on_the_model_and_no_grad_is_no_obstacle(name: str, method: str) -> None:
    model = small.fresh(name)
    options = small_count(method)
    want = la.attribute(model, small.text(name), la.Logit(6), method, baseline=" w9", **options)
    before = small.world(model)
    with torch.no_grad():
        found = la.attribute(
            model, small.text(name), la.Logit(6), method, baseline=" w9", **options
        )
    with pytest.raises(RuntimeError, match="stop"), ExitStack() as stack:
        point: Point = resolve(model).points("residual")[1]
        point.on_forward(stop_at(3), stack)
        la.attribute(model, small.text(name), la.Logit(6), method, max_batch_tokens=1, **options)
    assert small.world(model) == before
    assert torch.equal(found.tokens, want.tokens)


def stop_at(call: int) -> Any:
    """A hook that raises the n-th time."""
    calls: list[int] = []

    def hook(_: Tensor) -> None:
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("stop")

    return hook


NAN = float("nan")
BAD = {
    "no steps": (
        "integrated_gradients",
        {"steps": 0},
        "steps must be a whole number of at least 1",
    ),
    "half a step": ("integrated_gradients", {"steps": 1.5}, "steps must be a whole number"),
    "true steps": ("integrated_gradients", {"steps": True}, "steps must be a whole number"),
    "rule": ("integrated_gradients", {"quadrature": "gauss"}, "did you mean 'gauss_legendre'"),
    "budget": ("integrated_gradients", {"max_batch_tokens": 0}, "max_batch_tokens must be"),
    "embeddings": ("integrated_gradients", {"embeddings": "all"}, "'full' or 'token'"),
    "option": ("integrated_gradients", {"step": 3}, "no option 'step'; did you mean 'steps'"),
    "shape": ("integrated_gradients", {"baseline": torch.zeros(3)}, r"\[3\] does not fit"),
    "where": ("ig_clipped", {"where": "block"}, "where must be 'blocks' or 'input'"),
    "bounds": (
        "ig_clipped",
        {"theta_minus": 2.0, "theta_plus": 1.0},
        "theta_minus must not exceed theta_plus",
    ),
    "nothing between": ("ig_clipped", {"theta_plus": -math.inf}, "some number must lie between"),
    "nan bound": ("ig_clipped", {"theta_plus": NAN}, "theta_plus must be a number"),
    "one sample": ("gradient_shap", {"n_samples": 1}, "n_samples must be.*at least 2, got 1"),
    "seed": ("gradient_shap", {"seed": -1}, "seed must be"),
    "noise": ("gradient_shap", {"noise": -0.1}, "noise must be a number from 0"),
    "nan noise": ("gradient_shap", {"noise": NAN}, "noise must be a number from 0"),
    "no baselines": ("gradient_shap", {"baselines": []}, "list of one or more"),
    "a string": ("gradient_shap", {"baselines": "w5"}, "list of one or more"),
    "both": ("gradient_shap", {"baselines": [5], "baseline": 5}, "not both"),
    "misfit": ("gradient_shap", {"baselines": [torch.zeros(3)]}, r"\[3\] does not fit"),
    "bad one": ("gradient_shap", {"baselines": [3.5]}, "got float"),
}


@pytest.mark.parametrize(("method", "options", "message"), BAD.values(), ids=list(BAD))
def test_bad_input(method: str, options: dict[str, Any], message: str) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        la.attribute(small.model(small.GPT2[0]), "w5 w9", la.Logit(6), method, **options)


def test_numpy_is_not_asked_for_random_numbers() -> None:
    before = np.random.get_state()[1].tolist()
    attribute(tiny.on_backends(["gpt2"])[0], "gradient_shap", n_samples=2)
    assert np.random.get_state()[1].tolist() == before
