"""Attributions against exact patching: the table, and the figures of both."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.stats
import small
import torch

import lens_attr as la
from lens_attr import plots
from lens_attr.circuits import PatchResult, agreement, node_scores, patch, rank_heads
from lens_attr.circuits.agreement import pearson, ranks, top

CLEAN = ["w5 w9 w12 w7 w30", "w8 w7 w6 w5 w11", "w50 w9 w20 w41 w33"]
TARGET = la.LogitDiff([" w6", " w20", " w9"], [" w8", " w21", " w40"])
RECORD = ["attn_out", "mlp_out", "residual", "q", "k", "v", "pattern"]
METHODS = ("gradient_x_input", "lrp", "gim")

gpt2_models = pytest.mark.parametrize("name", small.GPT2)
causal_models = pytest.mark.parametrize("name", small.CAUSAL)


@cache
def relevance(name: str) -> dict[str, la.Relevance]:
    model = small.model(name)
    return {m: la.attribute(model, CLEAN, TARGET, m, record=RECORD) for m in METHODS}


def ablated(name: str, unit: Any = "head", **options: Any) -> PatchResult:
    return patch(small.model(name), CLEAN, None, TARGET, unit, "noise", source="zero", **options)


@gpt2_models
@pytest.mark.parametrize("compare", ["signed", "absolute"])
def test_the_table_by_scipy(name: str, compare: Any) -> None:
    exact = ablated(name)
    table = agreement(relevance(name), exact, compare=compare, k=3).to_pandas()
    change = np.abs if compare == "absolute" else np.asarray
    wanted = change(-exact.effects.numpy().ravel())
    for row in table.to_dict("records"):
        found = relevance(name)[row["method"]].heads("sum").double().mean(dim=0)
        found = change(found.numpy().ravel())
        assert row["pearson"] == pytest.approx(scipy.stats.pearsonr(found, wanted).statistic)
        assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(found, wanted).statistic)
        best = [set(np.argsort(np.abs(v))[-3:].tolist()) for v in (found, wanted)]
        assert row["top_k"] == pytest.approx(len(best[0] & best[1]) / 3)
        assert (row["k"], row["n_cells"], row["compared"]) == (3, 8, compare)
    assert table["spearman"].is_monotonic_decreasing


def test_ties_and_constants() -> None:
    a, b = np.array([1.0, 1, 2, 0, 2]), np.array([5.0, 1, 1, 1, 9])
    assert pearson(ranks(a), ranks(b)) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert np.isnan(pearson(np.ones(3), a[:3]))
    assert top(np.array([1.0, -3, 2, -2]), 2) == {1, 2}


@causal_models
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("unit", ["head", "attn_out", "mlp_out", "resid", "q", "k", "v", "pattern"])
def test_the_right_cells_are_compared(name: str, unit: Any, positions: bool) -> None:
    """Where the model is linear in what is removed, gradient times activation is the effect.

    Scaling the removed activation down makes it so: the exact effect of a tiny removal.
    """
    exact, step = ablated(name, unit, positions=positions), 1e-3
    model = small.model(name)
    r = relevance(name)["gradient_x_input"]
    found = agreement(r, exact, k=2)
    cells = found.scores["gradient_x_input"]
    i = int(np.argmax(np.abs(cells)))
    where = dict(zip(exact.axes, np.unravel_index(i, exact.effects.shape), strict=True))
    hook = {"head": "attn.hook_z", "resid": "hook_resid_pre", "pattern": "attn.hook_pattern"}
    hook_name = hook.get(unit, f"attn.hook_{unit}" if unit in "qkv" else f"hook_{unit}")

    def shrink(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        part: list[Any] = [slice(None)] * activation.ndim
        axes = ("", "head", "query") if unit == "pattern" else ("", "pos", "head")
        for axis, index in where.items():
            if axis != "layer":
                part[axes.index(axis)] = index
        activation = activation.clone()
        activation[tuple(part)] *= 1 - step
        return activation

    def mean_target() -> float:
        logits = model(r.token_ids)[:, -1].double()
        ids = torch.tensor([[6, 8], [20, 21], [9, 40]])
        return float((logits.gather(1, ids)[:, 0] - logits.gather(1, ids)[:, 1]).mean())

    with torch.no_grad():
        before = mean_target()
        with model.hooks(fwd_hooks=[(f"blocks.{where['layer']}.{hook_name}", shrink)]):
            after = mean_target()
    assert (before - after) / step == pytest.approx(cells[i], rel=0.05, abs=0.02)
    assert found.names[i].startswith(f"layer {where['layer']}")


@gpt2_models
def test_rankings_and_single_results(name: str) -> None:
    one = relevance(name)["lrp"]
    ranking = rank_heads(one, "relu_token")
    both = [agreement(it, ablated(name), pool="relu_token") for it in (one, ranking)]
    assert both[0].to_pandas().equals(both[1].to_pandas())
    assert both[0].k == 8  # no more than there are


@gpt2_models
def test_what_agreement_refuses(name: str) -> None:
    model, exact = small.model(name), ablated(name)
    with pytest.raises(la.InputError, match="give at least one relevance"):
        agreement({}, exact)
    plain = la.attribute(model, CLEAN, TARGET)
    with pytest.raises(la.InputError, match=r"mlp_out was not recorded.*record=\['mlp_out'\]"):
        agreement(plain, ablated(name, "mlp_out"))
    with pytest.raises(la.InputError, match="patched heads only"):
        agreement(rank_heads(plain), ablated(name, "mlp_out", positions=False))
    with small.untyped():
        with pytest.raises(la.InputError, match=r"k must be a whole number of at least 1, got 2.5"):
            agreement(plain, exact, k=2.5)  # type: ignore[arg-type]
        with pytest.raises(la.InputError, match="PatchResult cannot be compared with patching"):
            agreement(exact, exact)  # type: ignore[arg-type]
        with pytest.raises(la.InputError, match=r"patched must be .*PatchResult, got Relevance"):
            agreement(plain, plain)  # type: ignore[arg-type]
    with small.untyped(), pytest.raises(la.InputError, match="unknown compare"):
        agreement(plain, exact, compare="sign")  # type: ignore[arg-type]


CORRUPTED = ["w5 w9 w20 w7 w30", "w8 w7 w9 w5 w11", "w50 w9 w21 w41 w33"]


@gpt2_models
@pytest.mark.parametrize("mode", ["noise", "denoise"])
def test_an_attribution_of_something_else_is_refused(name: str, mode: Any) -> None:
    """Relevance and attribution patching speak of the clean prompts, whatever run is patched."""
    model = small.model(name)
    exact = patch(model, CLEAN, CORRUPTED, TARGET, mode=mode)
    assert [list(row[1:]) for row in exact.clean_tokens] == [text.split() for text in CLEAN]
    opposite = la.LogitDiff(TARGET.foil, TARGET.token)
    moved = la.LogitDiff(TARGET.token, TARGET.foil, position=2)
    changed = [*CLEAN[:2], "w50 w9 w20 w41 w34"]
    wrong = {
        r"the target \"logit of 'w8' - .*measured was \"logit of 'w6'": (CLEAN, opposite),
        r"the prompt '.*w41w34', measured was '.*w41w33' \(example 2\)": (changed, TARGET),
        "has 1 examples, 3 were measured": (CLEAN[:1], la.LogitDiff(" w6", " w8")),
        "position 2, measured was 5": (CLEAN, moved),
    }
    for message, (texts, target) in wrong.items():
        with pytest.raises(la.InputError, match=message):
            agreement(la.attribute(model, texts, target, "gim"), exact)
        corrupted = texts[::-1] if len(texts) > 1 else CORRUPTED[:1]
        with pytest.raises(la.InputError, match=message):
            agreement(node_scores(model, texts, corrupted, target, "gim"), exact)
    assert agreement(la.attribute(model, CLEAN, TARGET, "gim"), exact).to_pandas().n_cells[0] == 8


@causal_models
def test_the_top_logit_is_the_same_token_in_every_run(name: str) -> None:
    """Settled on the clean prompt, and found again in the attribution."""
    model = small.model(name)
    explained = la.attribute(model, CLEAN, la.TopLogit(), "gim")
    found = patch(model, CLEAN, CORRUPTED, la.TopLogit())
    assert found.target == explained.target
    top = [" " + label.split("'")[1].strip() for label in explained.target]
    named = patch(model, CLEAN, CORRUPTED, la.Logit(top))
    np.testing.assert_allclose(found.effects, named.effects)
    assert agreement(explained, found).k == 8


def test_results_of_earlier_versions_are_read(tmp_path: Any) -> None:
    """They do not say which prompts were explained, so nothing can be refused."""
    name = small.GPT2[0]
    model = small.model(name)
    path = patch(model, CLEAN, CORRUPTED, TARGET).save(tmp_path)
    again = PatchResult.load(path)
    assert again.clean_tokens and again.position == [5, 5, 5]
    content = json.loads((path / "patching.json").read_text())
    del content["clean_tokens"], content["position"]
    (path / "patching.json").write_text(json.dumps(content))
    old = PatchResult.load(path)
    assert old.clean_tokens == ()
    assert agreement(la.attribute(model, CORRUPTED, TARGET), old).k == 8


NODES = [("head", False), ("head", True), ("resid", True), ("mlp_out", False), ("k", True)]


@causal_models
@pytest.mark.parametrize(("unit", "positions"), NODES)
def test_attribution_patching_is_compared_as_what_it_predicts(
    name: str, unit: Any, positions: bool
) -> None:
    model = small.model(name)
    args = (model, CLEAN, CORRUPTED, TARGET)
    nodes = node_scores(*args, unit=unit, per_position=True)
    noised = patch(*args, unit, "noise", positions=positions)
    found = agreement(nodes, noised)
    table = found.to_pandas().iloc[0]
    predicted = nodes.scores if positions else nodes.scores.sum(axis=-1)
    if positions and noised.axes[-1] == "head":
        predicted = predicted.transpose(0, 2, 1)
    wanted = scipy.stats.pearsonr(predicted.ravel(), noised.effects.numpy().ravel()).statistic
    assert table["pearson"] == pytest.approx(wanted) and table["method"] == "eap"
    np.testing.assert_allclose(found.scores["eap"], -predicted.ravel())


def test_attribution_patching_of_other_units_is_refused() -> None:
    args = (small.model(small.GPT2[0]), CLEAN, CORRUPTED, TARGET)
    nodes = node_scores(*args, unit="q")
    with pytest.raises(la.InputError, match=r"scored 'q' by layer, head, patched were 'head'"):
        agreement(nodes, patch(*args))
    with pytest.raises(la.InputError, match=r"pass the same unit .*per_position=True"):
        agreement(nodes, patch(*args, "q", positions=True))


# ---------------------------------------------------------------------------------- figures


def result(*axes: str, examples: int = 1) -> PatchResult:
    sizes = {"layer": 2, "head": 3, "pos": 4, "query": 4}
    shape = [sizes[axis] for axis in axes]
    values = torch.arange(examples * int(np.prod(shape)), dtype=torch.float64)
    return PatchResult(
        per_example=values.view(examples, *shape),
        unpatched=torch.ones(examples, dtype=torch.float64),
        other=torch.full((examples,), 3.0, dtype=torch.float64),
        axes=axes,
        unit="head" if "head" in axes else "resid",
        mode="denoise",
        source="other",
        target=["logit of 'x'"] * examples,
        str_tokens=[["<b>", " keys", "▁near", "\n"]] * examples,
    )


@pytest.mark.parametrize("show", ["effects", "normalised", "metric"])
def test_the_map_shows_every_cell(show: Any) -> None:
    found = result("layer", "head")
    heat = found.plot(show=show).data[0]
    np.testing.assert_allclose(np.array(heat.z), getattr(found, show))
    assert heat.customdata[1][2] == "layer 1<br>head 2"


def test_positions_carry_their_tokens_and_no_markup() -> None:
    figure = result("layer", "pos").plot()
    assert list(figure.layout.xaxis.ticktext) == ["&lt;b&gt;", "\u00a0keys", "\u00a0near", "↵"]
    several = result("layer", "pos", examples=2).plot()
    assert (
        several.layout.xaxis.ticktext is None and "mean of 2" in several.layout.title.subtitle.text
    )


def test_three_axes_need_a_layer() -> None:
    found = result("layer", "pos", "head")
    np.testing.assert_allclose(np.array(found.plot(layer=1).data[0].z), found.effects[1].T)
    with pytest.raises(la.InputError, match="choose a layer from 0 to 1"):
        found.plot()
    with pytest.raises(la.InputError, match="leave out layer"):
        result("layer", "head").plot(layer=0)
    assert np.array(result("layer").plot().data[0].z).shape == (2, 1)


def test_tiny_effects_read_zero() -> None:
    found = result("layer", "head")
    values = found.per_example.clone()
    values[0, 0, 0] = 1 + 1e-6
    texts = plots.patching(PatchResult(**{**vars(found), "per_example": values})).data[0].text
    assert texts[0][0] == "0" and texts[1][2] == "4"


def test_unknown_show() -> None:
    with small.untyped(), pytest.raises(la.InputError, match="unknown show 'effect'; did you mean"):
        result("layer", "head").plot(show="effect")


@gpt2_models
def test_the_scatter_has_a_panel_per_method(name: str) -> None:
    compared = agreement(relevance(name), ablated(name))
    figure = compared.plot()
    table = compared.to_pandas()
    assert len(figure.data) == len(METHODS)
    for panel, method in zip(figure.data, table["method"], strict=True):
        np.testing.assert_allclose(panel.y, compared.importance)
        assert np.abs(panel.x).max() == pytest.approx(1)
        np.testing.assert_allclose(np.sign(panel.x), np.sign(compared.scores[method]))
    assert table["method"][0] in figure.layout.annotations[0].text
