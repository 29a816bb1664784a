"""Self-repair: exact ablations against a hand-written hook, and the summaries by hand."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path

import handmade
import numpy as np
import pandas as pd
import pytest
import small
import tiny
import torch
from torch import Tensor

import lens_attr as la
from lens_attr.circuits import SelfRepair, self_repair
from lens_attr.graph import resolve

CASES = small.CAUSAL
IDS = tiny.token_ids("gpt2", rows=2)


@cache
def found(name: str, **options: object) -> SelfRepair:
    return self_repair(small.model(name), IDS, tiny.TARGET, thresholds=(0.001, 0.01), **options)  # type: ignore[arg-type]


def ablated(name: str, row: pd.Series, keys: list[int], replace: str = "mean") -> float:
    """The target after replacing some scores of one row, by a plain hook, minus before."""
    model = small.model(name)
    graph = resolve(model)

    def hook(scores: Tensor) -> Tensor:
        scores = scores.clone()
        at = (0, int(row["head"]), int(row["query"]))
        real = scores[at][: int(row["query"]) + 1]
        scores[at][keys] = real.mean() if replace == "mean" else float("-inf")
        return scores

    ids = IDS[int(row.example)][None]
    values = []
    with torch.no_grad():
        for patched in (True, False):
            with ExitStack() as stack:
                if patched:
                    graph.points("scores")[int(row.layer)].on_forward(hook, stack)
                logits = model(ids)[0, -1]
            values.append(float(logits[tiny.TARGET.token] - logits[tiny.TARGET.foil]))
    return values[0] - values[1]


@pytest.mark.parametrize("replace", ["mean", "-inf"])
@pytest.mark.parametrize("name", CASES)
def test_effects_are_exact(name: str, replace: str) -> None:
    result = found(name, replace=replace)
    assert len(result.singles) == 2 * tiny.N_LAYERS * tiny.N_HEADS * IDS.shape[1]
    for _, row in result.singles.iloc[::17].iterrows():
        want = ablated(name, row, [int(row.key)], replace)
        assert row.effect == pytest.approx(want, abs=2e-5)
    assert len(result.pairs) > 5
    for _, row in result.pairs.iloc[::9].iterrows():
        want = ablated(name, row, [int(row.key_1), int(row.key_2)], replace)
        assert row.effect_both == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_prediction_is_score_difference_times_gradient(name: str) -> None:
    """From `la.attribute` with record="scores", which gives score x gradient."""
    result = found(name, methods=("gradient", "gim"))
    model = small.model(name)
    for method in ("gradient", "gim"):
        r = la.attribute(
            model,
            IDS,
            tiny.TARGET,
            method="gradient_x_input" if method == "gradient" else method,
            record=["scores"],
        )
        product = r.records["scores"][:, :, :, -1]  # [example, layer, head, key]
        table = result.singles.set_index(["example", "layer", "head", "key"])[method]
        scores = scores_of(model)[:, :, :, -1]
        mean = scores.mean(dim=-1, keepdim=True)
        want = (mean / scores - 1) * product  # (mean - s) g
        for example, layer, head, key in [(0, 0, 1, 2), (1, 1, 3, 5), (0, 1, 0, 6)]:
            got = table.loc[(example, layer, head, key)]
            assert got == pytest.approx(float(want[example, layer, head, key]), abs=1e-5)


def scores_of(model: object) -> Tensor:
    graph, kept = resolve(model), []
    with torch.no_grad(), ExitStack() as stack:
        for point in graph.points("scores"):
            point.on_forward(lambda s: kept.append(s.detach()), stack)
        model(IDS)  # type: ignore[operator]
    return torch.stack(kept, dim=1)


@pytest.mark.parametrize("backend", tiny.BACKENDS)
def test_small_steps_are_predicted_exactly(backend: str) -> None:
    """Scores that barely differ from their mean: the gradient is the effect, TSG is not."""
    with tiny.precision(tiny.EXACT):
        model = handmade.gate("or", 0.01, backend)
        result = self_repair(model, handmade.GATE_IDS, la.LogitDiff(4, 0), heads=[0])
    singles = result.singles
    np.testing.assert_allclose(singles.gradient, singles.effect, rtol=0.01)
    steep = handmade.gate("or", 3.0, backend)
    with tiny.precision(tiny.EXACT):
        far = self_repair(steep, handmade.GATE_IDS, la.LogitDiff(4, 0), heads=[0]).singles
    assert (far.gradient / far.effect - 1).abs().max() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_other_queries_are_ablated_as_exactly(name: str) -> None:
    result = found(name, queries=(2, -2, 2))
    assert set(result.singles["query"]) == {2, IDS.shape[1] - 2}
    assert not result.singles.duplicated(["example", "layer", "head", "query", "key"]).any()
    for _, row in result.singles.iloc[::13].iterrows():
        assert row.key <= row["query"]
        want = ablated(name, row, [int(row.key)])
        assert row.effect == pytest.approx(want, abs=2e-5)


def test_results_survive_saving(tmp_path: Path) -> None:
    result = found(CASES[0])
    again = SelfRepair.load(result.save(tmp_path))
    pd.testing.assert_frame_equal(again.singles, result.singles)
    pd.testing.assert_frame_equal(again.to_pandas(), result.to_pandas())
    assert again.shape == result.shape and again.target == result.target
    assert again.plot().data and again.groups(0.001).equals(result.groups(0.001))
    (tmp_path / "self_repair.json").write_text('{"format": 1, "shape": [1, 2]}')
    with pytest.raises(la.SavedResultError, match="no saved SelfRepair"):
        SelfRepair.load(tmp_path)


def test_agreement_compares_methods() -> None:
    table = found(CASES[0]).agreement()
    assert table.method.tolist() == ["gradient", "tsg", "gim"]
    assert table.n_single.iloc[0] == len(found(CASES[0]).singles)
    assert (table.spearman_single > 0.3).all()
    assert table.filter(like="_single").abs().iloc[:, :2].max().max() <= 1


def by_hand() -> SelfRepair:
    """Two rows: three interchangeable keys in the first, an additive pair in the second."""
    columns = ["example", "layer", "head", "query", "key_1", "key_2", "strength",
               "effect_1", "effect_2", "effect_both", "gradient"]  # fmt: skip
    rows = [
        (0, 0, 1, 7, 1, 2, 0.5, -0.1, -0.1, -1.0, -0.3),
        (0, 0, 1, 7, 2, 5, 0.5, -0.1, -0.1, -1.0, -1.0),
        (0, 0, 1, 7, 1, 5, 0.05, -0.4, -0.4, -1.0, -2.5),
        (0, 1, 0, 7, 3, 4, 0.2, -0.5, -0.5, -1.0, -1.0),
    ]
    singles = pd.DataFrame(columns=["example", "key", "effect", "gradient"])
    return SelfRepair(
        singles, pd.DataFrame(rows, columns=columns), ["gradient"], "mean", 0, 0, (2, 2)
    )


def test_summaries_by_hand() -> None:
    result = by_hand()
    assert result.to_pandas().interaction.tolist() == pytest.approx([0.8, 0.8, 0.2, 0.0])
    heads = result.per_head(0.0)
    assert heads[0, 1] == pytest.approx(0.6) and heads[1, 0] == pytest.approx(0.0)
    assert np.isnan(heads[0, 0])
    assert result.per_head(0.1)[0, 1] == pytest.approx(0.8)
    groups = result.groups(0.01)
    assert groups["keys"].tolist() == [(1, 2, 5)] and groups["size"].tolist() == [3]
    counts = result.group_counts([0.01, 1.0])
    assert counts.groups.tolist() == [1, 0] and counts.rows.tolist() == [2, 0]
    assert counts.groups_per_row.iloc[0] == 0.5
    table = result.aggregation([0.0, 0.1])
    assert table.under.tolist() == pytest.approx([0.25, 1 / 3])
    assert table.over.tolist() == pytest.approx([0.25, 0.0])
    assert table.error.iloc[0] == pytest.approx((0.7 + 0 + 1.5 + 0) / 4)


def test_distributions_by_hand() -> None:
    """The second row has a pair and no group."""
    table = by_hand().distribution([0.01, 0.3, 1.0])
    rows = [tuple(row) for row in table.itertuples(index=False)]
    assert rows == [
        (0.01, "keys in a group", 3, 1),
        (0.01, "groups in a row", 0, 1),
        (0.01, "groups in a row", 1, 1),
        (0.3, "keys in a group", 3, 1),
        (0.3, "groups in a row", 1, 1),
    ]


def test_the_figure_against_the_threshold() -> None:
    figure = la.plots.self_repair_thresholds(by_hand(), [0.01, 0.3])
    bars = [trace for trace in figure.data if trace.type == "bar"]
    lines = {trace.yaxis: list(trace.y) for trace in figure.data if trace.type == "scatter"}
    assert [list(bar.y) for bar in bars] == [[1], [1, 1], [1], [1]]
    assert sorted(lines.values()) == [[0.25, 0.0], [0.25, 0.5]]  # over, under
    with pytest.raises(la.InputError, match="no pair of keys above"):
        la.plots.self_repair_thresholds(by_hand(), [9.0])


def test_the_or_gate_is_one_group_of_two() -> None:
    with tiny.precision(tiny.EXACT):
        model = handmade.gate("or", 5.0, tiny.BACKENDS[0])
        result = self_repair(model, handmade.GATE_IDS, la.LogitDiff(4, 0), thresholds=(0.01,))
    assert result.groups(0.01)["keys"].tolist() == [(1, 4)]
    heads = result.per_head()
    assert heads[0, 0] > 0.9 and np.isnan(heads[0, 1])  # head 0.1 does nothing
    table = result.aggregation([0.01]).set_index("method")
    assert table.ratio["gradient"] < 0.5 < table.ratio["tsg"]


def test_the_figure_draws_every_pair() -> None:
    result = found(CASES[0])
    figure = result.plot()
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(points) == 1 + len(result.methods)
    assert all(len(trace.x) == len(result.pairs) for trace in points)
    with pytest.raises(la.InputError, match="no pair of keys"):
        result.plot(threshold=1e9)


def test_strong_candidates_are_kept_and_the_rest_counted() -> None:
    full, few = found(CASES[0]), found(CASES[0], max_keys=2)
    assert full.n_dropped == 0 and few.n_dropped > 0
    per_row = few.pairs.groupby(["example", "layer", "head"]).size()
    assert (per_row == 1).all()


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = small.model(name)
    found(name)
    before = small.world(model)
    self_repair(model, IDS[:1], tiny.TARGET, heads=[0])
    assert small.world(model) == before


def test_what_is_refused() -> None:
    model = small.model(CASES[0])
    run = lambda **options: self_repair(model, IDS, tiny.TARGET, **options)  # noqa: E731
    with pytest.raises(la.InputError, match="unknown replace 'maen'; did you mean 'mean'"):
        run(replace="maen")
    with pytest.raises(la.InputError, match="unknown method 'tgs'; did you mean 'tsg'"):
        run(methods=["tgs"])
    with pytest.raises(la.InputError, match=r"layers \[2\] are out of range"):
        run(layers=[2])
    with pytest.raises(la.InputError, match="query 40 of example 0 is out of range"):
        run(queries=[0, 40])
    with small.untyped(), pytest.raises(la.InputError, match=r"queries must be 'explained', 'all'"):
        run(queries="every")
    with pytest.raises(la.InputError, match="max_keys"):
        run(max_keys=1)
    with pytest.raises(la.InputError, match="thresholds"):
        run(thresholds=())
    with small.untyped():
        with pytest.raises(la.InputError, match=r"layers must be a list .*\[0\], got 0"):
            run(layers=0)
        with pytest.raises(la.InputError, match=r"heads must be a list .*got \[\]"):
            run(heads=[])
        with pytest.raises(la.InputError, match=r"batch_size must be a whole number .* got None"):
            run(batch_size=None)
        with pytest.raises(la.InputError, match=r"target must be la\.Logit, .* write la\.Logit\("):
            self_repair(model, IDS, " are")  # type: ignore[arg-type]
    with pytest.raises(la.InputError, match="same name"):
        run(methods=["gim", "gim"])
    with pytest.raises(la.UnsupportedModelError, match="outside the autograd graph"):
        self_repair(tiny.model("opt", "bridge"), IDS, tiny.TARGET)
