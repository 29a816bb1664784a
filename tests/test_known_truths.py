"""Models built by hand (`handmade`): do the tools find the mechanism that is known to be there?"""

from __future__ import annotations

import math
from functools import cache

import handmade
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from handmade import COPY_CIRCUIT, INDUCTION_CIRCUIT
from tiny import EXACT

import lens_attr as la
from lens_attr.circuits import (
    Circuit,
    EdgeScores,
    SelfRepair,
    auroc,
    edge_scores,
    evaluate,
    exact_edge_effects,
    extract,
    random_edges,
    self_repair,
)

SAYS_2 = la.LogitDiff(2, 3)
FIND_IT = ["eap", "eap_ig", "relp", "gim", "attnlrp"]
"""Methods whose gradient passes the softmax; LRP holds the attention pattern constant."""

GAPS = range(11)
TEMPERATURES = (1.0, 1.5, 2.0, 4.0, 8.0)

every_backend = pytest.mark.parametrize("backend", tiny.BACKENDS)


@cache
def induction_scores(backend: str, method: str) -> EdgeScores:
    inputs = handmade.INDUCTION_CLEAN, handmade.INDUCTION_CORRUPTED
    with tiny.precision(EXACT):
        model = handmade.induction(backend)
        if method == "exact":
            return exact_edge_effects(model, *inputs, SAYS_2)
        return edge_scores(model, *inputs, SAYS_2, method)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------- induction heads


@every_backend
def test_the_induction_model_does_induction(backend: str) -> None:
    with tiny.precision(EXACT), torch.no_grad():
        model = handmade.induction(backend)
        clean = model(handmade.INDUCTION_CLEAN)[:, -1]
        corrupted = model(handmade.INDUCTION_CORRUPTED)[:, -1]
    assert clean.argmax(dim=-1).tolist() == [2, 2, 2]
    assert corrupted[1].argmax() == 3
    assert float((clean[0] - corrupted[0])[2]) > 1  # without the earlier 1, no induction


@every_backend
@pytest.mark.parametrize("method", [*FIND_IT, "exact"])
def test_the_induction_circuit_is_recovered(backend: str, method: str) -> None:
    scores = induction_scores(backend, method)
    assert auroc(scores, INDUCTION_CIRCUIT) == 1.0
    assert set(extract(scores, 5).edges) == set(INDUCTION_CIRCUIT)
    assert set(extract(scores, 5, by="greedy").edges) == set(INDUCTION_CIRCUIT)
    assert set(extract(scores, 5, ordering="signed").edges) == set(INDUCTION_CIRCUIT)


@every_backend
def test_constant_attention_misses_the_half_that_attends(backend: str) -> None:
    """Negative control: under LRP no relevance reaches queries and keys."""
    scores = induction_scores(backend, "lrp")
    found = {edge for edge in INDUCTION_CIRCUIT if abs(scores[edge]) > 1e-6}
    assert found == {("input", "a1.h0<v>"), ("a1.h0", "logits")}
    assert auroc(scores, INDUCTION_CIRCUIT) < 0.8


def test_a_random_order_does_not_find_it() -> None:
    wiring = induction_scores(tiny.BACKENDS[0], "eap").wiring
    chance = [auroc(random_edges(wiring, seed), INDUCTION_CIRCUIT) for seed in range(20)]
    assert 0.35 < float(np.mean(chance)) < 0.65 and max(chance) < 1


@every_backend
def test_the_circuit_alone_does_the_task(backend: str) -> None:
    inputs = handmade.INDUCTION_CLEAN, handmade.INDUCTION_CORRUPTED
    wiring = induction_scores(backend, "eap").wiring
    with tiny.precision(EXACT):
        model = handmade.induction(backend)
        whole = evaluate(model, Circuit.of_edges(wiring, INDUCTION_CIRCUIT), *inputs, SAYS_2)
        assert whole.faithfulness == pytest.approx(1.0, abs=2e-3)
        for left_out in INDUCTION_CIRCUIT:
            rest = [edge for edge in INDUCTION_CIRCUIT if edge != left_out]
            cut = evaluate(model, Circuit.of_edges(wiring, rest), *inputs, SAYS_2)
            assert cut.faithfulness < 0.9


# ---------------------------------------------------------------------------------- copying heads


@every_backend
@pytest.mark.parametrize("method", ["eap", "eap_ig", "relp", "gim", "attnlrp", "lrp"])
def test_a_decoy_that_writes_elsewhere_is_not_taken(backend: str, method: str) -> None:
    """Same input, same attention, ten times the output: but nothing reads it."""
    clean, corrupted = torch.tensor([[2, 5, 6, 7]]), torch.tensor([[3, 5, 6, 7]])
    with tiny.precision(EXACT):
        model = handmade.copying(backend)
        args = (model, clean, corrupted, SAYS_2)
        scores = edge_scores(*args, method)  # type: ignore[arg-type]
        relevance = la.attribute(model, clean, SAYS_2, "gradient_x_input", record=["z"])
    assert auroc(scores, COPY_CIRCUIT) == 1.0
    assert abs(scores["a0.h1", "logits"]) < 0.01 * abs(scores["a0.h0", "logits"])
    own, decoy = relevance.records["z"][0, 0].sum(dim=(0, 2)).tolist()
    assert abs(decoy) < 0.01 * abs(own)


# --------------------------------------------------------------------- gates in one attention row


@cache
def ablations(kind: str, gap: int, backend: str) -> SelfRepair:
    """Exact ablations of the asking row, and predictions at every temperature."""
    tsg = {f"T={t}": la.rules.gradient(temperature=t) for t in TEMPERATURES}
    methods = [la.rules.RuleSet(rules.rules, name) for name, rules in tsg.items()]
    with tiny.precision(EXACT):
        return self_repair(
            handmade.gate(kind, float(gap), backend),
            handmade.GATE_IDS,
            la.LogitDiff(4, 0),
            methods=[*methods, "gim"],
            heads=[0],
            thresholds=(0.0,),
        )


def exact_and_predicted(kind: str, gap: int, backend: str) -> dict[str, float]:
    """Effect of ablating A, of both keys, and what each method predicts for A."""
    found = ablations(kind, gap, backend)
    of_a = found.singles.query("key == 1").iloc[0]
    row = {"gap": gap, "single": of_a.effect}
    pair = found.pairs.query("key_1 == 1 and key_2 == 4")
    skipped = 0.0 if found.n_skipped else float("nan")
    row["joint"] = pair.effect_both.iloc[0] if len(pair) else skipped
    return row | {method: of_a[method] for method in found.methods}


def attention_on(keys: float, others: float) -> float:
    return keys / (keys + others)


def test_ablations_of_the_or_gate_by_hand() -> None:
    """y = 0.98 .. 1 x attention on A and B; an ablated score becomes the mean of the row."""
    gap = 4
    mean = 2 * gap / 8
    whole = attention_on(2 * math.exp(gap), 6)
    one = attention_on(math.exp(gap) + math.exp(mean), 6)
    both = attention_on(2 * math.exp(mean), 6)
    got = exact_and_predicted("or", gap, tiny.BACKENDS[0])
    assert got["single"] == pytest.approx(one - whole, rel=2e-3)
    assert got["joint"] == pytest.approx(both - whole, rel=2e-3)
    p = whole / 2
    slope = p * (1 - 2 * p)
    assert got["T=1.0"] == pytest.approx((mean - gap) * slope, rel=5e-3)
    raised = math.exp(gap / 2)
    tempered = raised / (2 * raised + 6)
    tempered_slope = tempered * (1 - 2 * tempered)
    assert got["T=2.0"] == pytest.approx((mean - gap) * tempered_slope, rel=5e-3)


@every_backend
def test_the_or_gate_table(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """TSG alone is closer to half the joint effect than the gradient, at every gap from 2 on."""
    rows = [exact_and_predicted("or", gap, backend) for gap in GAPS]
    table = pd.DataFrame(rows).assign(half_joint=lambda t: t.joint / 2)
    table["T=2 / half"] = table["T=2.0"] / table.half_joint
    with capsys.disabled():
        print(f"\nOR-gate on {backend}: effect of ablating one of two equal keys, and predictions")
        print(table.round(4).to_string(index=False))
    far = table[table.gap >= 2]
    assert ((far["T=2.0"] - far.half_joint).abs() < (far["T=1.0"] - far.half_joint).abs()).all()
    # Exact single ablation sees it as little as the gradient does: self-repair.
    assert (far.single.abs() < far.half_joint.abs()).all()
    repaired = ablations("or", 6, backend).to_pandas().interaction
    assert float(repaired.iloc[0]) > 0.9
    # T = 2 does not find all of it at every gap, and the table says where.
    assert (far["T=2 / half"] < 1).any()


def test_equal_scores_leave_nothing_to_ablate() -> None:
    found = ablations("or", 0, tiny.BACKENDS[0])
    assert found.pairs.empty and found.n_skipped == 1
    assert found.singles.effect.abs().max() < 1e-9


@every_backend
def test_the_and_gate_and_the_single_key(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: where one key is as good as both, or alone, what does TSG do?"""
    both = pd.DataFrame([exact_and_predicted("and", gap, backend) for gap in GAPS[2:]])
    one = pd.DataFrame([exact_and_predicted("single", gap, backend) for gap in GAPS[2:]])
    with capsys.disabled():
        print(f"\nAND-gate on {backend}")
        print(both.round(4).to_string(index=False))
        print("single key")
        print(one.drop(columns="joint").round(4).to_string(index=False))
    # AND: either key alone is the whole effect, and TSG overshoots it more than the gradient.
    early = both[both.gap <= 4]
    np.testing.assert_allclose(early.single, early.joint, rtol=0.1)
    worse = (both["T=2.0"] - both.single).abs() > (both["T=1.0"] - both.single).abs()
    assert worse.all()
    interaction = ablations("and", 2, backend).to_pandas().interaction.iloc[0]
    assert interaction == pytest.approx(-1.0, abs=0.01)
    # A single key repairs nothing; a saturated softmax still hides it from the gradient.
    saturated = one[one.gap >= 5]
    nearer = (saturated["T=2.0"] - saturated.single).abs() < (
        saturated["T=1.0"] - saturated.single
    ).abs()
    assert nearer.all()


def test_gim_is_a_quarter_of_tsg_here() -> None:
    """GIM halves the pattern and z besides: its scores rank keys, they do not predict effects."""
    row = exact_and_predicted("or", 5, tiny.BACKENDS[0])
    assert row["gim"] == pytest.approx(row["T=2.0"] / 4, rel=1e-3)
