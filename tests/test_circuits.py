"""Ranking and pruning heads: every number against a loop anyone can read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import small
import tiny
import torch
from torch import Tensor, nn

import lens_attr as la
from lens_attr.circuits import (
    PruningComparison,
    PruningCurve,
    Ranking,
    compare_pruning,
    head_scores,
    prune,
    random_ranking,
    rank_heads,
)

N_LAYERS, N_HEADS = 2, 4
HEADS = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]

SAMPLES = [
    la.Sample("w5 w9 w12 w7", " w6", " w8", suffix=" w20"),
    la.Sample("w30 w31", " w40", " w41"),
    la.Sample("w8 w7 w6 w5 w11", " w20", " w33"),
    la.Sample("w50 w9 w20", " w6", " w11", suffix=" w5 w6"),
    la.Sample("w14", " w22", " w21"),
]
RANKING = random_ranking(N_LAYERS, N_HEADS, seed=3)

every_model = pytest.mark.parametrize("name", small.EVERY)
gpt2_models = pytest.mark.parametrize("name", small.GPT2)


@cache
def inputs(name: str) -> list[tuple[Tensor, int, int, int]]:
    """Ids, explained position, answer and foil of every sample, one by one."""
    model, found = small.model(name), []
    for sample in SAMPLES:
        r = la.attribute(model, *la.sample_inputs(model, [sample]))
        answer, foil = (int(word.removeprefix(" w")) for word in (sample.answer, sample.foil))
        found.append((r.token_ids, int(r.position), answer, foil))
    return found


def logit_diffs(name: str, hooks: list[tuple[str, Callable[..., Tensor]]]) -> np.ndarray:
    """Answer - foil of every sample, one plain forward each, with forward hooks of one's own."""
    found = []
    with torch.no_grad(), small.model(name).hooks(fwd_hooks=hooks):
        for ids, position, answer, foil in inputs(name):
            logits = small.model(name)(ids)[0, position]
            found.append(float(logits[answer] - logits[foil]))
    return np.array(found)


def set_heads(heads: list[tuple[int, int]], value: Tensor | None = None) -> list[Any]:
    """Hooks that overwrite z of some heads, by zero or by ``value`` [layer, head, d_head]."""

    def hook_of(layer: int, head: int) -> Callable[..., Tensor]:
        def overwrite(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, head] = 0.0 if value is None else value[layer, head]
            return z

        return overwrite

    return [(f"blocks.{layer}.attn.hook_z", hook_of(layer, head)) for layer, head in heads]


# ------------------------------------------------------------------------------ rankings


def relevance_of(head_tokens: Tensor, method: str = "by hand") -> la.Relevance:
    """A result with the given head relevance [batch, layer, pos, head] and nothing else."""
    batch, _, length, _ = head_tokens.shape
    return la.Relevance(
        tokens=torch.zeros(batch, length),
        token_ids=torch.zeros(batch, length, dtype=torch.long),
        attention_mask=torch.ones(batch, length, dtype=torch.bool),
        str_tokens=[["x"] * length] * batch,
        target_value=torch.zeros(batch),
        target=["target"] * batch,
        position=torch.full((batch,), length - 1),
        method=method,
        head_tokens=head_tokens,
        heads_relu_dim=10 * head_tokens.sum(dim=2),
    )


BY_HAND = torch.tensor(
    [
        [[[1.0, -2.0], [3.0, 1.0]]],  # example 0, layer 0: two positions of two heads
        [[[-5.0, 4.0], [1.0, 0.0]]],
    ]
)


@pytest.mark.parametrize(
    ("pool", "scores"),
    [("sum", [[0.0, 1.5]]), ("relu_token", [[2.5, 2.5]]), ("relu_dim", [[0.0, 15.0]])],
)
def test_rank_heads_by_hand(pool: Any, scores: list[list[float]]) -> None:
    ranking = rank_heads(relevance_of(BY_HAND), pool)
    assert ranking.scores.tolist() == scores
    assert (ranking.method, ranking.pool, ranking.n) == ("by hand", pool, 2)


def test_rank_heads_takes_batches() -> None:
    """The mean is over examples, not over batches."""
    batches = [relevance_of(BY_HAND[:1]), relevance_of(BY_HAND[1:].repeat(3, 1, 1, 1))]
    ranking = rank_heads(iter(batches), "sum")
    assert ranking.scores.tolist() == [[(4 - 3 * 4) / 4, (-1 + 3 * 4) / 4]]
    assert ranking.n == 4


def test_order_is_least_relevant_first_and_ties_keep_layer_head_order() -> None:
    ranking = Ranking(np.array([[2.0, 0.0, 1.0], [0.0, -1.0, 2.0]]), "by hand")
    assert ranking.order == [(1, 1), (0, 1), (1, 0), (0, 2), (0, 0), (1, 2)]
    assert Ranking(np.zeros((2, 2)), "ties").order == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_ranking_to_pandas() -> None:
    frame = Ranking(np.array([[2.0, -1.0]]), "by hand", "sum").to_pandas()
    assert frame.to_dict("records") == [
        {"layer": 0, "head": 1, "score": -1.0, "rank": 0, "method": "by hand", "pool": "sum"},
        {"layer": 0, "head": 0, "score": 2.0, "rank": 1, "method": "by hand", "pool": "sum"},
    ]


def test_random_rankings_are_reproducible_permutations() -> None:
    first, again, other = (random_ranking(3, 5, seed) for seed in (0, 0, 1))
    assert first.order == again.order != other.order
    assert sorted(first.order) == [(layer, head) for layer in range(3) for head in range(5)]
    assert first.method == "random seed 0"


@every_model
def test_head_scores_are_the_mean_over_samples(name: str) -> None:
    model = small.model(name)
    found = head_scores(model, SAMPLES, "lrp", "relu_token", batch_size=2, progress=False)
    singles = [la.attribute(model, *la.sample_inputs(model, [one]), "lrp") for one in SAMPLES]
    by_hand = torch.stack([r.heads("relu_token")[0] for r in singles]).mean(dim=0)
    np.testing.assert_allclose(found.scores, by_hand, rtol=1e-4, atol=1e-6)
    assert (found.method, found.pool, found.n) == ("lrp", "relu_token", len(SAMPLES))


@gpt2_models
def test_data_is_samples_or_texts_with_a_target(name: str) -> None:
    model = small.model(name)
    pair = la.sample_inputs(model, SAMPLES)
    as_samples, as_pair = head_scores(model, SAMPLES), head_scores(model, pair)
    assert np.array_equal(as_samples.scores, as_pair.scores)
    curves = [prune(model, data, RANKING) for data in (SAMPLES, tuple(SAMPLES), pair)]
    assert len({tuple(curve.logit_diff) for curve in curves}) == 1


# ------------------------------------------------------------------------------- pruning


@every_model
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_every_step_equals_a_literal_loop(name: str, ablation: Any) -> None:
    curve = prune(small.model(name), SAMPLES, RANKING, ablation=ablation, batch_size=2)
    value = mean_z(name) if ablation == "mean" else None
    for step in range(len(HEADS) + 1):
        by_hand = logit_diffs(name, set_heads(RANKING.order[:step], value))
        assert curve.logit_diff[step] == pytest.approx(by_hand.mean(), rel=1e-4, abs=1e-4)
        assert curve.accuracy[step] == (by_hand > 0).mean()
    assert curve.pruned == RANKING.order
    assert (curve.order, curve.ablation, curve.n) == ("least", ablation, len(SAMPLES))


def mean_z(name: str) -> Tensor:
    """Mean of z [layer, head, d_head] over every position of every sample."""
    seen: list[list[Tensor]] = [[] for _ in range(N_LAYERS)]

    def keeper(layer: int) -> Callable[..., None]:
        return lambda z, hook: seen[layer].append(z[0])

    hooks = [(f"blocks.{layer}.attn.hook_z", keeper(layer)) for layer in range(N_LAYERS)]
    logit_diffs(name, hooks)
    return torch.stack([torch.cat(rows).mean(dim=0) for rows in seen])


@every_model
def test_the_curve_runs_from_the_whole_model_to_no_heads(name: str) -> None:
    model = small.model(name)
    curve = prune(model, SAMPLES, RANKING)
    whole, none = logit_diffs(name, []), logit_diffs(name, set_heads(HEADS))
    assert len(curve.accuracy) == len(curve.logit_diff) == len(HEADS) + 1
    assert curve.accuracy[0] == (whole > 0).mean()
    assert curve.accuracy[-1] == (none > 0).mean()
    assert curve.logit_diff[0] == pytest.approx(whole.mean(), rel=1e-4)
    assert curve.logit_diff[-1] == pytest.approx(none.mean(), rel=1e-4)
    assert not np.allclose(whole, none, rtol=0.1)


@every_model
def test_most_relevant_first_is_the_reverse(name: str) -> None:
    model = small.model(name)
    reversed_ranking = Ranking(-RANKING.scores, "reversed")
    most = prune(model, SAMPLES, RANKING, order="most")
    assert most.pruned == RANKING.order[::-1] == reversed_ranking.order
    least = prune(model, SAMPLES, reversed_ranking)
    assert np.array_equal(most.logit_diff, least.logit_diff)


@every_model
def test_the_batch_size_does_not_matter(name: str) -> None:
    curves = [
        prune(small.model(name), SAMPLES, RANKING, ablation="mean", batch_size=size)
        for size in (1, 3, 256)
    ]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve.logit_diff, curves[0].logit_diff, rtol=1e-4, atol=1e-4)


@every_model
def test_pruning_leaves_no_trace(name: str) -> None:
    model = small.model(name)
    prune(model, SAMPLES, RANKING, ablation="mean")
    before = small.world(model)
    prune(model, SAMPLES, RANKING, ablation="mean")
    head_scores(model, SAMPLES)
    after = small.world(model)
    assert [what for what in before if before[what] != after[what]] == []


@every_model
@pytest.mark.parametrize("forwards", [0, 1, 3])
def test_an_interrupted_pruning_leaves_no_trace(name: str, forwards: int) -> None:
    model = small.model(name)
    prune(model, SAMPLES, RANKING, ablation="mean")
    before = small.world(model)
    countdown = iter(range(forwards))

    def interrupt(z: Tensor, hook: Any) -> None:
        if next(countdown, None) is None:
            raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", interrupt)]):
        with pytest.raises(KeyboardInterrupt):
            prune(model, SAMPLES, RANKING, ablation="mean", batch_size=2)
    after = small.world(model)
    assert [what for what in before if before[what] != after[what]] == []


# -------------------------------------------------- a model where one head has the answer

CARRIER = (1, 2)


def only_one_head(model: Any) -> None:
    """Zero the output weights of every head but `CARRIER`."""
    for layer, block in enumerate(getattr(model, "transformer", model.base_model).h):
        keep_one_head(block.attn.c_proj.weight, layer)


def only_one_head_of_llama(model: Any) -> None:
    for layer, block in enumerate(model.model.layers):
        keep_one_head(block.self_attn.o_proj.weight.T, layer)


@torch.no_grad()
def keep_one_head(output: nn.Parameter | Tensor, layer: int) -> None:
    """``output`` is [head x d_head, d_model], a view of the weight."""
    d_head = len(output) // N_HEADS
    for head in range(N_HEADS):
        if (layer, head) != CARRIER:
            output[head * d_head : (head + 1) * d_head] = 0


EDITS = {"gpt2": only_one_head, "llama": only_one_head_of_llama}


@cache
def with_carrier(name: str) -> tuple[Any, list[la.Sample]]:
    """The model, and samples whose answer is above the foil with the carrier, below without."""
    family, backend = name.split("-")
    model, samples = tiny.fresh(family, backend, edit=EDITS[family]), []
    for text in ("w5 w9 w12 w7", "w30 w31 w32", "w8 w7 w6 w5 w11", "w50 w9 w20"):
        ids = la.attribute(model, text).token_ids
        with torch.no_grad():
            whole = model(ids)[0, -1]
            with model.hooks(fwd_hooks=set_heads([CARRIER])):
                without = model(ids)[0, -1]
        margin = torch.minimum(whole[:, None] - whole, without - without[:, None])
        margin[:5] = margin[:, :5] = -1  # no special tokens
        answer, foil = divmod(int(margin.argmax()), len(whole))
        assert margin.max() > 0.01
        samples.append(la.Sample(text, f" w{answer}", f" w{foil}"))
    return model, samples


@pytest.mark.parametrize("name", small.CAUSAL)
@pytest.mark.parametrize("method", ["gradient_x_input", "lrp", "attnlrp", "gim"])
def test_the_one_head_that_matters_is_found_and_pruned_last(name: str, method: str) -> None:
    model, samples = with_carrier(name)
    ranking = head_scores(model, samples, method, "relu_dim")
    others = [head for head in HEADS if head != CARRIER]
    assert ranking.order[-1] == CARRIER
    assert all(ranking.scores[head] == 0 for head in others)
    curve = prune(model, samples, ranking)
    assert curve.accuracy.tolist() == [1.0] * 8 + [0.0]
    assert curve.area == pytest.approx(1 - 1 / 16)
    reverse = prune(model, samples, Ranking(-ranking.scores, "reversed"))
    assert reverse.accuracy.tolist() == [1.0] + [0.0] * 8
    assert reverse.area == pytest.approx(1 / 16)


# ------------------------------------------------------------------- curves and summaries


def curve_of(accuracy: list[float], method: str = "by hand") -> PruningCurve:
    pruned = HEADS[: len(accuracy) - 1]
    return PruningCurve(np.array(accuracy), np.array(accuracy) - 0.5, pruned, method, n=4)


@pytest.mark.parametrize(
    ("accuracy", "area"),
    [
        ([1.0, 1.0, 1.0], 1.0),
        ([1.0, 0.5, 0.0], 0.5),
        ([1.0, 0.0, 0.0, 0.0], 1 / 6),
        ([1.0, 1.0, 1.0, 0.0], 5 / 6),
        ([0.8, 0.6], 0.7),
    ],
)
def test_area_in_closed_form(accuracy: list[float], area: float) -> None:
    curve = curve_of(accuracy)
    assert curve.area == pytest.approx(area)
    assert curve.fraction[0] == 0 and curve.fraction[-1] == 1


def test_curve_to_pandas() -> None:
    frame = curve_of([1.0, 0.5, 0.25]).to_pandas()
    assert frame["step"].tolist() == [0, 1, 2]
    assert frame["fraction"].tolist() == [0.0, 0.5, 1.0]
    assert frame["accuracy"].tolist() == [1.0, 0.5, 0.25]
    assert frame["logit_diff"].tolist() == [0.5, 0.0, -0.25]
    assert frame["layer"].isna().tolist() == [True, False, False]
    assert list(zip(frame["layer"][1:], frame["head"][1:], strict=True)) == [(0, 0), (0, 1)]


def test_summary_by_hand() -> None:
    """Above random: above the best seed, and above mean + 2 standard deviations."""
    chance = [curve_of([1.0, a, 0.0], f"random seed {i}") for i, a in enumerate([0.2, 0.4, 0.6])]
    areas = np.array([0.35, 0.45, 0.55])  # (1 + 2 a) / 4
    middling, good = curve_of([1.0, 0.8, 0.0], "middling"), curve_of([1.0, 1.0, 0.0], "good")
    comparison = PruningComparison([middling, good], chance)
    np.testing.assert_allclose(comparison.random_areas, areas)
    summary = comparison.summary()
    assert summary["method"].tolist() == ["good", "middling"]
    np.testing.assert_allclose(summary["area"], [0.75, 0.65])
    np.testing.assert_allclose(summary["random_mean"], [0.45, 0.45])
    np.testing.assert_allclose(summary["random_std"], [0.1, 0.1])
    np.testing.assert_allclose(summary["random_best"], [0.55, 0.55])
    assert summary["above_random"].tolist() == [True, False]  # 0.65 is no more than 0.45 + 0.2
    assert len(comparison.to_pandas()) == 5 * 3


@gpt2_models
def test_compare_pruning(name: str) -> None:
    model = small.model(name)
    rankings = [head_scores(model, SAMPLES, method) for method in ("lrp", "gim")]
    found, again = (compare_pruning(model, SAMPLES, rankings, seeds=4) for _ in range(2))
    assert [curve.method for curve in found.curves] == ["lrp", "gim"]
    assert [curve.method for curve in found.random] == [f"random seed {i}" for i in range(4)]
    assert np.array_equal(found.random_areas, again.random_areas)
    assert found.summary().equals(again.summary())
    for curve, seed in zip(found.random, range(4), strict=True):
        assert curve.pruned == random_ranking(N_LAYERS, N_HEADS, seed).order
    alone = prune(model, SAMPLES, rankings[0])
    assert np.array_equal(found.curves[0].logit_diff, alone.logit_diff)


@gpt2_models
@pytest.mark.parametrize("options", [{"ablation": "mean"}, {"order": "most"}])
def test_compare_pruning_hands_options_on(name: str, options: dict[str, Any]) -> None:
    found = compare_pruning(small.model(name), SAMPLES, [RANKING], seeds=2, **options)
    for curve in (*found.curves, *found.random):
        assert {key: getattr(curve, key) for key in options} == options


@gpt2_models
def test_compare_pruning_without_random_orders(name: str) -> None:
    found = compare_pruning(small.model(name), SAMPLES, [RANKING], seeds=0)
    assert len(found.random) == 0
    assert list(found.summary()) == ["method", "area", "n"]


@gpt2_models
@pytest.mark.filterwarnings("error:::numpy")
def test_one_random_order_has_no_spread(name: str) -> None:
    found = compare_pruning(small.model(name), SAMPLES, [RANKING], seeds=1)
    summary = found.summary()
    assert summary["random_std"].tolist() == [0.0]
    assert summary["above_random"].tolist() == [found.curves[0].area > found.random_areas[0]]


# -------------------------------------------------------------------------------- errors


def scores_of(*shape: int) -> Ranking:
    return Ranking(np.zeros(shape), "by hand")


TEXTS = ["w5 w9", "w30 w31"]
BAD = {
    "unknown order": (SAMPLES, RANKING, {"order": "lest"}, "order 'lest'; did you mean 'least'"),
    "unknown ablation": (SAMPLES, RANKING, {"ablation": "men"}, "'men'; did you mean 'mean'"),
    "another shape": (SAMPLES, scores_of(3, 4), {}, r"shape \(3, 4\), the model has \(2, 4\)"),
    "batch size": (SAMPLES, RANKING, {"batch_size": 0}, "batch_size must be a whole number"),
    "no samples": ([], RANKING, {}, "no samples"),
    "no foil": ((TEXTS, la.Logit(6)), RANKING, {}, r"answer and a foil.*la\.LogitDiff"),
    "no target": (TEXTS, RANKING, {}, r"list of la\.Sample, or a pair \(texts, target\)"),
}


@gpt2_models
@pytest.mark.parametrize(("data", "ranking", "options", "message"), BAD.values(), ids=list(BAD))
def test_what_pruning_refuses(
    name: str, data: Any, ranking: Ranking, options: dict[str, Any], message: str
) -> None:
    with small.untyped(), pytest.raises(la.InputError, match=message):
        prune(small.model(name), data, ranking, **options)


def test_what_ranking_refuses() -> None:
    one, other = relevance_of(BY_HAND, "lrp"), relevance_of(BY_HAND, "gim")
    with pytest.raises(la.InputError, match="no relevance to rank"):
        rank_heads([])
    with pytest.raises(la.InputError, match=r"different methods \(gim, lrp\)"):
        rank_heads([one, other])
    with pytest.raises(la.InputError, match="unknown pool 'relu'; did you mean"):
        rank_heads(one, "relu")  # type: ignore[arg-type]


@gpt2_models
def test_what_comparing_refuses(name: str) -> None:
    with pytest.raises(la.InputError, match=r"rankings must be .* got an empty list"):
        compare_pruning(small.model(name), SAMPLES, [])
    with pytest.raises(la.InputError, match="no samples"):
        head_scores(small.model(name), [])
