"""A list of targets: equal to separate calls, from the forwards of one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import small
import tiny
import torch
from memory import Memory
from tiny import EXACT
from torch import Tensor

import lens_attr as la
from lens_attr.attribution import jacobian
from lens_attr.attribution.embeddings import InputEmbeddings
from lens_attr.attribution.jacobian import bytes_of_backward, each_gradient
from lens_attr.attribution.registry import METHODS
from lens_attr.graph import resolve
from lens_attr.graph.tokens import tokenize
from lens_attr.rules.session import Session

SHORT: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4},
    "ig_clipped": {"steps": 4, "theta_plus": 0.05},
    "gradient_shap": {"n_samples": 4},
    "aieg": {"steps": 4},
    "gradient_x_input": {"embeddings": "token"},
}
"""Fewer steps; and no zero-by-construction relevance, which would compare rounding (BERT)."""

ANSWERS = [la.Logit(12), la.LogitDiff(12, 13), la.TopLogit()]
SPREAD = [la.LogitDiff(12, 13), la.TopLogit(), la.Logit(9, position=2)]
COMPARED = ("tokens", "target_value", "head_tokens", "heads_relu_dim")
MAPPINGS = ("records", "flow", "extra")


def parts(result: la.Relevance) -> dict[str, Tensor]:
    """Every number of a result."""
    found = {name: getattr(result, name) for name in COMPARED if getattr(result, name) is not None}
    for mapping in MAPPINGS:
        found |= {f"{mapping} {k}": v.double() for k, v in getattr(result, mapping).items()}
    return found


def assert_same(many: la.Relevance, alone: la.Relevance, k: int, n: int, limit: float) -> None:
    """Rows k, k + n, ... of one are the rows of the other."""
    assert many.target[k::n] == alone.target
    assert torch.equal(many.position[k::n], alone.position)
    for name, want in parts(alone).items():
        got = parts(many)[name][k::n]
        size = max(float(want.abs().max()), 0.1)
        assert float((got - want).abs().max()) <= limit * size, name


def explained(model: Any, method: str, targets: Any, ids: Tensor, **options: Any) -> la.Relevance:
    return tiny.explain(model, method, ids, target=targets, **SHORT.get(method, {}) | options)


def forwards_of(model: Any, method: str, targets: Any, ids: Tensor) -> int:
    """How many forwards an explanation takes."""
    seen: list[int] = []
    with ExitStack() as stack:
        first = resolve(model).points("residual")[0]
        first.on_forward(lambda stream: seen.append(len(stream)), stack)
        explained(model, method, targets, ids)
    return len(seen)


# ------------------------------------------------------------------------------- equal, and cheap


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", small.EVERY)
def test_equals_separate_calls(name: str, method: str) -> None:
    """Rows are text-major: both targets of the first text come before those of the second."""
    model, ids = small.model(name, EXACT), tiny.token_ids(name.split("-")[0], rows=2)
    try:
        many = explained(model, method, SPREAD, ids)
    except la.UnsupportedModelError as refused:
        with pytest.raises(la.UnsupportedModelError, match=str(refused)[:30]):
            explained(model, method, SPREAD[0], ids)
        return
    assert len(many) == 2 * len(SPREAD)
    for k, target in enumerate(SPREAD):
        alone = explained(model, method, target, ids)
        assert_same(many, alone, k, len(SPREAD), 1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [small.EVERY[0], small.EVERY[-1]])
def test_forwards_do_not_grow_with_the_targets(name: str, method: str) -> None:
    """And there are as many of them as the progress bar expects."""
    model, ids = small.model(name), tiny.token_ids(name.split("-")[0], rows=2)
    try:
        alone = forwards_of(model, method, ANSWERS[0], ids)
    except la.UnsupportedModelError:
        return
    assert forwards_of(model, method, ANSWERS, ids) == alone
    graph = resolve(model)
    batch = tokenize(graph, ids)
    explainer = METHODS[method].explainer(**SHORT.get(method, {}))
    for targets in (ANSWERS, SPREAD):
        resolved = [target.resolve(graph, batch) for target in targets]
        predicted = explainer.forwards(graph, batch, resolved)
        assert predicted == forwards_of(model, method, targets, ids)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [small.EVERY[0], small.EVERY[-1]])
def test_forwards_do_not_grow_with_the_positions(name: str, method: str) -> None:
    """7 of them, as in a generated text; a method that costs one forward costs one."""
    model, ids = small.model(name), tiny.token_ids(name.split("-")[0], rows=2)
    everywhere = [la.Logit(9, position=i) for i in range(ids.shape[1])]
    try:
        alone = forwards_of(model, method, everywhere[0], ids)
    except la.UnsupportedModelError:
        return
    assert forwards_of(model, method, everywhere, ids) == alone
    passes = METHODS[method].cost.replace(";", ",").split(",")[0]
    assert (alone == 1) == (passes == "1 forward")


@pytest.mark.parametrize("name", small.MASKED)
def test_a_masked_model_removes_other_tokens_for_every_position(name: str) -> None:
    """What predicts stays, so that texts cannot be shared; the sum over positions is as alone."""
    model, ids = small.model(name, EXACT), tiny.token_ids("bert")
    spread = [la.Logit(9, position=2), la.Logit(9, position=4)]
    many = explained(model, "occlusion", spread, ids, baseline="remove")
    for k, target in enumerate(spread):
        alone = explained(model, "occlusion", target, ids, baseline="remove")
        assert_same(many, alone, k, 2, 1e-12)
        assert many.tokens[k, 2 + 2 * k] == 0


# ------------------------------------------------------------- backwards one by one, and together


RULES_AND_NORMS = ["gradient_x_input", "lrp", "attnlrp", "gim", "gradient_l1"]
PATHS = ["integrated_gradients", "ig_clipped", "gradient_shap", "aieg"]


@pytest.mark.parametrize("method", [*RULES_AND_NORMS, *PATHS])
@pytest.mark.parametrize("name", small.CAUSAL)
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_together_equals_one_by_one(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At T = 8 the tempered softmax takes its other form. Three targets are calls of 2 and 1."""
    model, ids = small.model(name, EXACT), tiny.token_ids("gpt2", rows=2)
    options = {"temperature": 8.0} if method == "gim" else {}
    found = []
    rows = 4 * len(ids) if method in PATHS else len(ids)
    of_one = bytes_of_backward(resolve(model), rows, ids.shape[1])
    for budget, sizes in ((1, [1, 1, 1]), (2 * of_one, [2, 1]), (2**40, [3])):
        done: list[int] = []
        monkeypatch.setattr(jacobian, "MEMORY_AT_ONCE", {"cpu": budget})
        monkeypatch.setattr(jacobian, "backwards_done", done.append)
        found.append(explained(model, method, SPREAD, ids, **options))
        assert done == sizes
    for together in found[1:]:
        assert_same(together, found[0], 0, 1, 1e-12)
        assert together.metadata["target_ids"] == found[0].metadata["target_ids"]
        assert together.metadata.get("fired") == found[0].metadata.get("fired")


def backwards_of(model: Any, **options: Any) -> list[int]:
    """The rows of every backward that a hook of the user's saw."""
    seen: list[int] = []
    with ExitStack() as stack:
        block = resolve(model).points("residual")[1]
        block.on_backward(lambda grad: seen.append(len(grad)), stack)
        la.attribute(model, tiny.token_ids("gpt2"), ANSWERS, **options)
    return seen


@pytest.mark.parametrize("name", small.CAUSAL)
def test_hooks_of_the_user_see_one_backward_after_another(name: str) -> None:
    assert backwards_of(small.model(name)) == [1, 1, 1]


def test_a_rule_of_the_users_own_sees_one_backward_after_another() -> None:
    """It may do what cannot be vectorised, such as looking at a number."""
    seen: list[float] = []

    @la.rules.custom(at="z")
    def look(grad: Tensor) -> Tensor:
        seen.append(float(grad.abs().max()))
        return grad * 0.5

    model, ids = small.model(small.GPT2[0], EXACT), tiny.token_ids("gpt2")
    rules = la.rules.attnlrp() + look
    many = tiny.explain(model, rules, ids, target=ANSWERS)
    assert len(seen) == len(ANSWERS) * tiny.N_LAYERS
    for k, target in enumerate(ANSWERS):
        assert_same(many, tiny.explain(model, rules, ids, target=target), k, 3, 1e-12)


@pytest.mark.parametrize("lowered", [True, False])
@pytest.mark.parametrize("name", small.GPT2)
def test_every_backward_is_audited(name: str, lowered: bool) -> None:
    """A second target that passes by the last block: its rules did not act, though they had."""
    graph, ids = resolve(small.model(name)), tiny.token_ids("gpt2")
    session = Session(graph, la.rules.attnlrp(), strict=True, lowered=lowered)
    inputs, streams = InputEmbeddings(), []

    def read(grad: Tensor) -> dict[str, Tensor]:
        session.verify()
        return {"grad": grad}

    with pytest.raises(la.RuleNotAppliedError, match=r"blocks\.1"), ExitStack() as stack:
        inputs.attach(graph, stack)
        stack.enter_context(session)
        graph.points("residual")[1].on_forward(lambda stream: streams.append(stream), stack)
        logits = graph.logits_at(ids, None, torch.tensor([6]))
        values = [logits[:, 12], streams[0].sum(dim=(1, 2))]
        found = each_gradient(values, inputs.leaf, read, before=session.clear_counts)
        assert next(found)["grad"].abs().max() > 0
        next(found)


# ---------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("name", small.CAUSAL)
def test_records_heads_and_saving(name: str, tmp_path: Any) -> None:
    model, ids = small.model(name, EXACT), tiny.token_ids("gpt2", rows=2)
    options: dict[str, Any] = {"record": ["z", "pattern", "embed"], "batch_size": 1}
    many = tiny.explain(model, "gim", ids, target=SPREAD, progress=False, **options)
    many.save(tmp_path)
    again = la.Relevance.load(tmp_path)
    assert again.target == many.target and again.metadata == many.metadata
    for k, target in enumerate(SPREAD):
        alone = tiny.explain(model, "gim", ids, target=target, progress=False, **options)
        assert_same(again, alone, k, len(SPREAD), 1e-12)
        rows = again.heads("relu_token")[k :: len(SPREAD)]
        assert tiny.error(rows, alone.heads("relu_token")) < 1e-12


@pytest.mark.parametrize("name", small.EVERY)
def test_texts_of_different_length_and_strings(name: str) -> None:
    model = small.model(name, EXACT)
    texts = [small.text(name), small.text(name, "w8 w30 w6")]
    targets = [la.Logit(" w12"), la.LogitDiff([" w7", " w9"], " w13")]
    with tiny.precision(EXACT):
        many = la.attribute(model, texts, targets, batch_size=1, progress=False)
        assert [one.target[0] for one in many] == many.target
        for i, text in enumerate(texts):
            first = la.attribute(model, text, targets[0])
            diff = la.attribute(model, text, la.LogitDiff([" w7", " w9"][i], " w13"))
            assert tiny.error(many[2 * i].tokens, first.tokens) < 1e-9
            assert tiny.error(many[2 * i + 1].tokens, diff.tokens) < 1e-9


def test_several_positions_count_as_several_targets() -> None:
    model, ids = small.model(small.GPT2[0], EXACT), tiny.token_ids("gpt2")
    targets = [la.Logit(12), la.Logit([9, 7], position=[2, 4])]
    many = tiny.explain(model, "attnlrp", ids, target=targets)
    assert len(many) == 3 and many.position.tolist() == [6, 2, 4]
    for row, target in enumerate([la.Logit(12), la.Logit(9, position=2), la.Logit(7, position=4)]):
        assert_same(many, tiny.explain(model, "attnlrp", ids, target=target), row, 3, 1e-12)


def test_a_metric_among_them_reads_all_logits() -> None:
    model, ids = small.model(small.GPT2[0], EXACT), tiny.token_ids("gpt2", rows=2)
    metric = la.Metric(lambda logits: logits[:, -1, 12] - logits[:, 0, 13], unit="logit")
    many = tiny.explain(model, "attnlrp", ids, target=[metric, la.Logit(12)])
    assert_same(many, tiny.explain(model, "attnlrp", ids, target=metric), 0, 2, 1e-12)
    assert_same(many, tiny.explain(model, "attnlrp", ids, target=la.Logit(12)), 1, 2, 1e-12)


def test_compare_and_tables() -> None:
    model = la.load("demo-gpt2")
    answers = [la.Logit(" are"), la.Logit(" is")]
    compared = la.compare(model, "the keys to the cabinet", answers, ["lrp", "gim"])
    assert compared["gim"].target == ["logit of ' are'", "logit of ' is'"]
    frame = compared["lrp"].to_pandas()
    assert frame.groupby("target", sort=False)["example"].unique().map(list).tolist() == [[0], [1]]
    ids = compared["lrp"].metadata["target_ids"]
    assert [model.tokenizer.decode(row) for row in ids] == [" are", " is"]


@pytest.mark.parametrize("method", ["attnlrp", "integrated_gradients", "deeplift", "alti_logit"])
@pytest.mark.parametrize("name", small.GPT2)
def test_nothing_is_left_and_no_grad_is_no_obstacle(name: str, method: str) -> None:
    model, ids = small.model(name), tiny.token_ids("gpt2")
    explained(model, method, ANSWERS, ids)
    before = small.world(model)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            explained(model, method, ANSWERS, ids)
        assert small.world(model) == before


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "the list of targets is empty"),
        ([la.Logit(12), "w5"], r"or a list of them, got str: write la\.Logit\('w5'\)"),
        ("w5", r"write la\.Logit\('w5'\)"),
        ([la.Logit(12), la.LogProb(12)], "one unit, got logit and nat"),
        ([la.Logit(12), la.Logit(99)], "target id 99 is out of range"),
        ([la.Logit(12), la.Logit(12, position=50)], "position 50 of example 0 is out of range"),
    ],
)
def test_bad_lists(targets: Any, message: str) -> None:
    model, ids = small.model(small.GPT2[0]), tiny.token_ids("gpt2")
    with small.untyped(), pytest.raises(la.InputError, match=message):
        la.attribute(model, ids, targets)


def test_a_method_refuses_any_target_it_cannot_explain() -> None:
    with pytest.raises(la.InputError, match="weighted sum of logits"):
        la.attribute(
            small.model(small.GPT2[0]),
            tiny.token_ids("gpt2"),
            [la.LogProb(12), la.LogProb(13)],
            "alti_logit",
        )


# ----------------------------------------------------------------------------------------- memory


def peak_of(model: Any, method: str, n_targets: int, ids: Tensor, **options: Any) -> int:
    """Bytes that live at a time while so many targets are explained."""
    targets = [la.Logit(k % tiny.VOCAB) for k in range(n_targets)]
    with Memory() as memory:
        la.attribute(model, ids, targets, method, progress=False, **options)
    return memory.peak


@pytest.mark.parametrize("method", [*RULES_AND_NORMS, *PATHS])
@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_the_estimate_of_a_backward_is_about_what_it_holds(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = small.model(small.CAUSAL[-1]), torch.arange(60).repeat(2, 1)
    monkeypatch.setattr(jacobian, "MEMORY_AT_ONCE", {"cpu": 2**60})
    monkeypatch.setattr(jacobian, "TOKENS_ALONE", {})
    options = ONE_STEP.get(method, {})
    few, many = (peak_of(model, method, n, ids, **options) for n in (8, 24))
    rows = 2 * next(iter(options.values()), 1)
    estimate = bytes_of_backward(resolve(model), rows, ids.shape[1])
    assert 0.4 < (many - few) / 16 / estimate < 1.3


ONE_STEP = {method: {"steps": 1} for method in PATHS} | {"gradient_shap": {"n_samples": 2}}


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.filterwarnings("ignore::lens_attr.errors.Notice")
def test_memory_grows_with_the_targets_by_the_results_alone(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one budget, 200 targets hold as many gradients at a time as 10 do.

    What the results hold of a target: numbers per token, and AIEG the two mean gradients, of
    which it gives the norms. All gradients at once would be ``rows`` times an embedding.
    """
    model, ids = small.model(small.GPT2[0]), torch.arange(56)[None]
    rows = 16
    options = {"n_samples" if method == "gradient_shap" else "steps": rows}
    budget = 4 * bytes_of_backward(resolve(model), rows, ids.shape[1])
    monkeypatch.setattr(jacobian, "MEMORY_AT_ONCE", {"cpu": budget})
    monkeypatch.setattr(jacobian, "TOKENS_ALONE", {})
    few, many = (peak_of(model, method, n, ids, **options) for n in (10, 200))
    embedding = ids.numel() * model.cfg.d_model * 4
    kept = {"aieg": 2 * embedding, "gradient_shap": rows * ids.numel() * 4}.get(method, 0)
    result = 12 * ids.numel() * 4 + 16 * rows * 8
    assert many - few < 190 * (kept + result) < 190 * 0.7 * rows * embedding
    monkeypatch.setattr(jacobian, "MEMORY_AT_ONCE", {"cpu": 2**60})
    assert peak_of(model, method, 200, ids, **options) > many + 190 * rows * embedding
