"""Pruning together what is obvious one by one: plans, units, resampling, ranked neurons."""

from __future__ import annotations

import tracemalloc
import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest
import small
import tiny
import torch
from torch import Tensor

import lens_attr as la
from lens_attr.circuits import (
    Ranking,
    compare_pruning,
    prune,
    random_ranking,
    rank_units,
    unit_scores,
)
from lens_attr.circuits.ablation import plan
from lens_attr.circuits.replacement import aligned, donors
from lens_attr.graph import resolve
from lens_attr.graph.tokens import tokenize

SAMPLES = [
    la.Sample("w5 w9 w12 w7", " w6", " w8", suffix=" w20"),
    la.Sample("w30 w31 w13 w40", " w40", " w41", suffix=" w9"),
    la.Sample("w8 w7 w6 w5 w11", " w20", " w33"),
    la.Sample("w50 w9 w20 w17", " w6", " w11", suffix=" w5"),
    la.Sample("w14", " w22", " w21"),
]
WIDTH = {"head": tiny.N_HEADS, "mlp": 1}
HOOK = {"head": "attn.hook_z", "mlp": "hook_mlp_out", "neuron": "mlp.hook_post"}

every_model = pytest.mark.parametrize("name", small.EVERY)
gpt2_models = pytest.mark.parametrize("name", small.GPT2)


def ranking_of(name: str, unit: Any) -> Ranking:
    width = WIDTH.get(unit) or small.model(name).cfg.d_mlp
    return random_ranking(tiny.N_LAYERS, width, 3, unit)


# --------------------------------------------------------------------------------- the plan


def sets_of(order: list[tuple[int, int]], shape: tuple[int, int]) -> Tensor:
    """Nothing removed, the first, the first two, ..."""
    sets = torch.zeros(len(order) + 1, *shape, dtype=torch.bool)
    for step, (layer, unit) in enumerate(order):
        sets[step + 1 :, layer, unit] = True
    return sets


def test_a_plan_is_small_however_many_neurons_there_are() -> None:
    """It keeps no copy of what is removed."""
    sets = torch.rand(200, 4, 5_000, generator=torch.Generator().manual_seed(0)) < 0.5
    tracemalloc.start()
    starts = plan(sets)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, starts)) == len(sets)
    assert most < sets.numel() / 4


@gpt2_models
def test_batches_are_explained_one_after_the_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No result is alive when the one after the next is made."""
    alive: list[int] = []
    made: list[Any] = []

    def explain(*args: Any, **options: Any) -> la.Relevance:
        alive.append(sum(one() is not None for one in made))
        found = la.attribute(*args, **options)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr("lens_attr.circuits.heads.attribute", explain)
    unit_scores(small.model(name), SAMPLES, "neuron", "lrp", batch_size=1)
    assert len(alive) == len(SAMPLES) > 2 and max(alive) <= 1


@gpt2_models
def test_curves_of_neurons_have_fifty_parts_unless_told_otherwise(name: str) -> None:
    neurons = ranking_of(name, "neuron")
    assert neurons.scores.size > 51
    assert len(prune(small.model(name), SAMPLES[:1], neurons).accuracy) == 51


def test_a_plan_by_hand() -> None:
    """Layer 0 changes once, so two runs start there; the others start where they differ."""
    starts = plan(sets_of([(1, 0), (0, 0), (1, 1), (2, 0)], (3, 2)))
    assert [[(run.set, run.source) for run in layer] for layer in starts] == [
        [(0, None), (2, None)],
        [(1, 0), (3, 2)],
        [(4, 3)],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_start_continues_a_run_that_agrees_below(seed: int) -> None:
    """And no block ever runs twice on the same input."""
    orders = [random_ranking(4, 3, seed + shift).order for shift in (0, 10)]
    sets = torch.cat([sets_of(order, (4, 3)) for order in orders]).unique(dim=0)
    starts, level = plan(sets), {}
    for layer, runs in enumerate(starts):
        for run in runs:
            level[run.set] = layer
            if layer > 0:
                assert run.source is not None and level[run.source] < layer
                assert torch.equal(sets[run.set, :layer], sets[run.source, :layer])
            else:
                assert run.source is None
    assert sorted(level) == list(range(len(sets)))
    blocks = sum(4 - layer for layer in level.values())
    prefixes = {row[:depth].numpy().tobytes() for depth in range(1, 5) for row in sets}
    assert blocks == len(prefixes)


# ------------------------------------------------------------------- units and replacements


@every_model
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("unit", ["head", "mlp", "neuron"])
def test_every_step_equals_a_plain_forward(name: str, unit: Any, ablation: Any) -> None:
    """Sample by sample, with hooks of one's own."""
    ranking = ranking_of(name, unit)
    curve = prune(small.model(name), SAMPLES, ranking, ablation=ablation, steps=6, seed=1)
    counts = np.linspace(0, ranking.scores.size, min(6, ranking.scores.size) + 1)
    assert len(curve.accuracy) == len(counts)
    values = replacements(name, unit, ablation)
    for step in (0, 1, len(counts) // 2, len(counts) - 1):
        gone = ranking.order[: round(float(counts[step]))]
        by_hand = np.array([pruned(name, unit, gone, i, values[i]) for i in range(len(SAMPLES))])
        assert curve.logit_diff[step] == pytest.approx(by_hand.mean(), rel=1e-4, abs=1e-4)
        assert curve.accuracy[step] == (by_hand > 0).mean()
    assert (curve.unit, curve.ablation) == (unit, ablation)


@cache
def explained(name: str, index: int) -> la.Relevance:
    model = small.model(name)
    return la.attribute(model, *la.sample_inputs(model, [SAMPLES[index]]), "gradient_x_input")


@cache
@torch.no_grad()
def activations_of(name: str, unit: str, index: int) -> list[Tensor]:
    """Per layer, [pos, ...]."""
    found: list[Tensor] = []
    ids = explained(name, index).token_ids
    hooks = [
        (f"blocks.{layer}.{HOOK[unit]}", lambda a, hook: found.append(a[0].clone()))
        for layer in range(tiny.N_LAYERS)
    ]
    with small.model(name).hooks(fwd_hooks=hooks):
        small.model(name)(ids)
    return found


def replacements(name: str, unit: str, ablation: str) -> list[list[Tensor]]:
    """What stands in, per sample and layer, [pos, ...]."""
    own = [activations_of(name, unit, i) for i in range(len(SAMPLES))]
    if ablation == "zero":
        return [[torch.zeros_like(a) for a in layers] for layers in own]
    if ablation == "mean":
        layers = range(tiny.N_LAYERS)
        means = [torch.cat([one[at] for one in own]).mean(dim=0) for at in layers]
        return [[mean.expand_as(a) for mean, a in zip(means, one, strict=True)] for one in own]
    texts, _ = la.sample_inputs(small.model(name), SAMPLES)
    batch = tokenize(resolve(small.model(name)), texts)
    given, lengths = donors(batch, seed=1), batch.lengths
    columns = [
        aligned(lengths[i], lengths[donor], torch.device("cpu")) for i, donor in enumerate(given)
    ]
    return [[a[columns[i]] for a in own[donor]] for i, donor in enumerate(given)]


@torch.no_grad()
def pruned(
    name: str, unit: str, gone: list[tuple[int, int]], index: int, values: list[Tensor]
) -> float:
    """Answer - foil of one sample in one plain forward."""

    def hook_of(layer: int) -> Any:
        units = [one for at, one in gone if at == layer]

        def put(activation: Tensor, hook: Any) -> Tensor | None:
            if not units:
                return None
            activation = activation.clone()
            if unit == "mlp":
                activation[0] = values[layer]
            else:
                activation[0, :, units] = values[layer][:, units].to(activation)
            return activation

        return (f"blocks.{layer}.{HOOK[unit]}", put)

    r = explained(name, index)
    answer, foil = (int(word[2:]) for word in (SAMPLES[index].answer, SAMPLES[index].foil))
    with small.model(name).hooks(fwd_hooks=[hook_of(layer) for layer in range(tiny.N_LAYERS)]):
        logits = small.model(name)(r.token_ids)[0, int(r.position)]
    return float(logits[answer] - logits[foil])


def test_donors_are_others_of_the_same_length_where_there_are_any() -> None:
    name = small.GPT2[0]
    batch = tokenize(resolve(small.model(name)), [sample.text for sample in SAMPLES])
    drawn = [donors(batch, seed) for seed in range(20)]
    for given in drawn:
        assert {given[i] for i in (0, 1, 3)} <= {0, 1, 3}
        assert all(donor != i for i, donor in enumerate(given))
        assert given[2] in (0, 1, 3) and given[4] in (0, 1, 3)  # the nearest length
    assert donors(batch, 7) == drawn[7] and len({tuple(given) for given in drawn}) > 5


@pytest.mark.parametrize(
    ("length", "given", "columns"),
    [(3, 3, [0, 1, 2]), (2, 4, [2, 3]), (4, 2, [0, 0, 0, 1])],
)
def test_alignment_counts_from_the_end(length: int, given: int, columns: list[int]) -> None:
    assert aligned(length, given, torch.device("cpu")).tolist() == columns


@gpt2_models
def test_nobody_to_resample_from(name: str) -> None:
    with pytest.raises(la.InputError, match="at least two"):
        prune(small.model(name), SAMPLES[:1], ranking_of(name, "head"), ablation="resample")


# --------------------------------------------------------------------------------- rankings


@every_model
@pytest.mark.parametrize("pool", ["sum", "relu_token", "relu_dim"])
def test_mlp_and_neuron_scores_are_pooled_like_heads(name: str, pool: Any) -> None:
    model = small.model(name)
    r = la.attribute(model, *la.sample_inputs(model, SAMPLES), "lrp", record=["mlp_out", "neurons"])
    relu = torch.relu
    out, post = r.records["mlp_out"].double(), r.records["neurons"].double()
    by_hand = {
        "sum": (out.sum(-1).sum(-1), post.sum(-2)),
        "relu_token": (relu(out.sum(-1)).sum(-1), relu(post).sum(-2)),
        "relu_dim": (relu(out).sum(-1).sum(-1), relu(post).sum(-2)),
    }[pool]
    mlps, neurons = rank_units(r, "mlp", pool), rank_units([r], "neuron", pool)
    np.testing.assert_allclose(mlps.scores[:, 0], by_hand[0].mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(neurons.scores, by_hand[1].mean(0), rtol=1e-4, atol=1e-6)
    assert (mlps.unit, neurons.unit) == ("mlp", "neuron")
    again = unit_scores(model, SAMPLES, "neuron", "lrp", pool)
    np.testing.assert_allclose(again.scores, neurons.scores)
    for data in (SAMPLES, la.sample_inputs(model, SAMPLES)):
        halves = unit_scores(model, data, "neuron", "lrp", pool, batch_size=2)
        np.testing.assert_allclose(halves.scores, neurons.scores, rtol=1e-4, atol=1e-6)
        assert (halves.n, halves.method) == (len(SAMPLES), "lrp")


@gpt2_models
def test_tables_are_named_after_the_unit(name: str) -> None:
    model = small.model(name)
    neurons = ranking_of(name, "neuron")
    assert list(neurons.to_pandas())[:3] == ["layer", "neuron", "score"]
    assert list(ranking_of(name, "mlp").to_pandas())[:2] == ["layer", "score"]
    curve = prune(model, SAMPLES, neurons, steps=4)
    table, n = curve.to_pandas(), neurons.scores.size
    assert table["step"].tolist() == [0, n // 4, n // 2, 3 * n // 4, n]
    assert curve.fraction.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert (table["layer"][1], table["neuron"][1]) == neurons.order[n // 4 - 1]
    assert "mlp" not in prune(model, SAMPLES, ranking_of(name, "mlp")).to_pandas()
    assert (
        "neurons first"
        in compare_pruning(model, SAMPLES, [neurons], steps=4).plot().layout.title.text
    )


# -------------------------------------------------------------------------------- sharing


@gpt2_models
def test_comparing_shares_work_and_changes_nothing(name: str) -> None:
    model = small.model(name)
    forwards: list[int] = []
    count = lambda z, hook: forwards.append(len(z))  # noqa: E731
    rankings = [random_ranking(tiny.N_LAYERS, tiny.N_HEADS, seed) for seed in (5, 6)]
    last = f"blocks.{tiny.N_LAYERS - 1}.attn.hook_z"
    with model.hooks(fwd_hooks=[(last, count)]):
        together = compare_pruning(model, SAMPLES, rankings, seeds=0)
        shared = sum(forwards)
        forwards.clear()
        alone = [prune(model, SAMPLES, ranking) for ranking in rankings]
    assert shared < sum(forwards)
    for one, other in zip(together.curves, alone, strict=True):
        np.testing.assert_allclose(one.logit_diff, other.logit_diff, rtol=1e-5, atol=1e-6)


@gpt2_models
def test_what_is_refused(name: str) -> None:
    model, heads = small.model(name), ranking_of(name, "head")
    with pytest.raises(la.InputError, match="different units"):
        compare_pruning(model, SAMPLES, [heads, ranking_of(name, "mlp")])
    with small.untyped():
        relevance = la.attribute(model, "w5 w6")
        with pytest.raises(la.InputError, match=r"ranking must .*Ranking, got Relevance: .*rank"):
            prune(model, SAMPLES, relevance)  # type: ignore[arg-type]
        with pytest.raises(la.InputError, match=r"must be a list of .*Ranking, got a list w"):
            compare_pruning(model, SAMPLES, ["gim"])  # type: ignore[list-item]
    with pytest.raises(la.InputError, match="steps must be a whole number"):
        prune(model, SAMPLES, heads, steps=0)
    with pytest.raises(la.InputError, match=r"shape \(2, 4\), the model has \(2, 1\) mlps"):
        prune(model, SAMPLES, Ranking(heads.scores, "x", unit="mlp"))
    r = la.attribute(model, "w5 w6")
    with pytest.raises(la.InputError, match=r"neurons were not recorded.*record=\['neurons'\]"):
        rank_units(r, "neuron")
    with small.untyped(), pytest.raises(la.InputError, match="unknown unit 'heads'"):
        rank_units(r, "heads")  # type: ignore[arg-type]
