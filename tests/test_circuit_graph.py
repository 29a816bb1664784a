"""Circuits: extraction, pruning, exact evaluation, faithfulness, saving and drawing."""

from __future__ import annotations

import sys
from functools import cache
from itertools import pairwise
from typing import Any

import networkx
import numpy as np
import pytest
import small
import tiny
import torch
from test_edges import CLEAN, CORRUPTED, DIRECTION, masked
from tiny import EXACT, TARGET

import lens_attr as la
from lens_attr.circuits import (
    Circuit,
    CircuitEvaluation,
    EdgeScores,
    FaithfulnessComparison,
    FaithfulnessCurve,
    Wiring,
    auroc,
    compare_faithfulness,
    edge_scores,
    evaluate,
    exact_edge_effects,
    extract,
    faithfulness_curve,
    random_edges,
)

GPT2 = ("gpt2", tiny.BACKENDS[0])
LLAMA = ("llama", tiny.BACKENDS[0])
BY_HAND = Wiring(n_layers=2, n_heads=2, n_kv_heads=2)
GROUPED = Wiring(n_layers=2, n_heads=4, n_kv_heads=2)
CHAIN = [("input", "a0.h0<v>"), ("a0.h0", "a1.h1<k>"), ("a1.h1", "logits")]


@cache
def scored(case: tuple[str, str], method: str = "eap") -> EdgeScores:
    with tiny.precision(EXACT):
        return edge_scores(tiny.model(*case, EXACT), CLEAN, CORRUPTED, TARGET, method)  # type: ignore[arg-type]


def run(case: tuple[str, str], circuit: Circuit, **options: Any) -> CircuitEvaluation:
    with tiny.precision(EXACT):
        model = tiny.model(*case, EXACT)
        return evaluate(model, circuit, CLEAN, CORRUPTED, TARGET, **options)


def by_hand(edges: dict[tuple[str, str], float], wiring: Wiring = BY_HAND) -> EdgeScores:
    scores = np.zeros(wiring.exists.shape)
    for edge, score in edges.items():
        scores[wiring.edge(*edge)] = score
    return EdgeScores(wiring, scores, "by hand")


# -------------------------------------------------------------------------------------- the wiring


def test_the_wiring_is_that_of_the_paper() -> None:
    """As many edges as a two-layer model has, counted by hand."""
    # Layer 0: (q, k, v of 2 heads) x input, and the MLP x 3. Layer 1: 6 x 4 and 6. Logits: 7.
    assert BY_HAND.n_edges == 6 + 3 + 6 * 4 + 6 + 7
    assert [node.name for node in BY_HAND.sources] == [
        "input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1",
    ]  # fmt: skip
    parallel = Wiring(2, 2, 2, parallel=True)
    assert parallel.n_edges == BY_HAND.n_edges - 2 * 2
    attention_only = Wiring(2, 2, 2, mlps=False)
    assert attention_only.n_edges == 6 + 6 * 3 + 5
    with pytest.raises(la.InputError, match=r"m0 cannot read a1\.h0"):
        BY_HAND.edge("a1.h0", "m0")


def test_grouped_keys_and_values_are_shared() -> None:
    names = [receiver.name for receiver in GROUPED.receivers if receiver.layer == 1]
    assert names == [
        "a1.h0<q>", "a1.h1<q>", "a1.h2<q>", "a1.h3<q>",
        "a1.kv0<k>", "a1.kv1<k>", "a1.kv0<v>", "a1.kv1<v>", "m1",
    ]  # fmt: skip
    edges = [("input", "a0.kv1<v>"), ("a0.h3", "logits")]
    circuit = Circuit.of_edges(GROUPED, edges)
    assert circuit.pruned.edges == edges
    assert circuit.heads == [(0, 3)]  # h2 reads the same value but writes nothing here


# ----------------------------------------------------------------------------------- extraction


def test_top_takes_the_best_edges_anywhere() -> None:
    scores = by_hand({CHAIN[0]: -3.0, CHAIN[1]: 2.0, CHAIN[2]: -1.0, ("input", "m0"): 2.5})
    assert set(extract(scores, 3, prune=False).edges) == {*CHAIN[:2], ("input", "m0")}
    assert extract(scores, 3).edges == []  # none of these reaches the logits
    assert set(extract(scores, 4).edges) == set(CHAIN)  # input -> m0 leads nowhere


def test_signed_ordering_puts_supporting_edges_first() -> None:
    scores = by_hand({CHAIN[0]: -3.0, CHAIN[1]: 2.0, CHAIN[2]: -1.0})
    signed = extract(scores, 2, ordering="signed", prune=False)
    assert set(signed.edges) == {CHAIN[0], CHAIN[2]}
    assert signed.metadata["ordering"] == "signed"


def test_greedy_grows_from_the_logits() -> None:
    strong_but_apart = {("input", "m0"): 9.0, ("a0.h1", "m1"): 8.0}
    chain = dict(zip(CHAIN, (1.0, 2.0, 3.0), strict=True))
    scores = by_hand(chain | strong_but_apart)
    grown = extract(scores, 3, by="greedy")
    assert set(grown.edges) == set(CHAIN)
    assert not set(extract(scores, 3, by="top", prune=False).edges) & set(CHAIN[:2])


def test_all_edges_are_the_whole_model() -> None:
    scores = random_edges(GROUPED, seed=0)
    for by in ("top", "greedy"):
        assert len(extract(scores, GROUPED.n_edges, by=by)) == GROUPED.n_edges  # type: ignore[arg-type]
    assert extract(scores, 0).edges == []


def test_pruning_removes_dead_ends_of_both_kinds() -> None:
    dead = [("a0.h1", "a1.h1<q>"), ("input", "m1"), ("a0.h0", "a1.h0<v>")]
    circuit = Circuit.of_edges(BY_HAND, [*CHAIN, *dead])
    assert set(circuit.pruned.edges) == set(CHAIN)
    assert circuit.pruned.pruned.edges == circuit.pruned.edges


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_pruned_edges_never_mattered(case: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    wiring = scored(case).wiring
    for share in (0.15, 0.3, 0.5):
        kept = wiring.exists & (rng.random(wiring.exists.shape) < share)
        circuit = Circuit(wiring, kept, np.zeros(kept.shape))
        assert len(circuit.pruned) < len(circuit)
        full, pruned = run(case, circuit).circuit, run(case, circuit.pruned).circuit
        np.testing.assert_allclose(full, pruned, atol=1e-12)


# ------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("case", tiny.on_backends(["gpt2", "llama"]), ids=tiny.case_id)
def test_a_circuit_runs_as_the_masked_model_does(case: tuple[str, str]) -> None:
    """Against `reference.edges`, where every edge has a mask of its own."""
    reference = masked(case[0])
    rng = np.random.default_rng(1)
    edges = reference.edges()
    for share in (0.0, 0.2, 0.6, 0.95):
        inside = [edge for edge in edges if rng.random() < share]
        outside = [edge for edge in edges if edge not in set(inside)]
        got = run(case, Circuit.of_edges(scored(case).wiring, inside))
        pairs = zip(CLEAN, CORRUPTED, strict=True)
        want = [reference.patched(c, k, DIRECTION, outside) for c, k in pairs]
        np.testing.assert_allclose(got.circuit, want, rtol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "neox", "gptj"])
@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_everything_is_the_clean_run_and_nothing_the_corrupted(family: str, backend: str) -> None:
    case = (family, backend)
    wiring = scored(case).wiring
    whole = run(case, Circuit.whole(wiring))
    assert whole.circuit.tobytes() == whole.clean.tobytes()
    assert whole.faithfulness == 1.0 and whole.fraction == 1.0
    empty = run(case, Circuit.of_edges(wiring, []))
    np.testing.assert_allclose(empty.circuit, empty.corrupted, rtol=1e-10)
    assert abs(empty.faithfulness) < 1e-9
    assert abs(empty.clean - empty.corrupted).max() > 1e-3


def test_one_edge_outside_is_exact_edge_patching() -> None:
    with tiny.precision(EXACT):
        effects = exact_edge_effects(tiny.model(*LLAMA, EXACT), CLEAN, CORRUPTED, TARGET)
    edges = Circuit.whole(effects.wiring).edges
    for edge in edges[::7]:
        rest = Circuit.of_edges(effects.wiring, [other for other in edges if other != edge])
        result = run(LLAMA, rest)
        got = float((result.circuit - result.clean).mean())
        assert got == pytest.approx(effects[edge], abs=1e-10)


@pytest.mark.parametrize("name", small.CAUSAL)
def test_evaluation_of_a_padded_data_set(name: str) -> None:
    model = small.model(name)
    clean = ["w5 w9 w12 w7", "w30 w31", "w8 w7 w6 w5 w11"]
    corrupted = ["w5 w20 w12 w7", "w30 w33", "w8 w7 w9 w5 w11"]
    scores = edge_scores(model, clean, corrupted, TARGET)
    circuit = extract(scores, scores.wiring.n_edges // 2)
    together = evaluate(model, circuit, clean, corrupted, TARGET)
    singles = [
        evaluate(model, circuit, [c], [k], TARGET) for c, k in zip(clean, corrupted, strict=True)
    ]
    np.testing.assert_allclose(
        together.circuit, np.concatenate([one.circuit for one in singles]), atol=2e-5
    )
    batched = evaluate(model, circuit, clean, corrupted, TARGET, batch_size=2)
    np.testing.assert_allclose(batched.circuit, together.circuit, atol=2e-5)


def test_small_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = extract(scored(GPT2), 30)
    whole = run(GPT2, circuit).circuit
    monkeypatch.setattr("lens_attr.circuits.stream.CHUNK_FLOATS", 1)
    np.testing.assert_allclose(run(GPT2, circuit).circuit, whole, atol=1e-12)


@pytest.mark.parametrize("name", small.CAUSAL)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small.model(name)
    circuit = extract(edge_scores(model, CLEAN, CORRUPTED, TARGET), 20)
    before = small.world(model)
    evaluate(model, circuit, CLEAN, CORRUPTED, TARGET)
    assert small.world(model) == before


# ---------------------------------------------------------------------------- faithfulness curves


def curve(case: tuple[str, str], scores: EdgeScores, **options: Any) -> FaithfulnessCurve:
    with tiny.precision(EXACT):
        model = tiny.model(*case, EXACT)
        return faithfulness_curve(model, scores, CLEAN, CORRUPTED, TARGET, **options)


def evaluation(f: float, n_edges: int) -> CircuitEvaluation:
    one = np.ones(1)
    return CircuitEvaluation(f * one, one, 0 * one, n_edges, n_edges_model=100)


def test_cpr_and_cmd_by_hand() -> None:
    points = [evaluation(0.5, 10), evaluation(1.5, 50), evaluation(1.0, 100)]
    found = FaithfulnessCurve([20.0, 50.0, 100.0], points, "by hand")
    assert found.cpr == pytest.approx(0.4 * 1.0 + 0.5 * 1.25)
    assert found.cmd == pytest.approx(0.4 * 0.5 + 0.5 * 0.25)
    fixed = FaithfulnessCurve([20.0, 50.0, 100.0], points, "by hand", axis="percentage")
    assert fixed.cpr == pytest.approx(0.3 * 1.0 + 0.5 * 1.25)
    for curve, axis in ((found, "fraction"), (fixed, "percentage")):
        assert curve.headline.endswith(f"over the {axis} of edges")
        assert set(curve.to_pandas().axis) == {axis}
    both = FaithfulnessComparison([found, fixed])
    assert both.summary().set_index("cpr").axis.to_dict() == {
        found.cpr: "fraction",
        fixed.cpr: "percentage",
    }
    with pytest.raises(la.InputError, match="different axes"):
        both.plot()
    assert np.isnan(CircuitEvaluation(np.ones(1), np.ones(1), np.ones(1), 1, 2).faithfulness)


@pytest.mark.parametrize("sizes", [[10], [0, 0]])
def test_one_size_has_no_integral(sizes: list[int]) -> None:
    """Not zero, which would be the best CMD there is."""
    points = [evaluation(0.5, n) for n in sizes]
    found = FaithfulnessCurve([10.0, 20.0][: len(sizes)], points, "by hand")
    assert np.isnan(found.cpr) and np.isnan(found.cmd)
    assert "circuits of one size, so neither CPR nor CMD" in found.headline


def test_the_figure_draws_every_circuit_where_its_integral_has_it() -> None:
    """Random orders too; circuits without edges on a mark of their own."""
    points = [evaluation(0.5, 10), evaluation(1.0, 100)]
    lost = [evaluation(0.0, 0), evaluation(1.0, 100)]
    for axis, places in (("fraction", [0.0, 1.0]), ("percentage", [0.2, 1.0])):
        curves = [
            FaithfulnessCurve([20.0, 100.0], each, name, axis=axis)  # type: ignore[arg-type]
            for each, name in ((points, "eap"), (lost, "random seed 0"))
        ]
        figure = FaithfulnessComparison(curves[:1], curves[1:]).plot()
        random, method = figure.data
        assert list(method.x) == list(curves[0].x)
        drawn = [x if x else figure.layout.xaxis.tickvals[0] for x in places]
        assert list(random.x) == drawn and min(drawn) > 0
        assert f"(axis: {axis})" in figure.layout.xaxis.title.text
        if axis == "fraction":
            assert figure.layout.xaxis.ticktext[0] == "no edge" and drawn[0] < 0.01
            assert random.customdata[0] == "0 of 100 edges"


def test_a_curve_ends_at_the_whole_model() -> None:
    found = curve(GPT2, scored(GPT2))
    assert list(found.percentages) == [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    assert found.faithfulness[-1] == 1.0
    table = found.to_pandas()
    assert table.n_edges.is_monotonic_increasing and table.fraction.iloc[-1] == 1.0
    assert set(table.ordering) == {"absolute"}
    one = found.evaluations[7]
    again = run(GPT2, extract(scored(GPT2), round(0.2 * one.n_edges_model)))
    assert again.faithfulness == one.faithfulness


def test_rankings_beat_random_orders() -> None:
    with tiny.precision(EXACT):
        model = tiny.model(*GPT2, EXACT)
        args = (CLEAN, CORRUPTED, TARGET)
        truth = exact_edge_effects(model, *args)
        ranked = [scored(GPT2), scored(GPT2, "gim"), truth]
        found = compare_faithfulness(model, ranked, *args, by="greedy", seeds=3)
    summary = found.summary()
    assert set(summary.method) == {"eap", "gim", "exact (noise)"}
    best = summary.iloc[0]
    assert best.cmd < best.random_cmd
    assert len(found.to_pandas()) == 6 * 10
    figure = found.plot()
    assert len(figure.data) == 3 + 3
    assert any("CPR" in (trace.name or "") for trace in figure.data)


# ------------------------------------------------------------------------------------------ AUROC


def test_auroc_by_hand() -> None:
    scores = by_hand({CHAIN[0]: -3.0, CHAIN[1]: 2.0, CHAIN[2]: -1.0, ("input", "m0"): 2.5})
    others = BY_HAND.n_edges - 3
    assert auroc(scores, CHAIN) == pytest.approx((others * 3 - 2) / (3 * others))
    signed = (others + others + 0.0) / (3 * others)  # the chain's positive edge: above none but one
    assert auroc(scores, CHAIN, "signed") == pytest.approx(signed + 1 / (3 * others))
    assert auroc(by_hand({}), CHAIN) == 0.5  # all tied
    with pytest.raises(la.InputError, match="inside and outside"):
        auroc(scores, [])


def test_auroc_equals_the_pairwise_count() -> None:
    scores = random_edges(GROUPED, seed=4)
    rng = np.random.default_rng(0)
    known = Circuit(
        GROUPED, GROUPED.exists & (rng.random(GROUPED.exists.shape) < 0.3), scores.scores
    )
    values = np.abs(scores.scores)
    inside, rest = values[known.kept], values[GROUPED.exists & ~known.kept]
    want = np.mean([a > b for a in inside for b in rest])
    assert auroc(scores, known) == pytest.approx(float(want))


# ------------------------------------------------------------------------ the object, its figure


def test_a_circuit_survives_saving(tmp_path: Any) -> None:
    circuit = extract(scored(LLAMA), 25)
    again = Circuit.load(circuit.save(tmp_path / "c"))
    assert again.edges == circuit.edges and again.wiring == circuit.wiring
    assert again.to_pandas().equals(circuit.to_pandas())
    assert dict(again.metadata) == dict(circuit.metadata)
    (tmp_path / "c" / "circuit.json").write_text('{"format": 1, "wiring": {}}')
    with pytest.raises(la.SavedResultError, match="no saved Circuit"):
        Circuit.load(tmp_path / "c")
    (tmp_path / "c" / "circuit.json").write_text('{"format": 7}')
    with pytest.raises(la.SavedResultError, match="format"):
        Circuit.load(tmp_path / "c")


def test_nodes_are_listed() -> None:
    circuit = Circuit.of_edges(BY_HAND, [*CHAIN, ("input", "m0")])
    assert [node.name for node in circuit.nodes] == ["input", "a0.h0", "m0", "a1.h1", "logits"]
    assert circuit.heads == [(0, 0), (1, 1)]
    table = circuit.nodes_to_pandas()
    assert list(table.columns) == ["name", "kind", "layer", "head"]
    assert table["layer"].tolist()[1:4] == [0, 0, 1]


def test_to_networkx() -> None:
    graph = extract(scored(GPT2), 40).to_networkx()
    assert isinstance(graph, networkx.MultiDiGraph)
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.number_of_edges() == len(extract(scored(GPT2), 40))
    for node in graph:
        assert networkx.has_path(graph, "input", node) and networkx.has_path(graph, node, "logits")


def test_without_networkx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(la.InputError, match=r"pip install 'lens-attr\[networkx\]'"):
        Circuit.of_edges(BY_HAND, CHAIN).to_networkx()


def test_the_figure_shows_every_edge() -> None:
    circuit = extract(scored(LLAMA), 30)
    figure = circuit.plot()
    hover = next(t for t in figure.data if t.mode == "markers")
    named = {row[0] for row in hover.customdata}
    assert named == {f"{s} to {t}" for s, t in circuit.edges}
    nodes = next(t for t in figure.data if t.mode == "markers+text")
    names = [row[0] for row in nodes.customdata]
    assert names == [node.name for node in circuit.nodes]
    heights = dict(zip(names, nodes.y, strict=True))
    assert heights["input"] == 0 and heights["logits"] == max(nodes.y)
    layers = [heights[n.name] for n in circuit.nodes if n.kind == "head" and n.layer == 1]
    assert all(low < high for low, high in pairwise([0.0, 1.0, *layers[:1], heights["logits"]]))
    widths = [t.line.width for t in figure.data if t.mode == "lines"]
    assert max(widths) == 8.0
    assert len(scored(LLAMA).plot(n=10).data) > 2
    with pytest.raises(la.InputError, match="0 edges"):
        Circuit.of_edges(BY_HAND, []).plot()
    dead = extract(by_hand({CHAIN[0]: 3.0, CHAIN[1]: 2.0}), 2)
    with pytest.raises(la.InputError, match=r"all 2 chosen are dead ends.*Extract more"):
        dead.plot()


# -------------------------------------------------------------------------------------- refusals


def test_what_is_refused() -> None:
    scores = random_edges(BY_HAND, seed=0)
    with pytest.raises(la.InputError, match="n must be from 0 to 46"):
        extract(scores, 47)
    with pytest.raises(la.InputError, match="unknown by 'gredy'; did you mean 'greedy'"):
        extract(scores, 4, by="gredy")  # type: ignore[arg-type]
    with pytest.raises(la.InputError, match="unknown ordering"):
        extract(scores, 4, ordering="sined")  # type: ignore[arg-type]
    with pytest.raises(la.InputError, match="model of another shape"):
        evaluate(small.model(small.GPT2[0]), Circuit.whole(BY_HAND), CLEAN, CORRUPTED, TARGET)
    with pytest.raises(la.InputError, match="percentages must ascend"):
        curve(GPT2, scored(GPT2), percentages=[5.0, 1.0])
    with pytest.raises(la.InputError, match="unknown axis"):
        curve(GPT2, scored(GPT2), axis="edges")
    with pytest.raises(la.InputError, match="got an empty list"):
        compare_faithfulness(small.model(small.GPT2[0]), [], CLEAN, CORRUPTED, TARGET)
    with pytest.raises(la.InputError, match="another shape"):
        auroc(random_edges(GROUPED, 0), Circuit.of_edges(BY_HAND, CHAIN))


def test_the_wrong_object_is_told_from_the_right_one() -> None:
    model, scores = small.model(small.GPT2[0]), random_edges(BY_HAND, seed=0)
    circuit, args = extract(scores, 20), (CLEAN, CORRUPTED, TARGET)
    with small.untyped():
        with pytest.raises(la.InputError, match=r"circuit must .*Circuit, got EdgeScores: .*ext"):
            evaluate(model, scores, *args)  # type: ignore[arg-type]
        with pytest.raises(la.InputError, match=r"scores must .*EdgeScores, got Circuit: .*edge"):
            auroc(circuit, circuit)  # type: ignore[arg-type]
        with pytest.raises(la.InputError, match=r"a list of .*EdgeScores, got EdgeScores: "):
            compare_faithfulness(model, scores, *args)  # type: ignore[arg-type]
        assert len(extract(scores, np.int64(46))) == 46  # type: ignore[arg-type]
    assert type(extract(scores, 10).metadata["n_chosen"]) is int


def test_results_hold_no_graph() -> None:
    with torch.enable_grad():
        model = small.model(small.GPT2[0])
        scores = edge_scores(model, CLEAN, CORRUPTED, TARGET)
    assert isinstance(scores.scores, np.ndarray) and scores.scores.dtype == np.float64
