"""Attention relevance against exact score ablation: the right cells, and a case with an answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import handmade
import numpy as np
import pytest
import small
import tiny
from pandas.testing import assert_frame_equal
from scipy.stats import spearmanr

import lens_attr as la
from lens_attr.circuits import ScoreAgreement, SelfRepair, score_agreement, self_repair

IDS = tiny.token_ids("gpt2", rows=2)
METHODS = ("gradient_x_input", "gim")


def explained(name: str) -> dict[str, la.Relevance]:
    model = small.model(name)
    return {
        method: la.attribute(model, IDS, tiny.TARGET, method, record=["scores"])
        for method in METHODS
    }


@cache
def ablated(name: str) -> SelfRepair:
    return self_repair(small.model(name), IDS, tiny.TARGET, thresholds=(0.001,))


@cache
def found(name: str) -> ScoreAgreement:
    return score_agreement(explained(name), ablated(name))


@pytest.mark.parametrize("name", small.CAUSAL)
def test_the_right_cells_are_compared(name: str) -> None:
    result, relevance = found(name), explained(name)
    assert len(result.singles) == 2 * tiny.N_LAYERS * tiny.N_HEADS * IDS.shape[1]
    np.testing.assert_array_equal(result.singles.exact, -ablated(name).singles.effect)
    np.testing.assert_array_equal(result.pairs.exact, -ablated(name).pairs.effect_both)
    for method in METHODS:
        scores = relevance[method].records["scores"]
        for row in result.singles.iloc[::13].to_dict("records"):
            cell = scores[row["example"], row["layer"], row["head"], -1, row["key"]]
            assert row[method] == pytest.approx(float(cell))
        for row in result.pairs.iloc[::5].to_dict("records"):
            of_head = scores[row["example"], row["layer"], row["head"], row["query"]]
            wanted = of_head[row["key_1"]] + of_head[row["key_2"]]
            assert row[method] == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("name", small.CAUSAL)
def test_the_table_by_scipy(name: str) -> None:
    result = found(name)
    table = result.to_pandas().set_index("method")
    for method in METHODS:
        single, joint = result.singles, result.pairs
        wanted = spearmanr(single[method], single.exact).statistic
        assert table.spearman_single[method] == pytest.approx(wanted)
        wanted = np.corrcoef(joint[method], joint.exact)[0, 1]
        assert table.pearson_joint[method] == pytest.approx(wanted)
    assert table.index.tolist() == table.spearman_single.sort_values(ascending=False).index.tolist()


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_gim_sees_the_interchangeable_keys(backend: str) -> None:
    """OR-gate: the two keys that carry the answer stand out, for the joint ablation and for GIM."""
    with tiny.precision(tiny.EXACT):
        model, target = handmade.gate("or", 5.0, backend), la.LogitDiff(4, 0)
        args = (model, handmade.GATE_IDS, target)
        repair = self_repair(*args, heads=[0], thresholds=(0.0,))
        relevance = {method: la.attribute(*args, method, record=["scores"]) for method in METHODS}
    result = score_agreement(relevance, repair)
    joint = result.pairs.query("key_1 == 1 and key_2 == 4").iloc[0]
    best = result.singles.nlargest(2, "gim")
    assert set(best.key) == {1, 4}
    assert joint.exact > 0.4
    share = {method: joint[method] / joint.exact for method in METHODS}
    assert share["gradient_x_input"] < share["gim"]


def test_the_figure_has_a_panel_per_method_and_every_score() -> None:
    result = found(small.CAUSAL[0])
    figure = result.plot(example=1)
    assert len(figure.data) == 1 + len(METHODS)
    exact = figure.data[0]
    assert np.shape(exact.z) == (tiny.N_LAYERS * tiny.N_HEADS, IDS.shape[1])
    assert np.nanmax(np.abs(np.asarray(exact.z, float))) == pytest.approx(1.0)
    row = result.singles.query("example == 1 and layer == 1 and head == 2 and key == 3").iloc[0]
    hover = exact.customdata[list(exact.y).index("1.2")][3]
    assert "layer 1, head 2" in hover and f"{row.exact:+.4g}" in hover and "key 3" in hover
    with pytest.raises(la.InputError, match="example 2 is out of range"):
        result.plot(example=2)


@pytest.mark.parametrize("name", small.CAUSAL)
def test_every_query_is_compared(name: str) -> None:
    model, text = small.model(name), IDS[:1]
    repair = self_repair(model, text, tiny.TARGET, queries="all", layers=[0])
    r = la.attribute(model, text, tiny.TARGET, "gim", record=["scores"])
    result = score_agreement(r, repair)
    length = IDS.shape[1]
    assert len(result.singles) == tiny.N_HEADS * length * (length + 1) // 2
    row = result.singles.query("layer == 0 and head == 2 and query == 3 and key == 1").iloc[0]
    assert row.gim == pytest.approx(float(r.records["scores"][0, 0, 2, 3, 1]))
    assert "query 3" in result.plot(query=3).layout.title.subtitle.text
    assert f"query {length - 1}" in result.plot().layout.title.subtitle.text
    with pytest.raises(la.InputError, match="query 99 was not ablated in example 0"):
        result.plot(query=99)


def test_results_survive_saving(tmp_path: Path) -> None:
    result = found(small.CAUSAL[0])
    again = ScoreAgreement.load(result.save(tmp_path))
    assert_frame_equal(again.to_pandas(), result.to_pandas())
    assert_frame_equal(again.pairs, result.pairs)
    assert again.str_tokens == result.str_tokens and again.plot(example=1).data
    (tmp_path / "score_agreement.json").write_text('{"format": 1}')
    with pytest.raises(la.SavedResultError, match="no saved ScoreAgreement"):
        ScoreAgreement.load(tmp_path)


def test_what_is_refused() -> None:
    name = small.CAUSAL[0]
    model, repair = small.model(name), ablated(name)
    with pytest.raises(la.InputError, match="at least one"):
        score_agreement({}, repair)
    bare = la.attribute(model, IDS, tiny.TARGET, "gim")
    with pytest.raises(la.InputError, match=r'record=\["scores"\]'):
        score_agreement(bare, repair)
    with pytest.raises(la.InputError, match="'exact' names a column"):
        score_agreement({"exact": bare}, repair)
    one = la.attribute(model, IDS[:1], tiny.TARGET, "gim", record=["scores"])
    with pytest.raises(la.InputError, match="gim has 1 examples, 2 were measured"):
        score_agreement(one, repair)
    opposite = la.LogitDiff(tiny.TARGET.foil, tiny.TARGET.token)
    turned = la.attribute(model, IDS, opposite, "gim", record=["scores"])
    with pytest.raises(la.InputError, match=r"gim explains the target .*measured was"):
        score_agreement(turned, repair)
    other = la.attribute(model, IDS.flip(0), tiny.TARGET, "gim", record=["scores"])
    with pytest.raises(la.InputError, match=r"gim explains the text .*measured was"):
        score_agreement(other, repair)
    with small.untyped(), pytest.raises(la.InputError, match=r"ablated must be .*SelfRepair"):
        score_agreement(other, other)  # type: ignore[arg-type]
    elsewhere = la.LogitDiff(tiny.TARGET.token, tiny.TARGET.foil, position=3)
    moved = la.attribute(model, IDS, elsewhere, "gim", record=["scores"])
    with pytest.raises(la.InputError, match="explains position 3, measured was"):
        score_agreement(moved, repair)
