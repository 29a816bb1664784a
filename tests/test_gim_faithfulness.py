"""GIM's faithfulness: what is replaced, by what, and which share of the logit goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lens_attr as la
from lens_attr.errors import InputError
from lens_attr.evaluation import (
    BenchTable,
    Faithfulness,
    bench_faithfulness,
    compare_runs,
    faithfulness,
    tasks,
)
from lens_attr.evaluation.baselines import BASELINES
from lens_attr.evaluation.faithfulness import edits_of, headline, loss, n_left
from lens_attr.graph import resolve
from lens_attr.types import Sample

DEMO = ("demo-gpt2", "demo-llama", "demo-bert")
N, LAYER = 5, 1
SETTINGS = Faithfulness(layers=[LAYER], contrastive=True, embeddings="token")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: la.load(name, device="cpu") for name in DEMO}


@pytest.fixture(scope="module")
def found(models: dict[str, Any]) -> dict[str, BenchTable]:
    return {
        name: bench_faithfulness(model, tasks.built_in("sva", N), ["gradient_x_input"],
                                 settings=SETTINGS, batch_size=3)
        for name, model in models.items()
    }  # fmt: skip


# --- closed forms


def test_a_loss_is_the_mean_share_that_goes() -> None:
    assert loss(np.array([4.0, 4.0]), 4.0) == 0
    assert loss(np.array([2.0, 0.0, -4.0]), 4.0) == pytest.approx((0.5 + 1 + 2) / 3)


@pytest.mark.parametrize(
    ("masked", "n", "left"),
    [(0.5, 10, 5), (0.5, 9, 5), (0.8, 10, 2), (0.9, 10, 1), (0.95, 10, 1), (0.99, 200, 2)],
)
def test_what_is_left_is_at_least_one_token(masked: float, n: int, left: int) -> None:
    assert n_left(masked, n) == left


@given(st.integers(2, 80), st.integers(0, 5), st.randoms(use_true_random=False))
def test_edits_go_down_the_ranking_and_spare_special_tokens(n: int, special: int, rng: Any) -> None:
    words = [[special + i] for i in range(n)]
    order = rng.sample(range(n), n)
    without, only = edits_of(words, order, special + n, Faithfulness())
    assert len(without) == min(50, n) and len(only) == 5
    assert without[:, :special].all() and only[:, :special].all()
    for k, row in enumerate(without, start=1):
        assert sorted(np.flatnonzero(~row)) == sorted(special + i for i in order[:k])
    for share, row in zip((0.5, 0.8, 0.9, 0.95, 0.99), only, strict=True):
        kept = [special + i for i in order[: n_left(share, n)]]
        assert sorted(np.flatnonzero(row[special:]) + special) == sorted(kept)


def test_the_table_agrees_with_sums_by_hand_on_1000_random_cases() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(1000):
        without, only = (rng.normal(size=size).tolist() for size in (rng.integers(1, 51), 5))
        rows.append({"sample": i, "whole": float(rng.uniform(0.1, 9)), "without": without,
                     "only": only, "degenerate": False})  # fmt: skip
    values = headline(pd.DataFrame(rows))
    for i, row in enumerate(rows):
        for metric, side in (("comprehensiveness", "without"), ("sufficiency", "only")):
            total = 0.0
            for value in row[side]:
                total += (row["whole"] - value) / row["whole"]
            assert values[metric][i] == pytest.approx(total / len(row[side]), rel=1e-12, abs=1e-12)


# --- against one sample and one edit at a time


def run_once(model: Any, ids: list[int], position: int, hooks: Any = ()) -> Tensor:
    """Logits by the model's own forward."""
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model(torch.tensor([ids]))[0, position].double()


def gradient_times_stream(model: Any, ids: list[int], position: int, a: int, b: int) -> Any:
    """Activation x gradient of the stream before the block, by plain autograd."""
    leaves: list[Tensor] = []

    def make_leaf(stream: Tensor, hook: Any) -> Tensor:
        leaves.append(stream.detach().requires_grad_())
        return leaves[0]

    with (
        torch.enable_grad(),
        model.hooks(fwd_hooks=[(f"blocks.{LAYER}.hook_resid_pre", make_leaf)]),
    ):
        logits = model(torch.tensor([ids]))[0, position]
        (grad,) = torch.autograd.grad(logits[a] - logits[b], leaves[0])
    return (leaves[0].detach() * grad)[0].sum(-1).double().numpy()


def slow_values(
    scores: Any, ranked: list[int], lead: Any, replaced: Any, whole: float
) -> tuple[float, float]:
    """Both measures, edit by edit."""
    order = sorted(ranked, key=lambda i: -scores[i])
    lost = [1 - lead(replaced(order[:k])) / whole for k in range(1, min(50, len(order)) + 1)]
    shares = []
    for masked in (0.5, 0.8, 0.9, 0.95, 0.99):
        kept = max(1, len(order) - int(masked * len(order)))
        shares.append(1 - lead(replaced(order[kept:])) / whole)
    return sum(lost) / len(lost), sum(shares) / len(shares)


@pytest.mark.parametrize("name", DEMO)
def test_it_agrees_with_a_slow_implementation(
    models: dict[str, Any], found: dict[str, BenchTable], name: str
) -> None:
    model, graph = models[name], resolve(models[name])
    samples = tasks.view(graph, tasks.built_in("sva", N)).samples
    point = f"blocks.{LAYER}.hook_resid_pre"
    space = graph.tokenizer.mask_token_id
    if not graph.is_masked_model:
        (space,) = graph.tokenizer(" ", add_special_tokens=False)["input_ids"][-1:]
    streams: list[Tensor] = []
    keep = [(point, lambda stream, hook: streams.append(stream[0].double()))]
    for one in samples:
        run_once(model, list(one.token_ids), one.position, keep)
    words = {s.index: [i for i in range(len(s)) if not s.special[i]] for s in samples}
    pairs = zip(samples, streams, strict=True)
    mean = torch.cat([stream[words[s.index]] for s, stream in pairs]).mean(0)
    for one in samples:
        ids, answer, foil = list(one.token_ids), one.answer or 0, one.foil or 0
        logits = run_once(model, ids, one.position)
        a, b = (answer, foil) if logits[answer] > logits[foil] else (foil, answer)
        whole = float(logits[a] - logits[b])

        def by_tokens(gone: list[int], one: Any = one, ids: Any = ids) -> Tensor:
            edited = [space if i in gone else token for i, token in enumerate(ids)]
            return run_once(model, edited, one.position)

        def by_stream(gone: list[int], one: Any = one, ids: Any = ids) -> Tensor:
            def put(stream: Tensor, hook: Any) -> Tensor:
                stream = stream.clone()
                stream[0, gone] = mean.to(stream.dtype)
                return stream

            return run_once(model, ids, one.position, [(point, put)])

        def lead(logits: Tensor, a: int = a, b: int = b) -> float:
            return float(logits[a] - logits[b])

        target = la.LogitDiff(a, b)
        given = la.attribute(
            model, torch.tensor([ids]), target, "gradient_x_input", embeddings="token"
        )
        inside = gradient_times_stream(model, ids, one.position, a, b)
        for task, scores, replaced in (
            ("sva", found[name].samples["sva", "gradient_x_input"], by_tokens),
            (f"sva/layer {LAYER}", inside, by_stream),
        ):
            frame = found[name].samples[task, "gradient_x_input"].set_index("sample")
            row = frame.loc[one.index]
            mine = given.tokens[0].double().numpy() if task == "sva" else scores
            np.testing.assert_allclose(row["scores"], mine, atol=2e-4 * np.abs(mine).max())
            expected = slow_values(row["scores"], words[one.index], lead, replaced, whole)
            got = headline(frame.loc[[one.index]])
            both = (got["comprehensiveness"][0], got["sufficiency"][0])
            assert both == pytest.approx(expected, rel=1e-3, abs=1e-4)


# --- what stands in the tables


def test_every_table_holds_the_baselines(found: dict[str, BenchTable]) -> None:
    rows = found["demo-gpt2"].rows
    for task in ("sva", f"sva/layer {LAYER}"):
        mine = rows[rows["task"] == task]
        assert set(mine["method"]) == {"gradient_x_input", *BASELINES}
        assert set(mine["metric"]) == {"comprehensiveness", "sufficiency", "degenerate"}
    assert "5 inputs have fewer than 50 tokens" in str(found["demo-gpt2"])
    assert "'[MASK]'" in str(found["demo-bert"])


def test_what_matters_goes_first_under_attnlrp(models: dict[str, Any]) -> None:
    table = bench_faithfulness(
        models["demo-gpt2"],
        tasks.built_in("sva", 50),
        ["attnlrp"],
        settings=Faithfulness(layers=()),
    )
    for metric in ("comprehensiveness", "sufficiency"):
        assert table.beats_random(metric)["beats_random"].all()
    by_last = table.value("first_token", "sva", "comprehensiveness")
    assert not by_last.low > table.value("random", "sva", "comprehensiveness").high


def test_batches_change_nothing(models: dict[str, Any], found: dict[str, BenchTable]) -> None:
    one = bench_faithfulness(
        models["demo-llama"], tasks.built_in("sva", N), ["gradient_x_input"], settings=SETTINGS,
        batch_size=1,
    )  # fmt: skip
    np.testing.assert_allclose(
        one.rows["value"], found["demo-llama"].rows["value"], rtol=1e-3, atol=1e-5
    )


def test_a_stopped_run_goes_on_where_it_was(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: Path | None) -> BenchTable:
        return bench_faithfulness(
            models["demo-gpt2"], tasks.built_in("sva", 6), ["lrp"], batch_size=2, out=out,
            settings=Faithfulness(layers=[0]),
        )  # fmt: skip

    whole, calls, real = run(None), [], faithfulness.values_of

    def stop_after_ten(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(faithfulness, "values_of", stop_after_ten)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    resumed = run(tmp_path)
    assert len(calls) == 11 + 2 * 5 * 3 - 10  # two tables of five methods, three batches each
    pd.testing.assert_frame_equal(resumed.rows, whole.rows)
    pd.testing.assert_frame_equal(BenchTable.load(tmp_path).rows, whole.rows)
    same = compare_runs(resumed, BenchTable.load(tmp_path))
    assert (same["difference"] == 0).all() and set(same["task"]) == {"sva", "sva/layer 0"}


def test_methods_without_relevance_inside_are_in_the_tokens_table_only(
    models: dict[str, Any],
) -> None:
    with pytest.warns(la.Notice, match="attention_only: gives no relevance inside the model"):
        table = bench_faithfulness(
            models["demo-gpt2"], tasks.built_in("sva", 3), ["attention_only"], settings=SETTINGS
        )
    assert ("sva", "attention_only") in table.samples
    assert (f"sva/layer {LAYER}", "attention_only") not in table.samples


def test_logits_without_shares_are_dropped_and_counted(models: dict[str, Any]) -> None:
    """A model whose logits are all negative, as GPT-2's are."""
    model = la.load("demo-gpt2", device="cpu")
    with torch.no_grad():
        model.unembed.b_U.sub_(1000.0)
    task = tasks.built_in("sva", 4)
    none = bench_faithfulness(model, task, ["lrp"], settings=Faithfulness(layers=()))
    assert none.tasks["sva"]["dropped"] == {faithfulness.NOT_POSITIVE: 4}
    assert "Nothing is left: every sample was dropped." in str(none)
    assert none.value("lrp", "sva", "comprehensiveness").n == 0
    leads = Faithfulness(layers=(), contrastive=True)
    led = bench_faithfulness(model, task, ["lrp"], settings=leads)
    assert led.tasks["sva"]["used"] == 4


def test_texts_without_an_answer_explain_the_prediction(models: dict[str, Any]) -> None:
    model = models["demo-gpt2"]
    task = tasks.Task("texts", [Sample("the keys near the old cabinet", "", "")])
    table = bench_faithfulness(model, task, ["lrp"], settings=Faithfulness(layers=()))
    row = table.samples["texts", "samples"].iloc[0]
    top = run_once(model, model.to_tokens("the keys near the old cabinet")[0].tolist(), -1)
    assert row["whole"] == pytest.approx(float(top.max()), rel=1e-4) and row["foil"] is None


def test_nothing_is_left_on_the_model(models: dict[str, Any]) -> None:
    model = models["demo-gpt2"]
    before = small.world(model)
    bench_faithfulness(model, tasks.built_in("sva", 2), ["lrp"], settings=SETTINGS)
    assert small.world(model) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top": 0}, "top must be at least 1"),
        ({"masked": ()}, "shares between 0 and 1"),
        ({"masked": (0.5, 1.0)}, "shares between 0 and 1"),
        ({"layers": [9]}, "layers must be different and of 0 to 3"),
        ({"layers": [1, 1]}, "layers must be different"),
        ({"token": " extraordinarily"}, "tokens for this tokenizer: name one token"),
    ],
)
def test_what_makes_no_sense_is_refused(
    models: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bench_faithfulness(
            models["demo-gpt2"], tasks.built_in("sva", 1), ["lrp"],
            settings=Faithfulness(**settings),
        )  # fmt: skip
