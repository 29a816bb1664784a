"""Attribution patching of nodes against exact patching, and the QK fix against a loop."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
import small
import tiny
import torch
from test_edges import CLEAN, CORRUPTED, _nearly_equal_words
from tiny import EXACT, TARGET
from torch import Tensor

import lens_attr as la
from lens_attr.circuits import NodeScores, node_scores, patch
from lens_attr.graph import resolve

UNITS = ["head", "q", "k", "v", "attn_out", "mlp_out", "resid"]
FAMILIES = tiny.on_backends(["gpt2", "llama", "gemma2", "qwen3", "neox"])
QK = [("q", False), ("k", False), ("q", True), ("k", True)]


def scores(case: tuple[str, str], ids: Any = (CLEAN, CORRUPTED), **options: Any) -> NodeScores:
    with tiny.precision(EXACT):
        return node_scores(tiny.model(*case, EXACT), *ids, TARGET, **options)


# ------------------------------------------------------------------------ against exact patching


@pytest.mark.parametrize("case", FAMILIES, ids=tiny.case_id)
def test_scores_are_the_slope_of_exact_patching(case: tuple[str, str]) -> None:
    """Between nearly equal inputs the effect of patching is linear: for every unit."""
    clean, corrupted = CLEAN[:1], CLEAN[:1].clone()
    corrupted[:, 2] = 6
    with tiny.precision(EXACT):
        model = tiny.fresh(*case, EXACT, edit=_nearly_equal_words)
        args = (model, clean, corrupted, TARGET)
        for unit in UNITS:
            want = patch(*args, unit, "noise", positions=False).effects.numpy()  # type: ignore[arg-type]
            fixes = (False, True) if unit in "qk" else (False,)
            for qk_fix in fixes:
                got = node_scores(*args, unit=unit, qk_fix=qk_fix).scores  # type: ignore[arg-type]
                assert got.shape == want.shape
                assert np.abs(got - want).max() < 2e-4 * np.abs(want).max(), (unit, qk_fix)


def test_neurons_sum_to_their_mlp() -> None:
    case = ("gpt2", tiny.BACKENDS[0])
    neurons, whole = scores(case, unit="neuron"), scores(case, unit="mlp_out")
    assert neurons.axes == ("layer", "neuron") and neurons.scores.shape == (2, 128)
    np.testing.assert_allclose(neurons.scores.sum(axis=1), whole.scores, rtol=1e-9)


def test_positions_sum_to_the_whole() -> None:
    case = ("llama", tiny.BACKENDS[0])
    for unit, qk_fix in [("head", False), ("neuron", False), ("resid", False), *QK]:
        split = scores(case, unit=unit, qk_fix=qk_fix, per_position=True)
        whole = scores(case, unit=unit, qk_fix=qk_fix)
        assert split.axes == (*whole.axes, "pos")
        np.testing.assert_allclose(split.scores.sum(axis=-1), whole.scores, atol=1e-12)


def test_masked_models_have_nodes_too() -> None:
    backend = tiny.BACKENDS[-1]
    clean = tiny.token_ids("bert")
    corrupted = clean.clone()
    corrupted[:, 1] = 30
    found = scores(("bert", backend), (clean, corrupted), unit="head")
    assert np.abs(found.scores).max() > 1e-4
    with pytest.raises(la.UnsupportedModelError, match="outside the autograd"):
        scores(("bert", "bridge"), (clean, corrupted), unit="q", qk_fix=True)


# --------------------------------------------------------------------------------------- QK fix


@pytest.mark.parametrize("unit", ["q", "k"])
@pytest.mark.parametrize("case", FAMILIES[:6], ids=tiny.case_id)
def test_the_qk_fix_recomputes_the_softmax(case: tuple[str, str], unit: str) -> None:
    """Against a loop: one query or key replaced in one run, and the pattern read there."""
    ids = CLEAN[:1], CORRUPTED[:1]
    with tiny.precision(EXACT):
        model = tiny.model(*case, EXACT)
        graph = resolve(model)
        got = node_scores(model, *ids, TARGET, unit=unit, qk_fix=True, per_position=True)  # type: ignore[arg-type]
        slopes = la.attribute(model, ids[0], TARGET, "gradient_x_input", record=["pattern"])
        for layer in range(tiny.N_LAYERS):
            point = graph.points(unit)[layer]  # type: ignore[arg-type]
            other = read(model, ids[1], point)
            before = patterns(model, ids[0], layer)
            gradient = slopes.records["pattern"][0, layer] / before.clamp(min=1e-300)
            for head, pos in [(0, 6), (1, 4), (other.shape[2] - 1, 2)]:
                after = patterns(model, ids[0], layer, (point, other, head, pos))
                want = float(((after - before) * gradient).sum())
                assert got.scores[layer, head, pos] == pytest.approx(want, abs=1e-9)


def read(model: Any, ids: Tensor, point: Any) -> Tensor:
    kept: list[Tensor] = []
    with torch.no_grad(), ExitStack() as stack:
        point.on_forward(lambda a: kept.append(a.detach()), stack)
        model(ids)
    return kept[0]


def patterns(model: Any, ids: Tensor, layer: int, patched: Any = None) -> Tensor:
    """Attention of one layer, with one query or key from another run."""
    kept: list[Tensor] = []

    def replace(activation: Tensor) -> Tensor:
        _, other, head, pos = patched
        activation = activation.clone()
        activation[:, pos, head] = other[:, pos, head]
        return activation

    with torch.no_grad(), ExitStack() as stack:
        if patched is not None:
            patched[0].on_forward(replace, stack)
        resolve(model).points("pattern")[layer].on_forward(lambda a: kept.append(a.detach()), stack)
        model(ids)
    return kept[0][0]


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_the_fix_sees_through_a_saturated_softmax(backend: str) -> None:
    """A head that reads one key with all its attention: the model behind it is linear."""
    clean = handmade.GATE_IDS
    corrupted = clean.clone()
    corrupted[0, 1] = handmade.OTHER
    target = la.LogitDiff(4, 0)
    with tiny.precision(EXACT):
        model = handmade.gate("single", 8.0, backend)
        args = (model, clean, corrupted, target)
        exact = float(patch(*args, "k", "noise").effects[0, 0])
        plain = float(node_scores(*args, unit="k").scores[0, 0])
        fixed = float(node_scores(*args, unit="k", qk_fix=True).scores[0, 0])
    assert exact < -0.8
    assert fixed == pytest.approx(exact, rel=0.01)
    assert abs(plain) < 0.1 * abs(exact)


# ------------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("name", small.CAUSAL)
@pytest.mark.parametrize(("unit", "qk_fix"), [("head", False), ("k", True), ("q", True)])
def test_a_padded_data_set_is_the_mean_of_its_examples(name: str, unit: Any, qk_fix: bool) -> None:
    model = small.model(name)
    clean = ["w5 w9 w12 w7", "w30 w31", "w8 w7 w6 w5 w11"]
    corrupted = ["w5 w20 w12 w7", "w30 w33", "w8 w7 w9 w5 w11"]
    options = {"unit": unit, "qk_fix": qk_fix}
    together = node_scores(model, clean, corrupted, TARGET, **options)
    singles = [
        node_scores(model, c, k, TARGET, **options).scores
        for c, k in zip(clean, corrupted, strict=True)
    ]
    np.testing.assert_allclose(together.scores, np.mean(singles, axis=0), atol=2e-5)
    halves = node_scores(model, clean, corrupted, TARGET, batch_size=2, **options)
    np.testing.assert_allclose(halves.scores, together.scores, atol=2e-5)


def test_presets_and_paths_change_the_gradient() -> None:
    case = ("gpt2", tiny.BACKENDS[0])
    found = {m: scores(case, method=m).scores for m in ("eap", "eap_ig", "gim")}
    assert np.abs(found["eap"] - found["eap_ig"]).max() > 1e-3
    assert np.abs(found["eap"] - found["gim"]).max() > 1e-3
    np.testing.assert_allclose(scores(case, method="eap_ig", steps=1).scores, found["eap"])


@pytest.mark.parametrize("name", small.CAUSAL)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small.model(name)
    node_scores(model, CLEAN, CORRUPTED, TARGET)
    before = small.world(model)
    node_scores(model, CLEAN, CORRUPTED, TARGET, "gim", unit="q", qk_fix=True)
    assert small.world(model) == before


def test_results() -> None:
    found = scores(("gpt2", tiny.BACKENDS[0]))
    table = found.to_pandas()
    assert list(table.columns) == ["layer", "head", "score", "method"]
    top = table.iloc[0]
    assert found.scores[top.layer, top["head"]] == top.score
    assert found.ranking.order[-1] == (top.layer, top["head"])
    with pytest.raises(la.InputError, match="ranking of heads"):
        _ = scores(("gpt2", tiny.BACKENDS[0]), unit="neuron").ranking


def test_every_node_but_neurons_has_a_map() -> None:
    case = ("gpt2", tiny.BACKENDS[0])
    heads, layers = scores(case), scores(case, unit="mlp_out")
    np.testing.assert_array_equal(np.array(heads.plot().data[0].z), heads.scores)
    assert heads.plot().data[0].customdata[1][2] == "layer 1<br>head 2"
    np.testing.assert_array_equal(np.array(layers.plot().data[0].z)[:, 0], layers.scores)
    one = scores(case, (CLEAN[:1], CORRUPTED[:1]), unit="resid", per_position=True)
    assert np.array(one.plot().data[0].z).shape == (2, CLEAN.shape[1])
    assert list(one.plot().layout.xaxis.ticktext) == list(one.str_tokens[0])
    split = scores(case, per_position=True)
    drawn = split.plot(layer=1)
    np.testing.assert_array_equal(np.array(drawn.data[0].z), split.scores[1])
    assert (drawn.layout.yaxis.title.text, drawn.layout.xaxis.title.text) == ("head", "position")
    with pytest.raises(la.InputError, match="choose a layer from 0 to 1"):
        split.plot()
    with pytest.raises(la.InputError, match="map of all neurons would be too large"):
        scores(case, unit="neuron").plot()


def test_results_survive_saving(tmp_path: Path) -> None:
    found = scores(("gpt2", tiny.BACKENDS[0]), unit="q", per_position=True)
    again = NodeScores.load(found.save(tmp_path))
    np.testing.assert_array_equal(again.scores, found.scores)
    assert again.to_pandas().equals(found.to_pandas())
    assert (again.axes, again.target, again.n) == (found.axes, found.target, found.n)
    (tmp_path / "nodes.json").write_text('{"format": 1}')
    with pytest.raises(la.SavedResultError, match="no saved NodeScores"):
        NodeScores.load(tmp_path)


def test_what_is_refused() -> None:
    model = small.model(small.GPT2[0])
    with pytest.raises(la.InputError, match="unknown unit 'heads'; did you mean 'head'"):
        node_scores(model, "w5", "w6", TARGET, unit="heads")  # type: ignore[arg-type]
    with pytest.raises(la.InputError, match="qk_fix goes with unit 'q' or 'k'"):
        node_scores(model, "w5", "w6", TARGET, qk_fix=True)
    with pytest.raises(la.InputError, match="same number of tokens"):
        node_scores(model, ["w5 w6", "w7"], ["w6 w6", "w8"], TARGET, per_position=True)
